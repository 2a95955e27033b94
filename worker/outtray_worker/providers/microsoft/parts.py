"""Reading our own frozen MIME as it streams by: its headers, its texts, its files, none of them held whole.

    mixed(alternative(text, related(html, images)), files), each level only where it has more than one child

    reader = Reader()
    for piece in body:
        for event in reader.feed(piece): ...      a `Part` begins, `bytes` are its decoded content, `END` ends it
    for event in reader.end(): ...
    reader.headers                                the message's own, once the first event has come

It reads what `outtray_schema.mime` writes; anything else that is MIME it reads as far as that goes.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from email import message_from_bytes
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from email.utils import getaddresses
from typing import Final, Literal

END: Final = "end"
_FOLD = re.compile(r"\r?\n[ \t]")
_LONGEST_HEAD = 1024 * 1024
"""Bytes that a header block may have: the door takes far fewer (a message has at most 2,000 recipients)."""


class NotOurs(Exception):
    """The content is no mail that could be read: a fault of ours, for nobody else wrote it."""


@dataclass(frozen=True, slots=True)
class Headers:
    """A message's headers in their order, unfolded and as they are written."""

    lines: tuple[tuple[str, str], ...] = field(repr=False)

    @classmethod
    def of(cls, block: bytes) -> Headers:
        """From the bytes before the blank line."""
        text = _FOLD.sub(" ", block.decode("utf-8", "replace"))
        pairs = (line.partition(":") for line in re.split(r"\r?\n", text))
        return cls(tuple((name.strip(), value.strip()) for name, colon, value in pairs if colon))

    def get(self, name: str) -> str:
        """The first of that name, decoded (RFC 2047); "" where there is none."""
        return next((decoded(value) for each, value in self.lines if each.lower() == name.lower()), "")

    def addresses(self, name: str) -> list[tuple[str, str]]:
        """The mailboxes of an address header, as (display name, address). Groups without members are none."""
        raw = [value for each, value in self.lines if each.lower() == name.lower()]
        return [(decoded(shown), address) for shown, address in getaddresses(raw) if "@" in address]


def decoded(value: str) -> str:
    if "=?" not in value:
        return value
    try:
        return str(make_header(decode_header(value)))
    except (HeaderParseError, LookupError, ValueError):
        return value


@dataclass(frozen=True, slots=True)
class Part:
    """A leaf: a text of the body, an image shown in it, or a file. `content_type` is without its parameters."""

    content_type: str
    charset: str
    encoding: str
    filename: str | None = field(default=None, repr=False)
    content_id: str | None = None
    """Without its angle brackets."""

    @classmethod
    def of(cls, message: Message) -> Part:
        """From a part's own headers."""
        content_id = str(message.get("Content-ID", "")).strip().strip("<>")
        return cls(
            message.get_content_type(),
            str(message.get_content_charset("utf-8")),
            str(message.get("Content-Transfer-Encoding", "7bit")).strip().lower(),
            message.get_filename(),
            content_id or None,
        )

    @property
    def is_text(self) -> bool:
        """Whether it is the body itself, not something that travels with it."""
        return self.filename is None and self.content_id is None and self.content_type in ("text/plain", "text/html")


Event = Part | bytes | Literal["end"]


