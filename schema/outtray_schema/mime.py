"""Freezing a message as MIME: the same bytes at every attempt, streamed, with attachments never held whole.

The standard library's `EmailMessage` writes the frame (part headers, RFC 2231 names, boundaries) with a marker where
each body belongs; the encoded bodies are spliced in as they are read. The header block of the message is folded here,
with the library's `Header` for what is not ASCII: its parsing of every header cost ten times all the rest (1.54 ms a
message, measured 2026-11), and at 78 columns it turns long References into encoded words, which breaks threading.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from email import policy
from email.header import Header
from email.message import EmailMessage
from email.utils import format_datetime
from functools import lru_cache
from types import MappingProxyType
from urllib.parse import quote
from uuid import UUID

from outtray_schema.address import Address, refuse_control_characters
from outtray_schema.attachment import Attachment
from outtray_schema.errors import InvalidMessage, Problem
from outtray_schema.invitation import method_of, summary_of
from outtray_schema.message import Message
from outtray_schema.plaintext import text_of_html
from outtray_schema.raw import missing_headers

PIECE = 1024 * 1024
"""Bytes that one piece of a frozen message has at most."""

MIB = 1024 * 1024
PROVIDER_SIZE = {
    # Gmail: maxSize of upload/messages/send in the discovery document (rev. 20261005).
    "gmail": 36_700_160,
    # Exchange Online: 150 MB is the most that an administrator can allow; the default is 35 MB (docs, 2026-11).
    "microsoft": 150 * MIB,
}
"""Bytes of MIME that a provider takes at most. An SMTP server states its own in SIZE, seen when it is spoken to."""

MAX_LINE = 998
"""Octets of a line without its CRLF (RFC 5322 2.1.1)."""

_WHOLE = 700 * 1024
"""Attachments up to this many bytes of base64 in all are encoded once and kept; above it they are read each time."""

_POLICY = policy.SMTP.clone(max_line_length=MAX_LINE)
_COLUMNS = 78
_ENCODED_WORD = 75
# Neither base64 nor quoted-printable can contain "=_" (RFC 2045 6.7), so no body can close its own part.
_BOUNDARY = "=_outtray_"
# No name or type may contain a control character, so nobody's filename can pass for a marker.
_MARKER = "\x01{}\x01"
_MARKERS = re.compile(rb"\x01\d+\x01")
_PLAIN = bytes(range(0x20, 0x7F)) + b"\t\r\n"
_PHRASE = re.compile(r"[A-Za-z0-9 !#$%&'*+/=?^_`{|}~-]+")
_NEWLINE = re.compile(r"\r\n|\r")


@dataclass(frozen=True, slots=True)
class Apart:
    """A file that is stored apart from the message, as base64: `size` bytes, after `at` bytes of the MIME around."""

    at: int
    attachment_id: UUID
    size: int


@dataclass(frozen=True, slots=True)
class FrozenMime:
    """A message's bytes: `size` in bytes, `hash` (SHA-256), and `pieces`, which starts anew at each call.

    `hash` and `pieces` are of what is stored with the message: of all of it but the files `apart`.
    """

    size: int
    hash: bytes
    pieces: Callable[[], Iterator[bytes]] = field(repr=False)
    """Pieces of at most 1 MiB. Raises `InvalidMessage` if an attachment's file changed since the message was frozen."""
    headers: int = 0
    """How many of its bytes at the beginning are its own headers, as `header_block` writes them: who, whom, about what.
    What follows, beginning with Content-Type, does not depend on them."""
    apart: tuple[Apart, ...] = ()

    @property
    def around(self) -> int:
        """Bytes of `pieces`."""
        return self.size - sum(each.size for each in self.apart)


