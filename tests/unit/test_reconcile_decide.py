"""What a finding proves: every finding, about every standing, before and after it may count."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outtray_schema.outcome import Parked
from outtray_worker.providers import Draft, Finding, Removed, Trace
from outtray_worker.reconcile.decide import (
    Believe,
    End,
    Ignore,
    Judge,
    LookAgain,
    Rules,
    SendAgain,
    Standing,
    Tidied,
    decide,
)
from outtray_worker.reconcile.read import Case, LookedMailbox
from outtray_worker.reconcile.schedule import DEFAULT, OTHERS, SCHEDULES, Schedules

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SETTLE = timedelta(minutes=5)
RULES = Rules(OTHERS, SETTLE, 8, timedelta(hours=24))
STATES = ("queued", "handing_over", "unknown", "sent", "drafted", "failed", "cancelled", "expired")
LOOKED_AT = ("unknown", "sent", "failed", "cancelled", "expired")
FINDINGS = ("sent", "still_draft", "absent", "nothing", "failed", "no_way")
BOX = LookedMailbox(uuid4(), "memory", "memory", {}, b"", None, 1, ())


def case(began: datetime = NOW, state: str = "unknown", handover: int = 1, draft: Draft | None = None) -> Case:
    trace = Trace(uuid4(), "<r@example.org>", NOW, (), draft)
    return Case(trace.message_id, state, handover, began, BOX, "active", trace)


def standing(**changes: Any) -> Standing:
    values: dict[str, Any] = {
        "now": NOW, "state": "unknown", "handover": 1, "handover_until": NOW - SETTLE, "handover_end": None,
        "attempt": 1, "cancel_asked": False, "only_draft": False, "may_have_left": False, "has_draft": False,
        "looks": 0, "look_handover": 1, "looked": None,
    }  # fmt: skip
    about = {"look_handover": -1} if changes.get("state") in ("cancelled", "expired", "failed") else {}
    return Standing(**values | about | changes)


@pytest.mark.parametrize(
    ("finding", "draft", "too_early", "counts"),
    [("sent", False, Believe, Believe), ("absent", False, LookAgain, SendAgain), ("absent", True, LookAgain, LookAgain),
     ("still_draft", True, LookAgain, SendAgain), ("nothing", True, LookAgain, LookAgain),
     ("nothing", False, LookAgain, LookAgain), ("failed", False, LookAgain, LookAgain),
     ("no_way", False, LookAgain, LookAgain)],
)  # fmt: skip
def test_each_finding_about_an_unknown_before_and_after_it_may_count(finding, draft, too_early, counts):
    stands = standing(has_draft=draft)
    early = case(NOW - timedelta(microseconds=1), draft=Draft("d") if draft else None)
    assert isinstance(decide(early, Finding(finding, ""), None, stands, RULES), too_early)
    assert isinstance(decide(case(), Finding(finding, ""), None, stands, RULES), counts)


def test_where_there_is_no_way_nobody_looks_again_and_elsewhere_somebody_does():
    assert decide(case(), Finding("no_way", ""), None, standing(), RULES) == LookAgain(None)
    for finding in ("nothing", "failed"):
        verdict = decide(case(), Finding(finding, ""), None, standing(), RULES)
        assert isinstance(verdict, LookAgain) and verdict.wait == OTHERS.wait(1)


def test_what_was_to_be_cancelled_ends_instead_of_being_sent_again():
    verdict = decide(case(), Finding("absent", ""), None, standing(cancel_asked=True), RULES)
    assert isinstance(verdict, End) and verdict.state == "cancelled"


def test_the_last_attempt_without_an_answer_fails():
    verdict = decide(case(), Finding("absent", "there"), None, standing(attempt=8), RULES)
    assert isinstance(verdict, End) and verdict.state == "failed" and "there" in verdict.reason


@pytest.mark.parametrize("finding", ["still_draft", "sent"])
def test_what_was_only_to_become_a_draft_ends_as_one_at_any_time(finding):
    stands = standing(only_draft=True, has_draft=True)
    verdict = decide(case(NOW - SETTLE), Finding(finding, ""), None, stands, RULES)
    assert isinstance(verdict, End) and verdict.state == "drafted"


def test_a_doubted_answer_is_borne_out_or_not_and_never_sent_again():
    sent = {"state": "sent", "handover_end": NOW - SETTLE}
    early = {"state": "sent", "handover_end": NOW}
    assert decide(case(state="sent"), Finding("sent", ""), None, standing(**sent), RULES) == Judge(True)
    assert decide(case(state="sent"), Finding("absent", ""), None, standing(**sent), RULES) == Judge(False)
    assert isinstance(decide(case(state="sent"), Finding("absent", ""), None, standing(**early), RULES), LookAgain)
    assert decide(case(state="sent"), Finding("no_way", ""), None, standing(**sent), RULES) == LookAgain(None)
    over = standing(**sent, looks=len(OTHERS.moments))
    assert decide(case(state="sent"), Finding("nothing", ""), None, over, RULES) == Judge(False)


@pytest.mark.parametrize(
    ("finding", "removed", "verdict"),
    [("still_draft", "deleted", Tidied("deleted")), ("still_draft", "gone", Tidied("gone")),
     ("absent", "gone", Tidied("gone")), ("nothing", None, Tidied("gone")), ("no_way", None, Tidied("kept"))],
)  # fmt: skip
def test_the_draft_of_an_ended_message_ends_too(finding, removed, verdict):
    stands = standing(state="cancelled", has_draft=True)
    said = Removed(removed) if removed else None
    assert decide(case(state="cancelled"), Finding(finding, ""), said, stands, RULES) == verdict


def test_a_draft_that_cannot_be_removed_is_tried_for_a_day_and_then_left_to_its_person():
    stands = standing(state="cancelled", has_draft=True)
    failed = Removed("failed")
    first = decide(case(state="cancelled"), Finding("still_draft", ""), failed, stands, RULES)
    assert isinstance(first, LookAgain) and first.wait
    over = standing(state="cancelled", has_draft=True, looks=len(OTHERS.moments))
    assert decide(case(state="cancelled"), Finding("still_draft", ""), failed, over, RULES) == Tidied("kept")


@given(
    finding=st.sampled_from(FINDINGS), looked_at=st.sampled_from(LOOKED_AT), state=st.sampled_from(STATES),
    newer=st.integers(0, 2), early=st.booleans(), draft=st.booleans(), only_draft=st.booleans(),
    cancel=st.booleans(), left=st.booleans(), looks=st.integers(0, 40), attempt=st.integers(1, 9),
    shown=st.sampled_from((None, *FINDINGS)), removed=st.sampled_from((None, "deleted", "gone", "failed")),
)  # fmt: skip
def test_whatever_stands_and_whatever_was_found_the_rules_hold(
    finding, looked_at, state, newer, early, draft, only_draft, cancel, left, looks, attempt, shown, removed
):
    stands = standing(
        state=state, handover=1 + newer, has_draft=draft, only_draft=only_draft, looks=looks,
        cancel_asked=cancel, may_have_left=left, attempt=attempt, looked={"finding": shown} if shown else None,
    )  # fmt: skip
    began = NOW - timedelta(seconds=1) if early else NOW
    verdict = decide(
        case(began, looked_at), Finding(finding, "x"), Removed(removed) if removed else None, stands, RULES
    )
    again = isinstance(verdict, (SendAgain, End)) and getattr(verdict, "state", "queued") != "drafted"
    if again:
        assert (state, newer, early) == ("unknown", 0, False), "absence counts about this handover, once it may"
        assert finding == "still_draft" or (finding == "absent" and not draft)
    if state in ("queued", "handing_over") or newer:
        assert isinstance(verdict, (Believe, Ignore)) or finding == "sent", "what moved on is left alone"
    if isinstance(verdict, Believe):
        assert finding == "sent" and state not in ("sent", "drafted") and shown != "sent"
    if state in ("sent", "drafted"):
        assert isinstance(verdict, (Ignore, Judge, LookAgain)), "what was sent stays sent"
    if isinstance(verdict, LookAgain) and verdict.wait is None:
        assert finding == "no_way" or looked_at == "sent", "an unknown that can be looked at is looked at for ever"


@given(after=st.integers(1, 10**6), looks=st.integers(0, 60))
def test_a_providers_wish_is_kept_but_not_for_more_than_a_day(after, looks):
    wish = timedelta(seconds=after)
    finding = Finding("failed", "", outcome=Parked("429", after=wish))
    verdict = decide(case(), finding, None, standing(looks=looks), RULES)
    assert isinstance(verdict, LookAgain) and verdict.wait is not None
    assert verdict.wait >= min(wish, timedelta(hours=24)) and verdict.wait <= timedelta(hours=24)


# ── the schedules ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [*SCHEDULES, "others"])
def test_a_schedule_begins_with_its_providers_steps_and_goes_on_alike(name):
    schedule = DEFAULT.of_provider(name)
    at, moments = timedelta(0), []
    for looks in range(30):
        at += schedule.wait(looks)
        moments.append(at)
    assert tuple(moments[: len(schedule.steps)]) == schedule.steps
    assert {timedelta(minutes=15), timedelta(hours=1), timedelta(hours=24), timedelta(hours=48)} <= set(moments)
    assert schedule.is_over(len(schedule.moments)) and not schedule.is_over(len(schedule.moments) - 1)
    assert schedule.source and schedule.read_on.year >= 2026


def test_nothing_settles_sooner_than_the_setting_says():
    assert DEFAULT.settle("memory") == timedelta(seconds=60) and DEFAULT.settle("smtp") == timedelta(minutes=10)
    patient = Schedules(SCHEDULES, OTHERS, timedelta(hours=1))
    assert {patient.settle(name) for name in SCHEDULES} == {timedelta(hours=1)}
