"""Exit codes, and the page that an error becomes. A script reads the code or `--json`; a person reads the cure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from rich.markup import escape

from outtray.cli.screen import errors, plain
from outtray_schema.errors import (
    IdempotencyConflict,
    MailboxDisconnected,
    NotFound,
    OuttrayError,
    Problem,
    Refused,
    SettingsError,
    Unavailable,
    UnknownKey,
    WrongState,
)


class Exit(IntEnum):
    """What a command's end means. `docs/commands.md` has the same table."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNAVAILABLE = 4
    WRONG_STATE = 5
    INTERRUPTED = 130


_CODES: tuple[tuple[type[Exception], Exit], ...] = (
    (SettingsError, Exit.USAGE),
    (UnknownKey, Exit.USAGE),
    (NotFound, Exit.NOT_FOUND),
    (Unavailable, Exit.UNAVAILABLE),
    (WrongState, Exit.WRONG_STATE),
    (MailboxDisconnected, Exit.WRONG_STATE),
    (OuttrayError, Exit.REFUSED),
)


@dataclass(frozen=True, slots=True)
class RefusedLine:
    """One line of a file, from 1, and what is wrong with it."""

    line: int
    problems: tuple[Problem, ...]


class LinesRefused(Refused):
    """Lines of a file were refused, and with them the whole file. Shows the first ones; `lines` has all."""

    SHOWN = 20

    def __init__(self, lines: list[RefusedLine], unit: str = "line") -> None:
        self.lines = lines
        problems = [
            Problem(f"{unit} {each.line}, {problem.field}", problem.reason)
            for each in lines[: self.SHOWN]
            for problem in each.problems
        ]
        if len(lines) > self.SHOWN:
            more = f"{len(lines) - self.SHOWN:,} more {unit}s; --keep-going takes the good ones"
            problems.append(Problem("and", more))
        super().__init__(problems)


class UsageError(SettingsError):
    """A command's flags or input are wrong, or do not go together; the text names the flag and the cure."""


def exit_code(error: Exception) -> Exit:
    """The code under which a command ends that met this error."""
    return next(code for kind, code in _CODES if isinstance(error, kind))


def show_error(error: Exception, as_json: bool) -> None:
    """Write the error to standard error: one JSON document, or a short page with the cure."""
    if as_json:
        errors.print_json(json.dumps({"error": error_facts(error)}))
        return
    problems = error.problems if isinstance(error, Refused) else []
    title = "Refused; nothing was changed." if problems else escape(str(error))
    errors.print(f"[red]✗[/] {title}", soft_wrap=True)
    for problem in problems:
        errors.print(f"  {problem_line(problem)}", soft_wrap=True)


def problem_line(problem: Problem) -> str:
    """One line of rich markup: the field, then the reason with its cure."""
    return f"[bold]{escape(problem.field)}[/]: {escape(problem.reason)}"


def error_facts(error: Exception) -> dict[str, Any]:
    """An error for a machine: `kind`, `exit`, `message`, and for a refusal its `problems`."""
    facts: dict[str, Any] = {"kind": type(error).__name__, "exit": int(exit_code(error)), "message": str(error)}
    if isinstance(error, Refused):
        facts["problems"] = [{"field": problem.field, "reason": problem.reason} for problem in error.problems]
    if isinstance(error, LinesRefused):
        facts["lines"] = plain(error.lines)
    if isinstance(error, IdempotencyConflict):
        facts["message_id"] = error.message_id
    return facts
