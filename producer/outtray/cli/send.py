"""`outtray send`: one message from flags, many from a file, or a template for each row of a list."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from outtray import Outtray
from outtray.cli.exits import Exit, UsageError
from outtray.cli.mailboxes import MailboxOption
from outtray.cli.options import AppName, Json, examples, flag
from outtray.cli.screen import STATES, colored, count, done, errors, hint, moment, out, plain, print_json
from outtray.cli.send_csv import CsvOrder, columns_of, send_csv, then_of
from outtray.cli.send_file import FileOrder, send_file
from outtray.cli.send_forms import given_flags, refuse_mixtures
from outtray.cli.send_mime import Eml, Invitation, UnsubscribeMailto, UnsubscribeUrl, mime_fields
from outtray.cli.session import database, ready_services
from outtray.cli.times import time_of
from outtray.enqueue import Accepted
from outtray.find import MessageView
from outtray.sent_ids import HAS_IDS
from outtray_schema.message import Message, parse_message
from outtray_schema.settings import Settings

EXAMPLES = examples(
    'echo "Hi Bob" | outtray send --to bob@example.org --subject Hello',
    'outtray send --to "Bob Lee <bob@example.org>" --subject Offer --html-file offer.html --attach offer.pdf',
    "outtray send --to bob@example.org --subject Later --text-file hi.txt --send-at +2h --wait 30",
    "outtray send --eml mail.eml --bcc dora@example.org",
    'echo "Yes, until Friday." | outtray send --reply-to-message 0199b0c2-… --answering reply_all',
    "outtray send --reply-to-message 0199b0c2-… --answering forward --to dora@example.org --draft",
    "outtray send --file spring.ndjson --idempotency-key spring",
    '  {"to": "bob@example.org", "subject": "Hello", "text": "Hi Bob", "tags": ["spring"]}',
    "outtray send --csv people.csv --template intro --then nudge --after 3d --then last --after 7d --tag spring",
)

_ADDRESSES, _BODY, _WHEN, _MANY = "Addresses", "Content", "When and how", "Many, from a file"
_LIST = "A template for each row of a list"

Several = list[str] | None
To = Annotated[
    Several, typer.Option("--to", metavar="ADDRESS", help="Several times for several.", rich_help_panel=_ADDRESSES)
]
Cc = Annotated[Several, typer.Option("--cc", metavar="ADDRESS", help="In copy.", rich_help_panel=_ADDRESSES)]
Bcc = Annotated[Several, typer.Option("--bcc", metavar="ADDRESS", help="In blind copy.", rich_help_panel=_ADDRESSES)]
ReplyTo = Annotated[
    Several, typer.Option("--reply-to", metavar="ADDRESS", help="Where answers go.", rich_help_panel=_ADDRESSES)
]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="ADDRESS", help="Default: the mailbox's own.", rich_help_panel=_ADDRESSES),
]
Subject = Annotated[str, typer.Option("--subject", metavar="TEXT", help="The subject.", rich_help_panel=_BODY)]
TextFile = Annotated[
    str | None,
    typer.Option(
        "--text-file", metavar="FILE", help="The text; - for standard input, the default.", rich_help_panel=_BODY
    ),
]
HtmlFile = Annotated[
    str | None, typer.Option("--html-file", metavar="FILE", help="The same as HTML.", rich_help_panel=_BODY)
]
Attach = Annotated[Several, typer.Option("--attach", metavar="FILE", help="An attachment.", rich_help_panel=_BODY)]
Inline = Annotated[
    Several,
    typer.Option("--inline", metavar="ID=FILE", help="An image that the HTML shows as cid:ID.", rich_help_panel=_BODY),
]
Headers = Annotated[
    Several, typer.Option("--header", metavar="NAME:VALUE", help="A header of your own.", rich_help_panel=_BODY)
]
InReplyTo = Annotated[
    str | None, typer.Option("--in-reply-to", metavar="MESSAGE-ID", help="What it answers.", rich_help_panel=_BODY)
]
References = Annotated[
    Several, typer.Option("--reference", metavar="MESSAGE-ID", help="Its thread, oldest first.", rich_help_panel=_BODY)
]
ReplyToMessage = Annotated[
    str | None,
    typer.Option(
        "--reply-to-message", metavar="ID", rich_help_panel=_BODY,
        help="The message that it answers: its id, or in the mailbox its provider's id or <Message-ID>.",
    ),
]  # fmt: skip
AnsweringOption = Annotated[
    Literal["reply", "reply_all", "forward"],
    typer.Option("--answering", help="How. A forward's comment comes by --text-file.", rich_help_panel=_BODY),
]
Importance = Annotated[
    Literal["high", "normal", "low"],
    typer.Option("--importance", help="As recipients see it.", rich_help_panel=_BODY),
]
Recipients = Annotated[
    Literal["all", "accepted"],
    typer.Option(
        "--recipients",
        help="By SMTP, if its server refuses some: nobody receives it (all), or the others do (accepted).",
        rich_help_panel=_BODY,
    ),
]
ReadReceipt = Annotated[
    bool, flag("--request-read-receipt", text="Ask recipients' programs to tell once it was read.", panel=_BODY)
]
AsDraft = Annotated[bool, flag("--draft", text="Leave it as a draft in the mailbox, for its person.", panel=_WHEN)]
Tags = Annotated[
    Several, typer.Option("--tag", metavar="TAG", help="To find, pause or cancel it by.", rich_help_panel=_WHEN)
]
Metadata = Annotated[
    str | None,
    typer.Option("--metadata", metavar="JSON", help="Your own ids: '{\"contact\": 7}'.", rich_help_panel=_WHEN),
]
Priority = Annotated[
    Literal["high", "normal", "low"], typer.Option("--priority", help="In its mailbox.", rich_help_panel=_WHEN)
]
SendAt = Annotated[
    str | None,
    typer.Option("--send-at", metavar="TIME", help="Not before: +2h, or with a zone.", rich_help_panel=_WHEN),
]
ExpiresAt = Annotated[
    str | None, typer.Option("--expires-at", metavar="TIME", help="Not after.", rich_help_panel=_WHEN)
]
GiveUp = Annotated[
    str | None,
    typer.Option(
        "--give-up-after", metavar="24h", help="How long its failures are tried again.", rich_help_panel=_WHEN
    ),
]
OnUnknown = Annotated[
    Literal["hold", "resend"] | None,
    typer.Option("--on-unknown", help="If nobody can tell whether it left.", rich_help_panel=_WHEN),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--idempotency-key", metavar="KEY", help="The same again stores nothing twice; a file's rows get KEY:LINE.",
        rich_help_panel=_WHEN,
    ),
]  # fmt: skip
Csv = Annotated[
    str | None,
    typer.Option("--csv", metavar="FILE", help="The list, with a header; - for stdin.", rich_help_panel=_LIST),
]
Template = Annotated[
    str | None, typer.Option("--template", metavar="NAME", help="What each row receives.", rich_help_panel=_LIST)
]
Then = Annotated[
    Several, typer.Option("--then", metavar="NAME", help="What follows it, each with --after.", rich_help_panel=_LIST)
]
After = Annotated[
    Several,
    typer.Option("--after", metavar="3d", help="How long after the one before it has left.", rich_help_panel=_LIST),
]
Column = Annotated[
    Several,
    typer.Option(
        "--column", metavar="VARIABLE=COLUMN", help="Where the list's name differs: to=Email.", rich_help_panel=_LIST
    ),
]
Wait = Annotated[
    float | None,
    typer.Option("--wait", metavar="SECONDS", help="Wait until it left; exit 1 if not.", rich_help_panel=_WHEN),
]
DryRun = Annotated[bool, flag("--dry-run", text="Judge everything as if for real, store nothing.", panel=_WHEN)]
File = Annotated[
    str | None,
    typer.Option("--file", metavar="FILE", help="One JSON object a line; - for stdin.", rich_help_panel=_MANY),
]
KeepGoing = Annotated[bool, flag("--keep-going", text="Take the good rows. Default: all or none.", panel=_MANY)]
RefusedFile = Annotated[
    Path | None, typer.Option("--refused", metavar="FILE", help="Where the bad rows go.", rich_help_panel=_MANY)
]


def send(
    context: typer.Context,
    to: To = None,
    cc: Cc = None,
    bcc: Bcc = None,
    reply_to: ReplyTo = None,
    sender: From = None,
    mailbox: MailboxOption = None,
    subject: Subject = "",
    text_file: TextFile = None,
    html_file: HtmlFile = None,
    attach: Attach = None,
    inline: Inline = None,
    eml: Eml = None,
    invitation: Invitation = None,
    unsubscribe_url: UnsubscribeUrl = None,
    unsubscribe_mailto: UnsubscribeMailto = None,
    header: Headers = None,
    in_reply_to: InReplyTo = None,
    reference: References = None,
    reply_to_message: ReplyToMessage = None,
    answering: AnsweringOption = "reply",
    importance: Importance = "normal",
    request_read_receipt: ReadReceipt = False,
    recipients: Recipients = "all",
    draft: AsDraft = False,
    tag: Tags = None,
    metadata: Metadata = None,
    priority: Priority = "normal",
    send_at: SendAt = None,
    expires_at: ExpiresAt = None,
    give_up_after: GiveUp = None,
    on_unknown: OnUnknown = None,
    key: Key = None,
    wait: Wait = None,
    dry_run: DryRun = False,
    csv: Csv = None,
    template: Template = None,
    then: Then = None,
    after: After = None,
    column: Column = None,
    file: File = None,
    keep_going: KeepGoing = False,
    refused: RefusedFile = None,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Accept a message, a file, or a template for a list, durably.

    From then on a worker delivers it from its mailbox: never lost, never doubled, never over a limit.
    Flags can be seen in the machine's process list: what is confidential goes into --file.
    """
    refuse_mixtures(given_flags(context))
    if file is not None:
        send_file(FileOrder(file, key, mailbox, dry_run, keep_going, refused), app, as_json)
        return
    has_more = bool(attach or inline or invitation) or answering == "forward"
    fields: dict[str, Any] = {
        "to": to,
        "cc": cc,
        "bcc": bcc,
        "reply_to": reply_to,
        "from": sender,
        **mime_fields(eml, invitation, unsubscribe_url, unsubscribe_mailto),
        **({} if csv is not None or eml is not None else _bodies(text_file, html_file, has_more)),
        "subject": subject,
        "mailbox": mailbox,
        "attachments": _attachments(attach, inline),
        "headers": _headers(header),
        "in_reply_to": in_reply_to,
        "references": reference,
        "reply_to_message": reply_to_message,
        "answering": answering,
        "importance": importance,
        "request_read_receipt": request_read_receipt,
        "recipients": recipients,
        "mode": "draft" if draft else "send",
        "tags": tag,
        "metadata": _metadata(metadata),
        "priority": priority,
        "send_at": time_of(send_at, "--send-at") if send_at else None,
        "expires_at": time_of(expires_at, "--expires-at") if expires_at else None,
        "give_up_after": give_up_after,
        "on_unknown": on_unknown,
        "idempotency_key": key,
    }
    if csv is not None and template is not None:
        common = {name: value for name, value in fields.items() if value not in (None, "", [], {})}
        common.pop("idempotency_key", None)  # each row has one of its own, made from it
        what = CsvOrder(template, then_of(then or (), after or ()), columns_of(column or ()), common)
        send_csv(FileOrder(csv, key, mailbox, dry_run, keep_going, refused), what, app, as_json)
        return
    message = parse_message({name: value for name, value in fields.items() if value is not None}, paths=True)
    with ready_services() as settings, Outtray(settings, app=app) as outtray:
        if dry_run:
            _try(settings, outtray, message, as_json)
        else:
            _enqueue(outtray, message, wait, as_json)


