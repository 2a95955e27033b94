"""Decide: what a finding proves about a message as it stands by now. No SQL here and no I/O: rules 7, 11 and 12 alone.

| finding | any time | once it counts: the look began after the handover's deadline and the settling time |
|---|---|---|
| `sent` | sent, with its ids, whatever had been inferred | |
| `still_draft` | proves nothing; what was only to become a draft has become one | sent again: the same draft |
| `absent` | proves nothing | sent again |
| `nothing`, `failed` | looked at again | looked at again |
| `no_way` | not looked at again; its policy decides | |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from outtray_schema.outcome import Parked
from outtray_worker.providers import Finding, Removed
from outtray_worker.reconcile.read import Case
from outtray_worker.reconcile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Standing:
    """The message when the look has ended, its row locked."""

    now: datetime
    state: str
    handover: int
    handover_until: datetime | None
    handover_end: datetime | None
    attempt: int
    cancel_asked: bool
    only_draft: bool
    may_have_left: bool
    has_draft: bool
    looks: int
    look_handover: int | None
    looked: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Rules:
    """What of the settings and of the provider's schedule a decision needs."""

    schedule: Schedule
    settle: timedelta
    attempts: int
    hint_cap: timedelta


@dataclass(frozen=True, slots=True)
class Ignore:
    """Write nothing: the message has moved on, or somebody else wrote the same."""


@dataclass(frozen=True, slots=True)
class Believe:
    """It was sent: write the ids through the record path."""


@dataclass(frozen=True, slots=True)
class SendAgain:
    """Back into the queue, as what may have left."""


@dataclass(frozen=True, slots=True)
class End:
    """It ends in this state."""

    state: Literal["drafted", "cancelled", "failed"]
    reason: str


@dataclass(frozen=True, slots=True)
class Judge:
    """A message that its provider said it took, and that was doubted: is the doubt over, or borne out?"""

    proven: bool


@dataclass(frozen=True, slots=True)
class Tidied:
    """What became of the draft of a message that has ended."""

    how: Literal["deleted", "gone", "kept"]


@dataclass(frozen=True, slots=True)
class LookAgain:
    """After this wait; None: never."""

    wait: timedelta | None


Verdict = Ignore | Believe | SendAgain | End | Judge | Tidied | LookAgain


def decide(case: Case, finding: Finding, removed: Removed | None, stands: Standing, rules: Rules) -> Verdict:
    """What to write about a look that has ended."""
    if finding.kind == "sent":
        return _found(case, stands)
    if (stands.state, stands.handover, stands.look_handover) != (case.state, case.handover, case.about):
        return Ignore()
    if case.state == "unknown":
        return _of_unknown(case, finding, stands, rules)
    return (
        _of_sent(case, finding, stands, rules) if case.state == "sent" else _of_ended(finding, removed, stands, rules)
    )


def _found(case: Case, stands: Standing) -> Verdict:
    """Provider ids for any handover make a message sent (rule 7), and nobody has to write that twice."""
    known = _shows(stands) == "sent"
    if stands.state in ("sent", "drafted"):
        doubted = case.state == "sent" and stands.handover == case.handover
        return Judge(proven=True) if doubted and not known else Ignore()
    if stands.only_draft and stands.state == "unknown":  # its person sent what was left for them: not ours to count
        return End("drafted", "its draft was sent by its person")
    if known or stands.only_draft:
        return Tidied("gone") if case.has_ended else Ignore()
    return Believe()


def _shows(stands: Standing) -> str | None:
    return str(stands.looked["finding"]) if stands.looked else None


def _of_unknown(case: Case, finding: Finding, stands: Standing, rules: Rules) -> Verdict:
    if finding.kind == "no_way":
        return LookAgain(None)
    if finding.kind == "still_draft" and stands.only_draft:
        return End("drafted", "found as a draft")
    if _proves_absence(finding, stands) and case.began >= _counts_from(stands.handover_until, stands, rules):
        return _absent(finding, stands, rules)
    return LookAgain(_next_look(finding, stands.handover_until, stands, rules))


def _proves_absence(finding: Finding, stands: Standing) -> bool:
    """A draft that is missing proves nothing: it may as well have been sent as deleted (rules 6 and 11)."""
    return finding.kind == "still_draft" or (finding.kind == "absent" and not stands.has_draft)


def _counts_from(end: datetime | None, stands: Standing, rules: Rules) -> datetime:
    return (end or stands.now) + rules.settle


def _absent(finding: Finding, stands: Standing, rules: Rules) -> Verdict:
    if stands.cancel_asked:
        return End("cancelled", "as asked: it was not found to have left")
    if stands.attempt >= rules.attempts:
        return End("failed", f"gave up after {stands.attempt} attempts without an answer: {finding.looked}")
    return SendAgain()


def _of_sent(case: Case, finding: Finding, stands: Standing, rules: Rules) -> Verdict:
    """It stays sent, as its provider said; but who asked is told if nobody can find it."""
    end = stands.handover_end or stands.handover_until
    if finding.kind == "no_way":
        return LookAgain(None)
    if _proves_absence(finding, stands) and case.began >= _counts_from(end, stands, rules):
        return Judge(proven=False)
    if rules.schedule.is_over(stands.looks + 1):
        return LookAgain(None) if finding.kind == "failed" else Judge(proven=False)
    return LookAgain(_next_look(finding, end, stands, rules))


def _of_ended(finding: Finding, removed: Removed | None, stands: Standing, rules: Rules) -> Verdict:
    """Its draft is taken away, and for a while looked for what may have left before."""
    if removed is not None and removed.kind != "failed":
        return Tidied(removed.kind)
    over = rules.schedule.is_over(stands.looks + 1)
    if finding.kind == "no_way" or (over and finding.kind == "failed"):
        return Tidied("kept")
    if finding.kind in ("absent", "nothing") and removed is None and (over or not stands.may_have_left):
        return Tidied("gone")
    return Tidied("kept") if over else LookAgain(_next_look(finding, None, stands, rules))


def _next_look(finding: Finding, end: datetime | None, stands: Standing, rules: Rules) -> timedelta:
    """By the schedule; one look falls upon the moment from which absence counts, and a provider's wish is kept."""
    wait = rules.schedule.wait(stands.looks + 1)
    left = _counts_from(end, stands, rules) - stands.now
    if end is not None and left > timedelta(0):
        wait = min(wait, left)
    if isinstance(finding.outcome, Parked) and finding.outcome.after is not None:
        wait = max(wait, min(finding.outcome.after, rules.hint_cap))
    return wait
