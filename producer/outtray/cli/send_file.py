"""`outtray send --file`: many messages, one JSON object a line. All of them or none, unless told to keep going."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from outtray import ManyRefused, ManyResult, Outtray
from outtray.cli.exits import Exit, LinesRefused, RefusedLine, UsageError, problem_line
from outtray.cli.screen import count, done, errors, hint, out, plain, print_json
from outtray.cli.session import database, ready_services
from outtray.sequences import BEFORE_REFUSED
from outtray_schema.errors import InvalidMessage, Problem
from outtray_schema.message import Message, parse_message
from outtray_schema.settings import Settings

REFUSED_KEY = "_refused"
"""Where a written row says why it was refused; a mended row may keep it, it is not read."""


@dataclass(frozen=True, slots=True)
class FileOrder:
    """What to do with which file. `key` makes an idempotency key of each line's number, `mailbox` fills in where a row
    names none."""

    source: str
    key: str | None
    mailbox: str | None
    dry_run: bool
    keep_going: bool
    refused: Path | None


@dataclass(slots=True)
class Outcome:
    """What became of a file."""

    accepted: int = 0
    created: int = 0
    refused: list[RefusedLine] = field(default_factory=list)


class Reader(Protocol):
    """Reads messages from a file, as often as it is asked to, and remembers what stood where."""

    unit: str
    """What a place in the file is called: a line, or a row."""
    file: IO[bytes]
    refused: list[RefusedLine]

    def messages(self, moved: Callable[[int], None]) -> Iterator[Message]:
        """The good ones, in order; `moved` is told each place's size in bytes."""

    def line_of(self, position: int) -> int:
        """The place of a message by its position among the good ones, from 0."""

    def again(self) -> Reader:
        """The same file from its begin."""

    def write_refused(self, refused: list[RefusedLine], target: Path) -> None:
        """Write what was refused, each with its reasons, readable by its owner alone."""


@dataclass(slots=True)
class _Reader:
    """Reads messages from the lines of the file."""

    file: IO[bytes]
    order: FileOrder
    unit: str = "line"
    lines: array[int] = field(default_factory=lambda: array("Q"))
    refused: list[RefusedLine] = field(default_factory=list)

    def messages(self, moved: Callable[[int], None]) -> Iterator[Message]:
        """The good ones, in order; `moved` is told each line's size in bytes."""
        self.file.seek(0)
        for number, line in enumerate(self.file, 1):
            moved(len(line))
            if not line.strip():
                continue
            try:
                message = read_line(line, number, self.order)
            except InvalidMessage as error:
                self.refused.append(RefusedLine(number, tuple(error.problems)))
                continue
            self.lines.append(number)
            yield message

    def line_of(self, position: int) -> int:
        """The line of a message by its position among the good ones, from 0."""
        return self.lines[position]

    def again(self) -> _Reader:
        return _Reader(self.file, self.order)

    def write_refused(self, refused: list[RefusedLine], target: Path) -> None:
        _write_refused(self.file, refused, target)


def read_line(line: bytes, number: int, order: FileOrder) -> Message:
    """One row as a message. Raises `InvalidMessage`."""
    try:
        fields: Any = json.loads(line)
    except ValueError as error:
        where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidMessage(Problem("line", f"is no JSON{where}; write one object on one line")) from None
    if isinstance(fields, dict):
        fields.pop(REFUSED_KEY, None)
        if order.key is not None:
            fields.setdefault("idempotency_key", f"{order.key}:{number}")
        if order.mailbox is not None:
            fields.setdefault("mailbox", order.mailbox)
    return parse_message(fields, paths=True)


def send_file(order: FileOrder, app: str | None, as_json: bool) -> None:
    """Carry an order out and show what became of it. Raises `LinesRefused` where all or none meant none."""
    check_order(order)
    with opened(order.source) as file, ready_services() as settings, Outtray(settings, app=app) as outtray:
        outcome = carry_out(order, settings, outtray, _Reader(file, order))
    show(order, outcome, as_json)


def check_order(order: FileOrder) -> None:
    """Raises `UsageError` for flags that do not go together."""
    if order.keep_going and order.refused is None and not order.dry_run:
        raise UsageError("say where the refused rows go: --keep-going --refused FILE")
    if order.refused and order.refused.exists():
        raise UsageError(f"--refused: {order.refused} exists already; name a new file")


def carry_out(order: FileOrder, settings: Settings, outtray: Outtray, reader: Reader) -> Outcome:
    """Store what the reader reads, or try to. Raises `LinesRefused` where all or none meant none."""
    if order.dry_run:
        outcome = _try(settings, outtray, reader)
    elif order.keep_going:
        outcome = _keep_going(outtray, reader)
    else:
        outcome = _all_or_none(outtray, reader)
    if order.refused and outcome.refused:
        reader.write_refused(outcome.refused, order.refused)
    return outcome


