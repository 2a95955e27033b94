"""Watching a run: CPU per message and role between 10 % and 90 % done, and figures with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.stand import CannotRun, Stand

FROM, TO = 0.1, 0.9


@dataclass(frozen=True, slots=True)
class Run:
    """One arm's run of one scenario. Rate in messages/s by the times recorded in PostgreSQL; CPU in ms a message."""

    rate: float
    cpu: Mapping[str, float]
    enqueue_rate: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and extremes of several runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        digits = 0 if self.median >= 100 else 1 if self.median >= 10 else 2 if self.median >= 1 else 3
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}..{self.high:.{digits}f}]"


def watch_cpu(
    stand: Stand, progress: Callable[[], int], number: int, alive: Callable[[], None], within: float
) -> dict[str, float]:
    """Follow a run to its end; CPU in ms per message and role between 10 % and 90 % of its messages."""
    end = time.monotonic() + within
    marks: list[tuple[int, dict[str, float]]] = []
    while (done := progress()) < number:
        if time.monotonic() > end:
            raise CannotRun(f"{done} of {number} messages after {within:g} s")
        if (not marks and done >= FROM * number) or (len(marks) == 1 and done >= TO * number):
            marks.append((done, stand.cpu()))
        alive()
        time.sleep(0.005)
    if len(marks) < 2:
        raise CannotRun("over before it could be watched; take more messages")
    (first, before), (last, after) = marks
    return {role: 1000 * (after[role] - before.get(role, 0.0)) / (last - first) for role in after}


def rate(stand: Stand, table: str, column: str) -> float:
    """Messages per second between 10 % and 90 % done, by the times at which they were recorded as sent."""
    number, begun, ended = stand.database.execute(
        f"SELECT count(*), extract(epoch FROM percentile_disc(%s) WITHIN GROUP (ORDER BY {column})),"
        f" extract(epoch FROM percentile_disc(%s) WITHIN GROUP (ORDER BY {column})) FROM {table} WHERE state = 'sent'",
        [FROM, TO],
    ).fetchone() or (0, 0, 0)
    if not ended or ended <= begun:
        raise CannotRun("too few messages were sent to tell a rate")
    return float(number) * (TO - FROM) / float(ended - begun)
