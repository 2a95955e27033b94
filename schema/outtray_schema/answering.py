"""Answering: what a reply, a reply to all and a forward take from the message that they answer.

Pure: from a message as its app asked for it and the original, the message as it is sent. Everything of the original was
written by somebody else, so it comes in through `original_of`, which leaves out what no header of ours may hold; and
what is composed passes the same door as every message.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from outtray_schema import quoting
from outtray_schema.address import MAX_NAME, Address, normalise_address
from outtray_schema.attachment import Attachment
from outtray_schema.content import Head
from outtray_schema.door import is_message_id
from outtray_schema.errors import InvalidMessage, Problem
from outtray_schema.message import Message

Person = tuple[str, str]
"""Display name and address as they stand in a mail, neither checked."""

MOST_REFERENCES = 50
"""Message-IDs that a References header keeps: the first and the latest, as RFC 5537 3.4.4 trims them."""

MOST_SUBJECT = 900
"""Characters of an original's subject that are kept: with a prefix it still passes the door (998)."""

# Case does not matter, and each may carry a counter: `Re[2]:`, `AW(3):`. From Wikipedia's "List of email subject
# abbreviations" (2026-11), without those of one letter (Italian R and I), which begin too many real subjects.
_REPLY = ("re", "aw", "antw", "sv", "vs", "rif", "odp", "ynt", "atb", "απ", "σχετ", "vá", "bls", "res", "回复", "回覆",
          "תגובה")  # fmt: skip
_FORWARD = ("fwd", "fw", "wg", "vb", "vl", "fs", "doorst", "tr", "pd", "enc", "rv", "ilt", "i̇lt", "trs", "yml", "πρθ",
            "továbbítás", "转发", "轉寄", "הועבר")  # fmt: skip
