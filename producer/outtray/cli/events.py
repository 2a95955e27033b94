"""`outtray events`: what happened, read in the same way as an app reads it."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.markup import escape

from outtray import Outtray
from outtray.cli.exits import UsageError
from outtray.cli.options import AppName, Json, examples, flag
from outtray.cli.screen import STATES, hint, out, plain, print_json_line
from outtray.cli.session import database, ready_services
from outtray.events import Event, EventPage
from outtray_schema.settings import Settings

EXAMPLES = examples(
    "outtray events --limit 50", "outtray events --follow --new", "outtray events --follow --json > events.ndjson"
)

PAUSE = 0.5
"""Seconds between two looks while nothing happens."""

# The snapshot of this moment is a cursor too: it stands after all that is committed (see `outtray.events`).
NOW = "SELECT pg_current_snapshot()::text AS cursor"

Follow = Annotated[bool, flag("--follow", "-f", text="Go on with what happens next, until Ctrl-C.")]
New = Annotated[bool, flag("--new", text="Leave out what has happened so far.")]
After = Annotated[
    str | None, typer.Option("--after", metavar="CURSOR", help="Go on after this cursor.", show_default=False)
]
Limit = Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many at once.")]


def events(
    follow: Follow = False,
    new: New = False,
    after: After = None,
    limit: Limit = 100,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Show what happened, oldest first.

    With --json one event a line; the last one of a page has the `cursor` to go on after it.
    """
    if new and after:
        raise UsageError("give either --new or --after CURSOR")
    with ready_services() as settings, Outtray(settings, app=app) as outtray:
        cursor = _now(settings) if new else after
        while True:
            page = outtray.events(after=cursor, limit=limit)
            _show(page, as_json)
            cursor = page.cursor
            if not follow:
                break
            if not page.events:
                time.sleep(PAUSE)
    if not as_json:
        hint(f"go on with: outtray events --after '{cursor}'")


def _now(settings: Settings) -> str:
    with database(settings) as connection:
        row = connection.execute(NOW).fetchone()
    return str(row["cursor"]) if row else ""


def _show(page: EventPage, as_json: bool) -> None:
    for event in page.events:
        if as_json:
            # Only the page's own cursor is one: a reader that stops within a page reads that page again.
            last = event is page.events[-1]
            print_json_line({**plain(event), "cursor": page.cursor if last else None})
        else:
            out.print(_line(event), soft_wrap=True)


def _line(event: Event) -> str:
    at = event.at.astimezone().strftime("%m-%d %H:%M:%S")
    about = event.message_id or event.mailbox_id or ""
    detail = " ".join(f"{name}={value}" for name, value in event.data.items() if value not in (None, "", False))
    kind = f"[{STATES.get(event.kind, 'default')}]{escape(f'{event.kind:<16}')}[/]"
    return f"[dim]{at}[/] {kind} {about} {escape(detail)}"
