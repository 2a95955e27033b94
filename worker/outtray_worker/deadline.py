"""Deadlines on a clock that runs on while the machine sleeps and that nobody can set: `CLOCK_BOOTTIME`.

A process frozen by SIGSTOP or a suspended laptop wakes up to a deadline that has passed, whatever the wall clock says.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta


def boottime() -> float:
    """Seconds on `CLOCK_BOOTTIME` (Linux); elsewhere the monotonic clock, which may stand still during sleep."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment in seconds of `boottime()`."""

    at: float

    @classmethod
    def after(cls, wait: timedelta) -> Deadline:
        return cls(boottime() + wait.total_seconds())

    def left(self) -> float:
        """Seconds that remain; negative once it has passed."""
        return self.at - boottime()

    @property
    def passed(self) -> bool:
        return self.left() <= 0

    def earlier(self, other: Deadline) -> Deadline:
        return self if self.at <= other.at else other
