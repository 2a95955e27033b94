"""Looking after a queue by command line: status, explain, pause, cancel, resolve, events."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from psycopg.types.json import Jsonb

from command_line import CommandLine
from databases import Database
from outtray.cli.queue_facts import ROUNDS
from outtray_worker.celery import celery_app
from outtray_worker.rounds import EXPRESS, ORDINARY, Rounds


@pytest.fixture
def outtray(database: Database) -> CommandLine:
    line = CommandLine.on(database.settings)
    line.ok("app", "add", "default")
    for name in ("ann", "bob"):
        line.ok(
            *("mailbox", "add", "smtp", f"{name}@example.com", "--host", "smtp.example.com", "--password-stdin"),
            stdin="secret",
        )
    return line


def send(outtray: CommandLine, *more: str) -> str:
    accepted = outtray.ok("send", "--to", "bob@example.org", "--json", *more, stdin="Hi").json
    return str(accepted["id"])


def put(database: Database, message_id: str, state: str) -> None:
    """Bring a message into a state of the protocol, as a worker's rows would show it."""
    with database.connect() as connection:
        connection.execute(
            "UPDATE outtray.message SET state = %s, handover = 1, attempt = 1, handed_at = outtray.outtray_now(), "
            "handover_until = outtray.outtray_now() - interval '1 minute', counted_at = outtray.outtray_now(), "
            "version = version + 1 WHERE id = %s",
            [state, message_id],
        )


def test_the_status_counts_what_waits_and_says_for_whom(outtray: CommandLine, database: Database, redis: Any) -> None:
    send(outtray)
    send(outtray, "--send-at", "+2h")
    send(outtray, "--mailbox", "bob@example.com")
    put(database, send(outtray), "unknown")
    redis.lpush(ROUNDS[1], "a round")
    with database.connect() as connection:
        connection.execute(
            "UPDATE outtray.mailbox b SET parked_until = outtray.outtray_now() + interval '1 hour', "
            "parked_reason = 'the server says 451' "
            "WHERE NOT EXISTS (SELECT FROM outtray.app a WHERE a.default_mailbox_id = b.id)"
        )
        connection.execute("INSERT INTO outtray.process (id, role) VALUES ('host:1', 'worker')")
    database.shift(timedelta(seconds=90))
    found = outtray.ok("status", "--json").json
    pending = found["messages"]
    assert (pending["queued"], pending["due"], pending["ready"], pending["unknown"]) == (3, 2, 1, 1)
    assert found["mailboxes"] == {"active": 1, "parked": 1}
    assert [(box["address"], box["state"], box["reason"]) for box in found["held"]] == [
        ("bob@example.com", "parked", "the server says 451")
    ]
    assert [(process["id"], process["alive"]) for process in found["processes"]] == [("host:1", False)]
    assert found["redis"] == {"reachable": True, "rounds": 1, "trouble": ""}
    page = outtray.ok("status").out
    assert all(word in page for word in ("1 ready", "1 held", "1 later", "bob@example.com", "none alive", "1 round"))


def test_the_status_of_one_app_counts_its_own(outtray: CommandLine) -> None:
    send(outtray)
    outtray.ok("app", "add", "other")
    assert outtray.ok("status", "--app", "other", "--json").json["messages"]["queued"] == 0
    assert outtray.ok("status", "--app", "default", "--json").json["messages"]["queued"] == 1
    assert outtray("status", "--app", "nobody").code == 3


def test_the_status_says_that_redis_is_away(outtray: CommandLine) -> None:
    found = outtray("status", "--json", OUTTRAY_REDIS_URL="redis://127.0.0.1:1/0")
    assert (found.code, found.json["redis"]["reachable"]) == (0, False)


def test_rounds_of_both_priorities_are_counted_where_celery_keeps_them(
    outtray: CommandLine, database: Database
) -> None:
    with closing(Rounds(celery_app(database.settings, "dispatcher"))) as rounds:
        for priority in (ORDINARY, ORDINARY, EXPRESS):
            rounds.publish([uuid4()], priority)
    assert outtray.ok("status", "--json").json["redis"]["rounds"] == 3


