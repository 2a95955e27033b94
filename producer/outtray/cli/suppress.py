"""`outtray suppress`: the addresses that an app never writes to."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from outtray.cancel import CancelCounts
from outtray.cli import options
from outtray.cli.exits import LinesRefused, RefusedLine, UsageError
from outtray.cli.options import AppName, Json, examples, flag
from outtray.cli.screen import count, done, hint, moment, out, print_json, table
from outtray.cli.session import client
from outtray.suppression import MOST_REASON
from outtray_schema.address import parse_address
from outtray_schema.errors import NotFound, Problem, Refused

group = options.group("Suppression: the addresses that are never written to.")

BATCH = 5000
"""Addresses of a file that are stored in one transaction."""

Entry = tuple[str, str]
Addresses = Annotated[list[str], typer.Argument(metavar="ADDRESS...", help="One address or several.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why: unsubscribed, complaint, bounced.")]


@group.command(
    "add",
    epilog=examples("outtray suppress add bob@example.org", "outtray suppress add bob@example.org --reason complaint"),
)
def add(addresses: Addresses, reason: Reason = "by hand", app: AppName = None, as_json: Json = False) -> None:
    """Never write to these addresses again; cancel what waits.

    It holds from now on at every gate. What a worker has just handed over may still leave.
    """
    with client(app) as outtray:
        counts = outtray.suppress_many([(address, reason) for address in addresses])
    _show(len(addresses), counts, as_json)


@group.command("list", epilog=examples("outtray suppress list", "outtray suppress list --json"))
def show(
    limit: Annotated[int, typer.Option("--limit", min=1, max=500, help="How many.")] = 100,
    cursor: Annotated[str | None, typer.Option("--cursor", metavar="CURSOR", help="Go on after a page.")] = None,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """List the addresses that are not written to."""
    with client(app) as outtray:
        page = outtray.suppressions(limit=limit, cursor=cursor)
    if as_json:
        print_json(page)
        return
    shown = table("address", "reason", "since")
    for each in page.items:
        shown.add_row(escape(each.address), escape(each.reason), moment(each.created_at))
    out.print(shown if page.items else "No address is suppressed.")
    if page.next_cursor:
        hint(f"more: --cursor {page.next_cursor}")


@group.command("remove", epilog=examples("outtray suppress remove bob@example.org"))
def remove(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="The address.")],
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Allow an address again. What was cancelled stays so."""
    with client(app) as outtray:
        if not outtray.unsuppress(address):
            raise NotFound("the address is not on this app's suppression list")
    if as_json:
        print_json({"removed": True})
        return
    done(f"{escape(address)} may be written to again.")


@group.command(
    "import",
    epilog=examples(
        "outtray suppress import unsubscribed.csv", "cut -d, -f2 crm.csv | outtray suppress import - --reason bounced"
    ),
)
def bring_in(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="address[,reason] on each line; - is standard input.")],
    reason: Reason = "imported",
    keep_going: Annotated[bool, flag("--keep-going", text="Leave out the lines that are wrong.")] = False,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Put the addresses of a file on the list.

    All of them, or none if a line is wrong. Can be repeated: an address stands on the list once.
    """
    entries, wrong = _read(file, reason)
    if wrong and not keep_going:
        raise LinesRefused(wrong)
    counts = CancelCounts()
    left = iter(entries)
    with client(app) as outtray:
        while batch := list(islice(left, BATCH)):
            counts = counts.and_also(outtray.suppress_many(batch))
    _show(len(entries), counts, as_json, wrong)


def _read(file: Path, reason: str) -> tuple[list[Entry], list[RefusedLine]]:
    entries: list[Entry] = []
    wrong: list[RefusedLine] = []
    for number, cells in _lines(file):
        if number == 1 and cells[0].lower() in ("address", "email", "e-mail"):
            continue
        try:
            why = cells[1] if len(cells) > 1 and cells[1] else reason
            if len(why) > MOST_REASON:
                raise Refused(Problem("reason", f"has {len(why)} characters; at most {MOST_REASON}"))
            entries.append((parse_address(cells[0]).email, why))
        except Refused as error:
            wrong.append(RefusedLine(number, tuple(error.problems)))
    return entries, wrong


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise UsageError(f"FILE: {file} cannot be read: {why}") from None
    reader = csv.reader(text.splitlines())
    for cells in reader:
        stripped = [cell.strip() for cell in cells]
        if any(stripped):
            yield reader.line_num, stripped


def _show(number: int, counts: CancelCounts, as_json: bool, wrong: list[RefusedLine] | None = None) -> None:
    if as_json:
        lines = [{"line": each.line, "problems": each.problems} for each in wrong or ()]
        print_json({"suppressed": number, "cancelled": counts, "refused": lines})
        return
    addresses = count(number, "address", "addresses")
    done(f"{addresses} suppressed, {count(counts.cancelled, 'message')} cancelled that waited for them.")
    maybe = counts.handing_over + counts.may_have_left
    if maybe:
        out.print(f"  {maybe:,} may still leave or have left: with the provider, or unknown", soft_wrap=True)
    if wrong:
        out.print(
            f"  {len(wrong):,} lines left out: {', '.join(str(each.line) for each in wrong[:20])}", soft_wrap=True
        )
