"""The frozen mail with our two headers in front, and the three shapes in which it travels: JSON, multipart, in chunks.

Gmail takes recipients from headers alone and strips Bcc as it delivers (discovery document, 2026-10), so the frozen
MIME, which has no Bcc, gets one in front; and our key, by which the copy is found: Gmail replaces the Message-ID and
keeps X- headers (field measurements, 2026-08).
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

from outtray_worker.providers import Mail
from outtray_worker.providers.gmail.api import MESSAGE
from outtray_worker.providers.web import ContentLost, Stream
from outtray_worker.providers.web.exchange import exactly

KEPT = 1 << 20
"""Mails up to this size are held while they travel; the content of larger ones is read anew each time."""


class Content:
    """The bytes that Gmail gets. `length` and `pieces` make it a stream; `read_ahead` proves it."""

    def __init__(self, mail: Mail, key_header: str) -> None:
        self._mail = mail
        self._front = front(mail, key_header)
        self._whole: bytes | None = None
        self.length = len(self._front) + mail.size
        self.small = self.length <= KEPT

    async def pieces(self) -> AsyncIterator[bytes]:
        if self._whole is not None:
            yield self._whole
            return
        yield self._front
        async for piece in self._mail.body():
            yield piece

    async def read_ahead(self) -> None:
        """Read it all before anything is asked of Gmail; small ones are kept. Raises what the reading raises.

        A mail that is handed over while it is read could otherwise fail in the middle of its handover.
        """
        pieces = []
        async for piece in exactly(Stream(self.length, self.pieces)):
            if self.small:
                pieces.append(piece)
        if self.small:
            self._whole = b"".join(pieces)

    async def part(self, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to `end`, wherever pieces are cut. Of the last: only if nothing is missing."""
        at = 0
        async for piece in exactly(Stream(self.length, self.pieces)):
            cut = piece[max(start - at, 0) : max(end - at, 0)]
            at += len(piece)
            if cut:
                yield cut
            if at >= end and end < self.length:
                return


def front(mail: Mail, key_header: str) -> bytes:
    """The headers that only Gmail gets. Raises `ValueError` for an address that could break out of its line."""
    lines = f"{key_header}: {mail.message_id}\r\n"
    if mail.bcc:
        if any(ord(character) < 32 or ord(character) == 127 for each in mail.bcc for character in each):
            raise ValueError("an address holds control characters")
        lines += f"Bcc: {(',' + chr(13) + chr(10) + ' ').join(mail.bcc)}\r\n"
    return lines.encode()


def as_json(content: Content, about: str, resource: Mapping[str, str]) -> Stream:
    """`{"message": {…, "raw": …}}` for a draft, `{…, "raw": …}` for a message, encoded while it flows."""
    message: dict[str, Any] = {**resource, "raw": ""}
    text = json.dumps({"message": message} if about == "drafts.create" else message)
    before, after = text.rsplit('""', 1)
    length = len(before) + len(after) + 2 + (content.length + 2) // 3 * 4

    async def pieces() -> AsyncIterator[bytes]:
        yield f'{before}"'.encode()
        left = b""
        async for piece in content.pieces():
            joined = left + piece
            whole = len(joined) // 3 * 3
            left = joined[whole:]
            if whole:
                yield base64.urlsafe_b64encode(joined[:whole])
        yield base64.urlsafe_b64encode(left) + f'"{after}'.encode()

    return Stream(length, pieces)


def as_multipart(content: Content, about: str, resource: Mapping[str, str]) -> tuple[str, Stream]:
    """multipart/related of the JSON and the MIME as it is; the content type and the body."""
    boundary = f"outtray-{secrets.token_hex(16)}"
    before = (
        f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
        f"{metadata(about, resource).decode()}\r\n--{boundary}\r\nContent-Type: {MESSAGE}\r\n\r\n"
    ).encode()
    after = f"\r\n--{boundary}--\r\n".encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield before
        async for piece in content.pieces():
            yield piece
        yield after

    return f'multipart/related; boundary="{boundary}"', Stream(len(before) + content.length + len(after), pieces)


def metadata(about: str, resource: Mapping[str, str]) -> bytes:
    return json.dumps({"message": dict(resource)} if about == "drafts.create" else dict(resource)).encode()


def chunk(content: Content, start: int, end: int) -> Stream:
    return Stream(end - start, lambda: content.part(start, end))


async def held(stream: Stream) -> bytes:
    """A small stream's bytes. Raises what its content raises."""
    try:
        return b"".join([piece async for piece in stream.pieces()])
    except ContentLost as lost:
        raise lost.__cause__ or lost from None
