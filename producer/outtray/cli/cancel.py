"""`outtray cancel` and `outtray reschedule`: what may still be changed about a message that waits."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer
from rich.markup import escape

from outtray import Outtray
from outtray.cancel import CancelCounts, CancelResult
from outtray.cli.exits import Exit, UsageError
from outtray.cli.mailboxes import MailboxOption, mailbox_name
from outtray.cli.message import MessageId, message_id
from outtray.cli.options import AppName, Json, examples
from outtray.cli.screen import count, done, moment, out, print_json
from outtray.cli.session import client
from outtray.cli.times import time_of

CANCEL_EXAMPLES = examples(
    "outtray cancel 0199b0c2-…",
    "outtray cancel --tag spring",
    "outtray cancel --mailbox ann@example.com --to bob@example.org",
)
RESCHEDULE_EXAMPLES = examples(
    "outtray reschedule 0199b0c2-… now", "outtray reschedule 0199b0c2-… 2027-01-31T09:00:00+01:00"
)

_ANSWERS = {
    "cancelled": "[green]✓[/] Cancelled: it can no longer leave.",
    "handing_over": "[yellow]![/] It is with the provider right now and may leave. If it comes back, it is cancelled.",
    "may_have_left": "[yellow]![/] It will not be handed over again, but an earlier handover may have left.",
    "sent": "[red]✗[/] Too late: it was sent before.",
    "drafted": "[red]✗[/] Too late: it is a draft in the mailbox, for its person to send or delete.",
    "failed": "[dim]It had failed before; there is nothing to cancel.[/]",
    "expired": "[dim]It had expired before; there is nothing to cancel.[/]",
}

OneOrNone = Annotated[str | None, typer.Argument(metavar="[ID]", help="The message's id.", show_default=False)]


def cancel(
    name: OneOrNone = None,
    tag: Annotated[str | None, typer.Option("--tag", metavar="TAG", help="All that waits with this tag.")] = None,
    mailbox: MailboxOption = None,
    to: Annotated[str | None, typer.Option("--to", metavar="ADDRESS", help="All that waits for this address.")] = None,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Cancel one message, or all that fits every flag.

    The answer is true: cancelled means that it can no longer leave. Exit 5 if it may have left, or had ended before.
    """
    filtered = any((tag, mailbox, to))
    if (name is None) != filtered:
        raise UsageError("give a message's id, or at least one of --tag, --mailbox and --to")
    with client(app) as outtray:
        if name is not None:
            _cancel_one(outtray, message_id(name), as_json)
        else:
            _show_counts(outtray.cancel_where(mailbox=mailbox_name(mailbox), tag=tag, to=to), as_json)


def _cancel_one(outtray: Outtray, id_: UUID, as_json: bool) -> None:
    result: CancelResult = outtray.cancel(id_)
    if as_json:
        print_json(result)
    else:
        out.print(_ANSWERS[result.answer], soft_wrap=True)
    if result.answer != "cancelled":
        raise typer.Exit(Exit.WRONG_STATE)


def _show_counts(counts: CancelCounts, as_json: bool) -> None:
    if as_json:
        print_json(counts)
    else:
        done(f"{count(counts.cancelled, 'message')} cancelled: they can no longer leave.")
        for number, text in (
            (counts.handing_over, "with the provider right now: may leave; cancelled if they come back"),
            (counts.may_have_left, "will not be handed over again, but may have left before"),
            (counts.ended, "had just ended"),
            (counts.already_sent, "had been sent before"),
        ):
            if number:
                out.print(f"  {number:,} {text}", soft_wrap=True)
    if counts.handing_over or counts.may_have_left:
        raise typer.Exit(Exit.WRONG_STATE)


def reschedule(
    name: MessageId,
    when: Annotated[str, typer.Argument(metavar="WHEN", help="now, +2h, or a time with its zone.")],
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Let a queued message leave at another time, not before."""
    with client(app) as outtray:
        due_at = outtray.reschedule(message_id(name), time_of(when, "WHEN"))
    if as_json:
        print_json({"id": name, "due_at": due_at})
        return
    done(f"Message {escape(name)} is due {moment(due_at)}.")
