"""aiosmtplib's protocol with strict replies: each complete and well-formed, in order, and none thrown away.

aiosmtplib 5.1 drops what a server says out of turn and the second of two replies that arrive together, and reads
`250garbage` as 250 (its source, 2026-11). A dropped 421 before the closing dot would cost a handover, pipelining needs
the second reply, and only a well-formed reply may decide after the dot.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
from collections import deque
from contextlib import suppress
from typing import cast

from aiosmtplib import SMTPResponse, SMTPServerDisconnected
from aiosmtplib.protocol import SMTPProtocol

from outtray_worker.providers.smtp.trust import PinnedContext

_LINE = re.compile(rb"([2-5]\d\d)(?:([ -])([^\r\n]*))?\r?\n")
# RFC 5321 4.5.3.1.5 allows 512 bytes a line; servers exceed it in EHLO and in long policy texts.
_LONGEST_LINE = 8192
_MOST_LINES = 500
_ABORT = struct.pack("ii", 1, 0)


class Garbled(Exception):
    """What the server said is no SMTP reply, or came where none was due. Discard the connection."""


class Wire(SMTPProtocol):
    """One connection's bytes. `transport` is the TLS transport once TLS is on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._replies: deque[SMTPResponse] = deque()
        self._lines: list[bytes] = []
        self._code = b""
        self._ended: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    # ── bytes in ────────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # Paused as soon as one byte waits in us, so that a flush ends only when the kernel has them all: nothing
        # written before the gate may still be queued before the closing dot.
        cast(asyncio.WriteTransport, transport).set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        if self._ended is None:
            self._buffer += data
            try:
                self._split()
            except Garbled as error:
                self._ended = error
        self._wake()

    def _split(self) -> None:
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[: end + 1])
            del self._buffer[: end + 1]
            self._take(line)
        if len(self._buffer) > _LONGEST_LINE:
            raise Garbled("a reply line that does not end")

    def _take(self, line: bytes) -> None:
        found = _LINE.fullmatch(line)
        if found is None or len(line) > _LONGEST_LINE or (self._lines and found[1] != self._code):
            raise Garbled("a line that is no SMTP reply")
        self._code = found[1]
        self._lines.append(found[3] or b"")
        if len(self._lines) > _MOST_LINES:
            raise Garbled("a reply that does not end")
        if found[2] != b"-":
            self._replies.append(SMTPResponse(int(self._code), b"\n".join(self._lines).decode("utf-8", "replace")))
            self._lines.clear()

    def eof_received(self) -> bool:
        self._end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end()

    def _end(self) -> None:
        self._ended = self._ended or SMTPServerDisconnected("the server closed the connection")
        self._wake()

    def _wake(self) -> None:
        if self._reader and not self._reader.done():
            self._reader.set_result(None)

    # ── replies ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def alive(self) -> bool:
        return self._ended is None and self.is_connected

    @property
    def unread(self) -> bool:
        """Whether the server has said something that nobody asked for, be it half a line."""
        return bool(self._replies or self._lines or self._buffer)

    def check(self) -> None:
        """Raise what ended the connection, if it has ended: `Garbled` or `SMTPServerDisconnected`."""
        if self._ended is not None:
            raise self._ended

    def next_reply(self) -> SMTPResponse | None:
        """The earliest reply that has arrived and that nobody has read, if any."""
        return self._replies.popleft() if self._replies else None

    async def read_response(self, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109 (aiosmtplib's name)
        """The next reply, after at most `timeout` seconds.

        Raises `TimeoutError`, `Garbled`, or `SMTPServerDisconnected` once all that arrived before has been read.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._reply_or_end()
        # A process that was frozen past its time finds the timer and the reply in the same moment: the reply counts.
        if not self._replies and self._ended is None:
            await asyncio.sleep(0)  # uvloop runs its timers before it looks at the sockets
        if self._replies:
            return self._replies.popleft()
        self.check()
        raise TimeoutError("no reply in time")

    async def _reply_or_end(self) -> None:
        while not self._replies and self._ended is None:
            self._reader = self._loop.create_future()
            await self._reader

    # ── bytes out ───────────────────────────────────────────────────────────────────────────────────────────────

    async def flush(self) -> None:
        """Return once the kernel has every byte written so far. Raises `ConnectionError`."""
        await self._drain_helper()

    async def secure(self, context: ssl.SSLContext, server_name: str) -> None:
        """TLS from here on. Raises `ssl.SSLError`, `OSError`, and `Garbled` when the server spoke before it.

        What stands unread here was sent in clear, by the server or by somebody in between (RFC 3207 section 4.2).
        """
        if self.unread:
            raise Garbled("the server spoke in clear where TLS was to begin")
        plain = cast(asyncio.WriteTransport, self.transport)
        upgraded = await self._loop.start_tls(plain, self, context, server_hostname=server_name)
        if upgraded is None:
            raise SMTPServerDisconnected("the server closed the connection")
        # The TLS layer pauses at its limit, not above it as a socket does: 0 would never resume (CPython 3.11, uvloop).
        upgraded.set_write_buffer_limits(high=1, low=0)
        if isinstance(context, PinnedContext):
            context.check(upgraded.get_extra_info("ssl_object").getpeercert(binary_form=True))
        self.transport = upgraded
        self._over_ssl = True

    def drop(self) -> None:
        """Close at once and for ever: what the kernel has not sent yet is thrown away, not sent later."""
        transport = cast(asyncio.WriteTransport | None, self.transport)
        if transport is None:
            return
        bare = transport.get_extra_info("socket")
        with suppress(OSError, AttributeError):
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        transport.abort()
