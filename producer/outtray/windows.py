"""Windows at the door: when a message is due by its own, and why it is refused.

What the door computes here only spares turns: a worker judges every window again, by the database's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from psycopg.types.json import Jsonb

from outtray.plan import Plan, rows
from outtray_schema.errors import Problem, Refused
from outtray_schema.message import Message
from outtray_schema.times import Times, open_for_both, read_times
from outtray_schema.windows import LOOK_AHEAD

if TYPE_CHECKING:
    from outtray.door import MailboxFacts

# Reads a message's own times and its mailbox's; locks nothing.
OF_MESSAGE = """
SELECT m.times, m.expires_at, b.times AS mailbox_times, outtray.outtray_now() AS now
FROM outtray.message m JOIN outtray.mailbox b ON b.id = m.mailbox_id
WHERE m.id = %(id)s AND m.app_id = %(app)s AND m.times IS NOT NULL
"""

NEVER_OPENS = "never opens before expires_at; let it expire later, or take another window"


def stored(message: Message) -> Jsonb | None:
    """A message's own times, as they are stored."""
    document = Times(message.window).as_json()
    return None if document is None else Jsonb(document)


def due_at(message: Message, box: MailboxFacts, now: datetime) -> datetime | None:
    """When it may leave at the earliest by `send_at` and its own window; `None`: at once."""
    begin = max(message.send_at or now, now)
    if message.window is None:
        return message.send_at
    found = open_for_both(message.window, box.times.window, begin)
    return found[0] if found is not None and found[0] > begin else message.send_at


def problems_of(message: Message, box: MailboxFacts, now: datetime) -> list[Problem]:
    """A window that never opens, its mailbox's considered, before the message expires."""
    if message.window is None and (message.expires_at is None or box.times.window is None):
        return []
    if message.window is not None and message.mode == "draft":
        return [Problem("window", "a draft is left for its person at once; leave window out")]
    found = open_for_both(message.window, box.times.window, max(message.send_at or now, now))
    if found is None:
        return [Problem(*_never(message, box))]
    if message.expires_at is not None and found[0] >= message.expires_at:
        if message.window is None:
            reason = f"is before {found[0]:%Y-%m-%d %H:%M} UTC, when the window of its mailbox opens"
            return [Problem("expires_at", reason)]
        return [Problem("window", NEVER_OPENS)]
    return []


def _never(message: Message, box: MailboxFacts) -> tuple[str, str]:
    within = f"within {LOOK_AHEAD.days} days"
    if message.window is None:
        return "mailbox", f"has a window that does not open {within}; change it: outtray mailbox set"
    if box.times.window is None:
        return "window", f"does not open {within}; name other hours"
    return "window", f"is never open at the same time as its mailbox's ({box.times.window}) {within}"


def opens_after(app_id: UUID, message_id: UUID, send_at: datetime) -> Plan[datetime]:
    """When a message with a window of its own may leave, if not before `send_at`. Raises `Refused` where never."""
    found = yield from rows(OF_MESSAGE, app=app_id, id=message_id)
    if not found:
        return send_at
    (row,) = found
    own, box = facts_of(row), facts_of({"times": row["mailbox_times"]})
    opens = open_for_both(own.window, box.window, max(send_at, row["now"]))
    if opens is None or (row["expires_at"] is not None and opens[0] >= row["expires_at"]):
        raise Refused(Problem("send_at", f"its window ({own.window}) does not open between then and its expiry"))
    return opens[0]


def facts_of(row: Mapping[str, Any]) -> Times:
    """Times as the door reads them; what a later version wrote binds the worker alone."""
    try:
        return read_times(row["times"])
    except ValueError:
        return Times()
