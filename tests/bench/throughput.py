"""How many messages a second, and what each costs: our arm and the baseline, alternating in one run.

Both get the same bytes, the same sink, the same PostgreSQL and Redis. Messages are enqueued (ours by the real
producer, the baseline's as rows and tasks) before the workers start; the rate is taken from the recorded times between
10 % and 90 % done, so neither pays for its start. The two arms send different numbers, so that both run for seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.bench import naive, ours
from tests.bench.ledgers import Ledgers
from tests.bench.measure import Run, Spread, rate, watch_cpu
from tests.bench.naive import Setting
from tests.bench.sinks import MARK, HttpSink, Sink, SmtpSink
from tests.bench.stand import Stand

PATIENCE = 300.0
"""Seconds for one run; far above what any takes."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Mailboxes and messages of one comparison. `tried`: the baseline's settings, the fastest of which is compared."""

    name: str
    kind: str
    mailboxes: int
    our_number: int
    their_number: int
    delay: int = 0
    tried: Sequence[Setting] = ()


@dataclass(slots=True)
class Comparison:
    """What became of one scenario."""

    scenario: Scenario
    ours: list[Run] = field(default_factory=list)
    theirs: list[Run] = field(default_factory=list)
    trials: dict[Setting, float] = field(default_factory=dict)

    @property
    def best(self) -> Setting:
        return max(self.trials, key=lambda setting: self.trials[setting])

    @property
    def ratios(self) -> Spread:
        """Ours over the baseline, pair by pair."""
        return Spread.of([one.rate / other.rate for one, other in zip(self.ours, self.theirs, strict=True)])


def compare(stand: Stand, ledgers: Ledgers, scenario: Scenario, times: int) -> Comparison:
    """Try the baseline's settings, then run both arms `times` times in turn."""
    compared = Comparison(scenario)
    for setting in scenario.tried:
        number = max(600, scenario.their_number // 3)
        compared.trials[setting] = _run_naive(stand, ledgers, scenario, setting, number).rate
    for _ in range(times):
        compared.theirs.append(_run_naive(stand, ledgers, scenario, compared.best, scenario.their_number))
        compared.ours.append(_run_ours(stand, ledgers, scenario))
    return compared


def _sink(stand: Stand, scenario: Scenario, ledger: str) -> Sink:
    return SmtpSink(stand, ledger) if scenario.kind == "smtp" else HttpSink(stand, ledger, str(scenario.delay))


def _run_ours(stand: Stand, ledgers: Ledgers, scenario: Scenario) -> Run:
    stand.empty()
    with _sink(stand, scenario, ledgers.new("ours")) as sink:
        boxes = ours.add_mailboxes(stand, sink.boxes("bench", scenario.mailboxes))
        sink.know(boxes)
        begun = time.monotonic()
        ours.enqueue(stand, "bench", ours.letters(boxes, scenario.our_number))
        enqueued = scenario.our_number / (time.monotonic() - begun)
        stand.settle()
        ours.start(stand)
        cpu = watch_cpu(stand, sink.count, scenario.our_number, lambda: stand.alive("worker"), PATIENCE)
        stand.stop("dispatcher", "worker")
        ledgers.compare(f"ours, {scenario.name}", sink.ledger(), ours.sent(stand, sink.key))
        return Run(rate(stand, "outtray.message", "handover_end"), cpu, enqueued)


def _run_naive(stand: Stand, ledgers: Ledgers, scenario: Scenario, setting: Setting, number: int) -> Run:
    stand.empty()
    with _sink(stand, scenario, ledgers.new("naive")) as sink:
        boxes = ours.add_mailboxes(stand, sink.boxes("bench", scenario.mailboxes))
        sink.know(boxes)
        begun = time.monotonic()
        naive.load(stand, boxes, number, sink.letter, MARK)
        enqueued = number / (time.monotonic() - begun)
        stand.settle()
        naive.start(stand, setting, **sink.baseline)
        cpu = watch_cpu(stand, sink.count, number, lambda: stand.alive("naive"), PATIENCE)
        naive.wait_sent(stand, number, within=30)
        stand.stop("naive")
        ledgers.compare(f"baseline, {scenario.name}", sink.ledger(), naive.sent(stand, sink.their_key))
        return Run(rate(stand, "baseline.message", "sent_at"), cpu, enqueued)