# ── what is sent ────────────────────────────────────────────────────────────────────────────────────────────────────


def _bodies(text_file: str | None, html_file: str | None, has_more: bool) -> dict[str, str]:
    """The bodies that the flags name. Without any, the text comes from standard input, as other mail commands do."""
    if text_file is None and html_file is None and not has_more:
        text_file = "-"
    if text_file == html_file == "-":
        raise UsageError("standard input can be the text or the HTML, not both")
    named = {"text": text_file, "html": html_file}
    return {name: _read(name, source) for name, source in named.items() if source is not None}


def _read(name: str, source: str) -> str:
    try:
        if source != "-":
            return Path(source).read_text(encoding="utf-8")
        if sys.stdin.isatty():
            errors.print("[dim]Type the text; end with Ctrl-D on a line of its own.[/]")
        text = sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UsageError(f"--{name}-file: {source} cannot be read: {why}") from None
    if not text:
        raise UsageError(f"standard input is empty; pipe the {name} in, or use --{name}-file FILE")
    return text


def _attachments(attach: Several, inline: Several) -> list[dict[str, str]]:
    found = [{"path": path} for path in attach or ()]
    for text in inline or ():
        inline_id, equals, path = text.partition("=")
        if not equals:
            raise UsageError(f"--inline {text}: write ID=FILE, e.g. logo=logo.png")
        found.append({"path": path, "inline_id": inline_id})
    return found


