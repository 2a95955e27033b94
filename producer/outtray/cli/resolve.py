"""`outtray resolve`: a person's decision about messages of which nobody can tell whether they left."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

import typer
from rich.markup import escape

from outtray import Outtray
from outtray.cli.cancel import OneOrNone
from outtray.cli.exits import Exit, UsageError
from outtray.cli.mailboxes import MailboxOption, mailbox_name
from outtray.cli.message import message_id
from outtray.cli.options import AppName, Json, Yes, examples, flag
from outtray.cli.screen import STATES, colored, count, done, hint, out, plain, print_json, relative, table, warn
from outtray.cli.session import client
from outtray.evidence import FINDINGS, lines
from outtray.resolve import Resolved, UnknownView
from outtray_schema.settings import parse_duration

EXAMPLES = examples(
    'outtray resolve 0199b0c2-… --sent --note "found in the Sent folder"',
    'outtray resolve 0199b0c2-… --resend --note "recipient says it never came"',
    "outtray resolve --mailbox ann@example.com --older-than 2d --fail --dry-run",
)

SHOWN = 20
"""Messages of a filter that are shown before it is asked."""

Sent = Annotated[bool, flag("--sent", text="It left: found in the Sent folder, or the recipient has it.")]
Resend = Annotated[bool, flag("--resend", text="Send it again, at the risk that it arrives twice.")]
Fail = Annotated[bool, flag("--fail", text="Give it up, whether it left or not.")]
Note = Annotated[str, typer.Option("--note", metavar="TEXT", help="Why, for the journal.")]
Tag = Annotated[str | None, typer.Option("--tag", metavar="TAG", help="All that are unknown with this tag.")]
OlderThan = Annotated[
    str | None, typer.Option("--older-than", metavar="TIME", help="All that are unknown for longer, e.g. 2h or 3d.")
]
DryRun = Annotated[bool, flag("--dry-run", text="Show what was looked for, and decide nothing.")]
Decision = Literal["sent", "resend", "fail"]


def resolve(
    name: OneOrNone = None,
    sent: Sent = False,
    resend: Resend = False,
    fail: Fail = False,
    mailbox: MailboxOption = None,
    tag: Tag = None,
    older_than: OlderThan = None,
    note: Note = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Decide about an unknown message, or about all that fit every flag.

    What was looked for is shown first. The decision, who took it, when and why are kept in each message's journal.
    """
    filters: dict[str, Any] = {"mailbox": mailbox_name(mailbox), "tag": tag, "older_than": _age(older_than)}
    if (name is None) != any(value is not None for value in filters.values()):
        raise UsageError("give a message's id, or at least one of --mailbox, --tag and --older-than")
    decision = _decision(sent, resend, fail, dry_run)
    with client(app) as outtray:
        if name is not None:
            _resolve_one(outtray, message_id(name), decision, note, dry_run, as_json)
        else:
            _resolve_many(outtray, filters, decision, note, dry_run, yes, as_json)


def _age(text: str | None) -> timedelta | None:
    try:
        return None if text is None else timedelta() + parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--older-than: {error}") from None


def _decision(sent: bool, resend: bool, fail: bool, dry_run: bool) -> Decision | None:
    chosen: list[Decision] = []
    chosen += ["sent"] if sent else []
    chosen += ["resend"] if resend else []
    chosen += ["fail"] if fail else []
    if len(chosen) > 1 or (not chosen and not dry_run):
        raise UsageError("give exactly one of --sent, --resend and --fail")
    return chosen[0] if chosen else None


# ── one ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _resolve_one(
    outtray: Outtray, id_: UUID, decision: Decision | None, note: str, dry_run: bool, as_json: bool
) -> None:
    evidence = outtray.evidence(id_)
    if not as_json:
        for line in lines(evidence):
            out.print(f"  [dim]{escape(line)}[/]", soft_wrap=True)
    if dry_run or decision is None:
        if as_json:
            print_json({"id": id_, "evidence": evidence, "dry_run": True})
        return
    message = outtray.resolve(id_, decision, note)
    if as_json:
        print_json({**plain(message), "looked_for": plain(evidence)})
        return
    done(f"Message {id_} is {colored(message.state, STATES)} by your decision.")


# ── many ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _resolve_many(
    outtray: Outtray,
    filters: dict[str, Any],
    decision: Decision | None,
    note: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    found = outtray.unknown(**filters, limit=SHOWN + 1)
    if dry_run or decision is None:
        print_json({"items": found[:SHOWN], "more": len(found) > SHOWN, "dry_run": True}) if as_json else _show(found)
        return
    if not yes and not as_json:
        _show(found)
        if not found or not typer.confirm(f"Decide {decision!r} for all of them?"):
            raise typer.Exit(Exit.REFUSED if found else Exit.OK)
    _tell(outtray.resolve_where(decision, **filters, note=note), as_json)


def _show(found: list[UnknownView]) -> None:
    page = table("unknown", "since", "looked for", "showed")
    page.columns[0].no_wrap = page.columns[1].no_wrap = True
    now = datetime.now(UTC)
    for each in found[:SHOWN]:
        seen = each.evidence
        showed = FINDINGS.get(seen.finding, seen.finding) if seen.finding else "not looked for yet"
        where = f" ({seen.looked})" if seen.looked else ""
        page.add_row(str(each.id), relative(each.handed_at, now), f"{seen.looks} times", escape(showed + where))
    out.print(page if found else "No unknown messages fit.")
    if len(found) > SHOWN:
        hint("and more")


def _tell(result: Resolved, as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        done(f"{count(result.resolved, 'message')} decided.")
        if result.moved_on:
            out.print(f"  {result.moved_on:,} had moved on meanwhile", soft_wrap=True)
        for reason, number in result.refused.items():
            warn(f"{count(number, 'message')} left as they are: {reason}")
    if result.refused:
        raise typer.Exit(Exit.WRONG_STATE)
