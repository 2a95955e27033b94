"""What a mailbox sent by another system, so that our first day keeps its limits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from outtray.door import Door, MailboxName
from outtray.find import mailbox_id_of
from outtray.noting import note
from outtray.plan import Begin, Commit, Plan, Statement
from outtray_schema.errors import Problem, Refused

# Inserts what a mailbox sent by another system.
IMPORT_USAGE = """
INSERT INTO outtray.usage (mailbox_id, counted_at, messages, recipients, external, externals, source)
VALUES (%(mailbox)s, %(at)s, %(messages)s, %(recipients)s, %(external)s, %(externals)s::bytea[], 'import')
"""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What a mailbox sent at some time by another system, so that our first day keeps its limits.

    `externals` are the distinct external recipients' addresses, where the plan limits those; only their blind indexes
    are stored.
    """

    at: datetime
    messages: int = 1
    recipients: int = 1
    external: int = 0
    externals: tuple[str, ...] = field(default=(), repr=False)


def import_usage(door: Door, mailbox: MailboxName, usage: Iterable[UsageRow]) -> Plan[int]:
    """Count what the mailbox sent elsewhere in the last 24 hours; answers with how many rows. All or none.

    Raises `NotFound`; `Refused` naming the row that is wrong.
    """
    app_id = yield from door.app()
    mailbox_id = yield from mailbox_id_of(door, app_id, mailbox)
    count = 0
    yield Begin()
    for count, row in enumerate(usage, 1):
        yield Statement(IMPORT_USAGE, _usage_parameters(door, app_id, mailbox_id, count - 1, row))
    yield from note(door.actor, "usage imported", mailbox_id, rows=count)
    yield Commit()
    return count


def _usage_parameters(door: Door, app_id: UUID, mailbox_id: UUID, index: int, row: UsageRow) -> dict[str, Any]:
    if row.at.utcoffset() is None:
        raise Refused(Problem(f"[{index}].at", "has no time zone; write datetime(..., tzinfo=UTC)"))
    if not 0 <= row.external <= row.recipients or row.messages < 0:
        raise Refused(Problem(f"[{index}].external", "must be from 0 to recipients, and messages not negative"))
    return {
        "mailbox": mailbox_id,
        "at": row.at,
        "messages": row.messages,
        "recipients": row.recipients,
        "external": row.external,
        "externals": sorted({door.vault.blind_index(app_id, address) for address in row.externals}),
    }