def _headers(flags: Several) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in flags or ():
        name, colon, value = text.partition(":")
        if not colon or name in found:
            raise UsageError(f"--header {text}: write NAME:VALUE, each name once, e.g. X-Campaign:spring")
        found[name] = value.strip()
    return found


def _metadata(text: str | None) -> Mapping[str, Any] | None:
    if text is None:
        return None
    try:
        value: Any = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UsageError("""--metadata: write a JSON object, e.g. '{"contact": 7}'""")
    return value


# ── what became of it ───────────────────────────────────────────────────────────────────────────────────────────────


def _try(settings: Settings, outtray: Outtray, message: Message, as_json: bool) -> None:
    """Enqueue for real, in a transaction that is rolled back: the whole door, database included, and nothing stays."""
    with database(settings) as connection, connection.transaction(force_rollback=True):
        accepted = outtray.enqueue(message, connection=connection)
    if as_json:
        print_json({"dry_run": True, "state": accepted.state, "due_at": accepted.due_at, "created": accepted.created})
        return
    whom = count(len(message.recipients), "recipient") if message.recipients else "those whom it answers"
    done(f"It would be accepted for {whom}. Nothing was stored.")


def _enqueue(outtray: Outtray, message: Message, wait: float | None, as_json: bool) -> None:
    accepted = outtray.enqueue(message)
    if wait is not None:
        _show_end(_wait(outtray, accepted, wait), as_json)
    elif as_json:
        print_json(accepted)
    else:
        _show_accepted(accepted)


def _show_accepted(accepted: Accepted) -> None:
    if not accepted.created:
        done(f"It stood there already under this idempotency key: {colored(accepted.state, STATES)}")
    elif accepted.due_at and accepted.due_at > datetime.now(UTC):
        done(f"Accepted; due {moment(accepted.due_at)}")
    else:
        done("Accepted; it leaves as soon as its mailbox may send")
    out.print(f"  {accepted.id}")
    hint(f"follow it: outtray message show {accepted.id}")


def _wait(outtray: Outtray, accepted: Accepted, seconds: float) -> MessageView:
    with errors.status("waiting until it has left …"):
        try:
            return outtray.wait(accepted.id, seconds)
        except TimeoutError:
            return outtray.get(accepted.id)


def _show_end(message: MessageView, as_json: bool) -> None:
    if as_json:
        print_json(plain(message))
    else:
        reason = f": {message.reason}" if message.reason else ""
        out.print(f"{message.id}  {colored(message.state, STATES)}", end="")
        out.print(reason, markup=False, soft_wrap=True)
        if message.state not in HAS_IDS:
            hint(f"why: outtray explain {message.id}")
    if message.state not in HAS_IDS:
        raise typer.Exit(Exit.REFUSED)
