"""Tend: what time does to turns and messages while nobody works on them (protocol, rules 2, 9, 12 and 13).

Dead turns are ended, overdue handovers become `unknown`, looks for evidence are planned, expired messages end, and an
`unknown` that nobody can look for and whose policy is `resend` goes back into the queue once absence may count. Each
works in chunks and skips what somebody else holds.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from psycopg import AsyncConnection

from outtray_schema.settings import Settings
from outtray_worker.reconcile.plan import plan_looks
from outtray_worker.reconcile.schedule import DEFAULT, Schedules

CHUNK = 500
"""Rows that one statement takes."""

ATTEMPTS: int = Settings.model_fields["attempts"].default

# A turn whose lease ran out: the mailbox is free at once for its other messages.
END_DEAD_TURNS = """
WITH dead AS (
    SELECT id FROM outtray.mailbox WHERE turn_until <= outtray.outtray_now() ORDER BY id LIMIT %(chunk)s
    FOR NO KEY UPDATE SKIP LOCKED)
UPDATE outtray.mailbox m
SET turn_until = NULL, turn_worker = NULL, round_at = NULL, dead_turns = m.dead_turns + 1,
    next_at = outtray.not_before(least(m.next_at, outtray.outtray_now()), m.parked_until)
FROM dead WHERE m.id = dead.id RETURNING m.id
"""

# A handover past its deadline has no outcome: only evidence or a decision moves it on.
MARK_UNKNOWN = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now), overdue AS (
    SELECT m.id FROM outtray.message m, t WHERE m.state = 'handing_over' AND m.handover_until <= t.now
    LIMIT %(chunk)s FOR NO KEY UPDATE OF m SKIP LOCKED),
marked AS (
    UPDATE outtray.message m SET state = 'unknown', version = m.version + 1,
        reason = 'its worker ended in the handover, without an answer'
    FROM overdue WHERE m.id = overdue.id RETURNING m.id, m.app_id, m.mailbox_id, m.handover, m.reason),
noted AS (
    INSERT INTO outtray.journal (message_id, mailbox_id, kind, handover, detail)
    SELECT id, mailbox_id, 'unknown', handover, jsonb_build_object('reason', reason) FROM marked)
INSERT INTO outtray.event (app_id, mailbox_id, message_id, kind, data)
SELECT app_id, mailbox_id, id, 'unknown', jsonb_build_object('reason', reason) FROM marked
"""

EXPIRE = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now), late AS (
    SELECT m.id FROM outtray.message m, t WHERE m.state = 'queued' AND m.expires_at <= t.now
    LIMIT %(chunk)s FOR NO KEY UPDATE OF m SKIP LOCKED),
ended AS (
    UPDATE outtray.message m SET state = 'expired', version = m.version + 1, ended_at = t.now,
        reason = CASE WHEN m.may_have_left THEN 'expired; an earlier handover may have left'
                 ELSE 'expired before it could be sent' END
    FROM late, t WHERE m.id = late.id RETURNING m.id, m.app_id, m.mailbox_id, m.reason),
noted AS (
    INSERT INTO outtray.journal (message_id, mailbox_id, kind, detail)
    SELECT id, mailbox_id, 'expired', jsonb_build_object('reason', reason) FROM ended)
INSERT INTO outtray.event (app_id, mailbox_id, message_id, kind, data)
SELECT app_id, mailbox_id, id, 'expired', jsonb_build_object('reason', reason) FROM ended
"""

# Followers of messages that were stored before them, and those that were locked when the message before them ended.
FOLLOW_UP = "SELECT outtray.follow_up_1(%(chunk)s)"

# The policy is for what nobody can look for: the message's own, else its mailbox's, else its app's. Where a look can
# show something, only that counts. It stops where a message's own failures would: else one that a broken server takes
# and never answers is sent for ever. It stays unknown then, and waits for a person.
_BLIND = """u.state = 'unknown' AND u.look_handover = u.handover AND u.look_at IS NULL
      AND u.looked->>'finding' = 'no_way' AND u.cancel_asked_at IS NULL AND u.attempt < %(attempts)s
      AND coalesce(u.on_unknown, b.on_unknown, a.on_unknown) = 'resend'"""

# Mailboxes before messages, in the order of ids: that is the order of the gate.
RESENDABLE = f"""
SELECT m.id FROM outtray.mailbox m WHERE m.id IN (
    SELECT u.mailbox_id FROM outtray.message u
        JOIN outtray.mailbox b ON b.id = u.mailbox_id JOIN outtray.app a ON a.id = u.app_id
    WHERE {_BLIND} AND u.handover_until + %(settle)s <= outtray.outtray_now()
    ORDER BY u.id LIMIT %(chunk)s)
