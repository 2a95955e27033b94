"""Pace while Redis is away: by the ledger, and by what this process was granted itself.

A mailbox gets at most half of its pace in a minute, less what was handed over in the last one. A bucket that several
processes share gets this process's part of that half. So one process is never over, also when Redis comes back in the
middle of a minute; a mailbox whose turns alternate between workers while Redis is away may hold, in the minute in
which it comes back, its pace and half of it.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import timedelta

from outtray_worker.quotas.buckets import MINUTE, Grant, Want


class Recent:
    """What this process was granted within the last minute, per bucket and as it counts: in units."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._order: deque[tuple[float, str]] = deque()
        self._granted: defaultdict[str, deque[tuple[float, int]]] = defaultdict(deque)

    def add(self, key: str, units: int) -> None:
        if units:
            now = self._clock()
            self._order.append((now, key))
            self._granted[key].append((now, units))
        self._prune()

    def unseen(self, want: Want) -> int:
        """What was granted of this bucket that the want's `used_last_minute` cannot contain.

        Of a mailbox's own bucket all that was granted before the reading was either handed over, and is in it, or
        returned with its turn. Of a shared one, other turns still hold tokens.
        """
        since = want.read_at if want.sharers is None else -math.inf
        return max(0, sum(units for at, units in self._granted.get(want.key, ()) if at >= since))

    def _prune(self) -> None:
        while self._order and self._order[0][0] < self._clock() - MINUTE:
            _, key = self._order.popleft()
            self._granted[key].popleft()
            if not self._granted[key]:
                del self._granted[key]


class Fallback:
    """Pace without Redis: a bucket in memory, and below it a bound on what a minute may hold."""

    def __init__(self, clock: Callable[[], float], recent: Recent) -> None:
        self._clock = clock
        self._recent = recent
        self._full_at: dict[str, float] = {}

    def forget(self) -> None:
        """Redis has been back for long enough: drop the buckets."""
        self._full_at.clear()

    def grant(self, want: Want) -> Grant:
        most = minute_without_redis(want.per_minute, want.sharers, want.cost)
        if most == 0:
            return Grant(0, timedelta(seconds=MINUTE))
        used = (want.used_units or 0) + self._recent.unseen(want)
        tokens, wait = self._draw(want, max(0, min(want.tokens, (most - used) // want.cost)), used, most)
        if used + (tokens + 1) * want.cost > most:
            wait = max(wait, MINUTE * want.cost / most)
        return Grant(tokens, timedelta(seconds=wait))

    def _draw(self, want: Want, wanted: int, used: int, most: int) -> tuple[int, float]:
        """The same algorithm as gcra.lua's, on this process's clock; a shared bucket fills at this process's part."""
        now = self._clock()
        unit = MINUTE / (want.per_minute if want.sharers is None else most)
        burst = want.burst if want.sharers is None else min(want.burst, most)
        begins = burst if want.used_last_minute is None else used
        interval, window = unit * want.cost, unit * burst
        full_at = self._full_at.get(want.key, now + begins * unit)
        full_at = min(max(full_at, now), now + window)
        tokens = min(wanted, math.floor((now + window - full_at) / interval + 1e-9))
        full_at += tokens * interval
        self._full_at[want.key] = full_at
        return tokens, max(0.0, full_at + interval - window - now)


def minute_without_redis(per_minute: int, sharers: int | None, cost: int = 1) -> int:
    """How much of one bucket a minute may hold by this process, in units: half of the pace, and of that its part.

    At least one handover, or a slow mailbox would never send, unless more processes share the bucket than it allows.
    """
    processes = sharers or 1
    return max(cost if processes * cost <= per_minute else 0, per_minute // 2 // processes)
