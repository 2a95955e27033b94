"""`make bench-spine`: ours against a task-per-message Celery worker, and the figures that the spine promises.

    python -m tests.bench.spine [--only throughput,providers,google-client,claims,memory,waiting]
                                [--json FILE]

`QUICK=1` takes fewer messages and one repetition: about three minutes. The whole takes up to 25. It reports and never
judges a time: it fails only when the sinks' ledgers disagree with PostgreSQL, or a question could not be asked.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import psutil
from tests.bench.claim_cost import ClaimCost, claim_cost
from tests.bench.google_client import ClientCost, client_cost
from tests.bench.ledgers import Ledgers
from tests.bench.memory import Memory, memory
from tests.bench.naive import Setting
from tests.bench.report import as_json, as_text
from tests.bench.routes import FEW_ROUTES, ROUTES, Route, Routes, measure_routes
from tests.bench.stand import CannotRun, Stand, fsync_microseconds, stand
from tests.bench.throughput import Comparison, Scenario, compare
from tests.bench.waiting import Busy, Question, Waiting, Watched, waiting

QUESTIONS = ("throughput", "providers", "google-client", "claims", "memory", "waiting")

ALL_SETTINGS = (
    Setting("prefork", 2),
    Setting("prefork", 2, prefetch=100),
    Setting("prefork", 16),
    Setting("prefork", 32),
    Setting("threads", 64),
    Setting("solo", 1, processes=2),
)
FEW_SETTINGS = (Setting("prefork", 2), Setting("solo", 1, processes=2))
SLOW_SETTINGS = (
    Setting("prefork", 32),
    Setting("prefork", 64),
    Setting("threads", 64),
    Setting("threads", 32, processes=2),
)
FEW_SLOW_SETTINGS = (Setting("prefork", 64), Setting("threads", 64))
ROUTES_SETTING = Setting("solo", 1, processes=2)
"""The baseline's fastest at 0 ms and 100 mailboxes, in every run so far: the routes do not try the others again."""

TWO_EACH = 20_000
"""Messages over 10,000 mailboxes: what a turn costs is shared by two, in the quick run as in the whole."""


@dataclass(frozen=True, slots=True)
class RouteSize:
    """Which routes, messages of one run (ours, the baseline's), and rounds; then the client's rounds and messages."""

    routes: Sequence[Route]
    ours: int
    theirs: int
    rounds: int
    client_rounds: int
    client_messages: int


@dataclass(frozen=True, slots=True)
class Size:
    """How much is asked: `QUICK=1`, or the whole."""

    times: int
    scenarios: Sequence[Scenario]
    routes: RouteSize
    pending: int
    waits: int
    questions: Sequence[Question]


@dataclass(slots=True)
class Findings:
    """Everything that a run found, question by question."""

    machine: dict[str, str]
    comparisons: list[Comparison] = field(default_factory=list)
    routes: Routes | None = None
    google_client: list[ClientCost] = field(default_factory=list)
    claims: list[ClaimCost] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    ledgers: Ledgers = field(default_factory=Ledgers)
    troubles: list[str] = field(default_factory=list)
    seconds: float = 0.0


