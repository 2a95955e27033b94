"""Raw mails at the door: what a mailbox's provider would have to change, and Message-IDs that were there before.

Where a provider keeps the Message-ID, a copy is found by it. If two mails of a mailbox had the same one, the copy of
the first would prove that the second has left: each Message-ID leaves a mailbox once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from outtray.door import MailboxFacts
from outtray.plan import Plan, rows
from outtray_schema.address import normalise_address
from outtray_schema.errors import InvalidMessage, Problem
from outtray_schema.message import Message
from outtray_schema.raw import headers_of
from outtray_schema.settings import Settings

GRAPH = 3 * 1024 * 1024 - 64 * 1024
"""Bytes that go into Graph's one request of 4 MB as base64, with room for a Bcc of 2,000 addresses. Files of a raw mail
cannot be uploaded apart, as those of others are."""

# One after the other of those that bring the same Message-ID, until the transaction ends. In the order of the numbers,
# or two of them could wait for each other.
LOCK = "SELECT pg_advisory_xact_lock(n) FROM (SELECT DISTINCT n FROM unnest(%(locks)s::bigint[]) n ORDER BY n) each"

# Finds messages of these mailboxes by a Message-ID that is not ours; locks nothing. The condition is that of its index.
FIND = """
SELECT m.mailbox_id, m.rfc_message_id, m.idempotency FROM outtray.message m
JOIN unnest(%(mailboxes)s::uuid[], %(ids)s::text[]) AS a (mailbox_id, rfc_message_id)
    ON m.rfc_message_id = a.rfc_message_id AND m.mailbox_id = a.mailbox_id
WHERE strpos(m.rfc_message_id, m.id::text) = 0
"""


def raw_problems(message: Message, box: MailboxFacts, settings: Settings) -> list[Problem]:
    """What keeps a raw mail, or a header of the app's own, from being sent as it is."""
    key = settings.key_header.lower()
    problems = [
        Problem(f"headers[{name}]", "is the header by which a mail of ours is found; choose another name")
        for name in message.headers
        if name.lower() == key
    ]
    if message.raw is None:
        return problems
    if key in headers_of(message.raw).names:
        reason = f"has a header {settings.key_header}, by which another mail of ours is found; remove that line"
        problems.append(Problem("raw", reason))
    if box.provider in ("gmail", "microsoft"):
        problems += _envelope_problems(message, message.raw)
    if box.provider == "microsoft":
        problems += _graph_problems(message, message.raw, box)
    return problems


def _envelope_problems(message: Message, mail: bytes) -> list[Problem]:
    """Gmail's API and Graph send to whom the headers name, and to Bcc; only SMTP has an envelope apart."""
    headers = headers_of(mail)
    named = {normalise_address(each.email) for each in (*headers.to, *headers.cc)}
    if named == {normalise_address(each.email) for each in (*message.to, *message.cc)}:
        return []
    return [Problem("to", "this mailbox's provider sends to whom the mail's own headers name; leave to and cc out")]


def _graph_problems(message: Message, mail: bytes, box: MailboxFacts) -> list[Problem]:
    problems = []
    if len(mail) > GRAPH:
        problems.append(Problem("raw", f"has {len(mail)} bytes; Microsoft Graph takes {GRAPH} of a mail as it is"))
    sender = message.from_
    if sender is not None and normalise_address(sender.email) != normalise_address(box.sender.email):
        reason = "Microsoft Graph takes a mail as it is from the mailbox's own address alone; send it by its fields"
        problems.append(Problem("from", reason))
    return problems


class Bringing(Protocol):
    """A message that is to be stored."""

    id: UUID
    mailbox_id: UUID
    rfc_message_id: str | None
    """Its own, if its mail brought one."""

    @property
    def key(self) -> bytes | None: ...


def refuse_taken(frozen: Sequence[Bringing]) -> Plan[dict[UUID, InvalidMessage]]:
    """Those whose Message-ID another message of their mailbox has, in this batch or stored. Within a transaction."""
    bringing = [each for each in frozen if each.rfc_message_id is not None]
    if not bringing:
        return {}
    yield from rows(LOCK, locks=[_number(each) for each in bringing])
    found = yield from rows(
        FIND, mailboxes=[each.mailbox_id for each in bringing], ids=[each.rfc_message_id for each in bringing]
    )
    taken = {(row["mailbox_id"], row["rfc_message_id"]): row["idempotency"] for row in found}
    refused: dict[UUID, InvalidMessage] = {}
    for each in bringing:
        name = (each.mailbox_id, each.rfc_message_id)
        if name in taken and (each.key is None or taken[name] is None or bytes(taken[name]) != each.key):
            reason = "another message of this mailbox has this Message-ID already; give it a new one, or leave it out"
            refused[each.id] = InvalidMessage(Problem("raw", reason))
        taken.setdefault(name, each.key)
    return refused


def _number(each: Bringing) -> int:
    """A lock's number: any that the same two always share."""
    name = f"{each.mailbox_id} {each.rfc_message_id}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big", signed=True)
