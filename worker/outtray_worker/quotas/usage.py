"""What the buckets are told by PostgreSQL: handovers of the last minute, and provider apps with a pace of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor

# Handovers that began within the last minute; locks nothing. What counts ends no earlier than it began, so that the
# ledger's index finds it. A handover that was definitely refused is no longer seen here: it is in the bucket alone.
LAST_MINUTE = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() - interval '1 minute' AS since)
SELECT box.id,
    (SELECT count(*) FROM outtray.message m
     WHERE m.mailbox_id = box.id AND m.counted_at > (SELECT since FROM t) AND m.handed_at > (SELECT since FROM t))
    + coalesce((SELECT sum(u.messages) FROM outtray.usage u
                WHERE u.mailbox_id = box.id AND u.counted_at > (SELECT since FROM t)), 0)::bigint AS used
FROM unnest(%(ids)b::uuid[]) AS box (id)
"""

# Provider apps with a pace, and how many workers draw from each; locks nothing.
PROVIDER_APPS = """
SELECT a.name, a.per_minute, a.units_per_minute, a.user_units_per_minute, greatest(1, (
    SELECT count(*) FROM outtray.process p
    WHERE p.role = 'worker' AND p.beat_at > outtray.outtray_now() - interval '30 seconds')) AS workers
FROM outtray.provider_app a
WHERE a.name = ANY(%(names)s) AND num_nonnulls(a.per_minute, a.units_per_minute, a.user_units_per_minute) > 0
"""


@dataclass(frozen=True, slots=True)
class AppPace:
    """A provider app's paces, and the number of workers that are alive.

    All of its mailboxes share `per_minute`, in messages, and `units_per_minute`, as the provider counts its calls; each
    of them has `user_units_per_minute`.
    """

    per_minute: int | None
    units_per_minute: int | None
    user_units_per_minute: int | None
    workers: int

    @property
    def burst(self) -> int:
        """One second's worth of messages."""
        return burst_of(self.per_minute or 0)


def burst_of(per_minute: int, cost: int = 1, seconds: int = 1) -> int:
    """So many seconds' worth, and at least one handover."""
    return max(cost, per_minute * seconds // 60)


async def ask_last_minute(
    connection: AsyncConnection[Any], mailbox_ids: Sequence[UUID]
) -> AsyncCursor[tuple[UUID, int]] | None:
    """Ask for the handovers that each began in the last minute, in a pipeline if there is one; None: no mailbox."""
    if not mailbox_ids:
        return None
    return await connection.execute(LAST_MINUTE, {"ids": list(mailbox_ids)}, prepare=True, binary=True)


async def last_minute_of(cursor: AsyncCursor[tuple[UUID, int]] | None) -> dict[UUID, int]:
    """What `ask_last_minute` was answered."""
    return dict(await cursor.fetchall()) if cursor is not None else {}


async def read_app_paces(connection: AsyncConnection[Any], names: Sequence[str]) -> dict[str, AppPace]:
    """The provider apps among `names` that have a pace of some kind."""
    if not names:
        return {}
    cursor = await connection.execute(PROVIDER_APPS, {"names": list(names)}, prepare=True)
    return {name: AppPace(*paces) for name, *paces in await cursor.fetchall()}
