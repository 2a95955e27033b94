"""What a refusal teaches, and how it is forgotten: the arithmetic alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outtray_schema.learned import DAY, FLOOR, PATIENCE, grown, measures_of, recovered, teach
from outtray_schema.ledger import Frees, frees, needs
from outtray_schema.outcome import Parked
from outtray_schema.plans import DAILY, TRIAL_TENANT_EXTERNALS, Limits, effective_limits, tenant_externals, with_learned
from outtray_worker.providers.gmail.answers import TABLE as GMAIL
from outtray_worker.providers.microsoft.answers import TABLE as MICROSOFT
from outtray_worker.providers.smtp.replies import ROWS as SMTP
from outtray_worker.providers.smtp.replies import classify
from outtray_worker.providers.web.rows import Signal

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def refused(at: datetime = NOW, **used: int) -> dict[str, object]:
    return teach({}, {"messages": 500}, {"messages": used.get("messages", 300)}, at, sent=True)


def allowed(learned: dict[str, object], after: timedelta, **overrides: int | None) -> int | None:
    return with_learned(effective_limits("gmail", overrides), learned, NOW + after).allowed("messages")


def test_a_refusal_lowers_the_limit_to_what_was_used():
    assert refused(messages=300) == {"messages": {"limit": 300, "used": 300, "at": NOW.isoformat()}}
    assert allowed(refused(messages=300), timedelta(0)) == 300


@pytest.mark.parametrize(("days", "limit"), [(0.99, 300), (1, 330), (2, 363), (3, 399), (4, 439), (5, 483), (6, 500)])
def test_a_tenth_more_each_clean_day_until_the_plan_is_reached(days, limit):
    assert allowed(refused(messages=300), timedelta(days=days)) == limit


def test_what_has_recovered_is_forgotten_and_nothing_is_said_of_it():
    limits = with_learned(effective_limits("gmail", {}), refused(messages=300), NOW + 6 * DAY)
    assert limits.learned == () and limits == effective_limits("gmail", {})


@given(st.integers(0, 2_000), st.integers(1, 1_000), st.integers(0, 999), st.integers(0, 90 * 24))
def test_it_is_never_above_the_plan_never_below_the_floor_and_only_rises(used, plan, reserve, hours):
    reserve = min(reserve, plan - 1)
    limits = effective_limits("gmail", {"messages": plan, "reserve": reserve})
    learned = teach({}, measures_of(limits.daily), {"messages": used}, NOW, sent=True)
    soon, later = (with_learned(limits, learned, NOW + timedelta(hours=h)) for h in (hours, hours + 24))
    ours = plan - reserve
    assert min(FLOOR, ours) <= soon.allowed("messages") <= later.allowed("messages") <= ours
    if soon.learned:
        (lesson,) = soon.learned
        assert lesson.limit == soon.allowed("messages") < ours
        assert NOW + timedelta(hours=hours) < lesson.forgotten_at
        assert with_learned(limits, learned, lesson.forgotten_at).learned == ()
        assert with_learned(limits, learned, lesson.forgotten_at - timedelta(seconds=1)).learned != ()
    else:
        assert soon.allowed("messages") == ours


@given(st.integers(1, 10_000), st.integers(0, 60))
def test_it_recovers_by_ten_percent_a_day_exactly(limit, days):
    assert grown(limit, days) <= limit * 1.1**days + 1e-6 * limit * 1.1**days
    assert grown(limit, days) > limit * 1.1**days * (1 - 1e-9) - 1


@given(st.integers(1, 5_000), st.integers(1, 20_000))
def test_it_reaches_a_limit_on_the_first_day_on_which_it_is_that_high(taught, wanted):
    (lesson,) = recovered(
        {"messages": {"limit": taught, "used": taught, "at": NOW.isoformat()}}, {"messages": 10**9}, NOW
    )
    days = (lesson.reaches(wanted) - NOW) // DAY
    assert grown(taught, days) >= wanted
    assert days == 0 or grown(taught, days - 1) < wanted


def test_refusals_in_a_row_teach_once_but_their_days_are_not_clean():
    """A provider that locked the mailbox goes on refusing while what we used leaves the window by itself."""
    first = refused(messages=300)
    again = teach(first, {"messages": 330}, {"messages": 4}, NOW + 1.5 * DAY, sent=False)
    assert again["messages"] == {"limit": 330, "used": 300, "at": (NOW + 1.5 * DAY).isoformat()}
    assert allowed(again, timedelta(days=2.4)) == 330
    assert allowed(again, timedelta(days=2.5)) == 363


def test_a_refusal_after_a_send_teaches_anew():
    again = teach(refused(messages=300), {"messages": 330}, {"messages": 120}, NOW + DAY, sent=True)
    assert again["messages"] == {"limit": 120, "used": 120, "at": (NOW + DAY).isoformat()}


def test_messages_and_recipients_are_learned_where_the_plan_counts_them():
    assert measures_of(effective_limits("gmail", {}).daily) == {"messages": 500}
    assert measures_of(effective_limits("workspace", {"reserve": 100}).daily) == {
        "messages": 1_900,
        "recipients": 9_900,
    }
    assert measures_of(effective_limits("microsoft", {}).daily) == {"recipients": 10_000}
    assert measures_of(effective_limits("smtp", {"messages": None}).daily) == {"messages": None}


def test_without_a_plans_limit_it_is_forgotten_after_a_month():
    learned = teach({}, {"messages": None}, {"messages": 40}, NOW, sent=True)
    assert allowed(learned, timedelta(0), messages=None) == 40
    assert allowed(learned, (PATIENCE - 1) * DAY, messages=None) == grown(40, PATIENCE - 1)
    assert allowed(learned, PATIENCE * DAY, messages=None) is None


def test_the_reserve_is_not_taken_off_what_was_learned():
    """What was learned counts what we send alone; taking more off it could leave nothing, for ever."""
    assert allowed(refused(messages=80), timedelta(0), reserve=100) == 80


def test_a_message_that_fits_the_plan_waits_for_a_learned_limit_and_does_not_fail():
    plan = Limits(recipients=500)
    limits = with_learned(plan, {"recipients": {"limit": 50, "used": 50, "at": NOW.isoformat()}}, NOW)
    row = {"now": NOW, **{f"used_{measure}": 50 for measure in DAILY}, **dict.fromkeys(DAILY)}
    wide = Frees(NOW, NOW + 2 * DAY, "recipients", 50, 50)
    assert frees(row, limits, needs(_Message(60))) == wide, "50, 55, then 60"
    assert frees(row, limits, needs(_Message(501))).at is None, "more than the plan allows: never"


class _Message:
    id = None
    external = 0

    def __init__(self, recipients: int) -> None:
        self.recipients = recipients


# ── which answers teach ───────────────────────────────────────────────────────────────────────────────────────────

TEACHING = {
    "gmail": {"mail-quota"},
    "microsoft": {"sending-quota", "verdict-quota"},
    "smtp": {"daily-limit", "recipient-quota", "storedrv-quota", "storedrv-spam-quota"},
}


@pytest.mark.parametrize(
    ("provider", "rows"), [("gmail", GMAIL.rows), ("microsoft", MICROSOFT.rows), ("smtp", SMTP)], ids=TEACHING
)
def test_only_a_mailboxes_own_quota_teaches(provider, rows):
    teaching = [row for row in rows if row.teaches]
    assert {row.id for row in teaching} == TEACHING[provider]
    assert all((row.becomes, row.scope) == ("parked", "mailbox") and row.after for row in teaching)


def test_a_quota_answer_becomes_an_outcome_that_teaches():
    said = "User-rate limit exceeded.  Retry after 2026-11-21T15:00:00Z (Mail sending)"
    gmail = GMAIL.classify(Signal("commit", 429, ("rateLimitExceeded",), said))
    graph = MICROSOFT.classify(Signal("commit", 429, ("ErrorExceededMessageLimit",)))
    smtp = classify("dot", 550, "5.4.5", "5.4.5 Daily user sending limit exceeded.")
    assert [row.outcome("full", {}).teaches for row in (gmail, graph, smtp)] == [True] * 3
    slow = GMAIL.classify(Signal("commit", 429, ("userRateLimitExceeded",)))
    assert isinstance(slow.outcome("slow", {}), Parked) and not slow.outcome("slow", {}).teaches


# ── a tenant's budget ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("licences", "external"), [(1, 10_000), (10, 12_006), (100, 22_059)])
def test_a_tenants_external_recipients_follow_microsofts_formula(licences, external):
    assert tenant_externals(licences) == external
    assert tenant_externals(licences) > TRIAL_TENANT_EXTERNALS
