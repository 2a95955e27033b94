"""A frozen mail as Graph wants it: a message in JSON, with what of it travels as attachments.

Graph's JSON has one body (html, or text where there is none), recipients by role, and of headers only five that begin
with x-, set when the message is made (learn.microsoft.com/graph/api/resources/message; five: field practice, 2026-11).
What it cannot express goes as MIME, where that is possible.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email import message_from_bytes
from typing import Any, TypeVar

from outtray_worker.providers import Mail
from outtray_worker.providers.microsoft.parts import END, Headers, NotOurs, Part, decoded, events, text_of

KEY = "String {b7f2d0c4-5a0e-4a57-9a7e-0c1d8f3e6a21} Name OutboxKey"
"""Our extended property: its value is the message's id. The GUID is ours for ever: drafts and sent copies carry it."""

REQUEST = 4 * 1024 * 1024
"""Bytes of a request's body, in JSON or MIME (learn.microsoft.com/graph/api, 2026-11)."""

X_HEADERS = 5
"""Custom headers of one message in JSON (field practice, 2026-11)."""

Json = dict[str, Any]
T = TypeVar("T")

_LONG = 256 * 1024

# What JSON says otherwise. X-Priority and its like say what `importance` says.
_EXPRESSED = {
    "from", "to", "cc", "reply-to", "subject", "date", "message-id", "mime-version", "importance", "x-priority",
    "x-msmail-priority", "priority", "disposition-notification-to",
}  # fmt: skip
_THREADING = {"in-reply-to", "references"}
_PRIORITIES = {"urgent": "high", "non-urgent": "low", "high": "high", "low": "low", "normal": "normal"}


@dataclass(frozen=True, slots=True)
class File:
    """What travels with the body: the leaf number `position` of the mail. `data` only where the mail is small."""

    position: int
    part: Part
    size: int
    """Bytes, decoded."""
    data: bytes | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Graph wants a name; an image may have none."""
        return self.part.filename or self.part.content_id or f"attachment-{self.position}"

    def described(self) -> Json:
        """Its properties, without its bytes."""
        told: Json = {"@odata.type": "#microsoft.graph.fileAttachment", "name": self.name}
        told["contentType"] = self.part.content_type
        if self.part.content_id:
            # Without angle brackets, or Outlook shows no image (field practice, 2026-11).
            told |= {"isInline": True, "contentId": self.part.content_id}
        return told

    def with_bytes(self, data: bytes) -> Json:
        return {**self.described(), "contentBytes": base64.b64encode(data).decode()}


@dataclass(frozen=True, slots=True)
class Contents:
    """A mail taken apart: headers, the one body that Graph shows, and what travels with it."""

    headers: Headers
    body: Json = field(repr=False)
    files: tuple[File, ...]


async def take_apart(mail: Mail, keep: bool) -> Contents:
    """Read a mail once. `keep`: hold the files' bytes as well. Raises `NotOurs`, and `NotOurs` for too long a text."""
    texts: dict[str, tuple[Part, list[bytes]]] = {}
    files: list[File] = []
    part, pieces, size, position = Part("", "", ""), [], 0, -1
    headers = Headers(())
    async for reader, event in events(mail.body()):
        headers = reader.headers
        if isinstance(event, Part):
            part, pieces, size, position = event, list[bytes](), 0, position + 1
        elif isinstance(event, bytes):
            size += len(event)
            if part.is_text or keep:
                pieces.append(event)
            if part.is_text and size > REQUEST:
                raise NotOurs(f"its text is larger than the {REQUEST} bytes of one request to Graph")
        elif part.is_text and part.content_type not in texts:
            texts[part.content_type] = (part, pieces)
        elif event is END:
            files.append(File(position, part, size, b"".join(pieces) if keep else None))
    return Contents(headers, _body(texts), tuple(files))


def _body(texts: Mapping[str, tuple[Part, list[bytes]]]) -> Json:
    for content_type, name in (("text/html", "html"), ("text/plain", "text")):
        if content_type in texts:
            return {"contentType": name, "content": text_of(*texts[content_type])}
    return {"contentType": "text", "content": ""}


async def bytes_from(mail: Mail, file: File, offset: int = 0) -> AsyncIterator[bytes]:
    """A file's bytes from `offset` on, read anew."""
    position = -1
    async for _, event in events(mail.body()):
        if isinstance(event, Part):
            position += 1
        elif position > file.position:
            return
        elif isinstance(event, bytes) and position == file.position:
            skipped, offset = min(offset, len(event)), max(0, offset - len(event))
            if rest := event[skipped:]:
                yield rest


# ── the message ─────────────────────────────────────────────────────────────────────────────────────────────────────


def message_of(mail: Mail, own: str, contents: Contents, answers: bool = False) -> Json:
    """The message without its files. `own`: the mailbox's address; another sender stands in `from`.

    `answers`: for a draft that Graph made as an answer, whose headers can no longer be set.
    """
    headers = contents.headers
    told: Json = {"subject": headers.get("Subject"), "body": contents.body, **recipients_of(mail, headers)}
    told["replyTo"] = [_recipient(*each) for each in headers.addresses("Reply-To")]
    if importance := importance_of(headers):
        told["importance"] = importance
    if headers.get("Disposition-Notification-To"):
        told["isReadReceiptRequested"] = True
    if not same(mail.sender, own):
        # `sender` stays unset, so that Exchange checks Send As (learn.microsoft.com/graph/outlook-send-mail-from-…).
        told["from"] = _from(mail, headers)
    told["internetMessageId"] = mail.rfc_message_id
    told["singleValueExtendedProperties"] = [key_of(mail)]
    if not answers and (custom := list(custom_headers(headers))):
        told["internetMessageHeaders"] = [{"name": name, "value": value} for name, value in custom]
    return told


