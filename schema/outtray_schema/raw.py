"""A mail that its app has written itself (`raw`): what it says of itself, and what no server would take or keep so.

The bytes are sent as they are. So nothing is mended here: what would have to be changed is refused, with the line and
the cure. Only a Date and a Message-ID, where there is none, are put in front, as every submission server would do
(RFC 6409 8.1, 8.3).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.utils import getaddresses, parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from outtray_schema.address import Address
from outtray_schema.errors import InvalidMessage, Problem

if TYPE_CHECKING:
    from outtray_schema.message import Message

MAX_LINE = 998
_ONCE = frozenset({
    "date", "from", "sender", "reply-to", "to", "cc", "message-id", "in-reply-to", "references", "subject",
})  # fmt: skip
"""Headers that stand at most once (RFC 5322 3.6)."""
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:")
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_LONG = re.compile(rb"[^\r\n]{%d}" % (MAX_LINE + 1))
_MESSAGE_ID = re.compile(r"<[!-;=?-~]{1,900}>")
_FOLD = re.compile(r"\r\n[ \t]+")


@dataclass(frozen=True, slots=True)
class RawHeaders:
    """What a mail's own headers say, as `Message` has them. None of it in a repr."""

    names: frozenset[str]
    """Lower case."""
    from_: Address = field(repr=False)
    to: tuple[Address, ...] = field(repr=False)
    cc: tuple[Address, ...] = field(repr=False)
    reply_to: tuple[Address, ...] = field(repr=False)
    subject: str = field(repr=False)
    rfc_message_id: str | None = field(repr=False)
    in_reply_to: str | None = field(repr=False)
    references: tuple[str, ...] = field(repr=False)


def checked_raw(value: bytes) -> bytes:
    """The mail as it is. Raises `ValueError` with the cure."""
    headers_of(value)
    return value


@lru_cache(maxsize=64)
def headers_of(mail: bytes) -> RawHeaders:
    """Raises `ValueError`: it could not be sent as it is, or says too little of itself."""
    _check_lines(mail)
    fields = list(_fields(mail))
    counts = Counter(name for name, _ in fields)
    if twice := sorted(name for name in _ONCE if counts[name] > 1):
        raise ValueError(f"has more than one header {_shown(twice[0])} (RFC 5322 3.6); leave one of them")
    if "bcc" in counts:
        raise ValueError(
            "has a Bcc header, which all who receive it could read; remove it, and name those people in bcc"
        )
    if any(name.startswith("resent-") for name in counts):
        raise ValueError("has Resent- headers, which only whoever resends a mail may write; remove them")
    return _read(dict(reversed(fields)), frozenset(counts))


def _check_lines(mail: bytes) -> None:
    if not mail.strip():
        raise ValueError("is empty")
    if bare := _BARE.search(mail):
        line = mail.count(b"\n", 0, bare.start()) + 1
        cure = r'end lines in CRLF: raw.replace(b"\n", b"\r\n")' if b"\r" not in mail else "end every line in CRLF"
        raise ValueError(f"line {line} does not end in CRLF, as the lines of a mail do; {cure}")
    if not mail.endswith(b"\r\n"):
        raise ValueError("must end in CRLF, as its last line does; a server would add it")
    if long := _LONG.search(mail):
        line = mail.count(b"\n", 0, long.start()) + 1
        raise ValueError(
            f"line {line} has more than {MAX_LINE} bytes (RFC 5322 2.1.1); encode that part, e.g. in base64"
        )
    if (at := mail.find(b"\0")) >= 0:
        line = mail.count(b"\n", 0, at) + 1
        raise ValueError(f"line {line} holds a NUL byte, which no server takes; encode that part in base64")


def _fields(mail: bytes) -> Iterator[tuple[str, str]]:
    """Its own headers, name in lower case and value unfolded, in their order."""
    block = mail[: mail.find(b"\r\n\r\n") + 2] if b"\r\n\r\n" in mail else mail
    number, name, value = 0, b"", b""
    for number, line in enumerate(block.split(b"\r\n")[:-1], 1):
        if not line.isascii():
            raise ValueError(
                f"line {number} holds bytes outside ASCII in a header; write it in encoded words (RFC 2047)"
            )
        if line[:1] in (b" ", b"\t") and name:
            value += b"\r\n" + line
            continue
        if name:
            yield _pair(name, value)
        match = _FIELD.match(line)
        if match is None:
            raise ValueError(f"line {number} is no header, and the blank line that ends them has not come yet")
        name, value = match[1], line[match.end() :]
    if name:
        yield _pair(name, value)


def _pair(name: bytes, value: bytes) -> tuple[str, str]:
    return name.decode().lower(), _FOLD.sub(" ", value.decode()).strip()