def freeze(
    message: Message,
    *,
    sender: Address,
    rfc_message_id: str,
    date: datetime,
    stored: Mapping[int, tuple[UUID, int]] = MappingProxyType({}),
) -> FrozenMime:
    """Write a message as MIME, once for all its attempts.

    `sender` is who stands in From, `date` aware. Bcc is never in the bytes. `stored`: those of its attachments, by
    their position, that are stored apart: their id, and the bytes that they have as base64. Raises `InvalidMessage` if
    an attachment's file cannot be read, and `ValueError` if a header could break out of its line.
    """
    if message.raw is not None:
        return _as_it_is(message.raw, rfc_message_id, date)
    frame, bodies = _frame(message)
    headers = header_block(message, sender, rfc_message_id, date)
    segments: list[bytes | _Encoded] = [headers + frame[0]]
    apart, at = [], len(segments[0])
    for body, following in zip(bodies, frame[1:], strict=True):
        if isinstance(body, _Encoded) and body.index in stored:
            apart.append(Apart(at, *stored[body.index]))
        else:
            segments.append(body)
            at += len(body)
        segments.append(following)
        at += len(following)
    mime = _frozen(segments)
    size = mime.size + sum(each.size for each in apart)
    return replace(mime, size=size, headers=len(headers), apart=tuple(apart))


def _as_it_is(raw: bytes, rfc_message_id: str, date: datetime) -> FrozenMime:
    whole = missing_headers(raw, rfc_message_id, _date(date)) + raw
    return FrozenMime(len(whole), hashlib.sha256(whole).digest(), lambda: _cut(whole))


def _frozen(segments: Sequence[bytes | _Encoded]) -> FrozenMime:
    if sum(len(each) for each in segments if isinstance(each, _Encoded)) <= _WHOLE:
        whole = b"".join(_stream(segments))
        return FrozenMime(len(whole), hashlib.sha256(whole).digest(), lambda: _cut(whole))
    return _measured(segments)


def new_rfc_message_id(message_id: UUID, domain: str) -> str:
    """The Message-ID that a message keeps for ever: its own id at the sender's domain (ASCII)."""
    return f"<{message_id}@{domain}>"


class _Encoded:
    """An attachment that is read and encoded at every pass, and must be the same at each."""

    def __init__(self, index: int, attachment: Attachment, digest: bytes | None = None) -> None:
        self.index = index
        self._attachment = attachment
        self._digest = digest

    def __len__(self) -> int:
        """Bytes of base64."""
        return base64_size(_size(self.index, self._attachment))

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._lines()
        except OSError as error:
            raise self._refusal(f"the file cannot be read any more: {error.strerror}") from None

    def _lines(self) -> Iterator[bytes]:
        left = self._attachment.size
        digest = hashlib.sha256()
        for piece in self._attachment.read():
            left -= len(piece)
            if left < 0:
                break
            digest.update(piece)
            yield base64_lines(piece)
        if left != 0 or self._digest not in (None, digest.digest()):
            raise self._refusal("the file changed while it was read; enqueue the message again")
        self._digest = digest.digest()

    def _refusal(self, reason: str) -> InvalidMessage:
        return InvalidMessage(Problem(f"attachments[{self.index}].path", reason))


def base64_lines(data: bytes) -> bytes:
    """Base64 in lines of 76 columns that end in CRLF. `data` in multiples of 57 bytes can be joined."""
    line = binascii.b2a_base64(data, newline=False)
    return b"\r\n".join([line[start : start + 76] for start in range(0, len(line), 76)]) + b"\r\n"


