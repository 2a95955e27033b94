"""What workers share of a breaker: a row per provider app and host; opened, probed, closed by conditional writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from outtray_schema.breaking import BREAKER
from outtray_schema.freeing import CHUNK, FREE

Key = tuple[str, str]
"""Provider app ('' where the mailbox names none) and host."""

AGAIN_WITHIN = timedelta(minutes=10)
"""A host that fails again so soon after it was closed goes on with the interval that it had reached."""

NOBODY = UUID(int=0)

_WAIT = "least(%(cap)s, %(base)s * power(2, least({probes}, 16)))"
_TELL = """
INSERT INTO outtray.event (app_id, kind, data)
SELECT DISTINCT m.app_id, 'breaker.{what}',
    jsonb_strip_nulls(jsonb_build_object(
        'provider_app', nullif(b.provider_app, ''), 'host', b.host, 'reason', b.reason))
FROM {what} b JOIN outtray.mailbox m ON m.host = b.host AND coalesce(m.provider_app, '') = b.provider_app
"""

# Opens it, once for all workers, and tells every app that has a mailbox there; locks its row.
OPEN = f"""
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
opened AS (
    INSERT INTO outtray.breaker AS b (provider_app, host, opened_at, reason, probe_at)
    SELECT %(app)s, %(host)s, t.now, %(reason)s, t.now + greatest(%(after)s, {_WAIT.format(probes="0")}) FROM t
    ON CONFLICT (provider_app, host) DO UPDATE
    SET opened_at = excluded.opened_at, closed_at = NULL, reason = excluded.reason,
        probes = CASE WHEN b.closed_at > excluded.opened_at - %(again)s THEN b.probes ELSE 0 END,
        probe_at = CASE WHEN b.closed_at > excluded.opened_at - %(again)s
            THEN excluded.opened_at + greatest(%(after)s, {_WAIT.format(probes="b.probes")})
            ELSE excluded.probe_at END
    WHERE b.closed_at IS NOT NULL
    RETURNING b.provider_app, b.host, b.reason),
told AS ({_TELL.format(what="opened")})
SELECT FROM opened
"""

# Takes the probe of this interval, and sets the next one, twice as far; locks its row.
TAKE_PROBE = f"""
UPDATE outtray.breaker b SET probes = b.probes + 1, probe_at = t.now + {_WAIT.format(probes="b.probes + 1")}
FROM (SELECT outtray.outtray_now() AS now) AS t
WHERE b.provider_app = %(app)s AND b.host = %(host)s AND b.closed_at IS NULL AND b.probe_at <= t.now
RETURNING b.probes
"""

# Closes it, once, and tells every app that was told of its opening; locks its row.
CLOSE = f"""
WITH closed AS (
    UPDATE outtray.breaker b SET closed_at = outtray.outtray_now()
    WHERE b.provider_app = %(app)s AND b.host = %(host)s AND b.closed_at IS NULL
    RETURNING b.provider_app, b.host, NULL::text AS reason),
told AS ({_TELL.format(what="closed")})
SELECT FROM closed
"""

# Reads all that are open; locks nothing.
READ = """
SELECT b.provider_app, b.host, b.reason, b.probes, b.probe_at - outtray.outtray_now() AS wait
FROM outtray.breaker b WHERE b.closed_at IS NULL
"""

# Locks a chunk of the mailboxes that wait for one breaker.
LOCK_WAITING = f"""
SELECT m.id FROM outtray.mailbox m
WHERE m.host = %(host)s AND coalesce(m.provider_app, '') = %(app)s AND m.id > %(after)s
  AND m.parked_reason LIKE '{BREAKER}%%'
ORDER BY m.id LIMIT %(chunk)s FOR NO KEY UPDATE
"""


@dataclass(frozen=True, slots=True)
class Intervals:
    """Between two probes: `base` after the opening, then twice as long each time, up to `cap`."""

    base: timedelta
    cap: timedelta

    def after(self, probes: int) -> timedelta:
        """The interval that follows so many probes."""
        return min(self.cap, self.base * (1 << min(probes, 16)))


@dataclass(frozen=True, slots=True)
class OpenBreaker:
    """An open breaker as its row says; `wait` is until the next probe, by the database's clock."""

    reason: str
    probes: int
    wait: timedelta


async def open_breaker(
    connection: AsyncConnection[Any], key: Key, reason: str, after: timedelta | None, intervals: Intervals
) -> bool:
    """Whether it was we who opened it. `after`: the first probe is no earlier."""
    said = {**_named(key, intervals), "reason": reason, "after": after or timedelta(0), "again": AGAIN_WITHIN}
    return bool((await connection.execute(OPEN, said)).rowcount)


async def take_probe(connection: AsyncConnection[Any], key: Key, intervals: Intervals) -> bool:
    """Whether the probe of this interval is ours."""
    return bool((await connection.execute(TAKE_PROBE, _named(key, intervals))).rowcount)


async def close_breaker(connection: AsyncConnection[Any], key: Key) -> bool:
    """Whether it was we who closed it."""
    return bool((await connection.execute(CLOSE, {"app": key[0], "host": key[1]})).rowcount)


async def read_breakers(connection: AsyncConnection[Any]) -> Mapping[Key, OpenBreaker]:
    """All that are open now."""
    cursor = await connection.execute(READ, prepare=True)
    return {(row[0], row[1]): OpenBreaker(*row[2:]) for row in await cursor.fetchall()}


async def free(connection: AsyncConnection[Any], key: Key) -> int:
    """End the wait of every mailbox that waits for this breaker, and arm it (rule 13). Answers with how many."""
    after, freed = NOBODY, 0
    while True:
        async with connection.transaction():
            said = {"app": key[0], "host": key[1], "after": after, "chunk": CHUNK}
            ids = [row[0] for row in await (await connection.execute(LOCK_WAITING, said)).fetchall()]
            if ids:
                await connection.execute(FREE, {"ids": ids})
        freed += len(ids)
        if len(ids) < CHUNK:
            return freed
        after = ids[-1]


def _named(key: Key, intervals: Intervals) -> dict[str, Any]:
    return {"app": key[0], "host": key[1], "base": intervals.base, "cap": intervals.cap}
