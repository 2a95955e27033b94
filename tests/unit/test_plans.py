"""Plans: documented limits as data, and an owner's overrides over them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outtray_schema.errors import InvalidMailbox
from outtray_schema.plans import DAILY, PLANS, Limits, beyond_documented, effective_limits, plan_named


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("gmail", Limits(messages=500, recipients_per_message=500)),
        ("workspace", Limits(messages=2000, recipients=10_000, external=3000, recipients_per_message=500)),
        ("microsoft", Limits(recipients=10_000, recipients_per_message=500, per_minute=30)),
    ],
)
def test_presets_are_the_documented_maxima(name, limits):
    assert plan_named(name).limits == limits


def test_every_plan_says_where_its_figures_come_from_and_when():
    for plan in PLANS.values():
        assert plan.source and plan.note and plan.date.year >= 2026
        assert effective_limits(plan, {}) == plan.limits


def test_an_override_replaces_one_limit_and_null_lifts_one():
    limits = effective_limits("workspace", {"messages": 50, "external": None, "per_minute": 20, "burst": 5})
    assert limits == replace(plan_named("workspace").limits, messages=50, external=None, per_minute=20, burst=5)
    assert "external" not in limits.daily


def test_google_takes_fewer_recipients_a_message_over_smtp_unless_the_owner_says_otherwise():
    assert effective_limits("gmail", {}, "smtp").recipients_per_message == 100
    assert effective_limits("gmail", {}, "gmail").recipients_per_message == 500
    assert effective_limits("gmail", {"recipients_per_message": 20}, "smtp").recipients_per_message == 20


def test_the_reserve_is_taken_off_every_daily_limit_that_is_set():
    limits = effective_limits("workspace", {"reserve": 100})
    assert limits.daily == {"messages": 1900, "recipients": 9900, "external": 2900}
    assert limits.messages == 2000


@pytest.mark.parametrize(
    ("overrides", "field", "cure"),
    [
        ({"mesages": 5}, "limits.mesages", "there are messages, recipients"),
        ({"messages": "5"}, "limits.messages", "whole number from 1, or null"),
        ({"messages": True}, "limits.messages", "whole number"),
        ({"messages": 0}, "limits.messages", "from 1"),
        ({"per_minute": 1.5}, "limits.per_minute", "whole number"),
        ({"external": -1}, "limits.external", "from 0"),
        ({"burst": None}, "limits.burst", "whole number from 1"),
        ({"reserve": 500}, "limits.reserve", "leaves nothing of messages (500)"),
        ({"per_minute": 5, "burst": 6}, "limits.burst", "not be above per_minute (5)"),
    ],
)
def test_a_wrong_limit_is_refused_with_its_field_and_cure(overrides, field, cure):
    with pytest.raises(InvalidMailbox) as refused:
        effective_limits("gmail", overrides)
    (problem,) = refused.value.problems
    assert problem.field == field
    assert cure in problem.reason


def test_every_wrong_field_is_named_at_once():
    with pytest.raises(InvalidMailbox) as refused:
        effective_limits("gmail", {"messages": -1, "speed": 3})
    assert {problem.field for problem in refused.value.problems} == {"limits.messages", "limits.speed"}


def test_an_unknown_plan_is_refused_with_those_there_are():
    with pytest.raises(InvalidMailbox, match="choose one of gmail, workspace, microsoft, outlook, smtp"):
        effective_limits("platinum", {})


def test_a_limit_above_the_documented_one_is_allowed_but_said():
    raised = effective_limits("gmail", {"messages": 600})
    assert "messages is 600, but gmail documents 500" in beyond_documented("gmail", raised)[0]
    lifted = effective_limits("gmail", {"messages": None})
    assert "messages is unlimited" in beyond_documented("gmail", lifted)[0]
    assert beyond_documented("gmail", effective_limits("gmail", {"messages": 400})) == []


@given(st.dictionaries(st.sampled_from(DAILY), st.none() | st.integers(1, 10_000)), st.integers(0, 10_000))
def test_what_is_accepted_leaves_something_of_every_limit(overrides, reserve):
    try:
        limits = effective_limits("smtp", overrides | {"reserve": reserve})
    except InvalidMailbox:
        set_limits = [v for v in ({"messages": 500} | overrides).values() if v is not None]
        assert any(reserve >= limit for limit in set_limits)
    else:
        assert all(allowed > 0 for allowed in limits.daily.values())
