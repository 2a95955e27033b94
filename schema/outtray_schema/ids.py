"""Ids of our own: UUID version 7 (RFC 9562, May 2024), so that an index on them grows at its right end."""

from __future__ import annotations

import os
import threading
import time
from uuid import UUID

_lock = threading.Lock()
_last = 0


def new_id() -> UUID:
    """A UUIDv7, greater than every one that this process made before, also when the clock is set back.

    The 48 bits of milliseconds are followed by 12 bits of their fraction (RFC 9562 6.2, method 3) and 62 random bits,
    so processes that share a moment, forked ones among them, still differ.
    """
    ticks = _next_tick()
    random = int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
    return UUID(int=(ticks >> 12) << 80 | 7 << 76 | (ticks & 0xFFF) << 64 | 0b10 << 62 | random)


def _next_tick() -> int:
    """Time since the epoch in 1/4096 ms, moved on by one where the clock did not move."""
    global _last  # noqa: PLW0603 - the promise of order is the process's, not an object's
    now = time.time_ns() * 4096 // 1_000_000
    with _lock:
        _last = max(now, _last + 1)
        return _last