# ── three ways ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _all_or_none(outtray: Outtray, reader: Reader) -> Outcome:
    """First every line is judged, so that all that is wrong is told at once; then one transaction takes them all."""
    with _progress(reader.file, "checking") as moved:
        for _ in reader.messages(moved):
            pass
    if reader.refused:
        raise LinesRefused(reader.refused, reader.unit)
    second = reader.again()
    try:
        with _progress(reader.file, "storing") as moved:
            result = outtray.enqueue_many(second.messages(moved), in_one_transaction=True)
    except ManyRefused as error:
        raise LinesRefused(_refused(error.result, second), second.unit) from None
    return Outcome(result.accepted, result.created)


def _keep_going(outtray: Outtray, reader: Reader) -> Outcome:
    with _progress(reader.file, "storing") as moved:
        result = outtray.enqueue_many(reader.messages(moved), keep_going=True)
    return Outcome(result.accepted, result.created, _refused(result, reader))


def _try(settings: Settings, outtray: Outtray, reader: Reader) -> Outcome:
    """Store for real, in a transaction that is rolled back: the whole door, database included, and nothing stays."""
    with (
        _progress(reader.file, "trying") as moved,
        database(settings) as connection,
        connection.transaction(force_rollback=True),
    ):
        result = outtray.enqueue_many(reader.messages(moved), keep_going=True, connection=connection)
    return Outcome(result.accepted, result.created, _refused(result, reader))


def _refused(result: ManyResult, reader: Reader) -> list[RefusedLine]:
    """What the reader and the door refused, by line; what follows a refused message of its line says nothing new."""
    found: dict[int, dict[Problem, None]] = {each.line: dict.fromkeys(each.problems) for each in reader.refused}
    for each in result.refused:
        found.setdefault(reader.line_of(each.index), {}).update(dict.fromkeys(each.problems))
    return [RefusedLine(line, _telling(problems)) for line, problems in sorted(found.items())]


def _telling(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    told = tuple(each for each in problems if each != BEFORE_REFUSED)
    return told or (BEFORE_REFUSED,)


# ── the file ────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def opened(source: str, flag: str = "--file") -> Iterator[IO[bytes]]:
    """The file, or a copy of standard input without a name: it is read more than once."""
    with ExitStack() as closing:
        if source == "-":
            file: IO[bytes] = closing.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(sys.stdin.buffer, file)
        else:
            try:
                file = closing.enter_context(Path(source).open("rb"))
            except OSError as error:
                raise UsageError(f"{flag}: {source} cannot be read: {error.strerror}") from None
        yield file


@contextmanager
def _progress(file: IO[bytes], what: str) -> Iterator[Callable[[int], None]]:
    """A bar of the file's bytes on standard error, where somebody looks; yields what advances it."""
    columns = (
        TextColumn(what),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[lines]:,} lines"),
        TimeRemainingColumn(),
    )
    total = os.fstat(file.fileno()).st_size
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task(what, total=total, lines=0)
        lines = 0

        def moved(size: int) -> None:
            nonlocal lines
            lines += 1
            progress.update(task, advance=size, lines=lines)

        yield moved


def _write_refused(file: IO[bytes], refused: list[RefusedLine], target: Path) -> None:
    """Write the refused rows, each with its reasons, readable by their owner alone: they hold addresses and text."""
    reasons = {each.line: each for each in refused}
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as written:
        file.seek(0)
        for number, line in enumerate(file, 1):
            if number in reasons:
                written.write(json.dumps(_refused_row(line, reasons[number]), ensure_ascii=False) + "\n")


def _refused_row(line: bytes, refused: RefusedLine) -> dict[str, Any]:
    why: dict[str, Any] = plain(refused)
    try:
        row: Any = json.loads(line)
    except ValueError:
        row = None
    return (
        {REFUSED_KEY: why, **row}
        if isinstance(row, dict)
        else {REFUSED_KEY: {**why, "text": line.decode("utf-8", "replace")}}
    )


# ── what became of it ───────────────────────────────────────────────────────────────────────────────────────────────


def show(order: FileOrder, outcome: Outcome, as_json: bool, unit: str = "line") -> None:
    """Say what became of it; exit 1 if something was refused."""
    if as_json:
        print_json({"dry_run": order.dry_run, **plain(outcome), "refused_file": plain(order.refused)})
    else:
        _show_page(order, outcome, unit)
    if outcome.refused:
        raise typer.Exit(Exit.REFUSED)


def _show_page(order: FileOrder, outcome: Outcome, unit: str) -> None:
    again = outcome.accepted - outcome.created
    stood = f" [dim]({again:,} stood there already)[/]" if again else ""
    verb = "would be accepted; nothing was stored" if order.dry_run else "accepted"
    done(f"{count(outcome.accepted, 'message')} {verb}.{stood}")
    if outcome.refused:
        errors.print(f"[red]✗[/] {count(len(outcome.refused), 'row')} refused:")
        for each in outcome.refused[: LinesRefused.SHOWN]:
            for problem in each.problems:
                errors.print(f"  {unit} {each.line}, {problem_line(problem)}", soft_wrap=True)
        if len(outcome.refused) > LinesRefused.SHOWN:
            errors.print(f"  and {len(outcome.refused) - LinesRefused.SHOWN:,} more")
        if order.refused and not order.dry_run:
            out.print(f"  written to {order.refused}: mend them there and send that file", markup=False, soft_wrap=True)
    elif not order.dry_run:
        hint("watch them leave: outtray status --watch")
