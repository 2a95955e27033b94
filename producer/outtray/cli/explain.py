"""`outtray explain`: why has this not left? One reason, the binding limit, the earliest time, and who must act."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.markup import escape

from outtray import Explanation
from outtray.cli.exits import Exit, UsageError
from outtray.cli.mailboxes import MailboxOption, mailbox_name
from outtray.cli.message import message_id
from outtray.cli.options import AppName, Json, examples
from outtray.cli.screen import MAILBOX_STATES, STATES, colored, facts, moment, out, print_json
from outtray.cli.session import client
from outtray.explain_address import AddressExplanation

EXAMPLES = examples(
    "outtray explain 0199b0c2-…", "outtray explain --mailbox ann@example.com", "outtray explain --to bob@example.org"
)

OneOrNone = Annotated[str | None, typer.Argument(metavar="[ID]", help="The message's id.", show_default=False)]


def explain(
    name: OneOrNone = None,
    mailbox: MailboxOption = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="ADDRESS", help="All that is to go to it, or was refused for it.")
    ] = None,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Say why a message, a mailbox or the mail to an address waits.

    One reason, the limit that binds, the earliest time at which it can go on by itself, and who must act.
    """
    if [name, mailbox, to].count(None) != 2:
        raise UsageError("give either a message's id, or --mailbox MAILBOX, or --to ADDRESS")
    with client(app) as outtray:
        if to is not None:
            show_address(to, outtray.explain_address(to), as_json)
            return
        if name is not None:
            found = outtray.explain(message_id(name))
        else:
            found = outtray.mailboxes.explain(mailbox_name(mailbox))
    if as_json:
        print_json(found)
    else:
        out.print(facts(_facts(name or str(mailbox), found)))


def show_address(address: str, found: AddressExplanation, as_json: bool) -> None:
    """What became of everything to an address. Exit 3 where nothing is known of it."""
    if as_json:
        print_json(found)
    elif found.is_empty:
        out.print(f"Nothing to {escape(address)} is known, sent, waiting or refused in the last days.", soft_wrap=True)
    else:
        for page in _address_pages(found):
            out.print(page, soft_wrap=True)
    if found.is_empty:
        raise typer.Exit(Exit.NOT_FOUND)


def _address_pages(found: AddressExplanation) -> Iterator[RenderableType]:
    if found.suppressed is not None:
        yield f"[yellow]suppressed[/] since {moment(found.suppressed_at)}: {escape(found.suppressed)}"
    for each in found.messages:
        yield facts(_facts(str(each.id), each.explanation))
    for refused in found.refused:
        for problem in refused.problems:
            yield f"[red]refused at the door[/] on {moment(refused.at)}: {escape(problem.field)}, {problem.words}"
    if found.more:
        yield "[dim]and more: outtray message list --to ADDRESS[/]"


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
