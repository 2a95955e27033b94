"""Originals: the message that another one answers, as far as our own tables know it.

What was sent from here is known without its mailbox being read: then the answer is frozen at once. What has not left
yet, or lies in the mailbox alone, is found by the worker before the first gate (`outtray_worker.compose`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from outtray.door import Door, MailboxFacts, MailboxName
from outtray.find import own_id_in
from outtray.plan import Plan, Row, rows
from outtray_schema.answering import Original, compose, original_of_ours
from outtray_schema.content import (
    Answers,
    Head,
    open_body,
    open_chunk,
    open_file_chunk,
    open_head,
    put_together,
)
from outtray_schema.errors import InvalidMessage, Problem
from outtray_schema.message import Message
from outtray_schema.quoting import MOST

# Reads messages of an app by any of their ids, with their heads; locks nothing. Each condition has an index: the
# second and third a partial one, whose condition stands here in its own words.
FIND = """
SELECT m.id, m.mailbox_id, m.state, m.size, m.provider_id, m.rfc_message_id, m.conversation_id, m.evidence,
    (SELECT c.head FROM outtray.content c WHERE c.message_id = m.id) AS head
FROM outtray.message m
WHERE m.app_id = %(app)s AND (m.id = ANY(%(ids)s::uuid[])
    OR m.provider_id = ANY(%(refs)s::text[])
    OR m.rfc_message_id = ANY(%(refs)s::text[]) AND strpos(m.rfc_message_id, m.id::text) = 0)
"""

# Reads the frozen MIME of one message, whole or in its pieces; locks nothing.
BODY = "SELECT c.body FROM outtray.content c WHERE c.message_id = %(id)s"
CHUNKS = "SELECT k.n, k.data FROM outtray.content_chunk k WHERE k.message_id = %(id)s ORDER BY k.n"
FILE = "SELECT k.n, k.data FROM outtray.attachment_chunk k WHERE k.attachment_id = %(id)s ORDER BY k.n"

_NEVER_LEFT = {
    "failed": "has failed, so it never left",
    "cancelled": "was cancelled, so it never left",
    "expired": "has expired, so it never left",
    "drafted": "was left as a draft, and nobody here knows whether its person sent it",
}


@dataclass(frozen=True, slots=True)
class Answered:
    """What is known, at the door, about a message that answers another one.

    Either `message` is final and `answers` names the original at its provider, or `waits_for` is what has to be found
    out first: one of ours (`UUID`), or how the provider knows it.
    """

    message: Message
    answers: Answers | None = None
    waits_for: UUID | str | None = field(default=None, repr=False)


Originals = Mapping[tuple[UUID, UUID | str], Row]
"""Rows of `FIND`, by mailbox and by how it was named; with `mime`, where it is to be forwarded."""


def find_originals(
    door: Door, app_id: UUID, messages: Sequence[Message], boxes: Mapping[MailboxName, MailboxFacts]
) -> Plan[Originals]:
    """Those of ours that these messages answer. No statement where none answers any."""
    asked = {
        (boxes[message.mailbox].id, message.reply_to_message): message.answering == "forward"
        for message in messages
        if message.reply_to_message is not None and message.mailbox in boxes
    }
    if not asked:
        return {}
    names = [name for _, name in asked]
    found = yield from rows(
        FIND,
        app=app_id,
        ids=[each for name in names if (each := _our_id(name)) is not None],
        refs=[name for name in names if isinstance(name, str)],
    )
    originals = {}
    for (box, name), forward in asked.items():
        matching = [row for row in found if _is_named(row, name) and (row["mailbox_id"] == box or name == row["id"])]
        if matching:
            # A server's queue ids come round again; who names one means the latest.
            row = max(matching, key=lambda row: (row["mailbox_id"] == box, row["id"]))
            readable = forward and row["state"] == "sent" and row["size"] <= MOST and row["head"] is not None
            originals[box, name] = {**row, "mime": (yield from _mime(door, row)) if readable else None}
    return originals


def _our_id(name: UUID | str) -> UUID | None:
    """The id of ours that stands in a name: itself, or in the Message-ID that we froze."""
    return name if isinstance(name, UUID) else own_id_in(name)


def _is_named(row: Row, name: UUID | str) -> bool:
    return row["id"] == _our_id(name) or name in (row["provider_id"], row["rfc_message_id"])


def _mime(door: Door, row: Row) -> Plan[bytes | None]:
    message_id = row["id"]
    found = yield from rows(BODY, id=message_id)
    if not found:
        return None
    if found[0]["body"] is not None:
        around = open_body(door.vault, message_id, found[0]["body"])
    else:
        chunks = yield from rows(CHUNKS, id=message_id)
        around = b"".join(open_chunk(door.vault, message_id, each["n"], each["data"]) for each in chunks)
    apart = open_head(door.vault, message_id, row["head"]).apart
    files = {}
    for id in {each.attachment_id for each in apart}:
        chunks = yield from rows(FILE, id=id)
        files[id] = b"".join(open_file_chunk(door.vault, id, each["n"], each["data"]) for each in chunks)
    return put_together(around, apart, files)


def answer(door: Door, message: Message, box: MailboxFacts, originals: Originals) -> Answered:
    """Make the message final if that can be. Raises `InvalidMessage` if it can never be."""
    name = message.reply_to_message
    if name is None:
        return Answered(message)
    row = originals.get((box.id, name))
    if row is None:
        _refuse(_why_not_read(name, box))
        return Answered(message, waits_for=name)
    _refuse(_why_not_answered(row, message, box))
    if row["state"] != "sent" or _id_to_be_read(row, box):
        return Answered(message, waits_for=row["id"])
    head = open_head(door.vault, row["id"], row["head"])
    answers = Answers(message.answering, row["provider_id"], row["conversation_id"])
    return Answered(compose(message, _original(head, row), (box.sender.email, *box.aliases)), answers)


def _original(head: Head, row: Mapping[str, Any]) -> Original:
    return original_of_ours(head, row["rfc_message_id"], row["mime"])


def _id_to_be_read(row: Row, box: MailboxFacts) -> bool:
    """Whether its Message-ID as delivered is not known here, but the mailbox can tell (Gmail writes its own)."""
    return "rfc_message_id" in (row["evidence"] or {}) and box.grants.reads


def _why_not_read(name: UUID | str, box: MailboxFacts) -> str | None:
    if isinstance(name, UUID):
        return "is no message of this app; see `outtray message list`"
    if box.grants.reads:
        return None
    if box.provider == "smtp":
        cure = "an SMTP mailbox cannot be read, so it answers only what was sent through Outtray; give in_reply_to, "
        return f"is not one of ours, and {cure}references, to and subject yourself"
    cure = "connect it again with full access, or give in_reply_to, references, to and subject yourself"
    return f"is not one of ours, and what this mailbox's owner granted does not allow reading it; {cure}"


def _why_not_answered(row: Row, message: Message, box: MailboxFacts) -> str | None:
    if row["mailbox_id"] != box.id:
        return "was sent from another mailbox; answer it from that one"
    if row["state"] in _NEVER_LEFT:
        return _NEVER_LEFT[row["state"]]
    if row["head"] is None or (message.answering == "forward" and row["mime"] is None and row["state"] == "sent"):
        return "is too large to be forwarded" if row["size"] > MOST else "has no content any more: it was erased"
    return None


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise InvalidMessage(Problem("reply_to_message", reason))
