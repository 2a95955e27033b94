"""Watching a refused OAuth client: when it works again, whoever was still being parked for it is freed as well.

A turn may read the client as refused, and write its mailbox's park only after everybody was freed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import PoolTimeout

from outtray_worker.auth.apps import ProviderApps, free

LOOK_AGAIN = 2.0
"""Seconds between two looks at a refused client."""
FREE_AGAIN = 10.0
"""Seconds after its return until its mailboxes are freed once more: a turn under way has written its park by then."""

Connection = Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]]


class Watch:
    """The refused clients that one process knows of, each looked at by one task."""

    def __init__(self, connection: Connection, apps: ProviderApps) -> None:
        self._connection = connection
        self._apps = apps
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, name: str) -> None:
        """Look at this client until it works again."""
        if name not in self._tasks:
            self._tasks[name] = asyncio.create_task(self._until_free(name))
            self._tasks[name].add_done_callback(lambda _: self._tasks.pop(name, None))

    async def _until_free(self, name: str) -> None:
        while await self._is_refused(name):  # noqa: ASYNC110 - it is a row in the database that changes
            await asyncio.sleep(LOOK_AGAIN)
        for pause in (0.0, FREE_AGAIN):
            await asyncio.sleep(pause)
            with contextlib.suppress(psycopg.Error, PoolTimeout):
                async with self._connection() as connection:
                    await free(connection, name)

    async def _is_refused(self, name: str) -> bool:
        try:
            async with self._connection() as connection:
                app = await self._apps.read_anew(connection, name)
        except (psycopg.Error, PoolTimeout):
            return True
        return app is not None and app.refused

    def close(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
