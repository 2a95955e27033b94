"""What one process may ask of one mailbox at once, and in five minutes. Other processes' share is not known here.

A mailbox has one turn at a time, so these bounds hold where looks for evidence and turns of it meet.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from outtray_worker.deadline import Deadline, boottime

AT_ONCE = 2
"""Requests at once for one mailbox. Microsoft takes 4 from one application (throttling limits, 2026-11)."""

UPLOADS = 150_000_000
"""Bytes of POST, PATCH and PUT for one mailbox and application in `UPLOAD_WINDOW` (throttling limits, 2026-11)."""

UPLOAD_WINDOW = 300.0
_SMALL = 64 * 1024
"""Bodies below this are not counted: at the pace that a mailbox may send they come to a few MB."""
_MANY = 1000


@dataclass(slots=True)
class Lane:
    """One mailbox's: `room` for any request, `commit` for handovers, which follow one another."""

    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    commit: asyncio.Lock = field(default_factory=asyncio.Lock)
    uploads: deque[tuple[float, int]] = field(default_factory=deque)
    rest_until: Deadline | None = None
    """Graph took a mail and asked for a pause until then."""


class Lanes:
    """Those of one process. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self._lanes: dict[UUID, Lane] = {}
        self._users: dict[UUID, int] = {}

    def enter(self, mailbox: UUID) -> Lane:
        """A session begins. The lanes that nobody uses, and that no recent upload needs, are forgotten."""
        if len(self._lanes) > _MANY:
            self._forget()
        self._users[mailbox] = self._users.get(mailbox, 0) + 1
        return self._lanes.setdefault(mailbox, Lane())

    def leave(self, mailbox: UUID) -> None:
        self._users[mailbox] -= 1
        if not self._users[mailbox]:
            del self._users[mailbox]
            if not self._needed(self._lanes[mailbox]):
                del self._lanes[mailbox]

    def _needed(self, lane: Lane) -> bool:
        return self._recent(lane) > 0 or (lane.rest_until is not None and not lane.rest_until.passed)

    def _forget(self) -> None:
        idle = [mailbox for mailbox, lane in self._lanes.items() if mailbox not in self._users]
        for mailbox in idle:
            if not self._needed(self._lanes[mailbox]):
                del self._lanes[mailbox]

    def _recent(self, lane: Lane) -> int:
        """Bytes that count now."""
        while lane.uploads and lane.uploads[0][0] <= self._clock() - UPLOAD_WINDOW:
            lane.uploads.popleft()
        return sum(size for _, size in lane.uploads)

    def spend(self, lane: Lane, size: int) -> None:
        """Bytes that are going out now."""
        if size >= _SMALL:
            lane.uploads.append((self._clock(), size))

    def wait_for(self, lane: Lane, size: int) -> float:
        """Seconds until `size` more bytes fit; 0 if they do. What never fits need only wait for an empty window."""
        free = UPLOADS - self._recent(lane)
        if size < _SMALL or size <= free or not lane.uploads:
            return 0.0
        last = lane.uploads[-1][0]
        for at, spent in lane.uploads:
            free += spent
            if size <= free:
                last = at
                break
        return max(last + UPLOAD_WINDOW - self._clock(), 0.001)
