"""Pick: which due looks are taken next. Interleaved between apps, and within an app between its mailboxes.

A picked look is due again after a while, should nobody carry it out: there is nothing to give back. The dispatcher
picks for the broker; a worker that has no broker picks for itself.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

WINDOW = 4
"""How many times the wanted number is read of each app, to interleave its mailboxes."""

WANTS_LOOKS = """
    CASE WHEN m.state = 'unknown' OR m.state = 'sent' AND m.evidence ? 'look_again' THEN m.look_handover = m.handover
         ELSE m.state IN ('cancelled', 'expired', 'failed') AND m.look_handover = -1 AND m.draft_end IS NULL
              AND (m.draft IS NOT NULL OR m.prepares > 0) END"""
"""Whether the message `m` is still one to look for; else its time for a look is a remnant."""

# Locks what it picks and skips what another dispatcher holds; the time is asked again on the locked rows.
PICK = f"""
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
due AS MATERIALIZED (
    SELECT each.*, row_number() OVER (PARTITION BY each.mailbox_id ORDER BY each.look_at, each.id) AS of_mailbox
    FROM outtray.app a, t, LATERAL (
        SELECT m.id, m.app_id, m.mailbox_id, m.look_at FROM outtray.message m
        WHERE m.app_id = a.id AND m.look_at <= t.now ORDER BY m.look_at, m.id LIMIT %(limit)s * {WINDOW}) AS each),
placed AS MATERIALIZED (
    SELECT due.id, due.look_at,
        row_number() OVER (PARTITION BY due.app_id ORDER BY due.of_mailbox, due.look_at, due.id) AS place
    FROM due),
chosen AS MATERIALIZED (SELECT placed.* FROM placed ORDER BY place, look_at LIMIT %(limit)s),
locked AS (
    SELECT m.id FROM outtray.message m, t WHERE m.id IN (SELECT id FROM chosen) AND m.look_at <= t.now
    FOR NO KEY UPDATE OF m SKIP LOCKED)
UPDATE outtray.message m SET look_at = CASE WHEN {WANTS_LOOKS} THEN t.now + %(again)s END
FROM locked, chosen c, t WHERE m.id = locked.id AND c.id = locked.id
RETURNING m.id, m.look_at IS NOT NULL AS wanted, c.place, c.look_at
"""


async def pick_looks(connection: AsyncConnection[Any], limit: int, again: timedelta) -> list[UUID]:
    """Pick up to `limit` messages to look for, in the order of looking. Unless one is looked for, it is due `again`."""
    cursor = await connection.execute(PICK, {"limit": limit, "again": again}, prepare=True)
    picked = sorted(await cursor.fetchall(), key=lambda row: (row[2], row[3], row[0]))
    return [row[0] for row in picked if row[1]]
