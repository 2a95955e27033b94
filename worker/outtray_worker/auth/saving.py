"""Saving a refresh, for as long as it takes: what a provider rotated is nowhere else.

While the database is away a task of its own tries again, and nobody refreshes that mailbox here meanwhile: the refresh
token in the database is an old one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar
from uuid import UUID

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg_pool import PoolTimeout

from outtray_schema.vault import Vault
from outtray_worker.auth import store
from outtray_worker.auth.store import Renewal

log = structlog.get_logger()
T = TypeVar("T")

AGAIN = (0.2, 5.0)
"""Seconds between two tries to save, doubling."""

Connection = Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]]


class Saving:
    """One process's refreshes on their way into the database, and all else that must outlive a cancelled turn."""

    def __init__(self, connection: Connection, vault: Vault, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._vault = vault
        self._clock = clock
        self._waiting: dict[UUID, asyncio.Task[None]] = {}
        self._vital: set[asyncio.Task[Any]] = set()

    async def save(self, renewal: Renewal, asked_at: float) -> bool:
        """False: newer ones stand in the database. True: it is saved, or will be."""
        try:
            return await self._save(renewal, asked_at)
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("a refreshed token waits to be saved", error=type(error).__name__)
            self._waiting[renewal.mailbox_id] = self._spawn(self._save_for_ever(renewal, asked_at))
            return True

    async def done(self, mailbox_id: UUID) -> None:
        """Wait a moment for this mailbox's last refresh. Raises psycopg's error while it is not saved."""
        waiting = self._waiting.get(mailbox_id)
        if waiting is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN[0] * 2):
                    await asyncio.shield(waiting)
        if mailbox_id in self._waiting:
            raise psycopg.OperationalError("a refreshed token is not saved yet")

    async def _save(self, renewal: Renewal, asked_at: float) -> bool:
        async with self._connection() as connection:
            lifetime = renewal.grant.lifetime - (self._clock() - asked_at)
            if await store.save(connection, self._vault, renewal, lifetime):
                return True
            return await store.is_saved(connection, self._vault, renewal)

    async def _save_for_ever(self, renewal: Renewal, asked_at: float) -> None:
        pause, most = AGAIN
        while True:
            await asyncio.sleep(pause)
            with contextlib.suppress(psycopg.Error, PoolTimeout):
                await self._save(renewal, asked_at)
                break
            pause = min(pause * 2, most)
        self._waiting.pop(renewal.mailbox_id, None)

    async def outliving(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work that goes on should the waiter be cancelled."""
        return await asyncio.shield(self._spawn(work))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        def ended(task: asyncio.Task[T]) -> None:
            self._vital.discard(task)
            _ = task.cancelled() or task.exception()  # whoever waited has it; if nobody did, nobody misses it

        task = asyncio.create_task(work)
        self._vital.add(task)
        task.add_done_callback(ended)
        return task

    async def close(self, within: float) -> None:
        """Give what is under way so many seconds, then give it up."""
        if self._vital:
            await asyncio.wait(list(self._vital), timeout=within)
        for task in list(self._vital):
            task.cancel()