def base64_size(size: int) -> int:
    """Bytes of `base64_lines` for so many bytes, read in pieces."""
    return -(-size // 3) * 4 + -(-size // 57) * 2


def encoded_file(index: int, attachment: Attachment, digest: bytes) -> Iterator[bytes]:
    """An attachment as base64, piece by piece. Raises `InvalidMessage` if it is not what had that SHA-256."""
    return iter(_Encoded(index, attachment, digest))


def _measured(segments: Sequence[bytes | _Encoded]) -> FrozenMime:
    size, digest = 0, hashlib.sha256()
    for piece in _stream(segments):
        size += len(piece)
        digest.update(piece)
    return FrozenMime(size, digest.digest(), lambda: _stream(segments))


def _stream(segments: Iterable[bytes | _Encoded]) -> Iterator[bytes]:
    for segment in segments:
        yield from segment if isinstance(segment, _Encoded) else _cut(segment)


def _cut(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


def _size(index: int, attachment: Attachment) -> int:
    try:
        return attachment.size
    except OSError as error:
        reason = f"the file cannot be read any more: {error.strerror}"
        raise InvalidMessage(Problem(f"attachments[{index}].path", reason)) from None


# ── the frame: which parts there are ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Part:
    """The headers of one leaf of the tree, and the number of the body that belongs into it."""

    number: int
    content_type: str
    encoding: str
    filename: str | None = None
    inline_id: str | None = None


def _frame(message: Message) -> tuple[tuple[bytes, ...], list[bytes | _Encoded]]:
    """The bytes around the bodies, from the end of the message's own headers on, and the bodies."""
    bodies: list[bytes | _Encoded] = []
    texts: list[_Part] = []
    for content_type, content in _texts(message):
        encoding, body = _encoded_text(content)
        texts.append(_Part(len(bodies), f'{content_type}; charset="utf-8"', encoding))
        bodies.append(body)
    inline: list[_Part] = []
    files: list[_Part] = []
    for index, each in enumerate(message.attachments):
        part = _Part(len(bodies), each.mime_type, "base64", each.filename, each.inline_id)
        (files if each.inline_id is None else inline).append(part)
        bodies.append(_Encoded(index, each))
    if message.invitation is not None:
        files.append(_Part(len(bodies), "application/ics", "base64", "invite.ics"))
        bodies.append(base64_lines(_crlf(message.invitation)))
    pieces, order = _written_frame(tuple(texts), tuple(inline), tuple(files))
    return pieces, [bodies[number] for number in order]


def _texts(message: Message) -> Iterator[tuple[str, str]]:
    """The bodies in the order in which they say more and more: text, html, and what a calendar is asked for."""
    text, calendar = message.text, message.invitation
    if text is None and message.html is None:
        text = summary_of(calendar) if calendar is not None else ""
    elif text is None and message.html is not None:
        text = text_of_html(message.html) or None
    if text is not None:
        yield "text/plain", text
    if message.html is not None:
        yield "text/html", message.html
    if calendar is not None:
        yield f"text/calendar; method={method_of(calendar)}", calendar


@lru_cache(maxsize=256)
def _written_frame(
    texts: tuple[_Part, ...], inline: tuple[_Part, ...], files: tuple[_Part, ...]
) -> tuple[tuple[bytes, ...], tuple[int, ...]]:
    """The frame in pieces, and the numbers of the bodies between them. Most messages of an app share a few shapes."""
    root = _tree(texts, inline, files)
    for number, part in enumerate(part for part in root.walk() if part.is_multipart()):
        part.set_boundary(f"{_BOUNDARY}{number}")
    written = root.as_bytes(policy=_POLICY)
    for leaf in (*inline, *files):
        if (name := _stand_in(leaf)) is not None and leaf.filename is not None:
            written = written.replace(f'filename="{name}"'.encode(), _extended(leaf.filename), 1)
            written = written.replace(f'name="{name}"'.encode(), _for_outlook(leaf.filename), 1)
    order = tuple(int(marker[1:-1]) for marker in _MARKERS.findall(written))
    return tuple(_MARKERS.split(written)), order


def _tree(texts: Sequence[_Part], inline: Sequence[_Part], files: Sequence[_Part]) -> EmailMessage:
    """mixed(alternative(text, related(html, images)), files), each level only where it has more than one child."""
    leaves = [_leaf(part) for part in texts]
    if inline:
        html = next(n for n, part in enumerate(texts) if part.content_type.startswith("text/html"))
        leaves[html] = _multipart("related", [leaves[html], *map(_leaf, inline)])
    content = _multipart("alternative", leaves) if len(leaves) > 1 else leaves[0]
    return _multipart("mixed", [content, *map(_leaf, files)]) if files else content


def _multipart(kind: str, children: Iterable[EmailMessage]) -> EmailMessage:
    part = EmailMessage(policy=_POLICY)
    part["Content-Type"] = f"multipart/{kind}"
    for child in children:
        part.attach(child)
    return part


def _leaf(part: _Part) -> EmailMessage:
    leaf = EmailMessage(policy=_POLICY)
    stand_in = _stand_in(part) if "name=" not in part.content_type.lower() else None
    leaf["Content-Type"] = part.content_type + (f'; name="{stand_in}"' if stand_in else "")
    leaf["Content-Transfer-Encoding"] = part.encoding
    if part.filename is not None:
        disposition = "attachment" if part.inline_id is None else "inline"
        leaf.add_header("Content-Disposition", disposition, filename=_stand_in(part) or part.filename)
    if part.inline_id is not None:
        leaf["Content-ID"] = f"<{part.inline_id}>"
    leaf.set_payload(_MARKER.format(part.number))
    return leaf


_STAND_IN = "outtray file {}"
_PLAIN_NAME = re.compile(r"(?!.*outtray file )[ !#-\[\]-~]*")


def _stand_in(part: _Part) -> str | None:
    """What stands for a name until it is written as RFC 2231 has it; None for a name that is written as it is.

    `EmailMessage` would break long ones into pieces, and quote `"` as `\\"`: neither is read by all (fast-mail-parser
    0.10 keeps the backslash, tried 2026-11).
    """
    name = part.filename or ""
    return None if _PLAIN_NAME.fullmatch(name) else _STAND_IN.format(part.number)


def _extended(name: str) -> bytes:
    """RFC 2231 4 (RFC 5987's form of it): in one piece, which a line holds: 255 bytes are 765 here."""
    return f"filename*=utf-8''{quote(name, safe='!#$&+-.^_`|~')}".encode()


def _for_outlook(name: str) -> bytes:
    """The same in Content-Type, in encoded words: RFC 2047 5 forbids them there, but some Outlook versions show
    "Untitled attachment" without them (MimeKit issues 186 and 231; nodemailer does so, 2026-11)."""
    words = Header(name, "utf-8").encode(linesep="", maxlinelen=_ENCODED_WORD)
    return f'name="{words}"'.encode()


def _encoded_text(text: str) -> tuple[str, bytes]:
    """A body's transfer encoding and its encoded bytes, ending in CRLF as every line of a mail does."""
    data = _crlf(text)
    if _is_plain(data):
        return "7bit", data
    # Quoted-printable stays readable on its way; base64 is the shorter where most bytes are not ASCII.
    quoted = binascii.b2a_qp(data)
    return ("quoted-printable", quoted) if len(quoted) <= len(data) * 4 // 3 else ("base64", base64_lines(data))


def _crlf(text: str) -> bytes:
    text = _NEWLINE.sub("\n", text) if "\r" in text else text
    return (text if text.endswith("\n") else text + "\n").replace("\n", "\r\n").encode()


def _is_plain(data: bytes) -> bool:
    """Whether a body may travel as it is: ASCII, short lines, no space that a server could strip at their ends."""
    if data.translate(None, _PLAIN) or b" \r\n" in data or b"\t\r\n" in data or _BOUNDARY.encode() in data:
        return False
    return max(map(len, data.split(b"\r\n"))) <= _COLUMNS


# ── the message's own headers ───────────────────────────────────────────────────────────────────────────────────────


def header_block(message: Message, sender: Address, rfc_message_id: str, date: datetime) -> bytes:
    """The headers that say who writes to whom, when and how: the first bytes of `freeze`, each line with its CRLF.

    Raises `ValueError` if one could break out of its line.
    """
    to = [each.address for each in message.recipients if each.role == "to"]
    cc = [each.address for each in message.recipients if each.role == "cc"]
    lines = [_addresses("From", [sender])]
    # RFC 5322 3.6.3 lets a mail without To and Cc pass, but some servers score it as forged.
    lines.append(_addresses("To", to) if to or cc else "To: undisclosed-recipients:;")
    lines += [_addresses(name, group) for name, group in (("Cc", cc), ("Reply-To", message.reply_to)) if group]
    if message.subject:
        lines.append(_text("Subject", message.subject))
    lines.append(f"Date: {_date(date)}")
    lines.append(_folded("Message-ID", [rfc_message_id], _COLUMNS))
    if message.in_reply_to:
        lines.append(_folded("In-Reply-To", [message.in_reply_to], _COLUMNS))
    if message.references:
        lines.append(_folded("References", message.references, _COLUMNS))
    lines += _wishes(message, sender)
    lines += _unsubscribe(message)
    lines += [_text(name, value) for name, value in message.headers.items()]
    lines.append("MIME-Version: 1.0")
    return "".join(f"{line}\r\n" for line in lines).encode()


def _wishes(message: Message, sender: Address) -> Iterator[str]:
    """What is asked of the recipients' mail programs."""
    if message.importance != "normal":
        # Importance is of RFC 2156; X-Priority of no RFC, but some programs look at nothing else (1 highest, 5 lowest).
        yield f"Importance: {message.importance}"
        yield f"X-Priority: {1 if message.importance == 'high' else 5}"
    if message.request_read_receipt:
        yield _addresses("Disposition-Notification-To", [Address(sender.email)])  # RFC 8098 2.1


def _unsubscribe(message: Message) -> Iterator[str]:
    """RFC 2369 3.2, and RFC 8058 3.1 for the one click: exactly one https URI, and the header that says POST."""
    url, mailto = message.unsubscribe_url, message.unsubscribe_mailto
    if places := [f"<{place}>" for place in (url, mailto) if place is not None]:
        yield _folded("List-Unsubscribe", [f"{each}," for each in places[:-1]] + places[-1:], _COLUMNS)
    if url is not None:
        yield "List-Unsubscribe-Post: List-Unsubscribe=One-Click"


def _addresses(name: str, addresses: Sequence[Address]) -> str:
    last = len(addresses) - 1
    return _folded(name, [_mailbox(each) + ("," if at < last else "") for at, each in enumerate(addresses)], _COLUMNS)


def _mailbox(address: Address) -> str:
    refuse_control_characters(address.name)
    if not address.name:
        return address.email
    return f"{_phrase(address.name)} <{address.email}>"


def _phrase(name: str) -> str:
    """A display name as RFC 5322 writes it: bare, quoted, or in encoded words."""
    if not name.isascii() or "=?" in name:
        return _encoded_words(name, 0)
    if _PHRASE.fullmatch(name):
        return name
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _text(name: str, value: str) -> str:
    """An unstructured header: as it is while its lines can be, else in encoded words."""
    refuse_control_characters(value)
    words = value.split(" ")
    if value.isascii() and "=?" not in value and max(map(len, words)) <= MAX_LINE - 90:
        return _folded(name, words, MAX_LINE)
    return f"{name}: {_encoded_words(value, len(name) + 2)}"


def _encoded_words(text: str, indent: int) -> str:
    """RFC 2047, in words of at most 75 columns, several of them folded; `indent` columns are taken already."""
    return Header(text, "utf-8", header_name=" " * max(indent - 2, 0)).encode(linesep="\r\n", maxlinelen=_ENCODED_WORD)


def _folded(name: str, words: Iterable[str], columns: int) -> str:
    """A header of words with one space between them, folded in front of words that would pass `columns`."""
    lines = [f"{name}:"]
    for word in words:
        refuse_control_characters(word.replace("\r\n ", ""))
        if len(lines[-1]) + 1 + len(word) > columns and len(lines[-1]) > len(name) + 1:
            lines.append("")
        lines[-1] += f" {word}"
    return "\r\n".join(lines)


def _date(date: datetime) -> str:
    if date.utcoffset() is None:
        raise ValueError("the date of a mail needs a time zone")
    return format_datetime(date)
