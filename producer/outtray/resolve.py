"""Resolve: a person's recorded decision about a message of which nobody can tell whether it left."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from outtray import arming
from outtray.door import Door
from outtray.find import MessageView, get
from outtray.plan import Begin, Commit, Plan, Wake, rows
from outtray_schema.errors import Problem, Refused, WrongState

Decision = Literal["sent", "resend", "fail"]
"""`sent`: it left. `resend`: send it again, at the risk of twice. `fail`: it ends, whether it left or not."""

_STATE = {"sent": "sent", "resend": "queued", "fail": "failed"}
MOST_NOTE = 500

# Ends an unknown message or returns it to the queue; locks its row. Its handover goes on counting (rules 12 and 14):
# on the message where that ends, in `usage` where it is sent again, since a frozen process may still send the first.
# A decision to send it again is later than a wish to cancel it, and takes its place.
RESOLVE = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
open AS MATERIALIZED (
    SELECT m.id, m.mailbox_id, m.counted_at, m.recipients, m.external, m.handover, m.state FROM outtray.message m
    WHERE m.id = %(id)s AND m.app_id = %(app)s AND m.state = 'unknown' FOR NO KEY UPDATE),
resolved AS (
    UPDATE outtray.message m
    SET state = %(state)s::text, version = m.version + 1, reason = %(reason)s::text,
        due_at = CASE %(state)s::text WHEN 'queued' THEN t.now ELSE m.due_at END,
        ended_at = CASE %(state)s::text WHEN 'queued' THEN NULL ELSE t.now END,
        counted_at = CASE %(state)s::text WHEN 'queued' THEN NULL ELSE m.counted_at END,
        may_have_left = m.may_have_left OR %(state)s::text <> 'sent', prepares = 0,
        cancel_asked_at = CASE %(state)s::text WHEN 'queued' THEN NULL ELSE m.cancel_asked_at END
    FROM open, t WHERE m.id = open.id
    RETURNING m.id, m.mailbox_id, m.handover, m.due_at),
counted AS (
    INSERT INTO outtray.usage (mailbox_id, counted_at, recipients, external, externals, message_id, handover, source)
    SELECT o.mailbox_id, o.counted_at, o.recipients, o.external,
        ARRAY(SELECT DISTINCT r.address_index FROM outtray.recipient r WHERE r.message_id = o.id AND r.external),
        o.id, o.handover, 'resend'
    FROM open o WHERE %(state)s::text = 'queued' AND o.counted_at IS NOT NULL
    ON CONFLICT (message_id, handover) WHERE message_id IS NOT NULL DO NOTHING),
noted AS (
    INSERT INTO outtray.journal (at, message_id, mailbox_id, kind, handover, actor, detail)
    SELECT t.now, id, mailbox_id, 'resolved', handover, %(actor)s::text,
        jsonb_build_object('decision', %(decision)s::text, 'state', %(state)s::text, 'note', %(note)s::text)
    FROM resolved, t),
told AS (
    INSERT INTO outtray.event (at, app_id, mailbox_id, message_id, kind, data)
    SELECT t.now, %(app)s, mailbox_id, id, %(state)s::text, jsonb_build_object('reason', %(reason)s::text)
    FROM resolved, t)
SELECT mailbox_id, due_at FROM resolved
"""

# Brings a mailbox's time forward for a message that is due now; its row is locked already.
ARM = """
UPDATE outtray.mailbox m SET next_at = least(m.next_at, greatest(outtray.outtray_now(), m.parked_until))
WHERE m.id = %(mailbox)s
"""


def resolve(door: Door, message_id: UUID, decision: Decision, note: str = "") -> Plan[MessageView]:
    """Settle an unknown message; answers with how it stands then. Raises `NotFound`, `WrongState`, `Refused`.

    The note is kept in the journal as it is: name no person in it.
    """
    _check(decision, note)
    before = yield from get(door, message_id)
    app_id = yield from door.app()
    yield Begin()
    # Mailbox first, then message: the order in which a worker's group takes them.
    box = yield from arming.lock(app_id, before.mailbox_id)
    if decision == "resend" and (box is None or box["status"] == "disabled"):
        raise WrongState(
            "its mailbox is removed or disabled, so it cannot be sent again; connect it, or decide otherwise"
        )
    resolved = yield from rows(
        RESOLVE,
        id=message_id,
        app=app_id,
        state=_STATE[decision],
        decision=decision,
        reason=f"decided: {decision}",
        actor=door.actor,
        note=note,
    )
    if not resolved:
        raise WrongState(f"message {message_id} is {before.state}; a decision settles only one that is unknown")
    if decision == "resend":
        yield from rows(ARM, mailbox=before.mailbox_id)
        yield Wake({before.mailbox_id: resolved[0]["due_at"]})
    yield Commit()
    return (yield from get(door, message_id))


def _check(decision: str, note: str) -> None:
    if decision not in _STATE:
        raise Refused(Problem("decision", f"{decision!r} is none; it is sent, resend or fail"))
    if len(note) > MOST_NOTE:
        raise Refused(Problem("note", f"has at most {MOST_NOTE} characters"))
