"""What turns ask about quotas: what a round's mailboxes may send, how fast, and when what does not fit will."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from outtray_schema.errors import InvalidMailbox
from outtray_schema.ledger import NOBODY, Allowance
from outtray_schema.plans import Limits, effective_limits
from outtray_worker.claim import ClaimedMailbox, DueMessage
from outtray_worker.quotas.ledger import frees_at, read_allowances, read_externals
from outtray_worker.quotas.pace import Want, bucket_key
from outtray_worker.quotas.usage import AppPace, read_app_paces, used_last_minute

log = structlog.get_logger()

UNREADABLE = "limits that this version does not know"
"""The binding limit of a mailbox whose plan or limits another version wrote: it waits, and nothing is guessed."""

LOOK_AGAIN = timedelta(hours=1)


class Quotas:
    """Reads for a whole round on the claim's connection, for a message that waits on the pool's. Keeps nothing."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def read(self, connection: AsyncConnection[Any], claimed: Sequence[ClaimedMailbox]) -> dict[UUID, Allowance]:
        """What each claimed mailbox may still send today. Mailboxes without a daily limit cost nothing."""
        return await read_allowances(connection, [(box.id, limits_of(box) or Limits()) for box in claimed])

    async def wants(
        self, connection: AsyncConnection[Any], claimed: Sequence[ClaimedMailbox], due: Mapping[UUID, int]
    ) -> dict[UUID, list[Want]]:
        """The buckets that each claimed mailbox draws from, for as many tokens as it has messages due."""
        limits = {box.id: limits_of(box) or Limits() for box in claimed}
        used = await used_last_minute(connection, [box for box, its in limits.items() if its.per_minute])
        apps = await read_app_paces(connection, sorted({box.provider_app for box in claimed if box.provider_app}))
        return {
            box.id: [
                *_own_bucket(box, limits[box.id], due.get(box.id, 0), used.get(box.id)),
                *_app_bucket(box, apps.get(box.provider_app or ""), due.get(box.id, 0)),
            ]
            for box in claimed
        }

    async def binding(self, box: ClaimedMailbox, allowance: Allowance, message: DueMessage) -> str | None:
        """The limit that this message would break now, or None. Reads its recipients where unique ones are limited."""
        if limits_of(box) is None:
            return UNREADABLE
        externals = NOBODY
        if allowance.needs_externals:
            async with self._pool.connection() as connection:
                externals = await read_externals(connection, message.id)
        return allowance.binding(message, externals)

    async def frees_in(self, box: ClaimedMailbox, message: DueMessage) -> timedelta | None:
        """How long until this message fits the mailbox's limits; None: it never can."""
        limits = limits_of(box)
        if limits is None:
            return LOOK_AGAIN
        async with self._pool.connection() as connection:
            unique = limits.unique_external is not None
            externals = await read_externals(connection, message.id) if unique else NOBODY
            free = await frees_at(connection, box.id, limits, message, externals)
        return None if free.at is None else max(timedelta(0), free.at - free.now)


def limits_of(box: ClaimedMailbox) -> Limits | None:
    """The limits that a claimed mailbox goes by; None if this version cannot read them."""
    try:
        return _limits(box.plan, tuple(sorted(box.limits.items())), box.provider)
    except (InvalidMailbox, TypeError) as error:
        log.error("a mailbox waits: its limits cannot be read", mailbox_id=str(box.id), problem=str(error))
        return None


@lru_cache(maxsize=4096)
def _limits(plan: str, overrides: tuple[tuple[str, Any], ...], provider: str) -> Limits:
    return effective_limits(plan, dict(overrides), provider)


def _own_bucket(box: ClaimedMailbox, limits: Limits, tokens: int, used: int | None) -> list[Want]:
    if limits.per_minute is None:
        return []
    key = bucket_key(str(box.id), limits.per_minute, limits.burst)
    return [Want(key, limits.per_minute, limits.burst, tokens, used)]


def _app_bucket(box: ClaimedMailbox, app: AppPace | None, tokens: int) -> list[Want]:
    if app is None:
        return []
    key = bucket_key(f"app:{box.provider_app}", app.per_minute, app.burst)
    return [Want(key, app.per_minute, app.burst, tokens, None, app.workers)]