def _scenarios(ours: int, theirs: int, fast: Sequence[Setting], slow: Sequence[Setting]) -> list[Scenario]:
    return [
        Scenario("HTTP 0 ms × 100 mailboxes", "http", 100, ours, theirs, tried=fast),
        Scenario("HTTP 0 ms × 10,000 mailboxes", "http", 10_000, max(ours, TWO_EACH), theirs, tried=fast),
        Scenario("HTTP 100 ms × 1,000 mailboxes", "http", 1_000, ours, theirs, delay=100, tried=slow),
        Scenario("SMTP × 50 mailboxes", "smtp", 50, ours // 4, theirs, tried=fast),
    ]


def _questions(busy: int) -> list[Question]:
    burst = Watched("small", 999, 1, timedelta(0))
    steady = Watched("small", 1, 60, timedelta(milliseconds=100))
    ten = Watched("small", 10, 10, timedelta(milliseconds=500), delay=20)
    return [
        Question("one mailbox with many due beside 999 with one each", Busy("small", 1, busy), burst),
        Question(
            "an app with 10,000 mailboxes beside an app with one", Busy("large", 10_000, max(1, busy // 10_000)), steady
        ),
        Question(
            "1,000 mailboxes on a server that never answers beside 10 elsewhere", Busy("small", 1_000, 2, True), ten
        ),
    ]


def size() -> Size:
    """What `QUICK` asks for."""
    if os.environ.get("QUICK") == "1":
        few = RouteSize(FEW_ROUTES, 2_000, 800, 1, 5, 100)
        return Size(1, _scenarios(8_000, 1_500, FEW_SETTINGS, FEW_SLOW_SETTINGS), few, 200_000, 1, _questions(60_000))
    every = RouteSize(ROUTES, 4_000, 1_000, 3, 8, 300)
    return Size(5, _scenarios(20_000, 4_000, ALL_SETTINGS, SLOW_SETTINGS), every, 1_000_000, 3, _questions(100_000))


def ask(bench: Stand, asked: Sequence[str], wanted: Size, findings: Findings) -> None:
    """Ask every question; one that cannot be asked is a trouble, and the next is asked."""

    def each(question: Callable[[], None], what: str) -> None:
        _say(what)
        try:
            question()
        except Exception as error:
            findings.troubles.append(f"{what}: {type(error).__name__}: {error}")
            _say(f"  could not run: {error}")
            bench.kill("dispatcher", "worker", "naive")

    if "throughput" in asked:
        for scenario in wanted.scenarios:
            each(
                lambda s=scenario: findings.comparisons.append(compare(bench, findings.ledgers, s, wanted.times)),
                scenario.name,
            )
    if "providers" in asked:
        each(lambda: _ask_routes(bench, wanted.routes, findings), "the providers' routes")
    if "google-client" in asked:
        each(lambda: _ask_client(bench, wanted.routes, findings), "Google's client, against requests by hand")
    if "claims" in asked:
        for pending in (1_000, wanted.pending):
            each(lambda n=pending: findings.claims.append(claim_cost(bench, n)), f"claims at {pending:,} pending")
    if "memory" in asked:
        for scheduled in (0, wanted.pending):
            each(
                lambda n=scheduled: findings.memory.append(memory(bench, findings.ledgers, n)),
                f"memory, {scheduled:,} scheduled",
            )
    if "waiting" in asked:
        for question in wanted.questions:
            each(
                lambda q=question: findings.waiting.append(waiting(bench, findings.ledgers, q, wanted.waits)),
                question.name,
            )


def _ask_routes(bench: Stand, size: RouteSize, findings: Findings) -> None:
    findings.routes = measure_routes(
        bench, findings.ledgers, size.routes, ROUTES_SETTING, size.ours, size.theirs, size.rounds
    )


def _ask_client(bench: Stand, size: RouteSize, findings: Findings) -> None:
    findings.google_client = client_cost(bench, size.client_rounds, size.client_messages)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _machine(bench: Stand) -> dict[str, str]:
    return {
        "processor": f"{psutil.cpu_count()} × {_processor()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "postgresql": str(bench.value("SHOW server_version")),
        "fsync": str(bench.value("SHOW fsync")),
        "synchronous_commit": str(bench.value("SHOW synchronous_commit")),
        "fdatasync": f"{fsync_microseconds(bench.folder):.0f} µs",
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.spine", description=__doc__)
    parser.add_argument("--only", default=",".join(QUESTIONS), help="questions, apart by commas")
    parser.add_argument("--json", type=Path, default=Path("bench-spine.json"))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `timeout` may end it: its servers and workers end with it
    begun = time.monotonic()
    try:
        with stand() as bench:
            findings = Findings(_machine(bench))
            ask(bench, arguments.only.split(","), size(), findings)
    except CannotRun as error:
        _say(f"the bench could not run: {error}")
        return 1
    findings.seconds = time.monotonic() - begun
    arguments.json.write_text(as_json(findings))
    print(as_text(findings))
    return 1 if findings.troubles or findings.ledgers.disagreeing else 0


if __name__ == "__main__":
    sys.exit(main())
