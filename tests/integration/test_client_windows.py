"""Windows at the door: when a message is due, what is refused, and what a mailbox is told to keep to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from command_line import CommandLine
from crm import ADDRESS, ask, crm, hello, mailbox_row, message_row
from outtray import InvalidMessage, NotFound
from outtray_schema.errors import InvalidMailbox
from outtray_schema.windows import next_open, parse_window

HOUR = timedelta(hours=1)
ALWAYS = "daily 00:00-24:00 Europe/Berlin"


def around(begins: timedelta, ends: timedelta) -> str:
    """A daily window that opens and closes so long after now."""
    now = datetime.now(UTC)
    return f"daily {now + begins:%H:%M}-{now + ends:%H:%M} UTC"


def opening(line: str) -> datetime:
    found = next_open(parse_window(line), datetime.now(UTC))
    assert found is not None
    return found[0]


@pytest.fixture
def client(database):
    with crm(database.settings) as made:
        yield made


def refused(client, **fields) -> dict[str, str]:
    with pytest.raises(InvalidMessage) as error:
        client.enqueue(hello(**fields))
    return {problem.field: problem.reason for problem in error.value.problems}


def test_a_message_is_due_when_its_window_opens_after_send_at(client, database):
    later = around(2 * HOUR, 4 * HOUR)
    assert client.enqueue(hello(window=later)).due_at == opening(later)
    open_now = client.enqueue(hello(window=around(-HOUR, HOUR)))
    assert open_now.due_at is not None and open_now.due_at <= datetime.now(UTC)
    at = opening(later) + 3 * HOUR
    scheduled = client.enqueue(hello(window=later, send_at=at)).due_at
    assert scheduled == opening(later) + 24 * HOUR, "the day after, since that hour of today is past closing"
    stored = message_row(database.settings, client.enqueue(hello(window=later)).id)["times"]
    assert stored == {"window": parse_window(later).as_json()}


def test_the_windows_of_message_and_mailbox_count_together(client):
    client.mailboxes.set_times(ADDRESS, window=around(3 * HOUR, 5 * HOUR))
    mine = around(2 * HOUR, 4 * HOUR)
    assert client.enqueue(hello(window=mine)).due_at == opening(around(3 * HOUR, 5 * HOUR))
    problems = refused(client, window=around(6 * HOUR, 7 * HOUR))
    assert "never open at the same time as its mailbox's" in problems["window"]


def test_what_never_opens_before_it_expires_is_refused_by_field(client):
    soon = datetime.now(UTC) + HOUR
    problems = refused(client, window=around(2 * HOUR, 4 * HOUR), expires_at=soon)
    assert "never opens before expires_at" in problems["window"]
    client.mailboxes.set_times(ADDRESS, window=around(2 * HOUR, 4 * HOUR))
    assert "when the window of its mailbox opens" in refused(client, expires_at=soon)["expires_at"]
    assert client.enqueue(hello(expires_at=soon + 3 * HOUR)).created


def test_a_wrong_window_is_refused_by_field_and_a_draft_has_none(client):
    assert "did you mean Europe/Berlin" in refused_at_once(window="mon-fri 09:00-17:00 Berlin")["window"]
    assert "never opens" in refused_at_once(window={"zone": "UTC", "spans": []})["window"]


def refused_at_once(**fields) -> dict[str, str]:
    with pytest.raises(InvalidMessage) as error:
        hello(**fields)
    return {problem.field: problem.reason for problem in error.value.problems}


def test_rescheduling_moves_within_the_window_and_says_when(client, database):
    window = around(2 * HOUR, 4 * HOUR)
    message = client.enqueue(hello(window=window)).id
    wish = opening(window) + HOUR
    assert client.reschedule(message, wish) == wish
    assert client.reschedule(message, datetime.now(UTC)) == opening(window)
    assert client.explain(message).code == "window"


def test_a_mailbox_keeps_what_is_not_named_and_a_wait_for_the_old_times_ends(client, database):
    client.mailboxes.set_times(ADDRESS, window="mon-fri 09:00-17:30 Europe/Berlin", blackout=["2026-12-24"])
    client.mailboxes.set_times(ADDRESS, gap="30s-90s")
    stored = client.mailboxes.get(ADDRESS).times
    assert stored["gap"] == [30, 90] and stored["window"]["blackout"] == ["2026-12-24"]
    client.mailboxes.set_times(ADDRESS, window=ALWAYS)
    assert client.mailboxes.get(ADDRESS).times["window"]["blackout"] == ["2026-12-24"]
    message = client.enqueue(hello())
    ask(database.settings, "UPDATE outtray.mailbox SET parked_reason = 'window',"
        " parked_until = now() + interval '9 hours', next_at = now() + interval '9 hours'")  # fmt: skip
    client.mailboxes.set_times(ADDRESS, window="none", gap="none")
    row = mailbox_row(database.settings)
    assert (row["times"], row["parked_until"]) == (None, None) and row["next_at"] <= message.due_at + HOUR
    kinds = ask(database.settings, "SELECT kind, actor FROM outtray.journal WHERE mailbox_id = %s AND detail ? 'times'",
                row["id"])  # fmt: skip
    assert kinds == [{"kind": "changed", "actor": "crm"}] * 4


@pytest.mark.parametrize(
    ("times", "field"),
    [
        ({"window": "mon 09:00-10:00 Berlin"}, "window"),
        ({"blackout": ["2026-12-24"]}, "blackout"),
        ({"window": ALWAYS, "blackout": ["christmas"]}, "blackout"),
        ({"gap": "90s-30s"}, "gap"),
    ],
)
def test_wrong_times_of_a_mailbox_are_refused_by_field_and_nothing_is_changed(client, database, times, field):
    with pytest.raises(InvalidMailbox) as error:
        client.mailboxes.set_times(ADDRESS, **times)
    assert [problem.field for problem in error.value.problems] == [field]
    assert mailbox_row(database.settings)["times"] is None
    with pytest.raises(NotFound):
        client.mailboxes.set_times("nobody@sender.example", gap="30s")


def test_one_key_with_another_window_is_a_conflict_that_names_it(client):
    client.enqueue(hello(idempotency_key="k", window=ALWAYS))
    assert not client.enqueue(hello(idempotency_key="k", window=ALWAYS)).created
    with pytest.raises(Exception, match="window"):
        client.enqueue(hello(idempotency_key="k", window="daily 00:00-24:00 UTC"))


# ── explained ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def crew(database):
    for role in ("worker", "dispatcher"):
        ask(database.settings, "INSERT INTO outtray.process (id, role) VALUES (%s, %s)", role, role)


@pytest.mark.parametrize("whose", ["its mailbox's", "its own"])
def test_a_closed_window_is_the_reason_with_its_opening(client, crew, whose):
    line = around(2 * HOUR, 4 * HOUR)
    if whose == "its own":
        message = client.enqueue(hello(window=line)).id
    else:
        client.mailboxes.set_times(ADDRESS, window=line)
        message = client.enqueue(hello()).id
    answer = client.explain(message)
    assert (answer.code, answer.who, answer.limit) == ("window", "nobody", "window")
    assert answer.earliest == opening(line) and answer.reason.startswith(f"{whose} window opens at ")
    assert any(str(parse_window(line)) in detail for detail in answer.details)


def test_of_a_time_and_a_window_the_later_one_binds(client, crew, database):
    line = around(2 * HOUR, 4 * HOUR)
    client.mailboxes.set_times(ADDRESS, window=line)
    inside = opening(line) + HOUR
    answer = client.explain(client.enqueue(hello(send_at=inside)).id)
    assert (answer.code, answer.earliest) == ("scheduled", inside)
    before = client.explain(client.enqueue(hello(send_at=opening(line) - HOUR)).id)
    assert (before.code, before.earliest) == ("window", opening(line))
    assert any("scheduled" in detail for detail in before.details)
    ask(database.settings, "UPDATE outtray.mailbox SET parked_until = %s, parked_reason = '421 later'", inside)
    parked = client.explain(client.enqueue(hello()).id)
    assert (parked.code, parked.earliest) == ("parked", inside)
    ask(database.settings, "UPDATE outtray.mailbox SET parked_until = %s, parked_reason = 'window'", opening(line))
    assert client.explain(client.enqueue(hello()).id).code == "window"
    assert client.mailboxes.explain(ADDRESS).code == "window"


def test_windows_that_came_to_exclude_each_other_ask_for_a_person(client, crew):
    message = client.enqueue(hello(window=around(2 * HOUR, 3 * HOUR))).id
    client.mailboxes.set_times(ADDRESS, window=around(5 * HOUR, 6 * HOUR))
    answer = client.explain(message)
    assert (answer.code, answer.who, answer.earliest) == ("window_never", "app developer", None)


def test_a_gap_is_a_reason_of_its_own(client, crew, database):
    client.mailboxes.set_times(ADDRESS, gap="30s-90s")
    client.enqueue(hello())
    message = client.enqueue(hello()).id
    ask(database.settings, "UPDATE outtray.mailbox SET parked_reason = 'pace',"
        " parked_until = outtray.outtray_now() + interval '1 minute'")  # fmt: skip
    answer = client.explain(message)
    assert (answer.code, answer.limit) == ("gap", "gap") and "30s-90s" in answer.reason
    wait = answer.earliest - datetime.now(UTC)
    assert timedelta(seconds=85) < wait < timedelta(seconds=91), "the park, and the one ahead"


def test_an_idle_mailbox_says_when_it_would_send(client, crew):
    client.mailboxes.set_times(ADDRESS, window=ALWAYS)
    assert any("its window is open now" in line for line in client.mailboxes.explain(ADDRESS).details)


def test_times_of_a_later_version_ask_for_an_operator(client, crew, database):
    message = client.enqueue(hello()).id
    ask(database.settings, """UPDATE outtray.mailbox SET times = '{"moon": "full"}'""")
    assert client.explain(message).code == "times_unreadable"


def test_the_command_line_sets_and_shows_times(client, database):
    outtray = CommandLine.on(database.settings)
    outtray.ok("mailbox", "set", ADDRESS, "--window", "mon-fri 09:00-17:30 Europe/Berlin", "--blackout", "2026-12-24",
               "--gap", "30s-90s")  # fmt: skip
    told = outtray.ok("mailbox", "show", ADDRESS).out
    for words in ("mon-fri 09:00-17:30 Europe/Berlin", "2026-12-24", "30s-90s between two mails"):
        assert words in told
    outtray.ok("mailbox", "set", ADDRESS, "--blackout", "none", "--gap", "none")
    times = outtray.ok("mailbox", "show", ADDRESS, "--json").json["times"]
    assert times["window"]["blackout"] == [] and "gap" not in times
    wrong = outtray("mailbox", "set", ADDRESS, "--window", "mon-fri 9-5 Europe/Berlin", "--json")
    assert wrong.code == 1 and wrong.error["problems"][0]["field"] == "window"
