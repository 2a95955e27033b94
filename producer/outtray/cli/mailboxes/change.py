"""`outtray mailbox set`, `reconnect`, `remove`: change one, or take it away."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from outtray import Outtray
from outtray.cli import secret
from outtray.cli.exits import Exit, UsageError
from outtray.cli.mailboxes.flags import (
    Aliases,
    AuthFlag,
    CaFile,
    ImapHost,
    ImapPasswordFile,
    ImapPin,
    ImapPort,
    ImapTls,
    ImapUsername,
    LimitFlags,
    Mailbox,
    OnUnknown,
    Pace,
    Pin,
    PlanName,
    Port,
    Reserve,
    SenderName,
    SentCopies,
    SentCopy,
    TlsFlag,
    Username,
    imap_password,
    imap_server,
    limits_of,
    mailbox_name,
)
from outtray.cli.mailboxes.group import group
from outtray.cli.mailboxes.show import limits_line, warn_beyond
from outtray.cli.options import AppName, Json, Yes, examples, flag
from outtray.cli.screen import MAILBOX_STATES, colored, count, done, hint, print_json
from outtray.cli.secret import FromFile, FromStdin
from outtray.cli.session import client
from outtray.cli.windows import Blackout, GapFlag, WindowFlag, times_facts, times_of
from outtray.mailboxes import Mailbox as MailboxView


@group.command(
    "set",
    epilog=examples(
        "outtray mailbox set ann@example.com --limit messages=800 --pace 20",
        "outtray mailbox set ann@example.com --plan workspace --reserve 100",
        'outtray mailbox set ann@example.com --window "mon-fri 09:00-17:30 Europe/Berlin" \\\n'
        "      --blackout 2026-12-24 --gap 30s-90s",
        "outtray mailbox set ann@example.com --on-unknown resend",
        "outtray mailbox set ann@example.com --imap-host imap.example.com --sent-copies provider",
        "outtray mailbox set ann@example.com --sent-copy never",
        "outtray mailbox set ann@example.com --pin AA:BB:…",
        "outtray mailbox set ann@example.com --password",
    ),
)
def change(
    name: Mailbox,
    plan: PlanName = None,
    limit: LimitFlags = None,
    reserve: Reserve = None,
    pace: Pace = None,
    sender: SenderName = None,
    alias: Aliases = None,
    on_unknown: OnUnknown = None,
    forget_learned: Annotated[
        bool, flag("--forget-learned", text="Drop the lower limits that the provider's refusals taught.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="NAME", help="Share this budget.", show_default=False)
    ] = None,
    leave_budget: Annotated[
        str | None, typer.Option("--leave-budget", metavar="NAME", help="Share it no more.", show_default=False)
    ] = None,
    imap_host: ImapHost = None,
    imap_port: ImapPort = None,
    imap_tls: ImapTls = None,
    imap_pin: ImapPin = None,
    sent_copies: SentCopies = None,
    sent_copy: SentCopy = None,
    ca_file: CaFile = None,
    pin: Pin = None,
    window: WindowFlag = None,
    blackout: Blackout = None,
    gap: GapFlag = None,
    default: Annotated[bool, flag("--default", text="Messages that name no mailbox leave from it.")] = False,
    password: Annotated[bool, flag("--password", text="Ask for a new password.")] = False,
    from_stdin: FromStdin = False,
    from_file: FromFile = None,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Change a mailbox's plan, limits or password.

    What is not named stays. A wait for a limit ends, and the next turn judges anew.
    """
    limits = limits_of(limit, reserve, pace)
    new_password = password or from_stdin or from_file is not None
    changes = plan or limits or sender is not None or alias or on_unknown or forget_learned or budget or leave_budget
    imap = imap_server(imap_host, imap_port, imap_tls, sent_copies, sent_copy, imap_pin)
    times = times_of(window, blackout, gap)
    if not (changes or default or new_password or imap or times or ca_file or pin):
        raise UsageError("nothing to change; see: outtray mailbox set --help")
    with client(app) as outtray:
        box = outtray.mailboxes.get(mailbox_name(name))
        if new_password:
            box = outtray.mailboxes.set_password(box.id, secret.read_password(from_stdin, from_file, "New password"))
        if default:
            box = outtray.mailboxes.set_default(box.id)
        if times:
            outtray.mailboxes.set_times(box.id, **times)
            box = outtray.mailboxes.get(box.id)
        if imap:
            box = outtray.mailboxes.set_imap(box.id, None if imap_host == "none" else imap)
        if ca_file or pin:
            box = outtray.mailboxes.set_trust(box.id, ca_file=ca_file, pin=pin)
        if changes:
            box = outtray.mailboxes.set(
                box.id, plan=plan, limits=limits, name=sender, aliases=alias, on_unknown=on_unknown,
                forget_learned=forget_learned, budget=budget, leave_budget=leave_budget,
            )  # fmt: skip
    if as_json:
        print_json(box)
        return
    done(f"Mailbox [bold]{escape(box.address)}[/] changed: {limits_line(box.limits)}.")
    for what, value in times_facts(box.times) if times else ():
        if value:
            hint(f"{what}: {value}")
    warn_beyond(box)


