"""From due to sent, for a few mailboxes, while others keep the system busy: with them, and without.

The watched letters fall due while everything runs already; `due-to-sent` is `handover_end - due_at`, both on the
database's clock. The busy ones have been due for long, and most of theirs are still due when the last watched one left.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from tests.bench import bulk, ours
from tests.bench.ledgers import Ledgers
from tests.bench.measure import Spread
from tests.bench.ours import Boxes
from tests.bench.sinks import HttpSink
from tests.bench.stand import Stand, wait_for

BEFORE = timedelta(seconds=6)
"""From the arming to the first watched letter: the processes start, and the busy ones take hold."""


@dataclass(frozen=True, slots=True)
class Busy:
    """The mailboxes that are in the way."""

    app: str
    mailboxes: int
    each: int
    silent: bool = False
    """Their server takes the request and never answers."""


@dataclass(frozen=True, slots=True)
class Watched:
    """The mailboxes whose letters are timed: `each` letters a mailbox, `apart` from one another."""

    app: str
    mailboxes: int
    each: int
    apart: timedelta
    delay: int = 0
    """Milliseconds that their server takes."""


@dataclass(frozen=True, slots=True)
class Question:
    """One comparison: the same watched letters with the busy ones and without."""

    name: str
    busy: Busy
    watched: Watched


@dataclass(frozen=True, slots=True)
class Waiting:
    """p95 of due-to-sent in ms, run by run."""

    question: Question
    alone: Sequence[float]
    beside: Sequence[float]
    kept_busy: bool
    """The busy ones still had mail due at the end of every run."""

    @property
    def ratio(self) -> float:
        return statistics.median(self.beside) / statistics.median(self.alone)

    @property
    def spreads(self) -> tuple[Spread, Spread]:
        return Spread.of(self.alone), Spread.of(self.beside)


def waiting(stand: Stand, ledgers: Ledgers, question: Question, times: int) -> Waiting:
    """Run both ways in turn, `times` times."""
    alone: list[float] = []
    beside: list[float] = []
    kept_busy = True
    for _ in range(times):
        alone.append(_run(stand, ledgers, question, None)[0])
        p95, left = _run(stand, ledgers, question, question.busy)
        beside.append(p95)
        kept_busy = kept_busy and left > 0
    return Waiting(question, alone, beside, kept_busy)


def _run(stand: Stand, ledgers: Ledgers, question: Question, busy: Busy | None) -> tuple[float, int]:
    stand.empty()
    sink = HttpSink(stand, ledgers.new("waiting"), str(question.watched.delay))
    if busy is not None:
        _add_busy(stand, sink, busy)
    due = datetime.now(UTC) + BEFORE
    watched = _add_watched(stand, sink, question.watched, lambda n: due + n * question.watched.apart)
    bulk.arm(stand)
    ours.start(stand)
    wait_for(f"{question.name}: the watched letters are sent", lambda: _left(stand, watched) == 0, 120, every=0.25)
    p95 = _p95(stand, watched)
    left = int(stand.value("SELECT count(*) FROM outtray.message WHERE state IN ('queued', 'handing_over')"))
    if busy is not None and busy.silent:
        stand.kill("dispatcher", "worker")
    else:
        stand.stop("dispatcher", "worker")
    ledgers.compare(f"{question.name}, {'beside' if busy else 'alone'}", sink.ledger(), ours.sent(stand, sink.key))
    return p95, left


def _add_busy(stand: Stand, sink: HttpSink, busy: Busy) -> None:
    wanted = sink.boxes(busy.app, busy.mailboxes)
    if busy.silent:
        url = stand.sink_url("silent", "never")
        wanted = Boxes(busy.app, busy.mailboxes, wanted.provider, ("silent.bench",), {"url": url})
    boxes = ours.add_mailboxes(stand, wanted)
    long_ago = datetime.now(UTC) - timedelta(minutes=5)
    bulk.deliverable(stand, ((box, long_ago) for box in boxes for _ in range(busy.each)))


def _add_watched(stand: Stand, sink: HttpSink, watched: Watched, due: Callable[[int], datetime]) -> list[UUID]:
    boxes = ours.add_mailboxes(stand, sink.boxes(watched.app, watched.mailboxes))
    return bulk.deliverable(stand, ((box, due(n)) for n in range(watched.each) for box in boxes))


def _left(stand: Stand, watched: list[UUID]) -> int:
    stand.alive("worker")
    return int(stand.value("SELECT count(*) FROM outtray.message WHERE id = ANY(%s) AND state <> 'sent'", watched))


def _p95(stand: Stand, watched: list[UUID]) -> float:
    return float(
        stand.value(
            "SELECT 1000 * percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM handover_end - due_at))"
            " FROM outtray.message WHERE id = ANY(%s)",
            watched,
        )
    )
