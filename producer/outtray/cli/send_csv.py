"""`outtray send --csv`: a template, or a sequence of them, for every row of a list. All rows or none, unless told to
keep going."""

from __future__ import annotations

import csv
import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from outtray import Outtray
from outtray.cli.exits import RefusedLine, UsageError
from outtray.cli.screen import listed
from outtray.cli.send_file import REFUSED_KEY, FileOrder, carry_out, check_order, opened, show
from outtray.cli.session import database, ready_services
from outtray.door import Door
from outtray.mailing import Mailing, find_mailing
from outtray.plan import run
from outtray_schema.door import FromJson
from outtray_schema.errors import InvalidMessage, Problem
from outtray_schema.message import Message
from outtray_schema.sequence import delay
from outtray_schema.settings import Settings
from outtray_schema.vault import load_vault

ADDRESS_COLUMNS = ("to", "email", "e_mail", "mail", "email_address")
"""The columns, in this order, that are taken for the recipient's address where none is named."""
DELIMITERS = ",;\t"


@dataclass(frozen=True, slots=True)
class CsvOrder:
    """What to make of a list: templates by name, the first and those that follow it with their delays."""

    template: str
    then: Sequence[tuple[str, str]]
    columns: Mapping[str, str]
    """Variables, and the columns that they come from, where those have other names."""
    common: Mapping[str, Any] = field(repr=False)


def send_csv(order: FileOrder, what: CsvOrder, app: str | None, as_json: bool) -> None:
    """Carry an order out and show what became of it. Raises `LinesRefused` where all or none meant none."""
    check_order(order)
    with opened(order.source, "--csv") as file, ready_services() as settings, Outtray(settings, app=app) as outtray:
        # Without a key of their own, the templates' names are one: who gets the same again by mistake gets it once.
        key = order.key or "+".join([what.template, *(name for name, _ in what.then)])
        mailing = _mailing(settings, app, what, key)
        outcome = carry_out(order, settings, outtray, CsvReader(file, mailing, what.columns))
    show(order, outcome, as_json, CsvReader.unit)


def _mailing(settings: Settings, app: str | None, what: CsvOrder, key: str) -> Mailing:
    common = dict(what.common)
    if "attachments" in common:
        common["attachments"] = [FromJson(each, paths=True) for each in common["attachments"]]
    door = Door(settings, load_vault(settings), app)
    with database(settings) as connection:
        return run(find_mailing(door, what.template, what.then, common, key), connection)[0]


class CsvReader:
    """Reads the messages of each row; rows are counted as a spreadsheet does, the header being the first."""

    unit = "row"

    def __init__(self, file: IO[bytes], mailing: Mailing, columns: Mapping[str, str]) -> None:
        self.file = file
        self.refused: list[RefusedLine] = []
        self._mailing = mailing
        self._columns = columns
        self._rows: array[int] = array("Q")

    def messages(self, moved: Callable[[int], None]) -> Iterator[Message]:
        """The messages of the good rows, in order; `moved` is told each row's size in bytes."""
        for number, row in self._numbered(moved):
            try:
                if isinstance(row, InvalidMessage):
                    raise row
                messages = self._mailing.messages(row)
            except InvalidMessage as error:
                self.refused.append(RefusedLine(number, tuple(error.problems)))
                continue
            for message in messages:
                self._rows.append(number)
                yield message

    def line_of(self, position: int) -> int:
        """The row of a message by its position among the good ones, from 0."""
        return self._rows[position]

    def again(self) -> CsvReader:
        """The same list from its begin."""
        return CsvReader(self.file, self._mailing, self._columns)

    def write_refused(self, refused: list[RefusedLine], target: Path) -> None:
        """The refused rows as they stood, with their reasons in a last column; readable by their owner alone."""
        reasons = {each.line: "; ".join(map(str, each.problems)) for each in refused}
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as written:
            writer = csv.writer(written)
            for number, cells in self._records(lambda _: None):
                if number == 1:
                    writer.writerow([*(cell for cell in cells if cell != REFUSED_KEY), REFUSED_KEY])
                elif number in reasons:
                    writer.writerow([*cells, reasons[number]])

    def _numbered(self, moved: Callable[[int], None]) -> Iterator[tuple[int, dict[str, str] | InvalidMessage]]:
        names: list[str] = []
        for number, cells in self._records(moved):
            if number == 1:
                names = variables(cells, self._columns)
            elif len(cells) > len(names) and any(cells[len(names) :]):
                reason = f"has {len(cells)} cells, the header has {len(names)}; quote a cell that holds a delimiter"
                yield number, InvalidMessage(Problem("row", reason))
            elif any(cell.strip() for cell in cells):
                yield number, dict(zip(names, (cell.strip() for cell in cells), strict=False))
        if not names:
            raise UsageError("--csv: the file is empty; its first row names the columns, e.g. to,name")

    def _records(self, moved: Callable[[int], None]) -> Iterator[tuple[int, list[str]]]:
        self.file.seek(0)
        first = self.file.readline()
        self.file.seek(0)
        reader = csv.reader(_lines(self.file, moved), delimiter=delimiter_of(first.decode("utf-8", "replace")))
        number = 0
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise UsageError(f"--csv: row {number + 1}: {error}; is a quote left open?") from None
            if cells is None:
                return
            number += 1
            yield number, cells


def _lines(file: IO[bytes], moved: Callable[[int], None]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        moved(len(line))
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise UsageError(f"--csv: line {number} is no UTF-8 text; save the list as CSV UTF-8") from None


def delimiter_of(header: str) -> str:
    """What the header uses most: spreadsheets of many countries write semicolons."""
    return max(DELIMITERS, key=header.count)


def variables(header: Sequence[str], columns: Mapping[str, str]) -> list[str]:
    """The columns' names as variables: `First Name` is `first_name`. Raises `UsageError` with the cure."""
    names = [_variable(cell) for cell in header]
    for variable, column in columns.items():
        if _variable(column) not in names:
            raise UsageError(f"--column {variable}={column}: there is no such column; there are {listed(header)}")
        names[names.index(_variable(column))] = variable
    if "to" not in names:
        address = next((name for name in ADDRESS_COLUMNS if name in names), None)
        if address is None:
            raise UsageError(f"--csv: which column holds the address? Say --column to=NAME; there are {listed(header)}")
        names[names.index(address)] = "to"
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UsageError(f"--csv: two columns are called {twice[0]!r}; rename one")
    return names


def _variable(column: str) -> str:
    return re.sub(r"\W+", "_", column.strip().lower()).strip("_") if column != REFUSED_KEY else ""


def columns_of(flags: Sequence[str]) -> dict[str, str]:
    """`--column` flags: `to=Email`."""
    found: dict[str, str] = {}
    for text in flags:
        variable, equals, column = text.partition("=")
        if not equals or not variable.isidentifier():
            raise UsageError(f"--column {text}: write VARIABLE=COLUMN, e.g. to=Email")
        found[variable] = column
    return found


def then_of(then: Sequence[str], after: Sequence[str]) -> list[tuple[str, str]]:
    """`--then` flags and the `--after` of each."""
    if len(then) != len(after):
        raise UsageError("each --then has its --after, e.g. --then nudge --after 3d --then last --after 7d")
    for text in after:
        try:
            delay(text)
        except ValueError as error:
            raise UsageError(f"--after {text}: {error}") from None
    return list(zip(then, after, strict=True))
