"""Each command that changes something is journalled with its actor: here stands every command, and what it changes."""

from __future__ import annotations

import getpass
from typing import Any

import pytest
import typer.main

from command_line import CommandLine
from crm import ADDRESS, ask, crm, hand_over, hello
from outtray.cli.application import build

READS = """
    status, explain, forecast, events, doctor, template list, template show, template preview, message list,
    message show, suppress list, journal verify, journal seals, journal show, app list, mailbox list, mailbox show,
    mailbox hosts, mailbox plans, mailbox consents, mailbox test, provider-app list, budget list, keys list,
    keys public, spool list, spool show"""

OTHERWISE = {
    "migrate": "it makes the journal; what it did stands in alembic_version",
    "up": "a process", "sandbox": "a process", "demo": "a process", "worker": "a process", "dispatcher": "a process",
    "intake": "a process", "flower": "a process",
    "keys new": "a file", "keys producer": "a file", "keys add": "a file", "keys use": "a file", "keys drop": "a file",
    "spool replay": "each answer is journalled as it is taken, as if it had come in time",
    "mailbox connect google": "needs a consent: test_cli_connect.py, test_client_oauth.py look at its entry",
    "mailbox connect microsoft": "as with Google",
    "mailbox add delegated": "as with Google", "mailbox disconnect": "as with Google",
    "mailbox revoke": "as with Google",
    "mailbox senders": "asks the provider; what it changes goes through mailboxes.set, as mailbox set does",
}  # fmt: skip

CHANGES: dict[str, tuple[str, ...]] = {
    "send": ("--to", "ann@elsewhere.example", "--subject", "s", "--text-file", "TEMPLATE"),
    "cancel": ("WAITS",),
    "reschedule": ("LATER", "+2h"),
    "resolve": ("UNKNOWN", "--fail"),
    "retry": ("FAILED",),
    "pause": ("--tag", "spring"),
    "resume": ("--tag", "spring"),
    "suppress add": ("bob@elsewhere.example",),
    "suppress remove": ("bob@elsewhere.example",),
    "suppress import": ("-",),
    "erase": ("--recipient", "bob@elsewhere.example", "--yes"),
    "template add": ("intro", "TEMPLATE", "--subject", "Hello"),
    "app add": ("other",),
    "mailbox add smtp": ("eve@sender.example", "--host", "smtp.sender.example", "--password-stdin"),
    "mailbox set": (ADDRESS, "--gap", "30s-90s"),
    "mailbox reconnect": (ADDRESS, "--password-stdin"),
    "mailbox import-usage": (ADDRESS, "--messages", "2", "--recipients", "2"),
    "mailbox remove": ("eve@sender.example", "--yes"),
    "provider-app add": ("google", "--client-id", "c", "--from-stdin"),
    "provider-app set": ("google", "--messages-per-minute", "100"),
    "provider-app set-secret": ("google", "--from-stdin"),
    "provider-app remove": ("google", "--yes"),
    "budget add": ("contoso", "--external", "100"),
    "budget set": ("contoso", "--external", "200"),
    "budget remove": ("contoso", "--yes"),
    "keys rotate": ("content",),
}
STDIN = {"suppress import": "carl@elsewhere.example\n"}


def commands(command: Any, path: tuple[str, ...] = ()) -> list[str]:
    return [
        found
        for name, each in command.commands.items()
        for found in (commands(each, (*path, name)) if hasattr(each, "commands") else [" ".join((*path, name))])
    ]


def test_of_every_command_it_is_said_what_it_changes():
    reads = {each.strip() for each in READS.split(",")}
    assert not (reads & CHANGES.keys()) and not (CHANGES.keys() & OTHERWISE.keys())
    assert set(commands(typer.main.get_command(build()))) == reads | OTHERWISE.keys() | CHANGES.keys()


@pytest.fixture
def named(database, tmp_path):
    """A message in each state, and files, by the words that stand for them above."""
    settings = database.settings
    with crm(settings) as client:
        waits, later, unknown, failed = (client.enqueue(hello()).id for _ in range(4))
    hand_over(settings, unknown, "unknown")
    ask(settings, "UPDATE outtray.message SET state = 'failed', ended_at = now() WHERE id = %s", failed)
    template = tmp_path / "intro.txt"
    template.write_text("Hello {{ name }}")
    return {"WAITS": waits, "LATER": later, "UNKNOWN": unknown, "FAILED": failed, "TEMPLATE": template}


def test_every_change_is_in_the_journal_with_who_made_it_and_names_no_person(database, named):
    outtray = CommandLine.on(database.settings)
    for command, flags in CHANGES.items():
        before = newest(database.settings)
        typed = STDIN.get(command, "secret-canary\n")
        outtray.ok(*command.split(), *(str(named.get(flag, flag)) for flag in flags), stdin=typed)
        entries = ask(database.settings, "SELECT * FROM outtray.journal WHERE id > %s", before)
        assert getpass.getuser() in {entry["actor"] for entry in entries}, command
        told = str([(entry["kind"], entry["detail"]) for entry in entries])
        assert not any(word in told for word in (".example", "canary")), (command, told)


def newest(settings) -> int:
    return int(ask(settings, "SELECT coalesce(max(id), 0) AS id FROM outtray.journal")[0]["id"])
