"""What an answer means that comes after its message has moved on (protocol, rules 7 and 12).

Provider ids for *any* handover of a message make it `sent`, whatever an inference had said meanwhile; if it was
cancelled or expired, the ids are journalled and shown. A newer handover that is still open goes to `usage`.
"""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from outtray_worker.items import Record

LOCK_MESSAGE = "SELECT * FROM outtray.message WHERE id = %s FOR NO KEY UPDATE"

# The handover that was believed open or lost counts from now, its real end, instead of from where it was put.
TOUCH_USAGE = """
UPDATE outtray.usage SET counted_at = greatest(counted_at, outtray.outtray_now())
WHERE message_id = %s AND handover = %s
"""

KEEP_NEWER = """
INSERT INTO outtray.usage (mailbox_id, counted_at, recipients, external, externals, message_id, handover, source)
SELECT m.mailbox_id, m.counted_at, m.recipients, m.external,
    ARRAY(SELECT DISTINCT r.address_index FROM outtray.recipient r WHERE r.message_id = m.id AND r.external),
    m.id, m.handover, 'superseded'
FROM outtray.message m WHERE m.id = %s AND m.counted_at IS NOT NULL
ON CONFLICT (message_id, handover) WHERE message_id IS NOT NULL DO NOTHING
"""

MAKE_SENT = """
UPDATE outtray.message SET state = 'sent', version = version + 1, ended_at = outtray.outtray_now(),
    counted_at = CASE WHEN %(in_usage)s THEN NULL ELSE outtray.outtray_now() END, handover_end = outtray.outtray_now(),
    provider_id = %(provider_id)s, rfc_message_id = coalesce(%(rfc_message_id)s, rfc_message_id),
    conversation_id = %(conversation_id)s, reason = %(reason)s, evidence = %(evidence)s
WHERE id = %(id)s
"""

SHOW_LEFT = """
UPDATE outtray.message SET version = version + 1, may_have_left = true,
    provider_id = %(provider_id)s, rfc_message_id = coalesce(%(rfc_message_id)s, rfc_message_id),
    conversation_id = %(conversation_id)s, reason = 'left before it was ' || state, evidence = %(evidence)s
WHERE id = %(id)s
"""

# Was this very answer noted before? Then the COMMIT of the first try had arrived, and only its answer was lost.
NOTED = "SELECT FROM outtray.journal WHERE message_id = %s AND handover = %s AND kind = %s LIMIT 1"

NOTE = """
INSERT INTO outtray.journal (message_id, mailbox_id, kind, handover, detail)
VALUES (%(id)s, %(mailbox_id)s, %(kind)s, %(handover)s, %(detail)s)
"""

TELL = """
INSERT INTO outtray.event (app_id, mailbox_id, message_id, kind, data)
VALUES (%(app_id)s, %(mailbox_id)s, %(id)s, %(kind)s, %(data)s)
"""


ENDED_OTHERWISE = ("cancelled", "expired")
"""States that provider ids do not change: what was asked for, or too late, stays so, and is shown to have left."""


async def record_late(connection: AsyncConnection[Any], record: Record) -> bool:
    """Write what the answer still means, in the caller's transaction. True: the message stands as it says."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(LOCK_MESSAGE, [record.message_id])
        row = await cursor.fetchone()
    if row is None:
        return False
    kind = f"late {record.kind}"
    noted = await connection.execute(NOTED, [record.message_id, record.handover, kind])
    if noted.rowcount:
        return bool(row["state"] == record.state)
    if _already_written(row, record):
        return True
    taken = record.state == "sent" and row["state"] != "sent"
    if taken:
        await _believe(connection, row, record)
    detail = {
        "was": row["state"],
        "state": "sent" if taken and row["state"] not in ENDED_OTHERWISE else row["state"],
        "answer": record.state,
        "reason": record.reason,
        "evidence": dict(record.evidence or {}),
    }
    await connection.execute(
        NOTE,
        {
            "id": record.message_id,
            "mailbox_id": row["mailbox_id"],
            "kind": kind,
            "handover": record.handover,
            "detail": Jsonb(detail),
        },
    )
    return taken


def _already_written(row: dict[str, Any], record: Record) -> bool:
    """The first COMMIT of this very record arrived after all."""
    stands = row["state"] == record.state or (row["state"], record.state) == ("cancelled", "queued")
    return bool(row["handover"] == record.handover and stands and (row["handover_end"] or record.state == "unknown"))


async def _believe(connection: AsyncConnection[Any], row: dict[str, Any], record: Record) -> None:
    ids = {
        "id": record.message_id,
        "provider_id": record.provider_id,
        "rfc_message_id": record.rfc_message_id,
        "conversation_id": record.conversation_id,
        "evidence": Jsonb(dict(record.evidence or {})),
        "reason": record.reason or "answered late",
    }
    told = {"app_id": row["app_id"], "mailbox_id": row["mailbox_id"], "id": record.message_id}
    touched = (await connection.execute(TOUCH_USAGE, [record.message_id, record.handover])).rowcount
    if row["state"] in ENDED_OTHERWISE:
        await connection.execute(SHOW_LEFT, ids)
        await connection.execute(TELL, told | {"kind": "left_anyway", "data": Jsonb({"state": row["state"]})})
        return
    if row["handover"] > record.handover:
        await connection.execute(KEEP_NEWER, [record.message_id])
    await connection.execute(MAKE_SENT, ids | {"in_usage": touched > 0})
    await connection.execute(TELL, told | {"kind": "sent", "data": Jsonb({"reason": ids["reason"]})})
