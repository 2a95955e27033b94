"""Times: what a mailbox keeps to when it sends: its window, and the gap between two of its mails.

Stored as one JSON document, `{"window": {...}, "gap": [least, most]}`, the gap in seconds; what is not kept to is left
out. A message has a window of its own in the same form, without a gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Any
from uuid import UUID

from outtray_schema.settings import parse_duration
from outtray_schema.windows import Window, next_open, parse_window

LONGEST_GAP = timedelta(hours=12)
"""The ledger, in which the last handover is looked up, reaches back for a day."""


@dataclass(frozen=True, slots=True)
class Gap:
    """At least `least` and at most `most` from the beginning of one handover of a mailbox to that of the next."""

    least: timedelta
    most: timedelta

    def after(self, message_id: UUID, handover: int) -> timedelta:
        """The gap that follows this handover.

        It looks random and is the same for whoever asks: a worker that takes the mailbox over after another one died
        waits for the rest of it, and `explain` and the forecast know it in advance.
        """
        drawn = int.from_bytes(sha256(message_id.bytes + handover.to_bytes(8, "big")).digest()[:8], "big")
        return self.least + (self.most - self.least) * (drawn / 2**64)

    def __str__(self) -> str:
        """As it is typed: `30s-90s`."""
        return f"{self.least.total_seconds():g}s-{self.most.total_seconds():g}s"


@dataclass(frozen=True, slots=True)
class Times:
    """What a mailbox, or a message, keeps to."""

    window: Window | None = None
    gap: Gap | None = None

    def as_json(self) -> dict[str, Any] | None:
        """As it is stored; `None` where nothing is kept to."""
        found: dict[str, Any] = {}
        if self.window is not None:
            found["window"] = self.window.as_json()
        if self.gap is not None:
            found["gap"] = [self.gap.least.total_seconds(), self.gap.most.total_seconds()]
        return found or None


ALWAYS = Times()


def read_times(stored: Mapping[str, Any] | None) -> Times:
    """What was stored. Raises `ValueError` where a later version wrote what this one cannot read."""
    return ALWAYS if not stored else _read(_frozen(stored))


def _frozen(value: Any) -> Any:
    """JSON as a key: the same few windows are read again and again."""
    if isinstance(value, Mapping):
        return tuple((name, _frozen(each)) for name, each in sorted(value.items()))
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


@lru_cache(maxsize=4096)
def _read(frozen: tuple[tuple[str, Any], ...]) -> Times:
    found = dict(frozen)
    if unknown := found.keys() - {"window", "gap"}:
        raise ValueError(f"this version does not know {sorted(unknown)[0]!r}")
    window = found.get("window")
    gap = found.get("gap")
    return Times(None if window is None else _window(window), None if gap is None else gap_of(gap))


def _window(frozen: tuple[tuple[str, Any], ...]) -> Window:
    stored = dict(frozen)
    return parse_window({**stored, "spans": [dict(span) for span in stored.get("spans", ())]})


def parse_gap(value: Any) -> Gap:
    """A gap from `30s-90s`, `30s`, or two durations. Raises `ValueError` with the cure."""
    if isinstance(value, Gap):
        return value
    if isinstance(value, str):
        least, dash, most = value.partition("-")
        return gap_of((least, most if dash else least))
    if isinstance(value, timedelta):
        return gap_of((value, value))
    return gap_of(value)


def gap_of(pair: Any) -> Gap:
    """A gap from its least and its most."""
    try:
        least, most = map(parse_duration, pair)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{pair!r} is no gap; write it like 30s-90s, or 1m for the same each time") from None
    if not timedelta(0) < least <= most <= LONGEST_GAP:
        raise ValueError(f"a gap is more than nothing and at most {LONGEST_GAP.total_seconds() / 3600:g}h, least first")
    return Gap(least, most)


def open_for_both(mine: Window | None, mailbox: Window | None, t: datetime) -> tuple[datetime, datetime | None] | None:
    """When a message with this window may leave its mailbox with that one, from `t` on, and until when.

    `None`: never within the time that is looked ahead. Without any window: at once, with no end.
    """
    windows = [window for window in (mine, mailbox) if window is not None]
    return next_open(windows, t) if windows else (t, None)
