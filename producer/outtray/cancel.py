"""Cancel, and move to another time: what an app may still change about a message that it handed us.

The answer is true. One conditional write on the live row decides: *cancelled* means that no handover of the message
has begun without a known refusal and none ever will. Everything else says what it is instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from outtray import windows
from outtray.door import Door, MailboxName
from outtray.find import mailbox_id_of
from outtray.plan import Plan, Row, Wake, rows
from outtray_schema.errors import NotFound, Problem, Refused, WrongState

CancelAnswer = Literal["cancelled", "handing_over", "may_have_left", "sent", "drafted", "failed", "expired"]
"""What became of a request to cancel.

- `cancelled`: it can no longer leave.
- `handing_over`: it is with the provider just now and may leave; if it comes back, it is cancelled.
- `may_have_left`: it will not be handed over again, but an earlier handover has no known outcome.
- `sent`, `drafted`, `failed`, `expired`: it had ended before.
"""

# Cancels what is still live, and remembers the wish where a handover is open or unknown. Locks the messages' rows;
# those that somebody else has locked are left out if `skip` says so, so that a batch never waits while it holds.
_CANCEL = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
live AS MATERIALIZED (
    SELECT m.id FROM outtray.message m
    WHERE m.id = ANY(%(ids)s) AND m.app_id = %(app)s AND m.state IN ('queued', 'handing_over', 'unknown')
    ORDER BY m.id FOR NO KEY UPDATE{skip}),
changed AS (
    UPDATE outtray.message m
    SET state = CASE m.state WHEN 'queued' THEN 'cancelled' ELSE m.state END,
        ended_at = CASE m.state WHEN 'queued' THEN t.now END,
        reason = CASE m.state WHEN 'queued' THEN %(reason)s::text ELSE m.reason END,
        cancel_asked_at = coalesce(m.cancel_asked_at, t.now), version = m.version + 1
    FROM live, t WHERE m.id = live.id
    RETURNING m.id, m.mailbox_id, m.state, m.may_have_left, m.handover),
noted AS (
    INSERT INTO outtray.journal (at, message_id, mailbox_id, kind, handover, actor, detail)
    SELECT t.now, id, mailbox_id, 'cancel', handover, %(actor)s::text,
        jsonb_build_object('state', state, 'reason', %(reason)s::text)
    FROM changed, t),
told AS (
    INSERT INTO outtray.event (at, app_id, mailbox_id, message_id, kind, data)
    SELECT t.now, %(app)s, mailbox_id, id, CASE state WHEN 'cancelled' THEN 'cancelled' ELSE 'cancel_asked' END,
        jsonb_build_object('reason', %(reason)s::text, 'may_have_left', may_have_left OR state <> 'cancelled')
    FROM changed, t)
SELECT id, state, may_have_left FROM changed
"""
CANCEL = _CANCEL.format(skip="")
CANCEL_FREE = _CANCEL.format(skip=" SKIP LOCKED")

# Reads a message's state, in a snapshot of its own: what it is now, not what it was when the cancel began to wait.
STATE = "SELECT m.id, m.state, m.may_have_left FROM outtray.message m WHERE m.id = %(id)s AND m.app_id = %(app)s"

# Reads the next live messages that a filter names, newest first, so that what follows another one goes before it and
# is counted by itself; locks nothing.
LIVE = """
SELECT m.id FROM outtray.message m
WHERE m.app_id = %(app)s AND m.id < %(before)s AND m.state IN ('queued', 'handing_over', 'unknown')
  AND (%(mailbox)s::uuid IS NULL OR m.mailbox_id = %(mailbox)s) AND (%(tag)s::text IS NULL OR %(tag)s = ANY(m.tags))
  {more}
ORDER BY m.id DESC LIMIT %(limit)s
"""
LIVE_OF_MAILBOX = LIVE.format(more="")
LIVE_OF_TAG = LIVE.format(
    more="""AND m.id IN (
    SELECT t.message_id FROM outtray.message_tag t
    WHERE t.app_id = %(app)s AND t.tag = %(tag)s AND t.message_id < %(before)s)"""
)
LIVE_TO = LIVE.format(
    more="""AND m.id IN (
    SELECT r.message_id FROM outtray.recipient r WHERE r.address_index = %(index)s AND r.message_id < %(before)s)"""
)

