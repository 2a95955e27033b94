"""A mailbox's server by client and by command line: presets, trust, and the copy in Sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine
from crm import ADDRESS, crm
from databases import Database
from outtray import InvalidMailbox, Outtray
from outtray_sandbox.smtp import make_certificates

DIGEST = "ab" * 32


@pytest.fixture
def client(database: Database) -> Iterator[Outtray]:
    with crm(database.settings) as outtray:
        yield outtray


def test_a_known_address_brings_its_server_its_imap_and_its_plan(client: Outtray) -> None:
    box = client.mailboxes.add_smtp("ada@gmail.com", password="x")
    assert (box.host, box.server["port"], box.server["tls"], box.plan) == ("smtp.gmail.com", 465, "implicit", "gmail")
    assert box.server["imap"] == {"host": "imap.gmail.com", "port": 993, "tls": "implicit"}
    own = client.mailboxes.add_smtp(
        "ada@company.example", preset="fastmail", password="x", plan="smtp", port=587, tls="starttls", imap="none"
    )
    assert (own.host, own.server["port"], "imap" in own.server) == ("smtp.fastmail.com", 587, False)
    explicit = client.mailboxes.add_smtp("eve@gmail.com", host="relay.example", password="x")
    assert (explicit.host, explicit.plan, "imap" in explicit.server) == ("relay.example", "smtp", False)


@pytest.mark.parametrize(
    ("address", "fields", "field", "words"),
    [
        ("ada@company.example", {}, "host", "nothing was guessed"),
        ("ada@outlook.com", {}, "password", "outtray mailbox connect microsoft"),
        ("ada@company.example", {"preset": "nobody"}, "preset", "presets are gmail"),
        ("ada@gmail.com", {"pin": "abc"}, "pin", "openssl x509"),
        ("ada@gmail.com", {"ca_file": "/nowhere.pem"}, "ca_file", "/nowhere.pem cannot be read"),
    ],
)
def test_what_does_not_fit_is_named_with_its_cure(
    client: Outtray, address: str, fields: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidMailbox) as refused:
        client.mailboxes.add_smtp(address, password="canary", **fields)
    (problem,) = refused.value.problems
    assert problem.field == field and words in problem.reason
    assert "canary" not in str(refused.value)
    assert len(client.mailboxes.list()) == 1


def test_authorities_are_stored_with_the_mailbox_and_a_pin_holds_for_imap_at_the_same_host(
    client: Outtray, tmp_path: Path
) -> None:
    pem = make_certificates(tmp_path).ca_file
    box = client.mailboxes.set_trust(ADDRESS, ca_file=pem)
    assert box.server["ca"] == pem.read_text() and "ca_file" not in box.server
    client.mailboxes.set_imap(ADDRESS, {"host": box.host})
    box = client.mailboxes.set_trust(ADDRESS, pin=DIGEST)
    assert box.server["pin"] == box.server["imap"]["pin"] == f"cert:{DIGEST}"
    box = client.mailboxes.set_trust(ADDRESS, pin="none")
    assert not {"pin", "ca", "ca_file"} & set(box.server) and "pin" not in box.server["imap"]
    client.mailboxes.set_imap(ADDRESS, {"host": "imap.elsewhere.example"})
    box = client.mailboxes.set_trust(ADDRESS, pin=DIGEST)
    assert "pin" not in box.server["imap"]


def test_mended_trust_is_tried_at_once(client: Outtray, database: Database) -> None:
    with database.connect() as connection:
        connection.execute(
            "UPDATE outtray.mailbox SET parked_until = outtray.outtray_now() + interval '1 h',"
            " parked_reason = 'the certificate is not trusted', logins = '{\"smtp\": {}}'"
        )
    box = client.mailboxes.set_trust(ADDRESS, pin=DIGEST)
    assert (box.parked_until, box.parked_reason) == (None, None)
    with database.connect() as connection:
        assert connection.execute("SELECT logins FROM outtray.mailbox").fetchone() == (None,)


def test_the_command_line_finds_a_known_host_and_shows_what_it_took(database: Database, tmp_path: Path) -> None:
    line = CommandLine.on(database.settings)
    line.ok("app", "add", "default")
    added = line.ok("mailbox", "add", "smtp", "ada@fastmail.com", "--password-stdin", stdin="x\n")
    said = " ".join((added.out + added.err).split())
    for words in ("an app password", "smtp.fastmail.com:465", "imap.fastmail.com:993", "2026-11-21"):
        assert words in said, words
    unknown = line("mailbox", "add", "smtp", "ada@company.example", "--password-stdin", "--json", stdin="x\n")
    assert unknown.code and "nothing was guessed" in str(unknown.error)
    both = line("mailbox", "add", "smtp", "a@b.example", "--host", "x.example", "--preset", "gmail", stdin="x\n")
    assert "not both" in both.err
    hosts = {each["name"]: each for each in line.ok("mailbox", "hosts", "--json").json}
    assert hosts["fastmail"]["source"] and hosts["fastmail"]["read_on"] == "2026-11-21"
    assert "smtp.office365.com" in line.ok("mailbox", "hosts").out
    pem = make_certificates(tmp_path).ca_file
    changed = line.ok(
        *("mailbox", "set", "ada@fastmail.com", "--ca-file", str(pem), "--sent-copy", "never", "--imap-pin", DIGEST),
        "--json",
    ).json
    assert changed["server"]["ca"] == pem.read_text()
    assert (changed["server"]["imap"]["sent_copy"], changed["server"]["imap"]["pin"]) == ("never", f"cert:{DIGEST}")
    shown = " ".join(line.ok("mailbox", "show", "ada@fastmail.com").out.split())
    assert "(an authority of its own)" in shown and "sent copy: never" in shown
