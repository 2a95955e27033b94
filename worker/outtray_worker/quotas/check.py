"""What the turns of one process ask about quotas: what a round's mailboxes may send, and when what does not fit will."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from outtray_schema.plans import Limits, effective_limits
from outtray_worker.claim import ClaimedMailbox, DueMessage
from outtray_worker.quotas.ledger import Allowance, frees_at, read_allowances, read_externals
from outtray_worker.quotas.pace import Want, used_last_minute

APP_PACES = "SELECT name, per_minute FROM outtray.provider_app WHERE name = ANY(%s) AND per_minute IS NOT NULL"


class Quotas:
    """Reads ledgers and paces; keeps nothing between turns."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def read(self, connection: AsyncConnection[Any], boxes: Sequence[ClaimedMailbox]) -> dict[UUID, Allowance]:
        """What each claimed mailbox may still send in its rolling 24 hours."""
        return await read_allowances(connection, [(box.id, limits_of(box)) for box in boxes])

    async def wants(
        self, connection: AsyncConnection[Any], boxes: Sequence[ClaimedMailbox], due: Mapping[UUID, int]
    ) -> dict[UUID, list[Want]]:
        """The buckets that each mailbox's turn needs tokens from; none for a mailbox without a pace."""
        paced = [box for box in boxes if limits_of(box).per_minute is not None and due.get(box.id)]
        apps = await self._app_paces(connection, [box.provider_app for box in boxes if box.provider_app])
        used = await used_last_minute(connection, [box.id for box in paced]) if paced else {}
        wants: dict[UUID, list[Want]] = {box.id: [] for box in boxes}
        for box in paced:
            wants[box.id].append(_mailbox_want(box, due[box.id], used.get(box.id, 0)))
        for box in boxes:
            if box.provider_app in apps and due.get(box.id):
                wants[box.id].append(_app_want(box.provider_app, apps[box.provider_app], due[box.id]))
        return wants

    async def _app_paces(self, connection: AsyncConnection[Any], names: Sequence[str]) -> dict[str | None, int]:
        if not names:
            return {}
        cursor = await connection.execute(APP_PACES, [list(set(names))])
        return dict(await cursor.fetchall())

    async def binding(self, box: ClaimedMailbox, allowance: Allowance, message: DueMessage) -> str | None:
        """The limit that this message would break now; None: it fits."""
        if not allowance.needs_externals:
            return allowance.binding(message)
        async with self._pool.connection() as connection:
            return allowance.binding(message, await read_externals(connection, message.id))

    async def frees_in(self, box: ClaimedMailbox, message: DueMessage) -> timedelta | None:
        """How long until this message fits its mailbox's limits, on the database's clock. None: it never can."""
        limits = limits_of(box)
        async with self._pool.connection() as connection:
            externals = await read_externals(connection, message.id) if limits.unique_external is not None else ()
            frees = await frees_at(connection, box.id, limits, message, externals)
            row = await (await connection.execute("SELECT outtray.outtray_now()")).fetchone()
        now: datetime = row[0] if row else message.now
        return None if frees.at is None else max(timedelta(0), frees.at - now)


def limits_of(box: ClaimedMailbox) -> Limits:
    """The mailbox's plan with its owner's overrides."""
    return _limits(box.plan, tuple(sorted(box.limits.items())), box.provider)


@lru_cache(maxsize=4096)
def _limits(plan: str, overrides: tuple[tuple[str, Any], ...], provider: str) -> Limits:
    return effective_limits(plan, dict(overrides), provider)


def _mailbox_want(box: ClaimedMailbox, due: int, used: int) -> Want:
    limits = limits_of(box)
    return Want(f"mailbox:{box.id}", limits.per_minute or 1, limits.burst, min(due, limits.burst), used)


def _app_want(name: str | None, per_minute: int, due: int) -> Want:
    burst = max(1, per_minute // 60)
    return Want(f"app:{name}", per_minute, burst, min(due, burst), 0)
