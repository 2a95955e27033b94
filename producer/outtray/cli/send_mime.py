"""The flags of `outtray send` for whole mails, invitations and lists."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from outtray.cli.exits import UsageError

_PANEL = "Content"

Eml = Annotated[
    str | None,
    typer.Option("--eml", metavar="FILE", help="A whole mail, sent as it is; - for stdin.", rich_help_panel=_PANEL),
]
Invitation = Annotated[
    str | None,
    typer.Option("--invitation", metavar="FILE", help="A calendar invitation (.ics).", rich_help_panel=_PANEL),
]
UnsubscribeUrl = Annotated[
    str | None,
    typer.Option(
        "--unsubscribe-url", metavar="URL", help="Where one click unsubscribes: https.", rich_help_panel=_PANEL
    ),
]
UnsubscribeMailto = Annotated[
    str | None,
    typer.Option("--unsubscribe-mailto", metavar="ADDRESS", help="The same by mail.", rich_help_panel=_PANEL),
]


def mime_fields(
    eml: str | None, invitation: str | None, unsubscribe_url: str | None, unsubscribe_mailto: str | None
) -> dict[str, Any]:
    """The fields of a message that these flags bring. Raises `UsageError`."""
    return {
        "raw": _mail(eml) if eml is not None else None,
        "invitation": _bytes("--invitation", invitation) if invitation is not None else None,
        "unsubscribe_url": unsubscribe_url,
        "unsubscribe_mailto": unsubscribe_mailto,
    }


def _mail(source: str) -> bytes:
    """A mail from a file. Where its lines end as this system's do, in LF alone, they are given the CRLF of a mail."""
    mail = _bytes("--eml", source)
    if b"\r" not in mail:
        mail = mail.replace(b"\n", b"\r\n")
    return mail if mail.endswith(b"\r\n") or not mail else mail + b"\r\n"


def _bytes(flag: str, source: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise UsageError(f"{flag}: {source} cannot be read: {error.strerror}") from None
