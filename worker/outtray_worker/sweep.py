"""The sweep: wakes are hints, so once in a while every mailbox is asked what it has due (protocol, rule 16).

It looks at active mailboxes without a turn whose `next_at` is NULL *or later* than their earliest due message: a wake
that was lost behind a far one is found too. Its cost follows the number of mailboxes, not of messages.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

CHUNK = 1000
"""Mailboxes that one statement looks at."""

# Reads a chunk of mailboxes in the order of their ids, locks only those that must be armed.
SWEEP = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now), chunk AS MATERIALIZED (
    SELECT m.id, m.status, m.turn_until, m.next_at, m.parked_until FROM outtray.mailbox m
    WHERE m.id > %(after)s ORDER BY m.id LIMIT %(chunk)s),
asleep AS (
    SELECT c.id, outtray.not_before(outtray.earliest_due(c.id), c.parked_until) AS due
    FROM chunk c, t WHERE c.status = 'active' AND (c.turn_until IS NULL OR c.turn_until <= t.now)),
locked AS (
    SELECT m.id, a.due FROM outtray.mailbox m JOIN asleep a ON a.id = m.id
    WHERE a.due IS NOT NULL AND (m.next_at IS NULL OR m.next_at > a.due)
    ORDER BY m.id FOR NO KEY UPDATE OF m SKIP LOCKED),
armed AS (
    UPDATE outtray.mailbox m SET next_at = outtray.not_before(least(m.next_at, locked.due), m.parked_until)
    FROM locked WHERE m.id = locked.id RETURNING m.id)
SELECT (SELECT max(id::text) FROM chunk), (SELECT count(*) FROM chunk), (SELECT count(*) FROM armed)
"""


async def sweep(connection: AsyncConnection[Any]) -> int:
    """Arm every mailbox whose wake was lost. Returns how many there were."""
    after, armed = UUID(int=0), 0
    while True:
        row = await (await connection.execute(SWEEP, {"after": after, "chunk": CHUNK})).fetchone()
        last, seen, woken = row or (None, 0, 0)
        armed += woken
        if seen < CHUNK:
            return armed
        after = UUID(last)
