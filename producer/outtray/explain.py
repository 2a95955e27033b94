"""Explain: why a message has not left, or what a mailbox is doing. Exactly one reason, and the earliest time.

The questions are asked in one order, and the first that is answered with yes is the reason: what has ended, what is
with the provider, what a person holds, what waits for a time, and at last what waits for its turn.
"""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from outtray import mailboxes
from outtray.door import Door, MailboxName
from outtray.explain_facts import MAILBOX, MESSAGE, ahead_of, fits_at, next_of
from outtray.explain_reasons import (
    Explanation,
    also,
    ended,
    expired,
    first,
    follows,
    handing_over,
    idle,
    limits_of,
    mailbox_status,
    paced,
    quota,
    suppressed,
    switched_off,
    taught,
    timed,
    turn,
    unknown,
    unreadable,
)
from outtray.explain_windows import windowed, with_window
from outtray.plan import Plan, Row, rows
from outtray_schema.errors import NotFound

__all__ = ["Explanation", "explain_mailbox", "explain_message"]


def explain_message(door: Door, message_id: UUID) -> Plan[Explanation]:
    """Why this message is in its state, and what has to happen for it to go on. Raises `NotFound`."""
    app_id = yield from door.app()
    found = yield from rows(MESSAGE, id=message_id, app=app_id)
    if not found:
        raise NotFound(f"there is no message {message_id} in the app {door.app_name!r}")
    answer = yield from _explain(door, found[0])
    return replace(answer, details=(*answer.details, *also(found[0])))


def explain_mailbox(door: Door, mailbox: MailboxName = None) -> Plan[Explanation]:
    """What this mailbox (default: the app's) waits for: what holds all of it, or what holds its next message.

    Raises `NotFound`.
    """
    box = yield from mailboxes.get(door, mailbox)
    app_id = yield from door.app()
    (row,) = yield from rows(MAILBOX, id=box.id, app=app_id)
    counts = (f"{row['queued']} queued, {row['unknown']} unknown",)
    held = first(row, (switched_off, mailbox_status))
    if held is not None:
        return replace(held, state=row["status"], details=(*held.details, *counts))
    message_id = yield from next_of(box.id)
    if message_id is None:
        return with_window(row, idle(row, counts))
    following = yield from explain_message(door, message_id)
    return replace(following, state=row["status"], details=(f"next message: {message_id}", *counts, *following.details))


def _following(door: Door, row: Row) -> Plan[Explanation]:
    """A follower waits for the message before it, for that one's reason, unless it follows another itself."""
    app_id = yield from door.app()
    found = yield from rows(MESSAGE, id=row["follows"], app=app_id)
    if not found:
        return follows(row, None, None)
    before = found[0]
    waits = before["state"] == "queued" and before["due_at"] is None
    return follows(row, before, None if waits else (yield from _explain(door, before)))


def _unknown(door: Door, row: Row) -> Explanation | None:
    return unknown(row, door.settings.settle_time, door.settings.attempts)


def _explain(door: Door, row: Row) -> Plan[Explanation]:
    settled = first(row, (ended, handing_over, lambda row: _unknown(door, row), expired))
    held = settled or first(row, (switched_off, mailbox_status, suppressed))
    if held is not None:
        return held
    if row["due_at"] is None:
        return (yield from _following(door, row))
    limits = limits_of(row)
    if limits is None:
        return unreadable(row)
    answer = timed(row, door.settings.attempts)
    if answer is None:
        ahead = yield from ahead_of(row)
        free = yield from fits_at(row, limits, ahead)
        answer = quota(row, free) or paced(row, limits, ahead) or turn(row, limits, ahead)
    answer = windowed(row, answer)
    return replace(answer, details=(*answer.details, *taught(limits)))
