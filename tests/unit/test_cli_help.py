"""Every page of help: what it is, examples, a way for machines, and no flag that takes a secret."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from command_line import CommandLine
from outtray.cli.application import build
from outtray.cli.exits import Exit

NOT_FOR_MACHINES = {"worker", "dispatcher", "flower", "intake", "demo"}
"""Processes, which write logs (OUTTRAY_LOG_FORMAT=json), and a show."""


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, each in command.commands.items():
        if hasattr(each, "commands"):
            yield from commands(each, (*path, name))
        else:
            yield (*path, name), each


COMMANDS = dict(commands(typer.main.get_command(build())))


def test_every_command_that_was_promised_is_there() -> None:
    promised = """
        up, app add, app list, mailbox add smtp, mailbox list, mailbox show, mailbox set, mailbox test,
        mailbox reconnect, mailbox remove, mailbox import-usage, pause, resume, send, status, message list,
        message show, explain, cancel, reschedule, resolve, events, keys new, keys add, keys rotate, keys producer,
        migrate, doctor, worker, dispatcher, flower, provider-app add, provider-app list, provider-app set-secret,
        provider-app set, provider-app remove, budget add, budget list, budget set, budget remove,
        mailbox connect google, mailbox connect microsoft, mailbox disconnect, mailbox revoke,
        mailbox consents, mailbox add delegated, sandbox, journal verify, journal seals, journal show, spool list,
        spool show, spool replay"""
    assert {tuple(each.split()) for each in promised.split(",")} <= set(COMMANDS)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_page_has_a_short_line_examples_and_fits_eighty_columns(path: tuple[str, ...]) -> None:
    page = CommandLine().ok(*path, "--help").out
    assert "Examples" in page
    assert f"outtray {' '.join(path)}" in page.partition("Examples")[2]
    assert max(len(line) for line in page.splitlines()) <= 80
    first = COMMANDS[path].help.splitlines()[0]
    assert first.endswith(".") and len(first) <= 66, "its line in the list of commands must not wrap"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_speaks_json(path: tuple[str, ...]) -> None:
    flags = {flag for parameter in COMMANDS[path].params for flag in parameter.opts}
    assert ("--json" in flags) == (path[0] not in NOT_FOR_MACHINES)


def _names_a_file(flags: list[str]) -> bool:
    return any(flag.endswith("password-file") for flag in flags)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_flag_takes_a_secret(path: tuple[str, ...]) -> None:
    for parameter in COMMANDS[path].params:
        if re.search("password|secret|token", " ".join(parameter.opts)) and not _names_a_file(parameter.opts):
            assert parameter.is_flag, parameter.opts


def test_the_first_page_names_every_exit_code() -> None:
    page = " ".join(CommandLine().ok("--help").out.split())
    assert all(re.search(rf"\b{int(code)}\b", page) for code in Exit)


def test_a_command_that_does_not_exist_is_a_usage_error() -> None:
    assert CommandLine()("sned").code == Exit.USAGE
