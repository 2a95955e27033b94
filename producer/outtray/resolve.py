"""Resolve: a person's recorded decision about a message of which nobody can tell whether it left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from outtray import arming
from outtray.door import Door, MailboxName
from outtray.evidence import COLUMNS, Sought, sought
from outtray.find import MessageView, get, mailbox_id_of
from outtray.plan import Begin, Commit, Plan, Rollback, Row, Wake, rows
from outtray_schema.errors import NotFound, Problem, Refused, WrongState

Decision = Literal["sent", "resend", "fail"]
"""`sent`: it left. `resend`: send it again, at the risk of twice. `fail`: it ends, whether it left or not."""

_STATE = {"sent": "sent", "resend": "queued", "fail": "failed"}
MOST_NOTE = 500
BATCH = 500

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

# Reads one message with what was looked for; locks nothing.
SOUGHT = f"SELECT m.state, {COLUMNS} FROM outtray.message m WHERE m.id = %(id)s AND m.app_id = %(app)s"

# Reads the next unknown messages that a filter names, by id; locks nothing.
UNKNOWN = f"""
SELECT m.id, m.mailbox_id, m.handed_at, m.reason, m.cancel_asked_at, {COLUMNS}
FROM outtray.message m
WHERE m.app_id = %(app)s AND m.state = 'unknown' AND m.id > %(after)s
  AND (%(mailbox)s::uuid IS NULL OR m.mailbox_id = %(mailbox)s) AND (%(tag)s::text IS NULL OR %(tag)s = ANY(m.tags))
  AND (%(older)s::interval IS NULL OR m.handed_at <= outtray.outtray_now() - %(older)s::interval)
ORDER BY m.id LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class UnknownView:
    """A message of which nobody can tell whether it left, with what was looked for."""

    id: UUID
    mailbox_id: UUID
    handed_at: datetime
    reason: str | None
    cancel_asked_at: datetime | None
    evidence: Sought


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a decision about many did. `moved_on` were no longer unknown; `refused`: why, and how many."""

    resolved: int = 0
    moved_on: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)


def resolve(door: Door, message_id: UUID, decision: Decision, note: str = "") -> Plan[MessageView]:
    """Settle an unknown message; answers with how it stands then. Raises `NotFound`, `WrongState`, `Refused`.

    The note is kept in the journal as it is: name no person in it.
    """
    _check(decision, note)
    before = yield from get(door, message_id)
    yield Begin()
    trouble = yield from _settle(door, message_id, before.mailbox_id, decision, note)
    if trouble is not None:
        raise WrongState(trouble.reason)
    yield Commit()
    return (yield from get(door, message_id))


@dataclass(frozen=True, slots=True)
class _Trouble:
    reason: str
    moved_on: bool = False


def _settle(door: Door, message_id: UUID, mailbox_id: UUID, decision: str, note: str) -> Plan[_Trouble | None]:
    """Settle it within the caller's transaction; else answers why not, having written nothing."""
    app_id = yield from door.app()
    # Mailbox first, then message: the order in which a worker's group takes them.
    box = yield from arming.lock(app_id, mailbox_id)
    stands = yield from rows(SOUGHT, id=message_id, app=app_id)
    if not stands or stands[0]["state"] != "unknown":
        state = stands[0]["state"] if stands else "deleted"
        return _Trouble(f"message {message_id} is {state}; a decision settles only one that is unknown", True)
    if decision == "resend" and (box is None or box["status"] == "disabled"):
        return _Trouble(
            "its mailbox is removed or disabled, so it cannot be sent again; connect it, or decide otherwise"
        )
    if decision == "resend" and sought(stands[0]).draft_is_gone:
        return _Trouble("its draft is gone, and no other is made for it; decide otherwise, and enqueue a new message")
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
        return _Trouble(f"message {message_id} has just moved on; a decision settles only one that is unknown", True)
    if decision == "resend":
        yield from rows(ARM, mailbox=mailbox_id)
        yield Wake({mailbox_id: resolved[0]["due_at"]})
    return None


def evidence(door: Door, message_id: UUID) -> Plan[Sought]:
    """What was looked for about a message's present handover, and what it showed. Raises `NotFound`."""
    app_id = yield from door.app()
    found = yield from rows(SOUGHT, id=message_id, app=app_id)
    if not found:
        raise NotFound(f"there is no message {message_id} in the app {door.app_name!r}")
    return sought(found[0])


def unknown(
    door: Door,
    mailbox: MailboxName = None,
    tag: str | None = None,
    older_than: timedelta | None = None,
    limit: int = BATCH,
    after: UUID | None = None,
) -> Plan[list[UnknownView]]:
    """The app's unknown messages with what was looked for, oldest first, those after an id. Raises `NotFound`.

    `older_than` is the time since their handover began.
    """
    app_id = yield from door.app()
    filters = yield from _filters(door, app_id, mailbox, tag, older_than)
    found = yield from rows(UNKNOWN, **filters, app=app_id, after=after or UUID(int=0), limit=limit)
    return [_view(row) for row in found]


def resolve_where(
    door: Door,
    decision: Decision,
    mailbox: MailboxName = None,
    tag: str | None = None,
    older_than: timedelta | None = None,
    note: str = "",
) -> Plan[Resolved]:
    """Settle every unknown message of a mailbox, with a tag, older than a time, or all of these; each by itself.

    Raises `Refused` if no filter is given, `NotFound` for a mailbox.
    """
    _check(decision, note)
    if mailbox is None and tag is None and older_than is None:
        raise Refused(Problem("resolve", "name a mailbox, a tag or an age; everything at once is never meant"))
    resolved, moved_on, after = 0, 0, UUID(int=0)
    refused: dict[str, int] = {}
    while True:
        page = yield from unknown(door, mailbox, tag, older_than, after=after)
        for each in page:
            yield Begin()
            trouble = yield from _settle(door, each.id, each.mailbox_id, decision, note)
            yield Commit() if trouble is None else Rollback()
            if trouble is None:
                resolved += 1
            elif trouble.moved_on:
                moved_on += 1
            else:
                refused[trouble.reason] = refused.get(trouble.reason, 0) + 1
        if len(page) < BATCH:
            return Resolved(resolved, moved_on, refused)
        after = page[-1].id


def _filters(
    door: Door, app_id: UUID, mailbox: MailboxName, tag: str | None, older_than: timedelta | None
) -> Plan[dict[str, Any]]:
    mailbox_id = (yield from mailbox_id_of(door, app_id, mailbox)) if mailbox is not None else None
    return {"mailbox": mailbox_id, "tag": tag, "older": older_than}


def _view(row: Row) -> UnknownView:
    return UnknownView(
        row["id"], row["mailbox_id"], row["handed_at"], row["reason"], row["cancel_asked_at"], sought(row)
    )


def _check(decision: str, note: str) -> None:
    if decision not in _STATE:
        raise Refused(Problem("decision", f"{decision!r} is none; it is sent, resend or fail"))
    if len(note) > MOST_NOTE:
        raise Refused(Problem("note", f"has at most {MOST_NOTE} characters"))
