"""Whether a mailbox sends: pause it, resume it, take it away."""

from __future__ import annotations

from uuid import UUID

from outtray import apps, arming
from outtray.cancel import cancel_where
from outtray.door import Door, MailboxName
from outtray.find import mailbox_id_of
from outtray.mailboxes.storing import ARM
from outtray.mailboxes.view import REMOVED, Mailbox, get
from outtray.plan import Begin, Commit, Plan, rows
from outtray_schema.errors import MailboxDisconnected, WrongState

# Counts what waits in a mailbox; locks nothing.
WAITING = """
SELECT count(*) AS waiting FROM outtray.message m
WHERE m.mailbox_id = %(mailbox)s AND m.state IN ('queued', 'handing_over')
"""

SET_STATUS = """
UPDATE outtray.mailbox m SET status = %(status)s, status_reason = %(reason)s, status_at = outtray.outtray_now()
WHERE m.id = %(mailbox)s
"""

REMOVE = f"""
UPDATE outtray.mailbox m SET status = 'disabled', status_reason = '{REMOVED}', status_at = outtray.outtray_now(),
    credentials = NULL, credentials_version = m.credentials_version + 1, next_at = NULL
WHERE m.id = %(mailbox)s
"""

# Deletes a mailbox's access tokens.
FORGET_TOKENS = "DELETE FROM outtray.token t WHERE t.mailbox_id = %(mailbox)s"


def pause(door: Door, mailbox: MailboxName, why: str = "") -> Plan[Mailbox]:
    """Let nothing leave from this mailbox until it is resumed. Raises `NotFound`, `WrongState`."""
    before = yield from get(door, mailbox)
    if before.status == "disabled":
        raise WrongState(f"the mailbox is disabled ({before.status_reason}); nothing leaves from it anyway")
    return (yield from _set_status(door, before.id, "paused", why or None, "paused"))


def resume(door: Door, mailbox: MailboxName) -> Plan[Mailbox]:
    """Let a paused mailbox send again. Raises `NotFound`, `MailboxDisconnected`, `WrongState`."""
    before = yield from get(door, mailbox)
    if before.status == "reconnect":
        raise MailboxDisconnected("the mailbox is not paused; its credentials were refused: reconnect it")
    if before.status == "disabled":
        raise WrongState(f"the mailbox is disabled ({before.status_reason}); connect it again")
    if before.status == "active":
        return before
    return (yield from _set_status(door, before.id, "active", None, "resumed"))


def remove(door: Door, mailbox: MailboxName, *, force: bool = False) -> Plan[int]:
    """Take a mailbox away: its credentials are erased, nothing leaves from it any more.

    Refused with `WrongState` while messages wait in it, unless `force`, which cancels them; answers with how many.
    """
    before = yield from get(door, mailbox)
    (count,) = yield from rows(WAITING, mailbox=before.id)
    if count["waiting"] and not force:
        raise WrongState(f"{count['waiting']} message(s) wait in this mailbox; force=True cancels them")
    app_id = yield from door.app()
    yield Begin()
    yield from arming.lock(app_id, before.id)
    yield from rows(REMOVE, mailbox=before.id)
    yield from rows(FORGET_TOKENS, mailbox=before.id)
    yield from arming.note_mailbox(app_id, before.id, REMOVED, door.actor)
    yield Commit()
    counts = yield from cancel_where(door, mailbox=before.id, reason="mailbox removed")
    door.forget()
    return counts.cancelled


def set_default(door: Door, mailbox: MailboxName) -> Plan[Mailbox]:
    """Let messages of the app that name no mailbox leave from this one. Raises `NotFound`."""
    app_id = yield from door.app()
    mailbox_id = yield from mailbox_id_of(door, app_id, mailbox)
    yield Begin()
    yield from apps.set_default_mailbox(app_id, mailbox_id)
    yield from arming.note_mailbox(app_id, mailbox_id, "changed", door.actor, {"default": True})
    yield Commit()
    door.forget()
    return (yield from get(door, mailbox))


def _set_status(door: Door, mailbox_id: UUID, status: str, reason: str | None, kind: str) -> Plan[Mailbox]:
    app_id = yield from door.app()
    yield Begin()
    yield from arming.lock(app_id, mailbox_id)
    yield from rows(SET_STATUS, mailbox=mailbox_id, status=status, reason=reason)
    if status == "active":
        yield from rows(ARM, mailbox=mailbox_id)
    yield from arming.note_mailbox(app_id, mailbox_id, kind, door.actor, {"reason": reason})
    yield Commit()
    door.forget()
    return (yield from get(door, mailbox_id))
