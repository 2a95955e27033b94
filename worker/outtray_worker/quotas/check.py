"""What turns ask about quotas: what a round's mailboxes may send, how fast, and when what does not fit will."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from outtray_schema.errors import InvalidMailbox
from outtray_schema.ledger import NOBODY, Allowance
from outtray_schema.plans import Limits, effective_limits, with_learned
from outtray_worker.claim import ClaimedMailbox, DueMessage, ask_due, due_of
from outtray_worker.quotas.ledger import allowances_of, ask_used, frees_at, read_externals
from outtray_worker.quotas.pace import Want, bucket_key
from outtray_worker.quotas.units import DEAREST, units_of_handover
from outtray_worker.quotas.usage import AppPace, ask_last_minute, burst_of, last_minute_of, read_app_paces

log = structlog.get_logger()

UNREADABLE = "limits that this version does not know"
"""The binding limit of a mailbox whose plan or limits another version wrote: it waits, and nothing is guessed."""

LOOK_AGAIN = timedelta(hours=1)

USER_BURST = 10
"""Seconds' worth of a user's units that may be used at once: most mailboxes have but a few mails, which then go."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A claimed mailbox with all that its turn begins with."""

    mailbox: ClaimedMailbox
    messages: list[DueMessage]
    """In the order of sending."""
    allowance: Allowance
    wants: list[Want]
    """The buckets that it draws from, each for as many tokens as it has messages due."""


class Quotas:
    """Reads for a whole round on the claim's connection, for a message that waits on the pool's. Keeps nothing."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def read(
        self, connection: AsyncConnection[Any], claimed: Sequence[ClaimedMailbox], limit: int
    ) -> list[Begun]:
        """What each claimed mailbox has due (at most `limit`), may still send today, and draws its pace from.

        One round trip for all of it, in a later snapshot than the claim's (rule 3); one more where provider apps have
        a pace. What a mailbox has no limit for costs nothing.
        """
        limits = {box.id: limits_of(box) or Limits() for box in claimed}
        daily = list(limits.items())
        apps = await read_app_paces(connection, sorted({box.provider_app for box in claimed if box.provider_app}))
        app_of = {box.id: apps.get(box.provider_app or "") for box in claimed}
        paced = [box.id for box in claimed if limits[box.id].per_minute or _counts_units(app_of[box.id])]
        async with connection.pipeline():
            asked_due = await ask_due(connection, [box.id for box in claimed], limit)
            asked_used = await ask_used(connection, daily)
            asked_minute = await ask_last_minute(connection, paced)
        due = await due_of(asked_due, limit)
        allowances = await allowances_of(asked_used, daily)
        minute = await last_minute_of(asked_minute)
        begun = []
        for box in claimed:
            messages, used = due.get(box.id, []), minute.get(box.id)
            own = _own_bucket(box, limits[box.id], len(messages), used)
            shared = _app_buckets(box, app_of[box.id], len(messages), used)
            begun.append(Begun(box, messages, allowances[box.id], [*own, *shared]))
        return begun

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
    """The limits that a claimed mailbox goes by, learned ones among them; None if this version cannot read them."""
    try:
        limits = _limits(box.plan, tuple(sorted(box.limits.items())), box.provider)
        return with_learned(limits, box.learned, box.now)
    except (InvalidMailbox, KeyError, TypeError, ValueError) as error:
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


def _counts_units(app: AppPace | None) -> bool:
    return app is not None and app.user_units_per_minute is not None


def _app_buckets(box: ClaimedMailbox, app: AppPace | None, tokens: int, used: int | None) -> list[Want]:
    """What all mailboxes of a provider app draw from together, and what the provider counts for each of its users."""
    if app is None:
        return []
    wants, owner = [], f"app:{box.provider_app}"
    if app.per_minute is not None:
        key = bucket_key(owner, app.per_minute, app.burst)
        wants.append(Want(key, app.per_minute, app.burst, tokens, None, app.workers))
    if app.units_per_minute is not None and (cost := units_of_handover(box.provider, box.scopes)):
        each, burst = app.units_per_minute, burst_of(app.units_per_minute, DEAREST)
        key = bucket_key(f"{owner}:units", each, burst)
        wants.append(Want(key, each, burst, tokens, None, app.workers, cost=cost))
    if app.user_units_per_minute is not None and (cost := units_of_handover(box.provider, box.scopes)):
        each, burst = app.user_units_per_minute, burst_of(app.user_units_per_minute, DEAREST, USER_BURST)
        wants.append(Want(bucket_key(f"{box.id}:units", each, burst), each, burst, tokens, used, cost=cost))
    return wants