# Counts what a filter names and has been sent; locks nothing.
_SENT = """
SELECT count(*) AS sent FROM outtray.message m
WHERE m.app_id = %(app)s AND m.state = 'sent' AND m.id IN ({ids})
  AND (%(mailbox)s::uuid IS NULL OR m.mailbox_id = %(mailbox)s) AND (%(tag)s::text IS NULL OR %(tag)s = ANY(m.tags))
"""
SENT_OF_TAG = _SENT.format(
    ids="SELECT t.message_id FROM outtray.message_tag t WHERE t.app_id = %(app)s AND t.tag = %(tag)s"
)
SENT_TO = _SENT.format(ids="SELECT r.message_id FROM outtray.recipient r WHERE r.address_index = %(index)s")

# Moves a queued message to another time; locks its row. A follower goes on waiting, and is then due at that time at the
# earliest.
RESCHEDULE = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
moved AS (
    UPDATE outtray.message m
    SET due_at = CASE WHEN m.due_at IS NOT NULL THEN greatest(%(send_at)s::timestamptz, t.now) END,
        follow_from = CASE WHEN m.due_at IS NULL THEN %(send_at)s::timestamptz ELSE m.follow_from END,
        version = m.version + 1
    FROM t WHERE m.id = %(id)s AND m.app_id = %(app)s AND m.state = 'queued'
    RETURNING m.id, m.mailbox_id, coalesce(m.due_at, m.follow_from) AS due_at, m.due_at IS NULL AS waits),
noted AS (
    INSERT INTO outtray.journal (at, message_id, mailbox_id, kind, actor, detail)
    SELECT t.now, id, mailbox_id, 'rescheduled', %(actor)s::text, jsonb_build_object('due_at', due_at) FROM moved, t),
told AS (
    INSERT INTO outtray.event (at, app_id, mailbox_id, message_id, kind, data)
    SELECT t.now, %(app)s, mailbox_id, id, 'rescheduled', jsonb_build_object('due_at', due_at) FROM moved, t)
