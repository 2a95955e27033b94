"""`outtray forecast`: when will this mailbox's backlog be done?"""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape

from outtray.cli.mailboxes import MailboxOption, mailbox_name
from outtray.cli.options import AppName, Json, examples
from outtray.cli.screen import count, facts, hint, moment, out, print_json, table
from outtray.cli.session import client
from outtray.forecast import Forecast

EXAMPLES = examples("outtray forecast --mailbox ann@example.com", "outtray forecast --json")

SHOWN = 14
"""Days that are shown one by one."""


def forecast(mailbox: MailboxOption = None, app: AppName = None, as_json: Json = False) -> None:
    """Say when a mailbox's backlog is done.

    By its limits, pace, gap and windows. Default: the app's mailbox. What it assumes stands below.
    """
    with client(app) as outtray:
        found = outtray.mailboxes.forecast(mailbox_name(mailbox))
    if as_json:
        print_json(found)
        return
    out.print(facts(_facts(found)))
    if found.days:
        page = table("day (UTC)", "#leave")
        for day, number in found.days[:SHOWN]:
            page.add_row(f"{day:%a} {day}", f"{number:,}")
        out.print(page)
        if len(found.days) > SHOWN:
            hint(f"and {len(found.days) - SHOWN} days more; all of them: --json")
    for line in found.assumed:
        hint(f"assumed: {line}")


def _facts(found: Forecast) -> Iterator[tuple[str, str]]:
    yield "waiting", count(found.waiting, "message")
    yield "held now", f"[yellow]{escape(found.held)}[/]; reckoned as if that ended now" if found.held else ""
    yield "the next", moment(found.first_at)
    yield "done", moment(found.done_at) or ("nothing waits" if not found.waiting else "[yellow]none of them leaves[/]")
    yield "expire", f"{count(found.expire, 'message')} before it can leave" if found.expire else ""
    yield "never", f"{count(found.never, 'message')} over a limit, or never in a window" if found.never else ""
    for name, number in found.left_out.items():
        yield "left out", f"{number:,} {name}"
