"""Mailboxes by command line, against a real database and the sandbox's real SMTP server."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine, command
from databases import Database
from outtray_sandbox.smtp import SmtpServer

PASSWORD = "canary-p4ss"


@pytest.fixture
def outtray(database: Database) -> CommandLine:
    line = CommandLine.on(database.settings)
    line.ok("app", "add", "default")
    return line


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SmtpServer]:
    with SmtpServer(tmp_path / "accepted.jsonl", users={"ann@example.com": PASSWORD}, tls="starttls") as running:
        yield running


def add_ann(outtray: CommandLine, *more: str, host: str = "smtp.example.com") -> Any:
    added = outtray.ok(
        *("mailbox", "add", "smtp", "ann@example.com", "--host", host, "--password-stdin", "--json", *more),
        stdin=PASSWORD + "\n",
    )
    return added.json


def test_a_mailbox_is_added_with_the_usual_port_and_is_the_first_ones_default(outtray: CommandLine) -> None:
    added = add_ann(outtray)
    assert (added["address"], added["plan"], added["is_default"]) == ("ann@example.com", "smtp", True)
    assert (added["server"]["port"], added["server"]["tls"]) == (587, "starttls")
    second = outtray.ok(
        *("mailbox", "add", "smtp", "bob@example.com", "--host", "x.example.com", "--port", "465", "--password-stdin"),
        *("--limit", "messages=300", "--pace", "10", "--reserve", "20", "--json"),
        stdin=PASSWORD,
    ).json
    assert (second["server"]["tls"], second["is_default"]) == ("implicit", False)
    assert (second["limits"]["messages"], second["limits"]["per_minute"], second["limits"]["reserve"]) == (300, 10, 20)


def test_every_wrong_field_of_a_mailbox_is_named(outtray: CommandLine) -> None:
    refused = outtray(
        *("mailbox", "add", "smtp", "ann@example.com", "--host", "x.example.com", "--password-stdin", "--json"),
        *("--limit", "mesages=3", "--limit", "burst=0"),
        stdin=PASSWORD,
    )
    assert refused.code == 1
    assert {problem["field"] for problem in refused.error["problems"]} == {"limits.mesages", "limits.burst"}
    assert outtray.ok("mailbox", "list", "--json").json == []


@pytest.mark.parametrize("limit", ["messages", "messages=many", "=3"])
def test_a_limit_that_is_not_written_as_one_is_a_usage_error(outtray: CommandLine, limit: str) -> None:
    refused = outtray("mailbox", "set", "ann@example.com", "--limit", limit)
    assert (refused.code, "--limit" in refused.err) == (2, True)


def test_without_a_terminal_the_password_must_come_by_stdin_or_file(outtray: CommandLine, tmp_path: Path) -> None:
    arguments = ("mailbox", "add", "smtp", "ann@example.com", "--host", "smtp.example.com")
    refused = outtray(*arguments)
    assert refused.code == 2
    assert "--password-stdin" in refused.err
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    assert outtray(*arguments, "--password-file", str(tmp_path / "absent")).code == 2
    assert outtray(*arguments, "--password-file", str(file)).code == 0


def test_on_a_terminal_the_password_is_asked_for_and_not_shown(outtray: CommandLine) -> None:
    ours, theirs = pty.openpty()
    arguments = command("mailbox", "add", "smtp", "ann@example.com", "--host", "smtp.example.com")
    process = subprocess.Popen(
        arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=outtray.full_environment(), start_new_session=True
    )
    os.close(theirs)
    shown = read_until(ours, b"smtp.example.com: ")
    os.write(ours, f"{PASSWORD}\n".encode())
    shown += read_until(ours, b"mailbox test")
    assert process.wait(30) == 0
    os.close(ours)
    assert PASSWORD.encode() not in shown


def read_until(terminal: int, end: bytes) -> bytes:
    shown = b""
    while end not in shown:
        shown += os.read(terminal, 4096)
    return shown


def test_no_command_takes_a_password_as_a_flags_value(outtray: CommandLine) -> None:
    add_ann(outtray)
    # What follows the flag is an argument of its own, which there is none of: nobody gets used to typing it here.
    refused = outtray("mailbox", "set", "ann@example.com", "--password", "secret")
    assert refused.code == 2


def test_the_password_is_shown_nowhere(outtray: CommandLine) -> None:
    add_ann(outtray)
    for arguments in (("mailbox", "show", "ann@example.com"), ("mailbox", "list"), ("status",), ("doctor",)):
        for more in ((), ("--json",)):
            ran = outtray(*arguments, *more)
            assert PASSWORD not in ran.out + ran.err


def test_limits_are_changed_and_what_is_beyond_the_documented_is_said(outtray: CommandLine) -> None:
    add_ann(outtray)
    changed = outtray.ok("mailbox", "set", "ann@example.com", "--plan", "gmail", "--limit", "messages=900")
    assert "gmail documents 500" in changed.err
    shown = outtray.ok("mailbox", "show", "ann@example.com", "--json").json
    assert (shown["plan"], shown["limits"]["messages"], shown["overrides"]) == ("gmail", 900, {"messages": 900})
    assert outtray("mailbox", "set", "ann@example.com").code == 2


def test_a_mailbox_is_tested_as_a_worker_would_reach_it(outtray: CommandLine, server: SmtpServer) -> None:
    add_ann(outtray, "--port", str(server.port), "--ca-file", str(server.ca_file), host="localhost")
    found = outtray.ok("mailbox", "test", "ann@example.com", "--json").json
    assert (found["ok"], found["tls"], found["mechanism"]) == (True, "TLSv1.3", "plain")
    assert server.ledger.read() == []
    server.house.revoke("ann@example.com")
    refused = outtray("mailbox", "test", "ann@example.com", "--json")
    assert (refused.code, refused.json["ok"], refused.json["outcome"]) == (1, False, "Held")
    assert PASSWORD not in refused.out + refused.err


def test_new_credentials_bring_a_mailbox_back(outtray: CommandLine, database: Database) -> None:
    box = add_ann(outtray)
    with database.connect() as connection:
        connection.execute(
            "UPDATE outtray.mailbox SET status = 'reconnect', status_reason = '535' WHERE id = %s", [box["id"]]
        )
    assert "reconnect" in outtray.ok("mailbox", "list").out
    back = outtray.ok(
        "mailbox",
        "reconnect",
        "ann@example.com",
        "--password-stdin",
        "--json",
        "--host",
        "new.example.com",
        stdin="other",
    ).json
    assert (back["status"], back["server"]["host"]) == ("active", "new.example.com")


def test_a_mailbox_in_which_messages_wait_is_removed_only_with_them(outtray: CommandLine) -> None:
    add_ann(outtray)
    outtray.ok("send", "--to", "bob@example.org", stdin="Hello")
    assert outtray("mailbox", "remove", "ann@example.com", "--yes").code == 5
    removed = outtray.ok("mailbox", "remove", "ann@example.com", "--yes", "--cancel", "--json").json
    assert removed["cancelled"] == 1
    assert outtray("mailbox", "show", "ann@example.com", "--json").json["status"] == "disabled"
    assert outtray("mailbox", "show", "nobody@example.com").code == 3


def test_usage_is_imported_whole_or_not_at_all(outtray: CommandLine, database: Database, tmp_path: Path) -> None:
    add_ann(outtray)
    today = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    rows = tmp_path / "usage.ndjson"
    rows.write_text(f'{{"at": "{today}", "messages": 2, "recipients": 3, "external": 1}}\n{{"at": "yesterday"}}\n')
    refused = outtray("mailbox", "import-usage", "ann@example.com", "--file", str(rows), "--json")
    assert (refused.code, refused.error["problems"][0]["field"]) == (1, "line 2.at")
    rows.write_text(f'{{"at": "{today}", "messages": 2, "recipients": 3, "external": 1}}\n')
    assert outtray.ok("mailbox", "import-usage", "ann@example.com", "--file", str(rows), "--json").json["rows"] == 1
    outtray.ok("mailbox", "import-usage", "ann@example.com", "--messages", "5", "--recipients", "7")
    with database.connect() as connection:
        used = connection.execute("SELECT sum(messages), sum(recipients), sum(external) FROM outtray.usage").fetchone()
    assert used == (7, 10, 1)


def test_plans_say_where_their_figures_come_from(outtray: CommandLine) -> None:
    plans = {plan["name"]: plan for plan in outtray.ok("mailbox", "plans", "--json").json}
    assert plans["gmail"]["limits"]["messages"] == 500
    assert all(plan["source"] and plan["date"] for plan in plans.values())