def key_of(mail: Mail) -> Json:
    return {"id": KEY, "value": str(mail.message_id)}


def recipients_of(mail: Mail, headers: Headers) -> Json:
    """The envelope by roles. Who stands in neither To nor Cc is nobody else's business: Bcc."""
    envelope = {each.casefold() for each in mail.recipients}
    seen: set[str] = {each.casefold() for each in mail.bcc}
    roles: dict[str, list[Json]] = {"toRecipients": [], "ccRecipients": [], "bccRecipients": []}
    for name, role in (("To", "toRecipients"), ("Cc", "ccRecipients")):
        for shown, address in headers.addresses(name):
            if address.casefold() in envelope - seen:
                seen.add(address.casefold())
                roles[role].append(_recipient(shown, address))
    roles["bccRecipients"] = [_recipient("", each) for each in hidden(mail, headers)]
    return dict(roles)


def hidden(mail: Mail, headers: Headers) -> list[str]:
    """Those of the envelope that no header may show, in its order."""
    private = {each.casefold() for each in mail.bcc}
    shown = {address.casefold() for name in ("To", "Cc") for _, address in headers.addresses(name)} - private
    return [each for each in mail.recipients if each.casefold() not in shown]


def _recipient(name: str, address: str) -> Json:
    return {"emailAddress": {"address": address, **({"name": name} if name else {})}}


def _from(mail: Mail, headers: Headers) -> Json:
    shown = next((name for name, address in headers.addresses("From") if same(address, mail.sender)), "")
    return _recipient(shown, mail.sender)


def same(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


def importance_of(headers: Headers) -> str:
    """Graph's importance; "" where the mail names none."""
    said = (headers.get("Importance") or headers.get("Priority")).lower()
    if said in _PRIORITIES:
        return _PRIORITIES[said]
    number = headers.get("X-Priority")[:1]
    return {"1": "high", "2": "high", "3": "normal", "4": "low", "5": "low"}.get(number, "")


# ── headers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def custom_headers(headers: Headers) -> Iterable[tuple[str, str]]:
    """Those that JSON can carry: x- ones, but for what has a property of its own."""
    for name, value in headers.lines:
        if name.lower().startswith("x-") and name.lower() not in _EXPRESSED:
            yield name, decoded(value)


def beyond_json(headers: Headers, answers: bool) -> list[str]:
    """The names of headers that only MIME can carry. `answers`: Graph threads the mail itself, and takes no headers."""
    custom = list(custom_headers(headers))
    known = _EXPRESSED | (_THREADING if answers else set())
    names = [name for name, _ in headers.lines if not name.lower().startswith(("x-", "content-"))]
    beyond = [name for name in names if name.lower() not in known]
    if len(custom) > (0 if answers else X_HEADERS):
        beyond += [name for name, _ in custom]
    return beyond


def encoded(message: Json) -> bytes:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


async def beside_the_loop(size: int, make: Callable[[], T]) -> T:
    """Run what takes long for `size` bytes: base64 and JSON of 3 MB take 20 ms (measured 2026-11)."""
    return await asyncio.to_thread(make) if size > _LONG else make()


# ── MIME ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_THREE = 3 * 1024


def slim_base64(slim: bytes, bcc: Sequence[str]) -> bytes:
    """What `without_files` gave, as the body of a MIME request."""
    return base64.b64encode(_bcc(bcc) + slim)


def as_base64(mail: Mail, bcc: Sequence[str]) -> tuple[int, Callable[[], AsyncIterator[bytes]]]:
    """A mail as the body of a MIME request: its length, and its pieces anew at each call.

    Standard base64, as Graph wants it (learn.microsoft.com/graph/outlook-send-mime-message, 2026-11). A Bcc header in
    front adds recipients, and Exchange takes it out of what they receive.
    """
    head = _bcc(bcc)

    async def pieces() -> AsyncIterator[bytes]:
        waiting = head
        async for piece in mail.body():
            waiting += piece
            whole = len(waiting) // _THREE * _THREE
            if whole:
                yield base64.b64encode(waiting[:whole])
                waiting = waiting[whole:]
        if waiting:
            yield base64.b64encode(waiting)

    return -(-(len(head) + mail.size) // 3) * 4, pieces


async def without_files(mail: Mail) -> bytes:
    """The same mail less its files: its headers and the first part of its multipart/mixed, as they are written.

    Raises `NotOurs` if it has no such part, or one that is too large for a request.
    """
    seen, end, delimiter = b"", -1, b""
    async for piece in mail.body():
        seen += piece
        if not delimiter and (end := seen.find(b"\r\n\r\n")) >= 0:
            boundary = message_from_bytes(seen[: end + 4]).get_boundary()
            if boundary is None:
                break
            delimiter = b"\r\n--%b\r\n" % boundary.encode()
        if delimiter and (parts := seen[end + 2 :].split(delimiter, 2))[2:]:
            return _without_content_headers(seen[: end + 2]) + parts[1] + b"\r\n"
        if len(seen) > REQUEST:
            break
    raise NotOurs(f"its text is larger than the {REQUEST} bytes of one request to Graph")


def _without_content_headers(block: bytes) -> bytes:
    return re.sub(rb"(?im)^content-[^\r\n]*\r\n([ \t][^\r\n]*\r\n)*", b"", block)


def _bcc(addresses: Sequence[str]) -> bytes:
    if not addresses:
        return b""
    if any(character in address for address in addresses for character in "\r\n"):
        raise NotOurs("an address with a line break")
    return f"Bcc: {(',' + chr(13) + chr(10) + ' ').join(addresses)}\r\n".encode()
