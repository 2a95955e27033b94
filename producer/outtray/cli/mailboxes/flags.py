"""What the commands about mailboxes take, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import typer

from outtray.cli import secret
from outtray.cli.exits import UsageError
from outtray_schema.plans import PLANS

Mailbox = Annotated[str, typer.Argument(metavar="MAILBOX", help="Its address or id.")]

MailboxOption = Annotated[
    str | None, typer.Option("--mailbox", metavar="MAILBOX", help="Its address or id.", show_default=False)
]

Tls = Literal["starttls", "implicit", "clear"]

Auth = Literal["auto", "plain", "login", "xoauth2", "oauthbearer"]

Host = Annotated[
    str | None,
    typer.Option(
        "--host", metavar="NAME", help="The SMTP server. Default: as is known of the address.", show_default=False
    ),
]

Preset = Annotated[
    str | None,
    typer.Option(
        "--preset", metavar="NAME", help="Who keeps the domain's mail: a name of `mailbox hosts`.", show_default=False
    ),
]

Port = Annotated[int | None, typer.Option("--port", help="Default: 587; 465 with --tls implicit.", show_default=False)]

TlsFlag = Annotated[
    Tls | None,
    typer.Option("--tls", help="Default: starttls; implicit on port 465. clear: sandbox only.", show_default=False),
]

Username = Annotated[
    str | None, typer.Option("--username", metavar="NAME", help="Default: the address.", show_default=False)
]

CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca-file", metavar="FILE", help="Trust these authorities as well: stored with it.", show_default=False
    ),
]

Pin = Annotated[
    str | None,
    typer.Option(
        "--pin",
        metavar="SHA256",
        help="Trust the server by this fingerprint of its certificate, or sha256//… of its key, alone.",
        show_default=False,
    ),
]

AuthFlag = Annotated[
    Auth | None, typer.Option("--auth", help="Default: auto, what the server offers.", show_default=False)
]

PlanName = Annotated[
    str | None, typer.Option("--plan", metavar="PLAN", help=f"One of {', '.join(PLANS)}.", show_default=False)
]

LimitFlags = Annotated[
    list[str] | None,
    typer.Option("--limit", metavar="NAME=N", help="Override one limit; NAME=none lifts it. May stand several times."),
]

Reserve = Annotated[
    int | None, typer.Option("--reserve", metavar="N", help="Messages a day kept for the person's own mail.")
]

Pace = Annotated[int | None, typer.Option("--pace", metavar="N", help="Messages a minute.")]

SenderName = Annotated[
    str | None, typer.Option("--name", metavar="TEXT", help='The name that recipients see, e.g. "Ann Lee".')
]

Aliases = Annotated[
    list[str] | None, typer.Option("--alias", metavar="ADDRESS", help="May send from it too. Several times.")
]

ImapHost = Annotated[
    str | None,
    typer.Option(
        "--imap-host",
        metavar="NAME",
        help="Look here for what was sent, by the same login. none: look nowhere.",
        show_default=False,
    ),
]

ImapPort = Annotated[
    int | None, typer.Option("--imap-port", help="Default: 993; 143 with --imap-tls starttls.", show_default=False)
]

ImapTls = Annotated[Tls | None, typer.Option("--imap-tls", help="Default: implicit.", show_default=False)]

SentCopies = Annotated[
    Literal["provider", "none", "unsaid"] | None,
    typer.Option(
        "--sent-copies",
        help="Who files a copy of what is sent. Default unsaid: as is known of the server, or seen there.",
        show_default=False,
    ),
]

SentCopy = Annotated[
    Literal["auto", "append", "never"] | None,
    typer.Option(
        "--sent-copy",
        help="Put a copy into Sent afterwards. auto: where its provider files none.",
        show_default=False,
    ),
]

ImapPin = Annotated[
    str | None,
    typer.Option("--imap-pin", metavar="SHA256", help="As --pin, for the IMAP server.", show_default=False),
]

ImapUsername = Annotated[
    str | None, typer.Option("--imap-username", metavar="NAME", help="Where IMAP has another.", show_default=False)
]

ImapPasswordFile = Annotated[
    Path | None,
    typer.Option("--imap-password-file", metavar="FILE", help="Where IMAP has another.", show_default=False),
]

OnUnknown = Annotated[
    Literal["hold", "resend", "app"] | None,
    typer.Option(
        "--on-unknown",
        help="What to do where nobody can tell whether a message left. app: as its app has it.",
        show_default=False,
    ),
]


def imap_server(
    host: str | None,
    port: int | None,
    tls: Tls | None,
    copies: str | None,
    copy: str | None = None,
    pin: str | None = None,
) -> dict[str, Any]:
    """The flags that were given, as fields of `ImapServer`. RFC 8314 3.2: implicit TLS on 993, STARTTLS on 143."""
    if host == "none" and (port or tls or copies or copy or pin):
        raise UsageError("--imap-host none: look nowhere; then no other flag of IMAP makes sense")
    if tls and port is None:
        port = 993 if tls == "implicit" else 143
    tls = tls or ("starttls" if port == 143 else None)
    named = {"host": host, "port": port, "tls": tls, "sent_copy": copy, "pin": pin}
    found: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    if copies is not None:
        found["files_sent"] = {"provider": True, "none": False, "unsaid": None}[copies]
    return found


def imap_password(file: Path | None) -> str | None:
    return None if file is None else secret.read_secret(False, file, "", "", "--imap-password-file")


def mailbox_name(text: str | None) -> UUID | str | None:
    """A mailbox as the client takes it: an id, or an address."""
    if text is None or "@" in text:
        return text
    try:
        return UUID(text)
    except ValueError:
        raise UsageError(f"{text!r} is no mailbox's address or id; `outtray mailbox list` shows them") from None


def limits_of(flags: list[str] | None, reserve: int | None = None, pace: int | None = None) -> dict[str, Any]:
    """`NAME=N` flags as overrides of a plan. Raises `UsageError`; the names themselves are judged by the plan."""
    found: dict[str, Any] = {}
    for text in flags or ():
        name, equals, value = text.partition("=")
        if not name or not equals or not (value == "none" or value.isdecimal()):
            raise UsageError(f"--limit {text}: write NAME=N or NAME=none, e.g. --limit messages=300")
        found[name.strip()] = None if value == "none" else int(value)
    named = {"reserve": reserve, "per_minute": pace}
    return found | {name: value for name, value in named.items() if value is not None}