@group.command(
    "reconnect",
    epilog=examples(
        "outtray mailbox reconnect ann@example.com",
        "outtray mailbox reconnect ann@example.com --host smtp2.example.com",
    ),
)
def reconnect(
    name: Mailbox,
    username: Username = None,
    from_stdin: FromStdin = False,
    from_file: FromFile = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="NAME", help="Another server.", show_default=False)
    ] = None,
    port: Port = None,
    tls: TlsFlag = None,
    auth: AuthFlag = None,
    ca_file: CaFile = None,
    pin: Pin = None,
    imap_username: ImapUsername = None,
    imap_password_file: ImapPasswordFile = None,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Give a mailbox new credentials.

    For after a password was changed or revoked: its queue is kept and goes on at once.
    """
    with client(app) as outtray:
        box = outtray.mailboxes.get(mailbox_name(name))
        box = outtray.mailboxes.reconnect(
            box.id,
            password=secret.read_password(from_stdin, from_file, f"New password of {username or box.address}"),
            username=username,
            host=host,
            port=port,
            tls=tls,
            ca_file=ca_file,
            pin=pin,
            auth=auth,
            imap_username=imap_username,
            imap_password=imap_password(imap_password_file),
        )
    if as_json:
        print_json(box)
        return
    done(f"Mailbox [bold]{escape(box.address)}[/] is {colored(box.status, MAILBOX_STATES)} with its new credentials.")
    hint(f"try it: outtray mailbox test {box.address}")


@group.command(
    "remove",
    epilog=examples("outtray mailbox remove ann@example.com", "outtray mailbox remove ann@example.com --cancel"),
)
def remove(
    name: Mailbox,
    cancel: Annotated[bool, flag("--cancel", text="Cancel what still waits in it.")] = False,
    yes: Yes = False,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Take a mailbox away and erase its credentials.

    Refused while messages wait in it, unless --cancel.
    """
    with client(app) as outtray:
        box = outtray.mailboxes.get(mailbox_name(name))
        if not yes and not as_json and not typer.confirm(f"Remove {box.address} and erase its credentials?"):
            raise typer.Exit(Exit.REFUSED)
        cancelled = _remove(outtray, box, cancel)
    if as_json:
        print_json({"id": box.id, "removed": True, "cancelled": cancelled})
        return
    done(f"Mailbox {escape(box.address)} removed, {count(cancelled, 'message')} cancelled.")


def _remove(outtray: Outtray, box: MailboxView, cancel: bool) -> int:
    return outtray.mailboxes.remove(box.id, force=cancel)