@pytest.mark.parametrize(
    ("flags", "held"),
    [
        (("--all",), {"ann", "bob"}),
        (("--app", "default"), {"ann", "bob"}),
        (("--provider", "smtp"), {"ann", "bob"}),
        (("--mailbox", "bob@example.com"), {"bob"}),
    ],
)
def test_a_pause_holds_what_it_names_and_resuming_frees_it(
    outtray: CommandLine, flags: tuple[str, ...], held: set[str]
) -> None:
    messages = {name: send(outtray, "--mailbox", f"{name}@example.com") for name in ("ann", "bob")}
    outtray.ok("pause", *flags, "--why", "wrong template")

    def paused() -> set[str]:
        codes = {name: outtray.ok("explain", id_, "--json").json["code"] for name, id_ in messages.items()}
        return {name for name, code in codes.items() if code.startswith(("paused_", "mailbox_paused"))}

    assert paused() == held
    assert "wrong template" in outtray.ok("status").out
    assert outtray.ok("resume", *flags, "--json").json["was_paused"] is True
    assert paused() == set()
    assert outtray.ok("resume", *flags, "--json").json["was_paused"] is False


def test_a_pause_of_a_tag_holds_only_what_has_it(outtray: CommandLine) -> None:
    tagged, other = send(outtray, "--tag", "spring"), send(outtray)
    outtray.ok("pause", "--tag", "spring")
    assert outtray.ok("explain", tagged, "--json").json["code"] == "paused_tag"
    assert outtray.ok("explain", other, "--json").json["code"] != "paused_tag"


@pytest.mark.parametrize("flags", [(), ("--all", "--tag", "x"), ("--provider", "smtp", "--app", "default")])
def test_a_pause_names_exactly_one_thing(outtray: CommandLine, flags: tuple[str, ...]) -> None:
    assert outtray("pause", *flags).code == 2


def test_an_explanation_says_who_must_act(outtray: CommandLine) -> None:
    message = send(outtray, "--send-at", "+2h")
    found = outtray.ok("explain", message, "--json").json
    assert (found["code"], found["who"]) == ("scheduled", "nobody")
    page = outtray.ok("explain", "--mailbox", "ann@example.com").out
    assert "scheduled" in page
    assert outtray("explain").code == 2
    assert outtray("explain", "01a1fd58-0000-7000-8000-000000000000").code == 3


def test_a_cancel_answers_truly(outtray: CommandLine, database: Database) -> None:
    queued, open_one = send(outtray), send(outtray)
    put(database, open_one, "handing_over")
    done = outtray("cancel", queued, "--json")
    assert (done.code, done.json["answer"]) == (0, "cancelled")
    late = outtray("cancel", open_one, "--json")
    assert (late.code, late.json["answer"]) == (5, "handing_over")


def test_many_are_cancelled_by_tag_and_the_answer_counts(outtray: CommandLine, database: Database) -> None:
    for _ in range(3):
        send(outtray, "--tag", "spring")
    put(database, send(outtray, "--tag", "spring"), "unknown")
    found = outtray("cancel", "--tag", "spring", "--json")
    assert (found.code, found.json["cancelled"], found.json["may_have_left"]) == (5, 3, 1)
    assert outtray("cancel").code == 2
    assert outtray("cancel", "x", "--tag", "spring").code == 2


def test_a_message_is_moved_to_another_time(outtray: CommandLine) -> None:
    message = send(outtray)
    before = outtray.ok("message", "show", message, "--json").json["due_at"]
    assert outtray.ok("reschedule", message, "+3h", "--json").json["due_at"] > before
    outtray.ok("cancel", message)
    assert outtray("reschedule", message, "now").code == 5


@pytest.mark.parametrize(("decision", "state"), [("--sent", "sent"), ("--resend", "queued"), ("--fail", "failed")])
def test_an_unknown_message_is_settled_by_a_decision_that_is_kept(
    outtray: CommandLine, database: Database, decision: str, state: str
) -> None:
    message = send(outtray)
    assert outtray("resolve", message, decision).code == 5
    put(database, message, "unknown")
    assert outtray("resolve", message).code == 2
    assert outtray("resolve", message, "--sent", "--fail").code == 2
    settled = outtray.ok("resolve", message, decision, "--note", "asked Bob", "--json").json
    assert settled["state"] == state
    journal = outtray.ok("message", "show", message, "--json").json["journal"]
    assert "asked Bob" in str(journal[-1]["detail"])
    assert journal[-1]["actor"]