class Reader:
    """One pass over one message. Raises `NotOurs` for what cannot be read."""

    def __init__(self) -> None:
        self.headers = Headers(())
        self._buffer = b""
        self._boundaries: list[bytes] = []
        self._step: Callable[[bool], Iterator[Event]] = self._head
        self._decoder = Decoder("7bit")
        self._first = True
        self._moved = True

    def feed(self, data: bytes) -> Iterator[Event]:
        self._buffer += data
        yield from self._run(False)

    def end(self) -> Iterator[Event]:
        if self._boundaries:
            self._buffer += b"\r\n"  # a closing boundary may be the very last thing
        yield from self._run(True)

    def _run(self, last: bool) -> Iterator[Event]:
        self._moved = True
        while self._moved:
            self._moved = False
            yield from self._step(last)

    # ── the steps: each takes what it can from the buffer, and says by `_go` where to go on ─────────────────────────

    def _go(self, step: Callable[[bool], Iterator[Event]]) -> None:
        self._step, self._moved = step, True

    def _head(self, last: bool) -> Iterator[Event]:
        """A header block. Its last line break stays: the first boundary of a multipart may follow at once."""
        end = 0 if self._buffer.startswith(b"\r\n") else self._buffer.find(b"\r\n\r\n") + 2
        if end == 1:
            if last or len(self._buffer) > _LONGEST_HEAD:
                raise NotOurs("a header block that does not end")
            return
        block, self._buffer = self._buffer[:end], self._buffer[end:]
        message = message_from_bytes(block)
        if self._first:
            self.headers, self._first = Headers.of(block), False
        if message.get_content_maintype() == "multipart" and (boundary := message.get_boundary()):
            self._boundaries.append(boundary.encode())
            self._go(self._between)
            return
        part = Part.of(message)
        self._decoder = Decoder(part.encoding)
        self._buffer = self._buffer[2:]
        self._go(self._content)
        yield part

    def _between(self, last: bool) -> Iterator[Event]:
        """Before the first part of a multipart, or after the last: everything up to the next boundary is nobody's."""
        found, keep = self._delimiter()
        if found is None:
            self._buffer = self._buffer[keep:]
            yield from ()
            return
        self._pass(found, found.end())

    def _content(self, last: bool) -> Iterator[Event]:
        """A leaf's own bytes. What might be the beginning of a boundary waits for what follows it."""
        found, keep = self._delimiter() if self._boundaries else (None, len(self._buffer))
        end = found.start() if found else len(self._buffer) if last else keep
        content, self._buffer = self._buffer[:end], self._buffer[end:]
        over = found is not None or last
        if data := self._decoder.feed(content, over):
            yield data
        if not over:
            return
        yield END
        if found is None:
            self._step = self._nothing
        else:
            self._pass(found, found.end() - end)

    def _nothing(self, last: bool) -> Iterator[Event]:
        self._buffer = b""
        yield from ()

    def _pass(self, found: re.Match[bytes], end: int) -> None:
        """Go on behind a boundary that ends at `end` of the buffer."""
        self._buffer = self._buffer[end:]
        if found[1]:
            self._boundaries.pop()
            # The line break of the closing boundary belongs to the next one's (RFC 2046 5.1.1).
            self._buffer = b"\r\n" + self._buffer
            self._go(self._between if self._boundaries else self._nothing)
        else:
            self._go(self._head)

    def _pattern(self) -> bytes:
        return rb"\r\n--%b(--)?[ \t]*\r\n" % re.escape(self._boundaries[-1])

    def _delimiter(self) -> tuple[re.Match[bytes] | None, int]:
        """The next boundary, and up to where the buffer surely holds none."""
        found = re.search(self._pattern(), self._buffer)
        return found, max(0, len(self._buffer) - len(self._boundaries[-1]) - 16)


class Decoder:
    """A transfer encoding, undone piece by piece."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._left = b""

    def feed(self, data: bytes, last: bool) -> bytes:
        """What can be decoded so far; with `last` all of it. Raises `NotOurs`."""
        if self._encoding == "base64":
            return self._base64(data, last)
        if self._encoding == "quoted-printable":
            return self._quoted(data, last)
        return data

    def _base64(self, data: bytes, last: bool) -> bytes:
        data = self._left + data.translate(None, b"\r\n \t")
        whole = len(data) if last else len(data) // 4 * 4
        data, self._left = data[:whole], data[whole:]
        try:
            return binascii.a2b_base64(data)
        except binascii.Error:
            raise NotOurs("base64 that is cut short") from None

    def _quoted(self, data: bytes, last: bool) -> bytes:
        data = self._left + data
        whole = len(data) if last else data.rfind(b"\n") + 1
        data, self._left = data[:whole], data[whole:]
        return binascii.a2b_qp(data)


async def events(body: AsyncIterator[bytes]) -> AsyncIterator[tuple[Reader, Event]]:
    """Every event of a mail that streams by, with the reader that knows its headers."""
    reader = Reader()
    async for piece in body:
        for event in reader.feed(piece):
            yield reader, event
    for event in reader.end():
        yield reader, event


async def headers_of(body: AsyncIterator[bytes]) -> Headers:
    """The message's own headers, read no further than they go. Raises `NotOurs`."""
    seen = b""
    async for piece in body:
        seen += piece
        if (end := seen.find(b"\r\n\r\n")) >= 0:
            return Headers.of(seen[:end])
        if len(seen) > _LONGEST_HEAD:
            break
    raise NotOurs("a header block that does not end")


def text_of(part: Part, pieces: Sequence[bytes]) -> str:
    """A text part as text, its lines ending in LF."""
    try:
        text = b"".join(pieces).decode(part.charset, "replace")
    except LookupError:
        text = b"".join(pieces).decode("utf-8", "replace")
    return text.replace("\r\n", "\n")
