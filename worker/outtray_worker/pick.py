"""Pick: which due mailboxes go into the next rounds (protocol, rule 2).

Interleaved between apps, so that an app with ten thousand due mailboxes delays another app's one by no more than one
place for each app. The dispatcher picks for the broker; a worker that has no broker picks for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

# Small apps that have mail due. What is due and what runs is counted only as far as it takes to see that an app is not
# small.
_SMALL = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now, EXISTS (SELECT FROM outtray.switch) AS switches),
small AS MATERIALIZED (
    SELECT a.id
    FROM outtray.app a, t,
        LATERAL (SELECT count(*) AS n FROM (
            SELECT FROM outtray.mailbox m WHERE m.app_id = a.id AND m.status = 'active' AND m.next_at <= t.now
            LIMIT %(few)s + 1) AS m) AS due,
        LATERAL (SELECT count(*) AS n FROM (
            SELECT FROM outtray.mailbox m WHERE m.app_id = a.id AND m.turn_until IS NOT NULL
            LIMIT %(few)s + 1) AS m) AS running
    WHERE due.n > 0 AND due.n + running.n <= %(few)s),
"""

# Locks what it picks and skips what another dispatcher holds; the conditions are checked again on the locked rows.
PICK = f"""{_SMALL}
candidate AS MATERIALIZED (
    SELECT box.id, box.place, box.next_at
    FROM outtray.app a, t, LATERAL (
        SELECT m.id, m.next_at, row_number() OVER (ORDER BY m.next_at) AS place FROM (
            SELECT m.id, m.next_at FROM outtray.mailbox m
            WHERE m.app_id = a.id AND m.status = 'active' AND m.next_at <= t.now
              AND (m.turn_until IS NULL OR m.turn_until <= t.now)
              AND (m.round_at IS NULL OR m.round_at <= t.now - %(again)s)
              AND NOT (t.switches AND outtray.switched_off(m.app_id, m.provider))
            ORDER BY m.next_at LIMIT %(limit)s) AS m) AS box
    WHERE NOT %(spare)s OR a.id NOT IN (SELECT id FROM small)
    ORDER BY box.place, box.next_at LIMIT %(limit)s),
locked AS (
    SELECT m.id FROM outtray.mailbox m, t
    WHERE m.id IN (SELECT id FROM candidate) AND m.status = 'active' AND m.next_at <= t.now
      AND (m.turn_until IS NULL OR m.turn_until <= t.now) AND (m.round_at IS NULL OR m.round_at <= t.now - %(again)s)
    ORDER BY m.id FOR NO KEY UPDATE OF m SKIP LOCKED)
UPDATE outtray.mailbox m SET round_at = t.now
FROM locked, candidate c, t WHERE m.id = locked.id AND c.id = locked.id
RETURNING m.id, c.place, c.next_at
"""

# The due mailboxes of small apps, for rounds that overtake. Locks as PICK does.
PICK_FEW = f"""{_SMALL}
candidate AS MATERIALIZED (
    SELECT box.id FROM small, t, LATERAL (
        SELECT m.id FROM outtray.mailbox m
        WHERE m.app_id = small.id AND m.status = 'active' AND m.next_at <= t.now
          AND (m.turn_until IS NULL OR m.turn_until <= t.now)
          AND (m.round_at IS NULL OR m.round_at <= t.now - %(again)s)
          AND NOT (t.switches AND outtray.switched_off(m.app_id, m.provider))
        ORDER BY m.next_at LIMIT %(few)s) AS box
    LIMIT %(limit)s),
locked AS (
    SELECT m.id FROM outtray.mailbox m, t
    WHERE m.id IN (SELECT id FROM candidate) AND m.status = 'active' AND m.next_at <= t.now
      AND (m.turn_until IS NULL OR m.turn_until <= t.now) AND (m.round_at IS NULL OR m.round_at <= t.now - %(again)s)
    ORDER BY m.id FOR NO KEY UPDATE OF m SKIP LOCKED)
UPDATE outtray.mailbox m SET round_at = t.now FROM locked, t WHERE m.id = locked.id RETURNING m.id, m.next_at
"""

FEW = 8
"""An app with no more mailboxes due or in their turns than these is small: it waits for nobody's backlog."""

# A round that could not be published is due again at once.
UNPICK = """
WITH box AS (SELECT id FROM outtray.mailbox WHERE id = ANY(%s) AND turn_until IS NULL ORDER BY id FOR NO KEY UPDATE)
UPDATE outtray.mailbox m SET round_at = NULL FROM box WHERE m.id = box.id
"""

# A wake becomes durable. It never arms a mailbox for before its park ends, and never moves `next_at` backwards.
ARM = """
WITH box AS (
    SELECT m.id, outtray.not_before(w.due, m.parked_until) AS due
    FROM outtray.mailbox m JOIN unnest(%(ids)s::uuid[], %(due)s::timestamptz[]) AS w (id, due) ON w.id = m.id
    WHERE m.next_at IS NULL OR m.next_at > outtray.not_before(w.due, m.parked_until)
    ORDER BY m.id FOR NO KEY UPDATE OF m)
UPDATE outtray.mailbox m SET next_at = least(m.next_at, outtray.not_before(box.due, m.parked_until))
FROM box WHERE m.id = box.id
"""


async def pick(connection: AsyncConnection[Any], limit: int, again: timedelta, spare_small: bool = False) -> list[UUID]:
    """Pick up to `limit` due mailboxes, in the order in which they shall have their turns.

    `spare_small`: leave those of small apps to `pick_few`. A mailbox that came due between the two would otherwise wait
    in an ordinary round, seconds behind a large app's.
    """
    asked = {"limit": limit, "again": again, "few": FEW, "spare": spare_small}
    cursor = await connection.execute(PICK, asked, prepare=True)
    rows = await cursor.fetchall()
    return [row[0] for row in sorted(rows, key=lambda row: (row[1], row[2]))]


async def pick_few(connection: AsyncConnection[Any], limit: int, again: timedelta) -> list[UUID]:
    """Pick up to `limit` due mailboxes of small apps, longest due first."""
    cursor = await connection.execute(PICK_FEW, {"few": FEW, "limit": limit, "again": again}, prepare=True)
    rows = await cursor.fetchall()
    return [row[0] for row in sorted(rows, key=lambda row: row[1])]


async def unpick(connection: AsyncConnection[Any], ids: list[UUID]) -> None:
    """Take back a pick whose round could not be published."""
    await connection.execute(UNPICK, [ids])


async def arm(connection: AsyncConnection[Any], wakes: Mapping[UUID, datetime]) -> None:
    """Write wakes onto their mailboxes; from then on they are durable (rule 1)."""
    await connection.execute(ARM, {"ids": list(wakes), "due": list(wakes.values())})