def test_many_unknown_messages_are_shown_and_settled_by_a_filter(outtray: CommandLine, database: Database) -> None:
    spring = [send(outtray, "--tag", "spring") for _ in range(3)]
    other = send(outtray)
    for message in (*spring, other):
        put(database, message, "unknown")
    with database.connect() as db:
        db.execute(
            "UPDATE outtray.message SET look_handover = handover, looks = 2, looked = %s WHERE id = %s",
            [Jsonb({"finding": "no_way", "looked": "nowhere", "at": "2026-11-21T12:00:00+00:00"}), spring[0]],
        )
    for wrong in ((), ("--fail",), (spring[0], "--tag", "spring", "--fail"), ("--tag", "spring"),
                  ("--older-than", "soon", "--fail")):  # fmt: skip
        assert outtray("resolve", *wrong).code == 2, wrong
    shown = outtray.ok("resolve", "--tag", "spring", "--fail", "--dry-run", "--json").json
    assert [item["id"] for item in shown["items"]] == spring
    assert [item["evidence"]["finding"] for item in shown["items"]] == ["no_way", None, None]
    assert "there is no way to look" in outtray.ok("resolve", spring[0], "--dry-run").out
    assert outtray.ok("resolve", "--older-than", "2h", "--fail", "--json").json["resolved"] == 0
    done = outtray.ok("resolve", "--tag", "spring", "--fail", "--note", "asked Bob", "--json").json
    assert done == {"resolved": 3, "moved_on": 0, "refused": {}}
    states = [outtray.ok("message", "show", each, "--json").json["state"] for each in (*spring, other)]
    assert states == ["failed"] * 3 + ["unknown"]
    failed = [event for event in outtray.ok("events", "--json").lines if event["kind"] == "failed"]
    assert sorted(event["message_id"] for event in failed) == sorted(spring), "one event each"


def test_what_cannot_be_sent_again_is_left_and_said(outtray: CommandLine, database: Database) -> None:
    good, gone = send(outtray, "--tag", "x"), send(outtray, "--tag", "x")
    for message in (good, gone):
        put(database, message, "unknown")
    with database.connect() as db:
        db.execute(
            """UPDATE outtray.message SET draft = '{"id": "d"}', look_handover = handover, looks = 1,"""
            """ looked = '{"finding": "nothing"}' WHERE id = %s""",
            [gone],
        )
    done = outtray("resolve", "--tag", "x", "--resend", "--json")
    assert (done.code, done.json["resolved"], list(done.json["refused"].values())) == (5, 1, [1])
    assert [outtray.ok("message", "show", each, "--json").json["state"] for each in (good, gone)] == [
        "queued",
        "unknown",
    ]


def test_what_becomes_of_unknown_messages_is_set_per_mailbox(outtray: CommandLine) -> None:
    box = outtray.ok("mailbox", "list", "--json").json[0]
    assert box["on_unknown"] is None
    for given, stored in (("resend", "resend"), ("hold", "hold"), ("app", None)):
        assert outtray.ok("mailbox", "set", box["id"], "--on-unknown", given, "--json").json["on_unknown"] == stored
        assert outtray.ok("mailbox", "set", box["id"], "--pace", "9", "--json").json["on_unknown"] == stored
    assert outtray("mailbox", "set", box["id"], "--on-unknown", "maybe").code == 2


def test_events_go_on_after_their_cursor(outtray: CommandLine) -> None:
    first = send(outtray)
    seen = outtray.ok("events", "--json").lines
    assert [event["message_id"] for event in seen if event["kind"] == "queued"] == [first]
    second = send(outtray)
    after = outtray.ok("events", "--json", "--after", seen[-1]["cursor"]).lines
    assert [event["message_id"] for event in after] == [second]
    assert outtray.ok("events", "--new", "--json").lines == []
    assert outtray("events", "--new", "--after", seen[-1]["cursor"]).code == 2
    assert outtray("events", "--after", "nonsense").code == 1