_WORD = "|".join(sorted((*_REPLY, *_FORWARD), key=len, reverse=True))
_PREFIX = re.compile(rf"\s*(?:{_WORD})\s*(?:\[\d{{1,3}}\]|\(\d{{1,3}}\))?\s*[:：]\s*", re.IGNORECASE)
_BREAKS = re.compile("[\x00-\x20\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Original:
    """The message that is answered, cleaned: each value may stand in a mail of ours. None of it in a repr."""

    rfc_message_id: str | None = field(default=None, repr=False)
    references: tuple[str, ...] = field(default=(), repr=False)
    subject: str = field(default="", repr=False)
    sender: Address | None = field(default=None, repr=False)
    reply_to: tuple[Address, ...] = field(default=(), repr=False)
    to: tuple[Address, ...] = field(default=(), repr=False)
    cc: tuple[Address, ...] = field(default=(), repr=False)
    date: datetime | None = None
    text: str | None = field(default=None, repr=False)
    html: str | None = field(default=None, repr=False)
    attachments: tuple[Attachment, ...] = field(default=(), repr=False)


def original_of(
    *,
    rfc_message_id: str | None,
    references: Iterable[str] = (),
    subject: str = "",
    sender: Person | None = None,
    reply_to: Iterable[Person] = (),
    to: Iterable[Person] = (),
    cc: Iterable[Person] = (),
    date: datetime | None = None,
    text: str | None = None,
    html: str | None = None,
    attachments: Iterable[Attachment] = (),
) -> Original:
    """An original from what a mail says of itself: what is no address or Message-ID is left out, never refused."""
    return Original(
        rfc_message_id.strip() if rfc_message_id and is_message_id(rfc_message_id.strip()) else None,
        tuple(each for each in references if is_message_id(each)),
        one_line(subject)[:MOST_SUBJECT],
        next(iter(_addresses([sender] if sender else [])), None),
        _addresses(reply_to),
        _addresses(to),
        _addresses(cc),
        date,
        quoting.sendable(text),
        quoting.sendable(html),
        tuple(attachments),
    )


def compose(message: Message, original: Original, own: Iterable[str]) -> Message:
    """The message as it is sent, now that the one it answers is known. `own`: the mailbox's address and aliases.

    Raises `InvalidMessage`: nobody is left to write to, or too many are.
    """
    to, cc = _recipients(message, original, frozenset(map(normalise_address, own)))
    if not (to or cc or message.bcc):
        reason = "cannot follow from the message that this one answers: it names nobody else; give it"
        raise InvalidMessage(Problem("to", reason))
    forward = message.answering == "forward"
    # RFC 5322 3.6.4 has In-Reply-To and References for replies; a forward begins a conversation of its own.
    in_reply_to, references = (None, ()) if forward else thread_of(original)
    fields: dict[str, Any] = {name: getattr(message, name) for name in Message.model_fields}
    fields |= {
        "to": to,
        "cc": cc,
        "subject": message.subject or answered_subject(original.subject, forward=forward),
        "in_reply_to": in_reply_to,
        "references": references,
        "reply_to_message": None,
        "answering": "reply",
    }
    if forward:
        fields |= quoting.forwarded(message, original)
    return Message(**fields)


# ── one of ours, and what is not known yet ──────────────────────────────────────────────────────────────────────────


def original_of_ours(head: Head, rfc_message_id: str | None, mime: bytes | None = None) -> Original:
    """One of our own messages as an original; `mime`, its frozen bytes, only where it is to be forwarded."""
    text, html, files = quoting.parts_of(mime) if mime is not None else (None, None, ())
    return original_of(
        rfc_message_id=rfc_message_id,
        references=head.references,
        subject=head.subject,
        sender=(head.sender_name, head.sender),
        reply_to=[(each.name, each.email) for each in head.reply_to],
        to=[(each.name, each.email) for each in head.addresses("to")],
        cc=[(each.name, each.email) for each in head.addresses("cc")],
        date=quoting.date_of(mime) if mime is not None else None,
        text=text,
        html=html,
        attachments=files,
    )


_ASKED = (
    "to", "cc", "bcc", "reply_to", "subject", "headers", "importance", "request_read_receipt", "answering",
    "recipient_policy", "unsubscribe_url", "unsubscribe_mailto",
)  # fmt: skip


def asked_of(message: Message, original: UUID | str, headers: int, date: datetime) -> dict[str, Any]:
    """What is stored of a message whose original is not known yet, beside its MIME, as JSON.

    `original` is one of ours (`UUID`), or how its provider knows it. `headers` are the bytes of its own headers in the
    MIME that is stored, `date` the Date that it keeps.
    """
    fields = {name: getattr(message, name) for name in _ASKED}
    people = {name: [[each.email, each.name] for each in fields[name]] for name in ("to", "cc", "bcc", "reply_to")}
    where = {"ours": str(original)} if isinstance(original, UUID) else {"ref": original}
    return {**where, "headers": headers, "date": date.isoformat(), "fields": fields | people}


def message_asked(asked: Mapping[str, Any], mime: bytes | None = None) -> Message:
    """The message that `asked_of` stored; with its bodies and files where `mime`, what it was frozen to, is given."""
    fields = dict(asked["fields"])
    for name in ("to", "cc", "bcc", "reply_to"):
        fields[name] = [Address(email, display) for email, display in fields[name]]
    text, html, files = quoting.parts_of(mime) if mime is not None else ("", None, ())
    return Message(**fields, reply_to_message=_reference(asked), text=text, html=html, attachments=files)


def follower_asked(asked: Mapping[str, Any], subject: str) -> Message:
    """A follower that answers nobody; `subject` is what it is called where it asked for none."""
    fields = dict(asked["fields"])
    for name in ("to", "cc", "bcc", "reply_to"):
        fields[name] = [Address(email, display) for email, display in fields[name]]
    return Message(**(fields | {"subject": fields["subject"] or base_subject(subject), "text": ""}))


def _reference(asked: Mapping[str, Any]) -> UUID | str:
    return UUID(asked["ours"]) if "ours" in asked else str(asked["ref"])


# ── the subject ─────────────────────────────────────────────────────────────────────────────────────────────────────


def answered_subject(subject: str, *, forward: bool) -> str:
    """`Re: ` or `Fwd: ` and the original's subject without any such prefix, in whatever language and however often."""
    return f"{'Fwd' if forward else 'Re'}: {base_subject(subject)}".rstrip()


def base_subject(subject: str) -> str:
    """A subject without the prefixes that replies and forwards have put before it."""
    subject = one_line(subject)
    while (match := _PREFIX.match(subject)) is not None:
        subject = subject[match.end() :]
    return subject


def one_line(text: str) -> str:
    """A text without anything that could begin a line of its own, or is no character."""
    return _BREAKS.sub(" ", unicodedata.normalize("NFC", text)).strip()


# ── the thread ──────────────────────────────────────────────────────────────────────────────────────────────────────


def thread_of(original: Original) -> tuple[str | None, tuple[str, ...]]:
    """In-Reply-To and References of an answer (RFC 5322 3.6.4). Nothing where the original has no Message-ID."""
    if original.rfc_message_id is None:
        return None, ()
    chain = [each for each in dict.fromkeys(original.references) if each != original.rfc_message_id]
    if len(chain) >= MOST_REFERENCES:
        chain = [chain[0], *chain[-(MOST_REFERENCES - 2) :]]
    return original.rfc_message_id, (*chain, original.rfc_message_id)


# ── the recipients ──────────────────────────────────────────────────────────────────────────────────────────────────


def _recipients(
    message: Message, original: Original, own: frozenset[str]
) -> tuple[tuple[Address, ...], tuple[Address, ...]]:
    """To and Cc. What the app gave stays as it is; what follows from the original leaves out the mailbox itself."""
    if message.answering == "forward":
        return message.to, message.cc
    to = message.to or _answered(original, own)
    if message.answering == "reply":
        return to, message.cc
    others = _distinct([*to, *_without(original.to, own)])
    taken = {normalise_address(each.email) for each in others}
    return others, _distinct([*message.cc, *_without(original.cc, own | taken)])


def _answered(original: Original, own: frozenset[str]) -> tuple[Address, ...]:
    """Whom an answer goes to: Reply-To, or From; of a message that the mailbox itself sent, those who received it."""
    sender = (original.sender,) if original.sender else ()
    ours = any(normalise_address(each.email) in own for each in sender)
    groups = (original.to, original.cc) if ours else (original.reply_to, sender, original.to)
    return _distinct(next((people for group in groups if (people := _without(group, own))), ()))


def _without(people: Sequence[Address], unwanted: frozenset[str] | set[str]) -> tuple[Address, ...]:
    return tuple(each for each in people if normalise_address(each.email) not in unwanted)


def _distinct(people: Iterable[Address]) -> tuple[Address, ...]:
    found: dict[str, Address] = {}
    for each in people:
        found.setdefault(normalise_address(each.email), each)
    return tuple(found.values())


def _addresses(people: Iterable[Person]) -> tuple[Address, ...]:
    found = []
    for name, email in people:
        try:
            found.append(Address(one_line(email), one_line(name)[:MAX_NAME]))
        except InvalidMessage:
            continue
    return tuple(found)
