"""One request and its answer, as values; and the two ways in which there is none."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Stream:
    """A body of `length` bytes in pieces; each call of `pieces` starts anew."""

    length: int
    pieces: Callable[[], AsyncIterator[bytes]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Request:
    """What goes onto the wire once. Nothing of it but the method is ever shown: upload URLs are secrets too."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | Stream | None = field(default=None, repr=False)
    exact: bool = False
    """Whether the URL goes out letter by letter as it stands: one that was given to us, perhaps signed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, 2xx or not. The names of `headers` are in lower case; of repeated ones the first counts."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    def json(self) -> dict[str, Any] | None:
        """The body as a JSON object; None if it is none."""
        try:
            said = json.loads(self.body)
        except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
            return None
        return said if isinstance(said, dict) else None


class NoAnswer(Exception):
    """There is no whole answer. `begun`: whether a byte of the request was written, so that the server may have it.

    `rule` is a stable id (`dns`, `refused`, `tls-certificate`, `timeout`, `closed`, `garbled`, …); the text is for
    people and names the host alone.
    """

    def __init__(self, rule: str, reason: str, begun: bool) -> None:
        super().__init__(reason)
        self.rule = rule
        self.reason = reason
        self.begun = begun


class ContentLost(Exception):
    """The body's own bytes could not be read, or were not as many as was said: the cause is `__cause__`.

    The request's last bytes were never written, so no server can have taken it.
    """


async def exactly(stream: Stream) -> AsyncIterator[bytes]:
    """A stream's pieces, the last one only once it is known that nothing is missing. Raises `ContentLost`."""
    held, given = b"", 0
    try:
        async for piece in stream.pieces():
            given += len(piece)
            if held:
                yield held
            held = piece
    except Exception as error:
        raise ContentLost("the content could not be read") from error
    if given != stream.length:
        raise ContentLost(f"the content holds {given} bytes, not the {stream.length} that were announced")
    if held:
        yield held
