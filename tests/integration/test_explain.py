"""Explain: in every state exactly one reason, the binding limit, the earliest time, and who must act."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from crm import ADDRESS, ask, crm, hand_over, hello, mailbox_row, message_row
from outtray import Explanation, NotFound, Outtray

DAY = timedelta(hours=24)
HOUR = timedelta(hours=1)


class Desk:
    """A client with one mailbox, and what workers would have written behind its back."""

    def __init__(self, client: Outtray, database: Any) -> None:
        self.client = client
        self.database = database
        self.settings = database.settings

    def sql(self, statement: str, *parameters: Any) -> list[dict[str, Any]]:
        return ask(self.settings, statement, *parameters)

    def now(self) -> datetime:
        now: datetime = self.sql("SELECT outtray.outtray_now() AS now")[0]["now"]
        return now

    def send(self, **fields: Any) -> UUID:
        return self.client.enqueue(hello(**fields)).id

    def mailbox(self, assignments: str, *parameters: Any) -> None:
        self.sql(f"UPDATE outtray.mailbox SET {assignments}", *parameters)

    def message(self, message_id: UUID, assignments: str, *parameters: Any) -> None:
        self.sql(f"UPDATE outtray.message SET {assignments} WHERE id = %s", *parameters, message_id)

    def sent(self, count: int, ago: timedelta) -> None:
        """So many messages of one recipient each, sent so long ago, one second apart."""
        for n in range(count):
            at = self.now() - ago + n * timedelta(seconds=1)
            message_id = self.send()
            self.message(
                message_id, "state = 'sent', ended_at = %s, counted_at = %s, handover = 1, version = 1", at, at
            )

    def crew(self, *roles: str) -> None:
        for role in roles or ("worker", "dispatcher"):
            self.sql("INSERT INTO outtray.process (id, role) VALUES (%s, %s)", uuid4().hex, role)

    def looked(
        self, message_id: UUID, finding: str | None, looked: str | None, next_look: str = "now() + interval '9 days'"
    ) -> datetime | None:
        """Looks were planned, and the last one showed this; answers with the time of the next."""
        shown = {"finding": finding, "looked": looked, "at": self.now().isoformat(), "since": self.now().isoformat()}
        self.message(message_id, "look_handover = handover, looks = 1, looked = %s", Jsonb(shown) if finding else None)
        self.message(message_id, f"look_at = {next_look}")
        at: datetime | None = message_row(self.settings, message_id)["look_at"]
        return at

    def explain(self, message_id: UUID) -> Explanation:
        answer = self.client.explain(message_id)
        assert answer.reason and "\n" not in answer.reason
        assert ADDRESS not in str(answer) and "ann@" not in str(answer)
        return answer


@pytest.fixture
def desk(database: Any) -> Iterator[Desk]:
    with crm(database.settings) as client:
        made = Desk(client, database)
        made.crew()
        yield made


def close(at: datetime | None, expected: datetime, within: float = 2.0) -> bool:
    return at is not None and abs((at - expected).total_seconds()) <= within


def test_a_message_of_nobody_is_not_found(desk):
    with pytest.raises(NotFound):
        desk.client.explain(uuid4())


# ── ended, with the provider, unknown ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("state", "reason", "who"),
    [
        ("sent", None, "nobody"),
        ("failed", "550 no such user", "app developer"),
        ("cancelled", "suppressed", "nobody"),
        ("expired", "expired before it could be sent", "nobody"),
    ],
)
def test_what_has_ended_says_how(desk, state, reason, who):
    message = desk.send()
    desk.message(message, "state = %s, ended_at = outtray.outtray_now(), reason = %s", state, reason)
    desk.client.pause("all")  # nothing that holds the living matters to it
    answer = desk.explain(message)
    assert (answer.state, answer.code, answer.who, answer.earliest) == (state, state, who, None)
    assert reason is None or reason in answer.reason


def test_a_handover_under_way_says_until_when_its_outcome_is_known(desk):
    message = desk.send()
    hand_over(desk.settings, message)
    answer = desk.explain(message)
    assert (answer.code, answer.who) == ("handing_over", "nobody")
    assert answer.earliest == message_row(desk.settings, message)["handover_until"]
    desk.database.shift(HOUR)
    desk.crew()
    assert desk.explain(message).code == "handover_overdue"
    desk.sql("DELETE FROM outtray.process")
    assert (desk.explain(message).code, desk.explain(message).who) == ("no_dispatcher", "operator")


def test_an_unknown_message_waits_for_a_decision_or_for_its_policy(desk):
    message = desk.send()
    hand_over(desk.settings, message, "unknown", reason="connection lost")
    desk.crew()
    assert "about to be looked for" in desk.explain(message).reason
    desk.looked(message, "no_way", "Mail.Send alone lets nobody look", next_look="NULL")
    answer = desk.explain(message)
    assert (answer.code, answer.who, answer.earliest) == ("unknown", "operator", None)
    assert any("there is no way to look (looked at: Mail.Send alone" in line for line in answer.details)
    assert "connection lost" in answer.reason and "outtray resolve" in " ".join(answer.details)
    desk.message(message, "on_unknown = 'resend'")
    answer = desk.explain(message)
    assert (answer.code, answer.who) == ("unknown", "nobody")
    assert answer.earliest == message_row(desk.settings, message)["handover_until"] + desk.settings.settle_time
    desk.client.cancel(message)
    answer = desk.explain(message)
    assert answer.who == "operator" and "asked to be cancelled" in " ".join(answer.details)


def test_an_unknown_message_says_what_was_looked_for_and_when_the_next_look_is(desk):
    message = desk.send(on_unknown="resend")
    hand_over(desk.settings, message, "unknown", reason="connection lost")
    at = desk.looked(message, None, None)
    answer = desk.explain(message)
    assert (answer.who, answer.earliest) == ("nobody", at) and "not looked for yet" in answer.details[0]
    desk.looked(message, "absent", "all 7 of what was sent, by our key")
    answer = desk.explain(message)
    assert (answer.who, "by its policy" in answer.reason) == ("nobody", False), "a look can still show something"
    assert "no copy of it was found (looked at: all 7 of what was sent, by our key)" in answer.details[0]
    assert "the next look is due at" in answer.details[1]
    at = desk.looked(message, "nothing", "the draft is gone")
    assert desk.explain(message).who == "operator" and desk.explain(message).earliest == at


def test_an_ended_message_says_what_became_of_its_draft(desk):
    message = desk.send()
    desk.message(message, 'draft = \'{"id": "d"}\'')
    desk.client.cancel(message)
    assert "its draft is about to be deleted" in desk.explain(message).details
    desk.message(message, "draft_end = 'deleted'")
    assert "its draft was deleted" in desk.explain(message).details


def test_a_message_past_its_time_waits_for_the_dispatcher_to_end_it(desk):
    message = desk.send(expires_at=datetime.now(UTC) + HOUR)
    assert desk.explain(message).code != "expiring"
    desk.database.shift(2 * HOUR)
    desk.crew()
    assert desk.explain(message).code == "expiring"


# ── held by a person ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "target", "who"),
    [
        ("all", "", "operator"),
        ("provider", "smtp", "operator"),
        ("app", "", "app developer"),
        ("tag", "q", "app developer"),
    ],
)
def test_a_switch_says_since_when_by_whom_and_why(desk, kind, target, who):
    message = desk.send(tags=["q"], send_at=datetime.now(UTC) + HOUR)
    desk.client.pause(kind, target, why="angry recipients")
    answer = desk.explain(message)
    assert (answer.code, answer.who, answer.earliest) == (f"paused_{kind}", who, None)
    assert "by crm" in answer.reason and "angry recipients" in answer.reason


def test_other_switches_and_tags_do_not_hold_a_message(desk):
    message = desk.send(tags=["q"])
    desk.client.pause("tag", "other")
    desk.client.pause("provider", "gmail")
    assert desk.explain(message).code not in ("paused_tag", "paused_provider")


def test_several_switches_give_one_reason_and_the_rest_as_details(desk):
    message = desk.send(tags=["q"])
    desk.client.pause("tag", "q")
    desk.client.pause("all")
    answer = desk.explain(message)
    assert answer.code == "paused_all"
    assert any("also paused: tag" in line for line in answer.details)


@pytest.mark.parametrize("status", ["paused", "reconnect", "disabled"])
def test_a_mailbox_that_waits_for_its_owner_says_so_with_the_cure(desk, status):
    message = desk.send()
    desk.mailbox("status = %s, status_reason = '535 5.7.8 bad', status_at = outtray.outtray_now()", status)
    answer = desk.explain(message)
    assert (answer.code, answer.who, answer.earliest) == (f"mailbox_{status}", "owner", None)
    assert "535 5.7.8 bad" in answer.reason
    assert desk.client.mailboxes.explain().code == answer.code


def test_a_suppressed_recipient_is_named_as_the_reason_without_the_address(desk):
    message = desk.send()
    box = mailbox_row(desk.settings)
    desk.sql(
        "INSERT INTO outtray.suppression SELECT %s, address_index, address, 'x' FROM outtray.recipient", box["app_id"]
    )
    assert desk.explain(message).code == "suppressed"


def test_limits_that_this_version_cannot_read_are_an_operators_matter(desk):
    message = desk.send()
    desk.mailbox("""limits = '{"moonphase": 3}'""")
    assert (desk.explain(message).code, desk.explain(message).who) == ("limits_unreadable", "operator")


# ── waits for a time ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_scheduled_message_says_its_time(desk):
    at = datetime.now(UTC) + HOUR
    answer = desk.explain(desk.send(send_at=at))
    assert (answer.code, answer.who) == ("scheduled", "nobody")
    assert answer.earliest == at


def test_a_message_that_failed_says_its_attempt_its_reason_and_its_next_time(desk):
    message = desk.send()
    due = desk.now() + timedelta(minutes=3)
    desk.message(message, "attempt = 2, failing_since = outtray.outtray_now(), due_at = %s, reason = '451 later'", due)
    answer = desk.explain(message)
    assert (answer.code, answer.earliest) == ("backoff", due)
    assert "attempt 2 of 8 failed: 451 later" in answer.reason


def test_a_follower_waits_for_the_message_before_it(desk):
    message = desk.send()
    desk.message(message, "due_at = NULL")
    assert (desk.explain(message).code, desk.explain(message).earliest) == ("follows", None)


def test_a_parked_mailbox_says_why_and_until_when(desk):
    message, later = desk.send(), desk.send(send_at=datetime.now(UTC) + timedelta(minutes=5))
    until = desk.now() + HOUR
    desk.mailbox("parked_until = %s, parked_reason = 'server busy (451)'", until)
    for each in (message, later):
        answer = desk.explain(each)
        assert (answer.code, answer.earliest, answer.who) == ("parked", until, "nobody")
        assert "server busy (451)" in answer.reason
    latest = desk.send(send_at=until + HOUR)
    assert (desk.explain(latest).code, desk.explain(latest).earliest) == ("scheduled", until + HOUR)
    desk.database.shift(2 * HOUR)
    assert desk.explain(message).code != "parked"


def test_a_shared_budget_is_named_as_the_limit(desk):
    message = desk.send()
    until = desk.now() + HOUR
    desk.mailbox("parked_until = %s, parked_reason = 'budget: tenant'", until)
    answer = desk.explain(message)
    assert (answer.code, answer.limit, answer.earliest) == ("budget", "budget tenant", until)


def test_a_full_day_says_the_limit_what_is_used_and_when_it_frees(desk):
    desk.client.mailboxes.set(ADDRESS, limits={"messages": 3})
    desk.sent(3, timedelta(hours=20))
    first, second = desk.send(), desk.send()
    answer = desk.explain(first)
    assert (answer.code, answer.limit, answer.used, answer.allowed) == ("quota", "messages", 3, 3)
    assert "3 of 3 messages" in answer.reason
    ends = desk.sql("SELECT counted_at FROM outtray.message WHERE state = 'sent' ORDER BY counted_at")
    assert answer.earliest == ends[0]["counted_at"] + DAY
    assert desk.explain(second).earliest == ends[1]["counted_at"] + DAY
    desk.database.shift(timedelta(hours=4, seconds=1))
    desk.crew()
    assert desk.explain(first).code != "quota"


def test_a_message_behind_more_than_a_days_worth_says_the_day_on_which_it_leaves(desk):
    """By brute force: full, the mailbox sends each message 24 hours after the one three places before it."""
    desk.client.mailboxes.set(ADDRESS, limits={"messages": 3})
    desk.sent(2, timedelta(hours=20))
    waiting = [desk.send() for _ in range(9)]
    sends = [
        row["counted_at"] for row in desk.sql("SELECT counted_at FROM outtray.message WHERE state = 'sent' ORDER BY 1")
    ]
    for message in waiting:
        now = desk.now()
        earliest = now if len(sends) < 3 else max(now, sends[-3] + DAY)
        assert close(desk.explain(message).earliest, earliest)
        sends.append(earliest)


def test_a_message_that_alone_is_too_much_says_that_it_never_fits(desk):
    message = desk.send(to=[f"p{n}@elsewhere.example" for n in range(5)])
    desk.client.mailboxes.set(ADDRESS, limits={"external": 4})
    answer = desk.explain(message)
    assert (answer.code, answer.limit, answer.allowed) == ("never_fits", "external", 4)
    assert (answer.earliest, answer.who) == (None, "owner")
    desk.client.mailboxes.set(ADDRESS, limits={"external": None, "recipients_per_message": 2})
    assert desk.explain(message).limit == "recipients_per_message"


def test_unique_externals_count_a_known_recipient_once(desk):
    desk.client.mailboxes.set(ADDRESS, limits={"unique_external": 1})
    desk.sent(1, HOUR)
    assert desk.explain(desk.send()).code != "quota"
    answer = desk.explain(desk.send(to="new@elsewhere.example"))
    assert (answer.code, answer.limit, answer.used, answer.allowed) == ("quota", "unique_external", 1, 1)


def test_a_small_message_behind_another_ones_limit_says_so(desk):
    big = desk.send(to=[f"p{n}@elsewhere.example" for n in range(5)], priority="high")
    desk.client.mailboxes.set(ADDRESS, limits={"recipients": 6})
    desk.sent(2, timedelta(hours=23))
    until = desk.explain(big).earliest
    small = desk.send(to="bob@sender.example")
    desk.mailbox("parked_until = %s, parked_reason = 'quota: recipients'", until)
    assert desk.explain(small).code == "quota"
    assert desk.explain(small).earliest >= until


def test_pace_says_the_rate_and_counts_what_is_ahead(desk):
    desk.client.mailboxes.set(ADDRESS, limits={"per_minute": 6})
    first, second = desk.send(), desk.send()
    until = desk.now() + timedelta(seconds=9)
    desk.mailbox("parked_until = %s, parked_reason = 'pace'", until)
    answer = desk.explain(first)
    assert (answer.code, answer.limit, answer.allowed, answer.earliest) == ("pace", "per_minute", 6, until)
    assert desk.explain(second).earliest == until + timedelta(seconds=10)


# ── waits for its turn ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_message_waits_behind_others_by_priority_and_time(desk):
    first, second = desk.send(), desk.send()
    assert desk.explain(second).code == "behind" and "1 message(s)" in desk.explain(second).reason
    urgent = desk.send(priority="high")
    assert "2 message(s)" in desk.explain(second).reason
    assert desk.explain(first).code == "behind"
    assert desk.explain(urgent).code != "behind"


def test_what_is_held_scheduled_or_expired_is_not_ahead(desk):
    desk.send(tags=["q"])
    desk.send(send_at=datetime.now(UTC) + HOUR, priority="high")
    gone = desk.send()
    desk.message(gone, "expires_at = outtray.outtray_now() - interval '1 s'")
    message = desk.send()
    desk.client.pause("tag", "q")
    assert desk.explain(message).code != "behind"


def test_the_steps_from_wake_to_turn_are_told_apart(desk):
    message = desk.send()
    desk.mailbox("next_at = NULL")
    assert desk.explain(message).code == "wake"
    desk.mailbox("next_at = outtray.outtray_now()")
    assert desk.explain(message).code == "due"
    desk.mailbox("round_at = outtray.outtray_now()")
    assert desk.explain(message).code == "round"
    desk.mailbox(
        "next_at = NULL, round_at = NULL, turn_fence = 1, turn_until = outtray.outtray_now() + interval '30 s'"
    )
    assert desk.explain(message).code == "turn"
    assert desk.explain(message).who == "nobody"


@pytest.mark.parametrize("missing", ["worker", "dispatcher"])
def test_without_a_worker_or_dispatcher_the_operator_must_act(desk, missing):
    message = desk.send()
    desk.sql("DELETE FROM outtray.process WHERE role = %s", missing)
    answer = desk.explain(message)
    assert (answer.code, answer.who, answer.earliest) == (f"no_{missing}", "operator", None)
    desk.crew(missing)
    assert desk.explain(message).who == "nobody"
    desk.database.shift(timedelta(seconds=31))
    assert desk.explain(message).who == "operator"


def test_what_may_have_left_is_said_besides_the_reason(desk):
    message = desk.send()
    desk.message(message, "may_have_left = true")
    assert any("may have left" in line for line in desk.explain(message).details)


# ── a mailbox ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_mailbox_says_what_holds_its_next_message(desk):
    assert desk.client.mailboxes.explain().code == "idle"
    later = desk.send(send_at=datetime.now(UTC) + HOUR)
    answer = desk.client.mailboxes.explain(ADDRESS)
    assert (answer.state, answer.code) == ("active", "scheduled")
    assert f"next message: {later}" in answer.details
    desk.client.mailboxes.set(ADDRESS, limits={"messages": 1})
    desk.sent(1, HOUR)
    desk.send()
    answer = desk.client.mailboxes.explain()
    assert (answer.code, answer.limit) == ("quota", "messages")
    assert "2 queued, 0 unknown" in answer.details


def test_another_apps_message_is_invisible(desk):
    message = desk.send()
    desk.client.apps.add("rival")
    with Outtray(desk.settings, app="rival") as rival, pytest.raises(NotFound):
        rival.explain(message)


def test_a_park_for_another_messages_limit_is_the_reason_while_it_lasts(desk):
    """The ledger has room for this one, but the mailbox rests until the one that was first in line fits."""
    message = desk.send()
    until = desk.now() + HOUR
    desk.mailbox("parked_until = %s, parked_reason = 'quota: recipients'", until)
    answer = desk.explain(message)
    assert (answer.code, answer.limit, answer.earliest) == ("quota", "recipients", until)
    assert "for another message" in answer.reason


def test_at_a_pace_the_messages_ahead_take_their_time(desk):
    desk.client.mailboxes.set(ADDRESS, limits={"per_minute": 6, "burst": 2})
    waiting = [desk.send() for _ in range(4)]
    now = desk.now()
    assert [desk.explain(message).code for message in waiting[1:]] == ["behind"] * 3
    for message, seconds in zip(waiting, (0, 0, 10, 20), strict=True):
        assert close(desk.explain(message).earliest, now + timedelta(seconds=seconds))
