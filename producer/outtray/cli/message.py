"""`outtray message`: which messages there are, and all that is known of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from outtray.cli import options
from outtray.cli.exits import UsageError
from outtray.cli.mailboxes import MailboxOption, mailbox_name
from outtray.cli.options import AppName, Json, examples
from outtray.cli.screen import STATES, colored, facts, hint, moment, out, plain, print_json, relative, size, table
from outtray.cli.session import client
from outtray.find import JournalEntry, MessageView, Page

group = options.group("Messages: list them, show one.")

WIDE = 100
"""Columns from which a list shows subjects too."""

MessageId = Annotated[str, typer.Argument(metavar="ID", help="The message's id.")]


def message_id(text: str) -> UUID:
    """A message's id. Raises `UsageError`."""
    try:
        return UUID(text)
    except ValueError:
        raise UsageError(f"{text!r} is no message id; `outtray message list` shows them") from None


@group.command(
    "list",
    epilog=examples(
        "outtray message list --state unknown",
        "outtray message list --mailbox ann@example.com --limit 10",
        "outtray message list --to bob@example.org --json",
        "outtray message list --message-id '<CAF=x1@mail.gmail.com>'",
    ),
)
def list_messages(
    mailbox: MailboxOption = None,
    state: Annotated[str | None, typer.Option("--state", metavar="STATE", help=f"One of {', '.join(STATES)}.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", metavar="TAG", help="Only with this tag.")] = None,
    rfc_message_id: Annotated[
        str | None, typer.Option("--message-id", metavar="<ID>", help="By the Message-ID that recipients see, or ours.")
    ] = None,
    provider_id: Annotated[
        str | None, typer.Option("--provider-id", metavar="ID", help="By its provider's id.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="ADDRESS", help="Only to this address.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=500, help="How many.")] = 20,
    cursor: Annotated[str | None, typer.Option("--cursor", metavar="CURSOR", help="Go on after a page.")] = None,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """List messages, newest first."""
    with client(app) as outtray:
        page = outtray.list(
            mailbox=mailbox_name(mailbox),
            state=state,
            tag=tag,
            recipient=to,
            limit=limit,
            cursor=cursor,
            provider_id=provider_id,
            rfc_message_id=rfc_message_id,
        )
    if as_json:
        print_json(page)
        return
    _show_page(page)


def _show_page(page: Page[MessageView]) -> None:
    # An id is there to be copied: in a narrow terminal the subject goes, not half of the id.
    columns = ("id", "state", "when", "to", "subject") if out.width >= WIDE else ("id", "state", "when", "to")
    shown = table(*columns)
    for column in shown.columns[:3]:
        column.no_wrap = True
    for each in page.items:
        shown.add_row(*_cells(each)[: len(columns)])
    out.print(shown if page.items else "No messages.")
    if page.next_cursor:
        hint(f"more: --cursor {page.next_cursor}")


def _cells(message: MessageView) -> tuple[RenderableType, ...]:
    when = message.ended_at or message.handed_at or message.due_at
    since = relative(when, datetime.now(UTC)) if when else ""
    return str(message.id), colored(message.state, STATES), since, _cut(_first(message)), _cut(message.subject)


def _cut(text: str) -> Text:
    """On one line, whatever room there is."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def _first(message: MessageView) -> str:
    addresses = [each.address for each in message.recipients]
    more = f" +{len(addresses) - 1}" if len(addresses) > 1 else ""
    return addresses[0] + more if addresses else ""


@group.command("show", epilog=examples("outtray message show 0199b0c2-…", "outtray message show 0199b0c2-… --json"))
def show(name: MessageId, app: AppName = None, as_json: Json = False) -> None:
    """Show one message: ids, times, journal."""
    with client(app) as outtray:
        found = outtray.get(message_id(name))
        journal = outtray.journal(found.id)
    if as_json:
        print_json({**plain(found), "journal": plain(journal)})
        return
    out.print(message_page(found, journal))


def message_page(message: MessageView, journal: Sequence[JournalEntry]) -> Group:
    """All that is known of a message, for a terminal."""
    return Group(facts(_facts(message)), "", journal_page(journal))


def _facts(message: MessageView) -> Iterator[tuple[str, str]]:
    now = datetime.now(UTC)
    yield "message", f"[bold]{message.id}[/]"
    yield "state", _state(message)
    yield "subject", escape(message.subject)
    yield "from", escape(message.sender.email) if message.sender else ""
    for role in ("to", "cc", "bcc"):
        yield role, escape(", ".join(each.address for each in message.recipients if each.role == role))
    yield "mailbox", str(message.mailbox_id)
    yield "tags", escape(", ".join(message.tags))
    yield "metadata", escape(" ".join(_pairs(message.metadata)))
    yield "priority", message.priority if message.priority != "normal" else ""
    yield "mode", "draft: left in the mailbox for its person" if message.mode == "draft" else ""
    yield "size", size(message.size)
    yield from _times(message, now)
    yield "handovers", _handovers(message)
    yield "Message-ID", _id(message, "rfc_message_id")
    yield "provider's id", _id(message, "provider_id")
    yield "conversation", _id(message, "conversation_id")
    yield "evidence", escape(" ".join(_pairs(message.evidence)))


def _id(message: MessageView, name: str) -> str:
    """An id, or why there is none."""
    value, why = getattr(message, name), message.missing_ids.get(name)
    return escape(value) if value else f"[dim]none: {escape(why)}[/]" if why else ""


def _handovers(message: MessageView) -> str:
    """A handover given back (a throttled mailbox, one that never began) is no attempt of the message."""
    if not message.handover:
        return ""
    return f"{message.handover}" + (
        f", {message.attempt} of them attempts" if message.attempt != message.handover else ""
    )


def _state(message: MessageView) -> str:
    reason = f": {escape(message.reason)}" if message.reason else ""
    notes = (
        "\n[yellow]may have left already[/]: an earlier handover has no known outcome" if message.may_have_left else ""
    )
    return f"{colored(message.state, STATES)}{reason}{notes}"


def _times(message: MessageView, now: datetime) -> Iterator[tuple[str, str]]:
    ended = message.ended_at is not None
    yield "enqueued", moment(message.created_at, now)
    yield "template", escape(message.template or "")
    yield "follows", str(message.follows or "")
    waits = message.follows is not None and message.due_at is None
    yield "due", "" if ended else "after the message that it follows" if waits else moment(message.due_at, now)
    yield "handed over", moment(message.handed_at, now)
    yield "answer until", moment(message.handover_until, now) if message.state == "handing_over" else ""
    yield message.state if ended else "ended", moment(message.ended_at, now)
    yield "expires", "" if ended else moment(message.expires_at, now)
    yield "cancel asked", moment(message.cancel_asked_at, now)


def journal_page(journal: Sequence[JournalEntry]) -> Any:
    """A history, one entry a line."""
    page = table("journal", "#no.", "what", "by", "detail")
    page.columns[4].overflow = "fold"
    page.columns[0].no_wrap = page.columns[2].no_wrap = True
    for entry in journal:
        at = entry.at.astimezone().strftime("%m-%d %H:%M:%S")
        detail = " ".join(_pairs(_told(entry)))
        page.add_row(at, str(entry.handover or ""), escape(entry.kind), escape(entry.actor or ""), escape(detail))
    return page


def _told(entry: JournalEntry) -> dict[str, Any]:
    """What an entry adds to its kind: its evidence laid open, its state only where the kind does not say it."""
    evidence = entry.detail.get("evidence")
    detail = {name: value for name, value in entry.detail.items() if (name, value) != ("state", entry.kind)}
    return detail if not isinstance(evidence, Mapping) else {**detail, "evidence": None, **evidence}


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    """A mapping on one line: `code=250 text="queued as 4f"`; what is empty is left out."""
    for name, value in values.items():
        if value is None or value in ("", {}, []):
            continue
        if isinstance(value, Mapping):
            yield from (f"{name}.{pair}" for pair in _pairs(value))
        else:
            text = str(plain(value))
            yield f'{name}="{text}"' if " " in text else f"{name}={text}"
