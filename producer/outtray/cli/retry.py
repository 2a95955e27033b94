"""`outtray retry`: put back into the queue what has failed."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from outtray.cli.cancel import OneOrNone
from outtray.cli.exits import Exit, UsageError
from outtray.cli.mailboxes import MailboxOption, mailbox_name
from outtray.cli.message import message_id
from outtray.cli.options import AppName, Json, Yes, examples, flag
from outtray.cli.screen import count, done, out, print_json
from outtray.cli.session import client
from outtray.retry import WHY, Retried

EXAMPLES = examples(
    "outtray retry 0199b0c2-…", "outtray retry --tag spring --dry-run", 'outtray retry --reason "mailbox full" --yes'
)


def retry(
    name: OneOrNone = None,
    tag: Annotated[str | None, typer.Option("--tag", metavar="TAG", help="All that failed with this tag.")] = None,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="All that failed for a reason with this text in it.")
    ] = None,
    mailbox: MailboxOption = None,
    dry_run: Annotated[bool, flag("--dry-run", text="Count only.")] = False,
    yes: Yes = False,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Send again what failed: one message, or all that fit every flag.

    Only what failed, and never what may have left. Their attempts begin anew.
    """
    filtered = any((tag, reason, mailbox))
    if (name is None) != filtered:
        raise UsageError("give a message's id, or at least one of --tag, --reason and --mailbox")
    with client(app) as outtray:
        if name is not None:
            outtray.retry_one(message_id(name))
            _show(Retried(1), as_json, False)
            return
        box = mailbox_name(mailbox)
        if not dry_run and not yes and not as_json:
            _ask(outtray.retry_where(tag, reason, box, dry_run=True))
        _show(outtray.retry_where(tag, reason, box, dry_run=dry_run), as_json, dry_run)


def _ask(would: Retried) -> None:
    _left(would)
    if not typer.confirm(f"Send {count(would.retried, 'failed message')} again?"):
        raise typer.Exit(Exit.REFUSED)


def _show(found: Retried, as_json: bool, dry_run: bool) -> None:
    if as_json:
        print_json(found)
        return
    messages = count(found.retried, "failed message")
    if dry_run:
        out.print(f"{messages} would go again.")
    else:
        done(f"{messages} queued again.")
    _left(found)


def _left(found: Retried) -> None:
    for why, number in found.left.items():
        out.print(f"  {number:,} left as they are: {escape(WHY[why])}", soft_wrap=True)
