"""Explain an address: what was to go to it, what was refused for it at the door, and whether it is suppressed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from outtray.door import Door
from outtray.explain import Explanation, explain_message
from outtray.plan import Plan, rows
from outtray.refusals import RefusalView, refusals
from outtray_schema.address import parse_address

# Reads why an address is on an app's suppression list; locks nothing.
SUPPRESSED = """
SELECT s.reason, s.created_at FROM outtray.suppression s WHERE s.app_id = %(app)s AND s.address_index = %(index)s
"""

# Reads the messages to an address, those that wait first, then the newest; locks nothing.
MESSAGES = """
SELECT m.id FROM outtray.message m
WHERE m.app_id = %(app)s AND m.id IN (SELECT r.message_id FROM outtray.recipient r WHERE r.address_index = %(index)s)
ORDER BY m.ended_at IS NOT NULL, m.id DESC LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class ExplainedMessage:
    """One message to the address, and why it is as it is."""

    id: UUID
    explanation: Explanation


@dataclass(frozen=True, slots=True)
class AddressExplanation:
    """All that is known of an address, without the address. `more`: there are more messages than are explained."""

    suppressed: str | None
    suppressed_at: datetime | None
    messages: tuple[ExplainedMessage, ...]
    more: bool
    refused: tuple[RefusalView, ...]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of it."""
        return self.suppressed is None and not self.messages and not self.refused


def explain_address(door: Door, address: str, limit: int = 10) -> Plan[AddressExplanation]:
    """What became of everything to this address: waiting messages first, then the newest; and recent refusals.

    Raises `InvalidMessage` for what is no address.
    """
    email = parse_address(address).email
    app_id = yield from door.app()
    index = door.vault.blind_index(app_id, email)
    listed = yield from rows(SUPPRESSED, app=app_id, index=index)
    found = yield from rows(MESSAGES, app=app_id, index=index, limit=limit + 1)
    messages = []
    for row in found[:limit]:
        messages.append(ExplainedMessage(row["id"], (yield from explain_message(door, row["id"]))))
    return AddressExplanation(
        listed[0]["reason"] if listed else None,
        listed[0]["created_at"] if listed else None,
        tuple(messages),
        len(found) > limit,
        tuple((yield from refusals(door, to=email))),
    )
