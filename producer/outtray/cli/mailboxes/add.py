"""`outtray mailbox add smtp`: connect a mailbox by its password."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from outtray.cli import secret
from outtray.cli.exits import UsageError
from outtray.cli.mailboxes.flags import (
    Aliases,
    AuthFlag,
    CaFile,
    Host,
    ImapHost,
    ImapPasswordFile,
    ImapPin,
    ImapPort,
    ImapTls,
    ImapUsername,
    LimitFlags,
    Pace,
    Pin,
    PlanName,
    Port,
    Preset,
    Reserve,
    SenderName,
    SentCopies,
    SentCopy,
    Tls,
    TlsFlag,
    Username,
    imap_password,
    imap_server,
    limits_of,
)
from outtray.cli.mailboxes.group import adding
from outtray.cli.mailboxes.show import limits_line, warn_beyond
from outtray.cli.options import AppName, Json, examples, flag
from outtray.cli.screen import done, hint, print_json
from outtray.cli.secret import FromFile, FromStdin
from outtray.cli.session import client
from outtray.mailboxes import Mailbox as MailboxView
from outtray_schema.address import parse_address
from outtray_schema.errors import InvalidMailbox, Problem
from outtray_schema.hosts import MailHost, by_address, by_name


@adding.command(
    "smtp",
    epilog=examples(
        "outtray mailbox add smtp ann@fastmail.com",
        "outtray mailbox add smtp ann@example.com --host smtp.example.com",
        "outtray mailbox add smtp ann@example.com --host smtp.example.com --port 465 \\\n"
        "      --limit messages=300 --pace 10",
        "pass ann | outtray mailbox add smtp ann@example.com --host smtp.example.com --password-stdin",
    ),
)
def add_smtp(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="The mailbox's address.")],
    host: Host = None,
    preset: Preset = None,
    port: Port = None,
    tls: TlsFlag = None,
    username: Username = None,
    from_stdin: FromStdin = False,
    from_file: FromFile = None,
    name: SenderName = None,
    alias: Aliases = None,
    plan: PlanName = None,
    limit: LimitFlags = None,
    reserve: Reserve = None,
    pace: Pace = None,
    auth: AuthFlag = None,
    ca_file: CaFile = None,
    pin: Pin = None,
    imap_host: ImapHost = None,
    imap_port: ImapPort = None,
    imap_tls: ImapTls = None,
    imap_pin: ImapPin = None,
    sent_copies: SentCopies = None,
    sent_copy: SentCopy = None,
    imap_username: ImapUsername = None,
    imap_password_file: ImapPasswordFile = None,
    default: Annotated[
        bool, flag("--default", text="Messages that name no mailbox leave from it. The first one is.")
    ] = False,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Connect a mailbox that sends by SMTP.

    It asks for the password, on the terminal or by the flags below. Nothing is sent. Well-known hosts are found by the
    address (`outtray mailbox hosts`).
    """
    known = _known(address, host, preset)
    imap = imap_server(imap_host, imap_port, imap_tls, sent_copies, sent_copy, imap_pin)
    if imap and imap_host is None and (known is None or known.imap is None):
        raise UsageError("name the server to look at, too: --imap-host")
    if imap and imap_host is None and known is not None:
        imap = {**(known.imap or {}), **imap}
    at = host or (known.smtp["host"] if known else "")
    with client(app) as outtray:
        first = not any(each.is_default for each in outtray.mailboxes.list())
        if known and known.note and not as_json:
            hint(f"{known.name} wants as its password {known.note}")
        added = outtray.mailboxes.add_smtp(
            address,
            **_server(host, port, tls),
            preset=preset,
            username=username,
            password=secret.read_password(from_stdin, from_file, f"Password of {username or address} at {at}"),
            name=name,
            aliases=alias or (),
            plan=plan,
            limits=limits_of(limit, reserve, pace),
            ca_file=ca_file,
            pin=pin,
            auth=auth or "auto",
            imap="none" if imap_host == "none" else imap or None,
            imap_username=imap_username,
            imap_password=imap_password(imap_password_file),
            default=default or first,
        )
    _show_added(added, known, as_json)


def _known(address: str, host: str | None, preset: str | None) -> MailHost | None:
    """The well-known host, unless another is named: before anybody is asked for a password. Raises `InvalidMailbox`."""
    if host is not None and preset is not None:
        raise UsageError("name the server by --host, or who it belongs to by --preset, not both")
    if host is not None:
        return None
    found = by_name(preset) if preset else by_address(parse_address(address).email)
    if found.refuses_passwords:
        raise InvalidMailbox(Problem("password", found.refuses_passwords))
    return found


def _server(host: str | None, port: int | None, tls: Tls | None) -> dict[str, Any]:
    """The two usual ports imply how TLS begins (RFC 8314 3.3: 465 implicit, 587 STARTTLS)."""
    if host is None and port is None and tls is None:
        return {}
    chosen = tls or ("implicit" if port == 465 else "starttls")
    return {"host": host, "tls": chosen, "port": port or (465 if chosen == "implicit" else 587)}


def _show_added(added: MailboxView, known: MailHost | None, as_json: bool) -> None:
    if as_json:
        print_json(added)
        return
    done(f"Mailbox [bold]{escape(added.address)}[/] added, {limits_line(added.limits)}.")
    warn_beyond(added)
    if known is not None:
        server, imap = added.server, added.server.get("imap")
        looks = f", {imap['host']}:{imap['port']}" if imap else ""
        hint(f"found by its domain: {server['host']}:{server['port']}{looks} ({known.source}, {known.read_on})")
    if added.is_default:
        hint("the app's default: messages that name no mailbox leave from it")
    hint(f"try it: outtray mailbox test {added.address}")