SELECT mailbox_id, due_at, waits FROM moved
"""

BATCH = 500
_LAST = UUID(int=(1 << 128) - 1)


@dataclass(frozen=True, slots=True)
class CancelResult:
    """What became of a request to cancel one message."""

    id: UUID
    answer: CancelAnswer


@dataclass(frozen=True, slots=True)
class CancelCounts:
    """What became of a request to cancel many: how many messages got each answer.

    `already_sent` had been sent before the request; they are counted where a tag or a recipient is named. What follows
    a cancelled message is cancelled with it (docs/sequences.md); it is counted where it fits the filters itself.
    """

    cancelled: int = 0
    handing_over: int = 0
    may_have_left: int = 0
    ended: int = 0
    already_sent: int = 0

    def plus(self, answer: CancelAnswer) -> CancelCounts:
        name = answer if answer in ("cancelled", "handing_over", "may_have_left") else "ended"
        return CancelCounts(**{each: getattr(self, each) + (each == name) for each in self.__slots__})

    def and_also(self, other: CancelCounts) -> CancelCounts:
        """Both together."""
        return CancelCounts(**{each: getattr(self, each) + getattr(other, each) for each in self.__slots__})


def cancel(door: Door, message_id: UUID, reason: str = "cancelled by the app") -> Plan[CancelResult]:
    """Cancel one message, exactly. Raises `NotFound`."""
    app_id = yield from door.app()
    # A message can come back to the queue between the write that did not find it live and the look at its state.
    while True:
        changed = yield from rows(CANCEL, app=app_id, ids=[message_id], actor=door.actor, reason=reason)
        found = changed or (yield from rows(STATE, app=app_id, id=message_id))
        if not found:
            raise NotFound(f"there is no message {message_id} in the app {door.app_name!r}")
        answer = _answer(found[0])
        if answer is not None:
            return CancelResult(message_id, answer)


def _answer(row: Row) -> CancelAnswer | None:
    """The answer for a message in this state; `None` if it is queued, which no cancel leaves it."""
    answers: dict[str, CancelAnswer] = {
        "cancelled": "may_have_left" if row["may_have_left"] else "cancelled",
        "handing_over": "handing_over",
        "unknown": "may_have_left",
        "sent": "sent",
        "drafted": "drafted",
        "failed": "failed",
        "expired": "expired",
    }
    return answers.get(row["state"])


def cancel_where(
    door: Door, mailbox: MailboxName = None, tag: str | None = None, to: str | None = None, reason: str | None = None
) -> Plan[CancelCounts]:
    """Cancel all that is live of a mailbox, with a tag, to an address, or all of these; each batch commits by itself.

    What is enqueued meanwhile may or may not be among it. Raises `Refused` if no filter is given, `NotFound`.
    """
    if mailbox is None and tag is None and to is None:
        raise Refused(Problem("cancel", "name a mailbox, a tag or a recipient; everything at once is never meant"))
    app_id = yield from door.app()
    filters = {
        "app": app_id,
        "mailbox": (yield from mailbox_id_of(door, app_id, mailbox)) if mailbox is not None else None,
        "tag": tag,
        "index": door.vault.blind_index(app_id, to) if to is not None else None,
        "limit": BATCH,
    }
    sql = LIVE_TO if to is not None else LIVE_OF_TAG if tag is not None else LIVE_OF_MAILBOX
    counts, before = CancelCounts(already_sent=(yield from _sent_before(filters))), _LAST
    while True:
        ids = [row["id"] for row in (yield from rows(sql, **filters, before=before))]
        for answer in (yield from _cancel_batch(door, app_id, ids, reason or "cancelled by the app")):
            counts = counts.plus(answer)
        if len(ids) < BATCH:
            return counts
        before = ids[-1]


def _sent_before(filters: Mapping[str, Any]) -> Plan[int]:
    sql = SENT_TO if filters["index"] is not None else SENT_OF_TAG
    if filters["index"] is None and filters["tag"] is None:
        return 0  # all that a mailbox ever sent is a long count that nobody asked for
    return int((yield from rows(sql, **filters))[0]["sent"])


def _cancel_batch(door: Door, app_id: UUID, ids: Sequence[UUID], reason: str) -> Plan[list[CancelAnswer]]:
    """Cancel at once those that nobody holds, then each of the others alone: waiting for one while holding others
    would deadlock with a worker's group, which takes messages in another order."""
    changed = yield from rows(CANCEL_FREE, app=app_id, ids=list(ids), actor=door.actor, reason=reason)
    answers = {row["id"]: _answer(row) for row in changed}
    for message_id in ids:
        if message_id not in answers:
            answers[message_id] = (yield from cancel(door, message_id, reason)).answer
    return [answer for answer in answers.values() if answer is not None]


def reschedule(door: Door, message_id: UUID, send_at: datetime) -> Plan[datetime]:
    """Let a queued message leave at another time, not before; answers with when. Raises `NotFound`, `WrongState`.

    What follows another message goes on waiting for its end.
    """
    if send_at.utcoffset() is None:
        raise Refused(Problem("send_at", "has no time zone; write datetime(..., tzinfo=UTC)"))
    app_id = yield from door.app()
    send_at = yield from windows.opens_after(app_id, message_id, send_at)
    moved = yield from rows(RESCHEDULE, app=app_id, id=message_id, send_at=send_at, actor=door.actor)
    if not moved:
        raise (yield from _why_not_rescheduled(door, app_id, message_id))
    due_at: datetime = moved[0]["due_at"]
    if not moved[0]["waits"]:
        yield Wake({moved[0]["mailbox_id"]: due_at})
    return due_at


def _why_not_rescheduled(door: Door, app_id: UUID, message_id: UUID) -> Plan[NotFound | WrongState]:
    found = yield from rows(STATE, app=app_id, id=message_id)
    if not found:
        return NotFound(f"there is no message {message_id} in the app {door.app_name!r}")
    return WrongState(f"message {message_id} is {found[0]['state']}; only a queued one can be moved to another time")
