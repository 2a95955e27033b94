"""A mail's bytes on their way to DATA: read one piece ahead, dots stuffed, bare line breaks noticed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

from outtray_worker.providers import Mail


class ContentLost(Exception):
    """The mail's own bytes could not be read: no fault of the server. The cause is `__cause__`."""


def keyed(mail: Mail, key_header: str) -> Mail:
    """The mail with our key as its first header: the same at every attempt, for the message keeps its id."""
    line = f"{key_header}: {mail.message_id}\r\n".encode()

    async def body() -> AsyncIterator[bytes]:
        yield line
        pieces = mail.body()
        try:
            async for piece in pieces:
                yield piece
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()

    return replace(mail, body=body, size=mail.size + len(line))


class DotStuffing:
    """The transparency of RFC 5321 4.5.2 over pieces: a line that begins with a dot gets another one."""

    def __init__(self) -> None:
        self._tail = b"\r\n"
        self._breaks = [0, 0, 0]

    def feed(self, piece: bytes) -> bytes:
        """`piece` as it travels, wherever the pieces were cut."""
        joined = self._tail + piece
        for n, mark in enumerate((b"\r", b"\n", b"\r\n")):
            self._breaks[n] += joined.count(mark) - self._tail.count(mark)
        stuffed = joined.replace(b"\r\n.", b"\r\n..")[len(self._tail) :]
        self._tail = joined[-2:]
        return stuffed

    def end(self) -> bytes:
        """What must follow so that the dot stands on a line of its own."""
        return b"" if self._tail == b"\r\n" else b"\r\n"

    @property
    def bare_breaks(self) -> bool:
        """Whether a CR or LF stood alone: servers differ on them, which lets a text end the mail early (smuggling)."""
        carriage_returns, line_feeds, pairs = self._breaks
        return carriage_returns != pairs or line_feeds != pairs


class Body:
    """A mail's bytes, one piece ahead, so that MAIL can say what they need."""

    def __init__(self, mail: Mail) -> None:
        self._pieces: AsyncIterator[bytes] = aiter(mail.body())
        self._ahead: list[bytes] = []
        self.ended = False

    async def look_ahead(self) -> bool:
        """Whether 8BITMIME is to be declared: the bytes need it, or there are more than can be looked at."""
        for _ in range(2):
            if (piece := await self._pull()) is not None:
                self._ahead.append(piece)
        return not self.ended or not all(piece.isascii() for piece in self._ahead)

    async def next(self) -> bytes | None:
        """The next piece; `None` after the last. Raises `ContentLost`."""
        return self._ahead.pop(0) if self._ahead else await self._pull()

    async def close(self) -> None:
        """Let go of what the pieces come from, wherever the reading stopped."""
        if isinstance(self._pieces, AsyncGenerator):
            await self._pieces.aclose()

    async def _pull(self) -> bytes | None:
        if self.ended:
            return None
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            self.ended = True
            return None
        except Exception as error:
            raise ContentLost from error
