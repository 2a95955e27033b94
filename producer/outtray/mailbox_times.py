"""What a mailbox keeps to when it sends: its window, its days off, the gap between two mails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, Literal
from uuid import UUID

from psycopg.types.json import Jsonb

from outtray import arming
from outtray.door import Door, MailboxName
from outtray.find import mailbox_id_of
from outtray.plan import Begin, Commit, Plan, rows
from outtray.windows import facts_of
from outtray_schema.errors import InvalidMailbox, Problem
from outtray_schema.times import Gap, Times, parse_gap
from outtray_schema.windows import Window, parse_days_off, parse_window

# Reads what a mailbox keeps to; its row is locked already.
READ = "SELECT m.times FROM outtray.mailbox m WHERE m.id = %(mailbox)s"

# Writes it. A wait for the window or the gap of before is over: the next turn judges anew.
WRITE = """
UPDATE outtray.mailbox m SET times = %(times)s,
    parked_until = CASE WHEN m.parked_reason ~ '^(window|pace|times)' THEN NULL ELSE m.parked_until END,
    parked_reason = CASE WHEN m.parked_reason ~ '^(window|pace|times)' THEN NULL ELSE m.parked_reason END
WHERE m.id = %(mailbox)s
"""
ARM = f"UPDATE outtray.mailbox m SET next_at = {arming.NEXT_AT} WHERE m.id = %(mailbox)s"


def set_times(
    door: Door,
    mailbox: MailboxName,
    *,
    window: Window | str | Mapping[str, Any] | Literal["none"] | None = None,
    blackout: Iterable[date | str] | None = None,
    gap: Gap | str | Literal["none"] | None = None,
) -> Plan[Times]:
    """Let a mailbox send only at these local hours, not on these days, and with this gap between two mails.

    `window`: as one line or data; its blackout days stay unless it names others. `blackout`: the days off, in place of
    those before. `gap`: `30s-90s`. `"none"` lifts a window or a gap; what is not named stays. A wait for the old ones
    ends, and the next turn judges anew. Raises `InvalidMailbox` that names the field, `NotFound`.
    """
    app_id = yield from door.app()
    mailbox_id = yield from mailbox_id_of(door, app_id, mailbox)
    yield Begin()
    yield from arming.lock(app_id, mailbox_id)
    (row,) = yield from rows(READ, mailbox=mailbox_id)
    before = facts_of(row)
    after = Times(_window(before.window, window, blackout), _gap(before.gap, gap))
    yield from _write(door, app_id, mailbox_id, after)
    yield Commit()
    door.forget()
    return after


def _write(door: Door, app_id: UUID, mailbox_id: UUID, after: Times) -> Plan[None]:
    document = after.as_json()
    yield from rows(WRITE, mailbox=mailbox_id, times=None if document is None else Jsonb(document))
    yield from rows(ARM, mailbox=mailbox_id)
    yield from arming.note_mailbox(app_id, mailbox_id, "changed", door.actor, {"times": document})


def _window(before: Window | None, asked: Any, blackout: Iterable[date | str] | None) -> Window | None:
    try:
        found = before if asked is None else None if asked == "none" else parse_window(asked)
    except ValueError as error:
        raise InvalidMailbox(Problem("window", str(error))) from None
    if found is None:
        if blackout:
            raise InvalidMailbox(Problem("blackout", "needs a window, whose zone says when a day begins; name both"))
        return None
    days = found.blackout or (before.blackout if before is not None else frozenset())
    try:
        days = days if blackout is None else parse_days_off(list(blackout))
    except ValueError as error:
        raise InvalidMailbox(Problem("blackout", str(error))) from None
    return Window(found.zone, found.spans, days)


def _gap(before: Gap | None, asked: Any) -> Gap | None:
    try:
        return before if asked is None else None if asked == "none" else parse_gap(asked)
    except ValueError as error:
        raise InvalidMailbox(Problem("gap", str(error))) from None