ORDER BY m.id FOR NO KEY UPDATE
"""

# Back into the queue without a definite refusal: the old handover goes on counting, as `usage` (rule 12), because a
# frozen process may still send it; and from now on the message may have left.
RESEND = f"""
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now), again AS (
    SELECT u.id FROM outtray.message u
        JOIN outtray.mailbox b ON b.id = u.mailbox_id JOIN outtray.app a ON a.id = u.app_id, t
    WHERE u.mailbox_id = ANY(%(boxes)s) AND {_BLIND} AND u.handover_until + %(settle)s <= t.now
    FOR NO KEY UPDATE OF u SKIP LOCKED),
kept AS (
    INSERT INTO outtray.usage (mailbox_id, counted_at, recipients, external, externals, message_id, handover, source)
    SELECT u.mailbox_id, u.counted_at, u.recipients, u.external,
        ARRAY(SELECT DISTINCT r.address_index FROM outtray.recipient r WHERE r.message_id = u.id AND r.external),
        u.id, u.handover, 'resent'
    FROM outtray.message u JOIN again ON again.id = u.id WHERE u.counted_at IS NOT NULL
    ON CONFLICT (message_id, handover) WHERE message_id IS NOT NULL DO NOTHING),
queued AS (
    UPDATE outtray.message u SET state = 'queued', version = u.version + 1, due_at = t.now, counted_at = NULL,
        may_have_left = true, reason = 'sent again by its policy for unknown'
    FROM again, t WHERE u.id = again.id RETURNING u.id, u.app_id, u.mailbox_id, u.handover),
noted AS (
    INSERT INTO outtray.journal (message_id, mailbox_id, kind, handover, actor)
    SELECT id, mailbox_id, 'resend', handover, 'policy' FROM queued),
told AS (
    INSERT INTO outtray.event (app_id, mailbox_id, message_id, kind, data)
    SELECT app_id, mailbox_id, id, 'queued', '{{"reason": "resend"}}' FROM queued)
UPDATE outtray.mailbox m SET next_at = outtray.not_before(least(m.next_at, t.now), m.parked_until)
FROM t WHERE m.id IN (SELECT mailbox_id FROM queued)
"""


async def tend(
    connection: AsyncConnection[Any], settle: timedelta, schedules: Schedules = DEFAULT, attempts: int = ATTEMPTS
) -> dict[str, int]:
    """One look at everything that time has overtaken. Returns how many of each were moved on."""
    return {
        "dead turns": await _all_of(connection, END_DEAD_TURNS),
        "unknown": await _all_of(connection, MARK_UNKNOWN),
        "looks planned": await plan_looks(connection, schedules),
        "expired": await _all_of(connection, EXPIRE),
        "followed up": await _follow_up(connection),
        "resent": await _resend(connection, settle, attempts),
    }


async def _all_of(connection: AsyncConnection[Any], statement: str) -> int:
    total = 0
    while True:
        moved = (await connection.execute(statement, {"chunk": CHUNK})).rowcount
        total += moved
        if moved < CHUNK:
            return total


async def _follow_up(connection: AsyncConnection[Any]) -> int:
    total = 0
    while True:
        row = await (await connection.execute(FOLLOW_UP, {"chunk": CHUNK})).fetchone()
        taken: int = row[0] if row else 0
        total += taken
        if taken < CHUNK:
            return total


async def _resend(connection: AsyncConnection[Any], settle: timedelta, attempts: int) -> int:
    asked = {"settle": settle, "attempts": attempts}
    async with connection.transaction():
        cursor = await connection.execute(RESENDABLE, asked | {"chunk": CHUNK})
        boxes = [row[0] for row in await cursor.fetchall()]
        if boxes:
            await connection.execute(RESEND, asked | {"boxes": boxes})
        return len(boxes)