def _read(fields: Mapping[str, str], names: frozenset[str]) -> RawHeaders:
    senders = _addresses(fields, "from")
    if len(senders) != 1:
        raise ValueError("needs a From header with one address: the mailbox's, or an alias of it")
    if "date" in fields:
        _check_date(fields["date"])
    own = fields.get("message-id")
    if own is not None and not _MESSAGE_ID.fullmatch(own):
        raise ValueError("has a Message-ID that is none; write it like <abc@example.com>, or leave it out")
    reply = re.findall(_MESSAGE_ID, fields.get("in-reply-to", ""))
    return RawHeaders(
        names, senders[0], _addresses(fields, "to"), _addresses(fields, "cc"), _addresses(fields, "reply-to"),
        _decoded(fields.get("subject", ""))[:998], own, reply[0] if reply else None,
        tuple(re.findall(_MESSAGE_ID, fields.get("references", ""))),
    )  # fmt: skip


def _check_date(text: str) -> None:
    try:
        parsedate_to_datetime(text)
    except ValueError:
        raise ValueError("has a Date that is none; write it like Sun, 31 Jan 2027 09:30:00 +0000") from None


def _addresses(fields: Mapping[str, str], name: str) -> tuple[Address, ...]:
    found = []
    for shown, email in getaddresses([fields[name]] if name in fields else []):
        if not email and not shown:
            continue  # a group without members, as in "undisclosed-recipients:;"
        try:
            found.append(Address(email, _decoded(shown)))
        except InvalidMessage as error:
            raise ValueError(
                f"its {_shown(name)} header holds what is no address: {error.problems[0].reason}"
            ) from None
    return tuple(found)


def _decoded(value: str) -> str:
    """Readable, on one line; for people and for the queue, never for the mail itself."""
    try:
        text = str(make_header(decode_header(value))) if "=?" in value else value
    except (HeaderParseError, LookupError, ValueError):
        text = value
    return " ".join(re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", " ", text).split())


def _shown(name: str) -> str:
    return {"message-id": "Message-ID"}.get(name, name.title())


# ── a message that is made of one ───────────────────────────────────────────────────────────────────────────────────

_FOLLOWS = ("reply_to", "subject", "in_reply_to", "references")
_PEOPLE = ("to", "cc")
_WITHOUT = ("text", "html", "attachments", "headers", "invitation", "unsubscribe_url", "unsubscribe_mailto",
            "request_read_receipt", "reply_to_message", "follows")  # fmt: skip
"""Fields that would have to change the bytes."""


def completed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A message's fields with what follows from its raw mail: To and Cc do unless either was given.

    A mail that is none is left for the field's own check to refuse.
    """
    given = dict(fields)
    if not isinstance(given.get("raw"), (bytes, bytearray, memoryview)):
        return given
    try:
        headers = headers_of(bytes(given["raw"]))
    except ValueError:
        return {"to": "unknown@example.com"} | given
    if given.get("from") is None and given.get("from_") is None:
        given["from_"] = headers.from_
    names = (*_FOLLOWS, *(() if any(given.get(name) for name in _PEOPLE) else _PEOPLE))
    return given | {name: getattr(headers, name) for name in names if not given.get(name)}


def problems_of_raw(message: Message) -> list[Problem]:
    """What was given beside a raw mail and cannot be kept to: its bytes stay as they are."""
    headers = headers_of(message.raw or b"")
    problems = [
        Problem(name, "would change the mail that raw brings; leave it out, or write it into the mail")
        for name in _WITHOUT
        if getattr(message, name)
    ]
    problems += [
        Problem(name, "is not what the mail that raw brings says; leave it out")
        for name in _FOLLOWS
        if getattr(message, name) != getattr(headers, name)
    ]
    if message.from_ is None or message.from_.email != headers.from_.email:
        problems.append(Problem("from", "is not what the mail that raw brings says; leave it out"))
    if message.recipient_policy == "accepted":
        reason = "accepted goes on by a key of ours in the mail, which raw does not carry; leave it out"
        problems.append(Problem("recipients", reason))
    if message.importance != "normal":
        problems.append(Problem("importance", "would change the mail that raw brings; leave it out"))
    return problems


def missing_headers(mail: bytes, rfc_message_id: str, date: str) -> bytes:
    """What is put in front of a mail that has no Date or no Message-ID; nothing else is ever added."""
    names = headers_of(mail).names
    lines = [("date", f"Date: {date}\r\n"), ("message-id", f"Message-ID: {rfc_message_id}\r\n")]
    return "".join(line for name, line in lines if name not in names).encode()
