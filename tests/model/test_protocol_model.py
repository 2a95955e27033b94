"""The protocol as it is built, as a model: every state within bounds, with every rule, and without each of them.

`docs/model.md` says what the model covers and how to read a trace.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from model import looks, rules
from model import scenarios as tried
from model.explore import Explored, Scenario, Search
from model.rules import SWITCHES

TWICE, OVER = "taken twice", "more than its quota in the window"
CANCEL = "the app was told cancelled, and it left"
STOPPED = "a gate passed what was paused or suppressed"
CAME_BACK, DELETED = "m0 had ended, and came back", "the copy of m0 was deleted"
TAKEN_OVER = "a claim took a turn whose lease still runs"
IDS = "m0's ids are known, and it is not sent"
UNKNOWN = "m0 is unknown, though its process lived and no answer of the provider was lost"
FORGOTTEN = "m0 is due and its mailbox is not armed, though no wake was lost"
CIRCLES = "it goes in circles for ever"

# What is found without the rule, and where. The shortest trace of each is printed.
WITHOUT: dict[str, tuple[Scenario, str]] = {
    "3 row": (tried.FROZEN, TAKEN_OVER),
    "3 snapshot": (tried.JOINED, OVER),
    "4 fence": (tried.JOINED, OVER),
    "4 hold": (tried.QUOTA, OVER),
    "4 live": (tried.CANCELLED, CAME_BACK),
    "4 pause": (tried.STOPPED, STOPPED),
    "4 suppressed": (tried.STOPPED, STOPPED),
    "5 before": (tried.FROZEN, TWICE),
    "5 look": (tried.FROZEN, TWICE),
    "5 boottime": (tried.FROZEN, TWICE),
    "6 same draft": (tried.DRAFT, TWICE),
    "6 gate binds": (tried.DRAFT, DELETED),
    "6 404 is unknown": (tried.DRAFT_ACTS, "m0 has failed, though it left"),
    "6 ours": (tried.DRAFT, DELETED),
    "7 number": (tried.RELAYED, TWICE),
    "7 ids": (tried.FROZEN, IDS),
    "7 any": (tried.READABLE_ACTS, IDS),
    "7 newer": (tried.AGAIN, OVER),
    "7 wait": (tried.LOST, UNKNOWN),
    "8 least": (tried.TAGGED, FORGOTTEN),
    "9 dead turns": (tried.HUNG, "the lease is never free"),
    "9 own time": (tried.HUNG, TWICE),
    "9 overdue": (tried.HUNG, "m0 is stuck in its handover"),
    "9 poison": (tried.KILLER, CIRCLES),
    "9 cap": (tried.HUNG, "m0 is stuck in the queue"),
    "10 back": (tried.LOST, UNKNOWN),
    "10 number": (tried.LOST, TWICE),
    "10 again": (tried.LOST, UNKNOWN),
    "10 unknown": (tried.LOST, UNKNOWN),
    "10 snapshot": (tried.STOPPED, STOPPED),
    "11 began": (tried.READABLE, TWICE),
    "11 settle": (tried.READABLE, TWICE),
    "11 readable": (tried.BLIND, TWICE),
    "11 missing draft": (tried.DRAFT_ACTS, "m0 is sent, though it never left"),
    "11 current": (tried.READABLE_ACTS, CAME_BACK),
    "11 lock": (tried.READABLE_TWO, CAME_BACK),
    "12 usage": (tried.AGAIN, OVER),
    "12 left": (tried.CANCELLED, CANCEL),
    "12 usage by evidence": (tried.COUNTED, OVER),
    "12 left by evidence": (tried.READABLE_ACTS, CANCEL),
    "12 draft": (tried.DRAFT_ENDED, "m0 has ended, and its draft lies there for ever"),
    "12 attempts": (tried.HIDDEN, "m0 is sent again without end"),
    "13 record": (tried.LOST, FORGOTTEN),
    "13 resend": (tried.FROZEN, FORGOTTEN),
    "13 arm by evidence": (tried.READABLE, FORGOTTEN),
    "13 switch": (tried.TAGGED, FORGOTTEN),
    "13 expire": (tried.EXPIRING, "m0 is stuck in the queue"),
    "14 end": (tried.JOINED, OVER),
    "16 sweep": (tried.WAKES, "m1 is stuck in the queue"),
    "16 later": (tried.WAKES, "m1 is stuck in the queue"),
}

# Rules that another one already covers, as far as these properties go: docs/model.md says which, and why they stay.
COVERED = {"4 version": tried.CANCELLED, "13 resume": tried.EXPIRING}


@pytest.fixture(scope="module")
def searched() -> dict[str, Explored]:
    return {}


def search(scenario: Scenario, known: dict[str, Explored], *out: str) -> Explored:
    """Explore a scenario whole, once in this process for each set of rules."""
    key = " ".join((scenario.name, *out))
    if key not in known:
        known[key] = Search(scenario, *out).run()
        print(f"\n{known[key]}")
    return known[key]


SLOW = (tried.AGAIN, tried.READABLE_TWO, tried.DRAFT_TWO)


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(each, id=each.name, marks=[pytest.mark.slow] * (each in SLOW)) for each in tried.TESTED],
)
def test_with_every_rule_no_mail_leaves_twice_or_over_its_quota_or_is_stuck(
    scenario: Scenario, searched: dict[str, Explored]
) -> None:
    assert search(scenario, searched).broken == ""


@pytest.mark.parametrize("rule", WITHOUT)
def test_without_one_rule_a_bad_trace_is_found(rule: str, searched: dict[str, Explored]) -> None:
    scenario, expected = WITHOUT[rule]
    print(f"\nwithout {rule}: {SWITCHES[rule]}")
    assert search(scenario, searched, rule).broken == expected


@pytest.mark.parametrize("rule", COVERED)
def test_what_another_rule_covers_is_not_missed(rule: str, searched: dict[str, Explored]) -> None:
    assert search(COVERED[rule], searched, rule).broken == ""


def test_every_switch_has_its_trace_or_its_reason() -> None:
    assert set(WITHOUT) | set(COVERED) == set(SWITCHES)


def test_a_freeze_between_the_last_look_and_the_first_byte_can_send_twice(searched: dict[str, Explored]) -> None:
    trace = search(tried.FROZEN, searched).named["twice"]
    print("\n".join(trace))
    assert_frozen_between_look_and_byte(trace)
    assert any("sends it again" in step for step in trace)


def test_the_same_freeze_can_exceed_the_count_by_one(searched: dict[str, Explored]) -> None:
    trace = search(tried.QUOTA, searched).named["over"]
    print("\n".join(trace))
    assert_frozen_between_look_and_byte(trace)


def test_the_same_freeze_can_send_twice_what_was_not_seen_among_what_was_sent(searched: dict[str, Explored]) -> None:
    trace = search(tried.READABLE_ACTS, searched).named["twice"]
    assert_frozen_between_look_and_byte(trace)
    assert "r0 writes about m0 h1: send again" in trace


@pytest.mark.parametrize("scenario", [tried.DRAFT, tried.DRAFT_ENDED], ids=lambda each: each.name)
def test_where_a_draft_is_sent_nothing_leaves_twice_however_long_its_sender_was_frozen(
    scenario: Scenario, searched: dict[str, Explored]
) -> None:
    found = search(scenario, searched)
    assert (found.broken, found.named) == ("", {})


def assert_frozen_between_look_and_byte(trace: list[str]) -> None:
    frozen = next(step.split()[0] for step in trace if step.endswith("freezes"))
    looked, froze, thawed = (trace.index(f"{frozen} {what}") for what in ("looks: in time", "freezes", "thaws"))
    byte = trace.index(f"{frozen} writes the byte that commits")
    assert looked < froze < thawed < byte
    assert trace[froze:byte].count("time passes") > 2, "past the deadline"


def test_no_exception_is_named_where_nothing_freezes(searched: dict[str, Explored]) -> None:
    assert search(tried.LOST, searched).named == {}
    assert search(tried.JOINED, searched).named == {}


MODULES = {
    "claim": "outtray_worker.claim",
    "group": "outtray_worker.group",
    "late": "outtray_worker.late",
    "tend": "outtray_worker.tend",
    "sweep": "outtray_worker.sweep",
    "pick": "outtray_worker.pick",
    "record": "outtray_worker.record",
    "abandon": "outtray_worker.abandon",
    "read": "outtray_worker.reconcile.read",
    "look": "outtray_worker.reconcile.look",
    "decide": "outtray_worker.reconcile.decide",
    "write": "outtray_worker.reconcile.write",
    "evidence": "outtray_worker.providers.gmail.evidence",
    "orphans": "outtray_worker.providers.gmail.orphans",
    "cancel": "outtray.cancel",
    "resolve": "outtray.resolve",
    "mailboxes": "outtray.mailboxes",
    "switches": "outtray.switches",
}


def named_code() -> Iterator[tuple[str, str]]:
    """What the rules say that they stand for: `module.NAME` in their docstrings."""
    for page in (rules, looks):
        for module, name in re.findall(r"`(\w+)\.(\w+)`", Path(page.__file__ or "").read_text()):
            if module in MODULES:
                yield module, name


def test_every_rule_stands_for_code_that_exists() -> None:
    found = list(named_code())
    assert len(found) > 35
    for module, name in found:
        assert hasattr(importlib.import_module(MODULES[module]), name), f"{module}.{name}"
