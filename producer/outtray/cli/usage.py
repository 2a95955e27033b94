"""`outtray mailbox import-usage`: what a mailbox sent elsewhere today, so that its first day keeps its limits."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from outtray.cli.exits import UsageError
from outtray.cli.mailboxes import Mailbox, mailbox_name
from outtray.cli.options import AppName, Json, examples
from outtray.cli.screen import count, done, print_json
from outtray.cli.session import client
from outtray.cli.times import time_of
from outtray.mailboxes import UsageRow
from outtray_schema.errors import Problem, Refused

EXAMPLES = examples(
    "outtray mailbox import-usage ann@example.com --messages 120 --recipients 140",
    "outtray mailbox import-usage ann@example.com --file sent-today.ndjson",
    '  {"at": "2027-01-31T09:00:00Z", "messages": 1, "recipients": 2, "external": 2}',
)

_FIELDS = {"at", "messages", "recipients", "external", "externals"}

Number = Annotated[int, typer.Option(min=0, help="How many, in all.")]
File = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="One JSON object a line; - for standard input.")
]
At = Annotated[str, typer.Option("--at", metavar="TIME", help="When; they count for 24 hours from then.")]


def import_usage(
    name: Mailbox,
    file: File = None,
    messages: Number = 0,
    recipients: Number = 0,
    external: Number = 0,
    at: At = "now",
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Count what the mailbox sent elsewhere today.

    By another system, in the last 24 hours, so that the first day with us keeps its limits. All rows, or none.
    """
    if (file is None) == (messages == 0):
        raise UsageError("give either --messages N (and --recipients N), or --file FILE")
    used = UsageRow(time_of(at, "--at"), messages, max(recipients, messages), external)
    usage = [used] if file is None else list(_rows(file))
    with client(app) as outtray:
        imported = outtray.mailboxes.import_usage(mailbox_name(name), usage)
    if as_json:
        print_json({"mailbox": name, "rows": imported})
        return
    total = sum(row.messages for row in usage)
    done(f"{count(total, 'message')} counted for {escape(name)}, in {count(imported, 'row')}.")


def _rows(file: Path) -> Iterator[UsageRow]:
    """The file's rows. Raises `Refused` naming line and field."""
    for number, line in enumerate(_text(file).splitlines(), 1):
        if line.strip():
            yield _row(f"line {number}", line)


def _text(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"--file: {file} cannot be read: {why}") from None


def _row(line: str, text: str) -> UsageRow:
    try:
        fields: Any = json.loads(text)
    except ValueError:
        raise Refused(Problem(line, "is no JSON")) from None
    if not isinstance(fields, dict) or fields.keys() - _FIELDS or "at" not in fields:
        raise Refused(
            Problem(line, f"must be an object with at, and of {', '.join(sorted(_FIELDS - {'at'}))} what is known")
        )
    return UsageRow(**{**fields, "at": _at(line, fields["at"]), "externals": tuple(fields.get("externals", ()))})


def _at(line: str, text: Any) -> datetime:
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        raise Refused(Problem(f"{line}.at", "must be a time like 2027-01-31T09:00:00Z")) from None
    if at.utcoffset() is None:
        raise Refused(Problem(f"{line}.at", f"has no time zone; write {text}Z for UTC"))
    return at.astimezone(UTC)
