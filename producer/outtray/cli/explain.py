"""`outtray explain`: why has this not left? One reason, the binding limit, the earliest time, and who must act."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.markup import escape

from outtray import Explanation
from outtray.cli.exits import UsageError
from outtray.cli.mailboxes import MailboxOption, mailbox_name
from outtray.cli.message import message_id
from outtray.cli.options import AppName, Json, examples
from outtray.cli.screen import MAILBOX_STATES, STATES, colored, facts, moment, out, print_json
from outtray.cli.session import client

EXAMPLES = examples(
    "outtray explain 0199b0c2-…", "outtray explain --mailbox ann@example.com", "outtray explain ID --json"
)

OneOrNone = Annotated[str | None, typer.Argument(metavar="[ID]", help="The message's id.", show_default=False)]


def explain(name: OneOrNone = None, mailbox: MailboxOption = None, app: AppName = None, as_json: Json = False) -> None:
    """Say why a message or a mailbox waits.

    One reason, the limit that binds, the earliest time at which it can go on by itself, and who must act.
    """
    if (name is None) == (mailbox is None):
        raise UsageError("give either a message's id, or --mailbox MAILBOX")
    with client(app) as outtray:
        if name is not None:
            found = outtray.explain(message_id(name))
        else:
            found = outtray.mailboxes.explain(mailbox_name(mailbox))
    if as_json:
        print_json(found)
    else:
        out.print(facts(_facts(name or str(mailbox), found)))


def _facts(name: str, found: Explanation) -> Iterator[tuple[str, str]]:
    yield "about", f"[bold]{escape(name)}[/] {colored(found.state, STATES | MAILBOX_STATES)}"
    yield "why", escape(found.reason)
    if found.limit is not None:
        used = f"{found.used:,} of " if found.used is not None else ""
        allowed = f"{found.allowed:,}" if found.allowed is not None else ""
        yield "limit", escape(f"{found.limit}: {used}{allowed}".removesuffix(": "))
    yield "earliest", moment(found.earliest)
    if found.who != "nobody":
        yield "who acts", f"[bold yellow]{found.who}[/]"
    elif found.earliest is not None:
        yield "who acts", "nobody: time alone helps"
    for number, line in enumerate(found.details):
        yield "" if number else "more", escape(line)
