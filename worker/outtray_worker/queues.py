"""Counts that an administrator reads in Flower, once a minute: the arguments of the task `outtray.queues`.

They name no app, mailbox or person. The truth, and who waits for what, is in `outtray status`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from redis.asyncio import Redis

TASK = "outtray.queues"
EVERY = 60.0
"""Seconds between two tasks, of all dispatchers together."""
SAID = "outtray:queues:said"
MOST = 1_000_000
"""Rows that are counted at most: a count of what waits must not cost more the worse it is."""

# Counts what waits, through partial indexes and up to a bound; locks nothing. `parked` are mailboxes, else messages.
COUNTS = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now)
SELECT (SELECT count(*) FROM (
            SELECT FROM outtray.message m WHERE m.state = 'queued' AND m.due_at <= t.now LIMIT %(most)s) AS d) AS due,
    (SELECT count(*) FROM outtray.mailbox b WHERE b.status = 'active' AND b.parked_until > t.now) AS parked,
    (SELECT count(*) FROM outtray.message m WHERE m.state = 'unknown') AS unknown,
    coalesce(extract(epoch FROM t.now - (
        SELECT min(o.due_at) FROM (
            SELECT m.due_at FROM outtray.message m
            WHERE m.state = 'queued' AND m.due_at <= t.now LIMIT %(most)s) AS o)), 0)::bigint AS oldest_due_seconds
FROM t
"""


async def read_counts(connection: AsyncConnection[Any]) -> Mapping[str, int]:
    """`due`, `parked`, `unknown`, `oldest_due_seconds`."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(COUNTS, {"most": MOST})
        row = await cursor.fetchone()
    return row or {}


async def is_our_turn(broker: Redis) -> bool:
    """Whether no dispatcher has published the counts in this minute. Raises what Redis raises."""
    return bool(await broker.set(SAID, 1, nx=True, px=int((EVERY - 1) * 1000)))
