"""What an operator sees of a failing provider host, and of a message that killed its workers."""

from __future__ import annotations

import pytest

from command_line import CommandLine
from databases import Database

REASON = "its provider host fails for most mailboxes (smtp.example.com): the server answered 503"


@pytest.fixture
def outtray(database: Database) -> CommandLine:
    line = CommandLine.on(database.settings)
    line.ok("app", "add", "default")
    line.ok(
        *("mailbox", "add", "smtp", "ann@example.com", "--host", "smtp.example.com", "--password-stdin"), stdin="secret"
    )
    return line


def test_an_open_breaker_is_named_with_its_time_and_that_nobody_has_to_act(
    outtray: CommandLine, database: Database
) -> None:
    message = outtray.ok("send", "--to", "bob@example.org", "--json", stdin="Hi").json["id"]
    assert "failing" not in outtray.ok("status").out
    with database.connect() as db:
        db.execute(
            "INSERT INTO outtray.breaker (provider_app, host, opened_at, reason, probe_at) VALUES ('', "
            "'smtp.example.com', outtray.outtray_now(), 'the server answered 503', "
            "outtray.outtray_now() + interval '40 s')"
        )
        db.execute(
            "UPDATE outtray.mailbox SET parked_reason = %s, parked_until = outtray.outtray_now() + interval '50 s'",
            [REASON],
        )
    (breaker,) = outtray.ok("status", "--json").json["breakers"]
    assert (breaker["provider_app"], breaker["host"], breaker["probes"]) == (None, "smtp.example.com", 0)
    page = outtray.ok("status").out
    assert "failing" in page and "smtp.example.com" in page and "503" in page
    said = outtray.ok("explain", message, "--json").json
    assert (said["code"], said["who"]) == ("breaker", "nobody")
    assert REASON in said["reason"] and said["earliest"] is not None
    (found,) = [each for each in outtray("doctor", "--json").json["findings"] if each["about"] == "breaker"]
    assert found["grade"] == "warning" and "smtp.example.com fails for most mailboxes" in found["found"]
    with database.connect() as db:
        db.execute("UPDATE outtray.breaker SET closed_at = outtray.outtray_now()")
    assert outtray.ok("status", "--json").json["breakers"] == []


def test_a_message_that_killed_its_workers_is_told_by_doctor_for_a_week(
    outtray: CommandLine, database: Database
) -> None:
    message = outtray.ok("send", "--to", "bob@example.org", "--json", stdin="Hi").json["id"]
    with database.connect() as db:
        db.execute(
            "UPDATE outtray.message SET state = 'failed', "
            "reason = 'poison: its worker died 3 times while preparing it', "
            "ended_at = outtray.outtray_now() - interval '6 days' WHERE id = %s",
            [message],
        )
    assert [each["grade"] for each in findings(outtray, "poison")] == ["warning"]
    assert "1 message failed" in findings(outtray, "poison")[0]["found"]
    with database.connect() as db:
        db.execute("UPDATE outtray.message SET ended_at = ended_at - interval '2 days'")
    assert findings(outtray, "poison") == []


def findings(outtray: CommandLine, about: str) -> list[dict[str, str]]:
    return [each for each in outtray("doctor", "--json").json["findings"] if each["about"] == about]
