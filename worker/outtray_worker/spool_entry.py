"""An outcome as one line of a spool file: checksum, length, JSON. A line that is not whole is never guessed at.

Ids, codes and redacted reply texts stand in it: no address, subject, body or token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from outtray_worker.items import MailboxMove, Record, Refusal

CHECKSUM = 32
"""Hexadecimal digits of the SHA-256 of the JSON."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An outcome that was read back. `at`: when it was kept, by that machine's clock; None before that was noted."""

    item: Record | Refusal
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Damaged:
    """A line that cannot be trusted, and why."""

    line: bytes = field(repr=False)
    why: str


def encode(item: Record | Refusal, at: datetime | None = None) -> bytes:
    """One line of a spool file."""
    kept = (at or datetime.now(UTC)).isoformat()
    text = json.dumps({"is": type(item).__name__, "kept": kept, **_plain(asdict(item))}, separators=(",", ":")).encode()
    return b"%s %d %s\n" % (_checksum(text)[:CHECKSUM], len(text), text)


def read_lines(lines: Iterable[bytes]) -> tuple[list[Kept], list[Damaged]]:
    """What the lines of a file hold: what is whole, and what is not."""
    entries = [decode(line) for line in lines if line.strip(b"\n")]
    return [each for each in entries if isinstance(each, Kept)], [each for each in entries if isinstance(each, Damaged)]


def decode(line: bytes) -> Kept | Damaged:
    """What one line holds."""
    checksum, _, rest = line.rstrip(b"\n").partition(b" ")
    length, _, text = rest.partition(b" ")
    if rest.startswith(b"{"):  # from before lines had a length
        length, text = b"%d" % len(rest), rest
    if not length.isdigit():
        return Damaged(line, "its length is no number")
    if int(length) != len(text):
        return Damaged(line, f"{len(text)} bytes are there of {int(length)}")
    if len(checksum) not in (16, CHECKSUM) or _checksum(text)[: len(checksum)] != checksum:
        return Damaged(line, "its checksum does not fit")
    try:
        return _entry(json.loads(text))
    except (ValueError, KeyError, TypeError):
        return Damaged(line, "this version does not know such an entry")


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def _entry(values: dict[str, Any]) -> Kept:
    kind = {"Record": Record, "Refusal": Refusal}[values.pop("is")]
    kept = values.pop("kept", None)
    if values["move"] is not None:
        values["move"] = MailboxMove(**_typed(values["move"]))
    return Kept(kind(**_typed(values)), datetime.fromisoformat(kept) if kept else None)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, dict):
        return _plain(value)
    if isinstance(value, UUID):
        return str(value)
    return value.total_seconds() if isinstance(value, timedelta) else value


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    for name in ("message_id", "mailbox_id"):
        if name in values:
            values[name] = UUID(values[name])
    for name in ("again", "park"):
        if values.get(name) is not None:
            values[name] = timedelta(seconds=values[name])
    return values
