"""The findings as a table for people and as JSON for whoever compares runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from tests.bench.google_client import ClientCost
from tests.bench.measure import Run, Spread
from tests.bench.routes import MAILBOXES, Routed, Routes
from tests.bench.throughput import Comparison

if TYPE_CHECKING:
    from tests.bench.spine import Findings

OUR_ROLES = ("worker", "dispatcher", "postgres", "redis")
THEIR_ROLES = ("naive", "postgres", "redis")
SINKS = ("sink", "smtp sink")


def as_text(findings: Findings) -> str:
    """Everything that was found, ready to be read in a terminal 120 wide."""
    return "\n".join(_lines(findings))


def _lines(findings: Findings) -> Iterator[str]:
    yield "; ".join(f"{name} {value}" for name, value in findings.machine.items())
    for comparison in findings.comparisons:
        yield from ("", *_comparison(comparison))
    if findings.routes:
        yield from ("", *_routes(findings.routes))
    if findings.google_client:
        yield from ("", *_google_client(findings.google_client))
    if findings.claims:
        yield from ("", *_claims(findings))
    if findings.memory:
        yield from ("", *_memory(findings))
    if findings.waiting:
        yield from ("", *_waiting(findings))
    yield from ("", *_ledgers(findings))
    yield from (f"COULD NOT RUN  {trouble}" for trouble in findings.troubles)
    yield f"took {findings.seconds:.0f} s"


def _comparison(compared: Comparison) -> Iterator[str]:
    if not compared.ours or not compared.theirs:
        return
    scenario = compared.scenario
    yield f"{scenario.name}: {compared.ratios} × the baseline, {len(compared.ours)} alternating runs"
    yield f"  ours      {_rate(compared.ours)} messages/s; {_cpu(compared.ours, OUR_ROLES)}"
    yield f"  baseline  {_rate(compared.theirs)} messages/s; {_cpu(compared.theirs, THEIR_ROLES)}  ({compared.best})"
    yield f"  sinks     {_cpu(compared.ours, SINKS)} in ours; {_cpu(compared.theirs, SINKS)} in the baseline's"
    enqueued = Spread.of([run.enqueue_rate for run in compared.ours])
    yield f"  enqueued  {enqueued} messages/s by our producer, in no rate above"
    tried = ", ".join(f"{setting}: {rate:.0f}/s" for setting, rate in compared.trials.items())
    yield f"  tried     {tried}"


def _routes(found: Routes) -> Iterator[str]:
    yield f"the providers' routes, 0 ms × {MAILBOXES} mailboxes, {len(found.baseline)} rounds"
    yield f"  {'baseline, one messages.send':<38} {_rate(found.baseline)} messages/s; 1 request a message"
    yield f"  {'':<38} {_cpu(found.baseline, THEIR_ROLES)}  ({found.setting})"
    for routed in found.routed:
        yield from _routed(found, routed)


def _routed(found: Routes, routed: Routed) -> Iterator[str]:
    counted = " + ".join(f"{times:g} {name}" for name, times in routed.requests.items())
    unlike = "" if routed.as_promised else "  NOT WHAT THE ROUTE PROMISES"
    yield f"  {routed.route.name:<38} {_rate(routed.runs)} messages/s, {found.ratios(routed)} × the baseline"
    yield f"  {'':<38} requests a message: {sum(routed.requests.values()):g} = {counted}{unlike}"
    yield f"  {'':<38} {_cpu(routed.runs, OUR_ROLES)}"


def _google_client(found: Sequence[ClientCost]) -> Iterator[str]:
    yield "Google's client against requests by hand, CPU ms a message of the provider alone"
    for cost in found:
        alone = {arm: Spread.of(values) for arm, values in cost.alone.items()}
        verdict = "smaller than" if cost.within_the_spread else "NOT SMALLER THAN"
        yield f"  {cost.route}: client {cost.spread('client')}, by hand {cost.spread('hand')}"
        yield f"    the client costs {cost.difference} more; by hand against itself {cost.noise}: {verdict} the spread"
        yield f"    naming and parsing alone: client {alone['client']}, by hand {alone['hand']}"


def _rate(runs: Sequence[Run]) -> str:
    return str(Spread.of([run.rate for run in runs]))


def _cpu(runs: Sequence[Run], roles: Sequence[str]) -> str:
    there = [role for role in roles if all(role in run.cpu for run in runs)]
    spent = ", ".join(f"{role} {Spread.of([run.cpu[role] for run in runs])}" for role in there)
    return f"CPU ms a message: {spent}"


def _claims(findings: Findings) -> Iterator[str]:
    yield "claiming a round of 64 mailboxes, ms (p50 / p99)"
    for cost in findings.claims:
        yield (
            f"  {cost.pending:>9,} pending   claim {cost.claim_p50:.2f} / {cost.claim_p99:.2f}"
            f"   with what the turns read {cost.with_reading_p50:.2f} / {cost.with_reading_p99:.2f}"
        )
    if len(findings.claims) > 1:
        few, many = findings.claims[0], findings.claims[-1]
        read = many.with_reading_p50 / few.with_reading_p50
        yield f"  ratio of the p50: {many.claim_p50 / few.claim_p50:.2f}; with reading {read:.2f}"


def _memory(findings: Findings) -> Iterator[str]:
    yield "private memory, MiB"
    for read in findings.memory:
        yield f"  {read.scheduled:>9,} scheduled   worker {read.worker:.1f}   dispatcher {read.dispatcher:.1f}"


def _waiting(findings: Findings) -> Iterator[str]:
    yield "from due to sent, p95 in ms"
    for found in findings.waiting:
        alone, beside = found.spreads
        busy = "" if found.kept_busy else "  (the busy ones were done before the end)"
        yield f"  {found.question.name}: {beside} against {alone} alone, {found.ratio:.2f} ×{busy}"


def _ledgers(findings: Findings) -> Iterator[str]:
    verdicts = findings.ledgers.verdicts
    total = sum(verdict.took for verdict in verdicts)
    bad = findings.ledgers.disagreeing
    yield f"ledgers: {len(verdicts)} runs, {total:,} messages at the sinks; " + (
        f"{len(bad)} DISAGREE" if bad else "each exactly once, and each recorded"
    )
    for verdict in bad:
        yield (
            f"  {verdict.run}: {verdict.took} taken, {verdict.sent} recorded; {verdict.twice} twice, "
            f"{verdict.unrecorded} taken but not recorded, {verdict.never_taken} recorded but never taken"
        )


def as_json(findings: Findings) -> str:
    """The same as JSON, with every single run in it."""
    found = {field.name: getattr(findings, field.name) for field in fields(findings)} | {
        "routes": _routes_json(findings.routes),
        "google_client": [asdict(cost) for cost in findings.google_client],
        "comparisons": [_comparison_json(compared) for compared in findings.comparisons],
        "ledgers": [asdict(verdict) for verdict in findings.ledgers.verdicts],
    }
    return json.dumps(found, indent=1, default=str)


def _comparison_json(compared: Comparison) -> dict[str, Any]:
    return {
        "scenario": asdict(compared.scenario),
        "ours": [asdict(run) for run in compared.ours],
        "baseline": [asdict(run) for run in compared.theirs],
        "setting": str(compared.best),
        "tried": {str(setting): rate for setting, rate in compared.trials.items()},
    }


def _routes_json(found: Routes | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "setting": str(found.setting),
        "baseline": [asdict(run) for run in found.baseline],
        "routes": [
            {"name": each.route.name, "requests": each.requests, "runs": [asdict(run) for run in each.runs]}
            for each in found.routed
        ],
    }
