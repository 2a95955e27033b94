"""Where evidence is looked for: set with a mailbox, changed, taken away, tried; by the client and by command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine
from crm import ADDRESS, crm, mailbox_row
from databases import Database
from outtray import InvalidMailbox, Outtray
from outtray_sandbox.imap import ImapServer
from outtray_sandbox.smtp import SmtpServer
from outtray_schema import bindings
from outtray_schema.vault import load_vault

PASSWORD = "canary-p4ss"
IMAP = {"host": "imap.example.com", "port": 993, "tls": "implicit"}


@pytest.fixture
def client(database: Database) -> Iterator[Outtray]:
    with crm(database.settings) as outtray:
        yield outtray


def credentials(database: Database) -> Any:
    row = mailbox_row(database.settings)
    bound_to = bindings.credentials(row["id"], row["credentials_version"])
    return json.loads(load_vault(database.settings).credentials.decrypt(row["credentials"], bound_to))


def test_it_is_set_changed_field_by_field_and_taken_away(client: Outtray) -> None:
    assert "imap" not in client.mailboxes.get().server
    box = client.mailboxes.set_imap(ADDRESS, {"host": "IMAP.example.com"})
    assert box.server["imap"] == IMAP
    box = client.mailboxes.set_imap(ADDRESS, {"files_sent": True})
    assert box.server["imap"] == {**IMAP, "files_sent": True}
    box = client.mailboxes.set_imap(ADDRESS, {"files_sent": None, "port": 143, "tls": "starttls"})
    assert box.server["imap"] == {**IMAP, "port": 143, "tls": "starttls"}
    assert "imap" not in client.mailboxes.set_imap(ADDRESS, None).server


@pytest.mark.parametrize(
    ("imap", "field"),
    [
        ({"host": "a b"}, "imap.host"),
        ({"files_sent": True}, "imap.host"),
        ({"host": "x.example", "port": 0}, "imap.port"),
        ({"host": "x.example", "tls": "maybe"}, "imap.tls"),
        ({"host": "x.example", "password": "secret-canary"}, "imap.password"),
    ],
)
def test_what_is_wrong_with_it_is_named_and_nothing_is_stored(
    client: Outtray, imap: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidMailbox) as refused:
        client.mailboxes.set_imap(ADDRESS, imap)
    assert [problem.field for problem in refused.value.problems] == [field]
    assert "canary" not in str(refused.value)
    assert "imap" not in client.mailboxes.get().server


def test_a_login_of_its_own_is_sealed_and_outlives_a_new_password_for_smtp(database: Database, client: Outtray) -> None:
    client.mailboxes.reconnect(ADDRESS, password="one", imap=IMAP, imap_username="reader", imap_password="two-canary")
    own = {"imap_username": "reader", "imap_password": "two-canary"}
    assert credentials(database) == {"username": ADDRESS, "password": "one", **own}
    box = client.mailboxes.set_password(ADDRESS, "three")
    assert credentials(database) == {"username": ADDRESS, "password": "three", **own}
    assert box.server["imap"] == IMAP
    assert "canary" not in json.dumps(box.server)
    with pytest.raises(InvalidMailbox, match="imap_password"):
        client.mailboxes.reconnect(ADDRESS, password="x", imap_password="")


# ── by command line ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def outtray(database: Database) -> CommandLine:
    line = CommandLine.on(database.settings)
    line.ok("app", "add", "default")
    return line


def add_ann(outtray: CommandLine, *more: str) -> Any:
    named = ("mailbox", "add", "smtp", "ann@example.com", "--password-stdin", "--json")
    return outtray.ok(*named, *more, stdin=PASSWORD + "\n").json


def test_the_flags_say_where_to_look_and_who_files_copies(outtray: CommandLine) -> None:
    added = add_ann(outtray, "--host", "x.example.com", "--imap-host", "imap.example.com", "--sent-copies", "provider")
    assert added["server"]["imap"] == {**IMAP, "files_sent": True}
    changed = outtray.ok(
        "mailbox", "set", "ann@example.com", "--imap-tls", "starttls", "--sent-copies", "none", "--json"
    )
    assert changed.json["server"]["imap"] == {**IMAP, "port": 143, "tls": "starttls", "files_sent": False}
    shown = outtray.ok("mailbox", "show", "ann@example.com").out
    assert "imap imap.example.com:143 starttls, the provider files no copies" in " ".join(shown.split())
    gone = outtray.ok("mailbox", "set", "ann@example.com", "--imap-host", "none", "--json").json
    assert "imap" not in gone["server"]


def test_flags_that_make_no_sense_are_refused(outtray: CommandLine) -> None:
    named = ("mailbox", "add", "smtp", "ann@example.com", "--host", "x.example.com", "--password-stdin")
    assert "--imap-host" in outtray(*named, "--sent-copies", "provider", stdin=PASSWORD).err
    assert "look nowhere" in outtray(*named, "--imap-host", "none", "--imap-port", "993", stdin=PASSWORD).err
    assert outtray.ok("mailbox", "list", "--json").json == []


def test_the_test_of_a_mailbox_shows_where_it_would_look(outtray: CommandLine, tmp_path: Path) -> None:
    users = {"ann@example.com": PASSWORD}
    with (
        SmtpServer(tmp_path / "accepted.jsonl", users=users, tls="starttls") as smtp,
        ImapServer(smtp, gmail=True) as imap,
    ):
        where = ("--host", smtp.host, "--port", str(smtp.port), "--ca-file", str(smtp.ca_file))
        add_ann(outtray, *where, "--imap-host", imap.host, "--imap-port", str(imap.port), "--imap-tls", "starttls")
        found = outtray.ok("mailbox", "test", "ann@example.com")
        assert "the folder marked as that of sent mail" in " ".join(found.out.split())
        assert outtray.ok("mailbox", "test", "ann@example.com", "--json").json["imap"]["gmail_search"] is True
        imap.add_rule(stage="login", reply="NO [AUTHENTICATIONFAILED] no")
        hindered = outtray.ok("mailbox", "test", "ann@example.com")
        assert "refuses the login" in " ".join(hindered.out.split()), "a mail leaves nevertheless"
    assert PASSWORD not in found.out + found.err + hindered.out + hindered.err
