"""What keeps a look from happening, as outcomes: who has to wait, and who has to act. Nothing here is about a mail.

A server's own words are seen only redacted.
"""

from __future__ import annotations

import imaplib
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from outtray_schema.outcome import Held, Outcome, Parked
from outtray_worker.providers.redact import Redactor
from outtray_worker.providers.smtp.troubles import network_trouble
from outtray_worker.providers.smtp.wire import Garbled

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """A refusal that is known: by its response code, or by words in its text. `wait`: it passes by itself."""

    id: str
    code: str
    text: str
    wait: bool
    reason: str
    source: str


_RFC, _GMAIL = "RFC 5530 3", "field reports of Gmail, 2014 to 2022"
_EXCHANGE = "field reports of Exchange Online, 2016 to 2025: a passing fault, lacking scopes or another's consent"
_UNREAD = "long-standing words of Gmail, not read again: seen by nobody here"
ROWS = (
    Row("imap-busy", "UNAVAILABLE|INUSE|LIMIT|SERVERBUG|CONTACTADMIN", "", True, "cannot be read now", _RFC),
    Row("imap-busy", "", "too many (simultaneous )?connections", True, "has too many connections open", _GMAIL),
    Row(
        "imap-shows-nothing",
        "",
        "authenticated but not connected",
        True,
        "lets the login in and shows nothing",
        _EXCHANGE,
    ),
    Row("imap-app-password", "", "application-specific password", False, "wants an app password", _GMAIL),
    Row("imap-off", "", "not enabled for imap|imap (access )?is disabled", False, "has IMAP switched off", _UNREAD),
    Row("imap-credentials", "AUTHENTICATIONFAILED|AUTHORIZATIONFAILED|EXPIRED", "", False, "refuses the login", _RFC),
)


class Refused(Exception):
    """The server said NO or BAD to a command. Its text is no part of this exception's."""

    def __init__(self, text: str, at_login: bool = False) -> None:
        super().__init__("refused")
        self.said = text
        self.at_login = at_login

    @property
    def code(self) -> str:
        found = re.search(r"\[([A-Z-]+)", self.said)
        return found[1] if found else ""

    @property
    def row(self) -> Row | None:
        return next((row for row in ROWS if self._fits(row)), None)

    @property
    def waits(self) -> bool:
        """Whether it is known to pass by itself."""
        return self.row is not None and self.row.wait

    def _fits(self, row: Row) -> bool:
        if row.code:
            return re.fullmatch(row.code, self.code) is not None
        return re.search(row.text, self.said, re.IGNORECASE) is not None


def translated(steps: Callable[[], T]) -> T | Exception:
    """Carry steps out in a thread; what they raise comes back as a value, in our own words.

    Anything that IMAPClient's parsers raise means that the server spoke no proper IMAP.
    """
    try:
        return steps()
    except imaplib.IMAP4.abort as error:
        gone = "EOF" in str(error)
        return ConnectionResetError("closed") if gone else Garbled("an answer that is no proper IMAP")
    except imaplib.IMAP4.error as error:
        return Refused(str(error))
    except (Refused, Garbled, OSError) as error:
        return error
    except Exception as error:
        return (
            error if hasattr(error, "outcome") else Garbled(f"an answer that cannot be read ({type(error).__name__})")
        )


def refused(refusal: Refused, place: str, redact: Redactor) -> Outcome:
    """What a refusal means for the looks into this mailbox."""
    row = refusal.row
    if row is None:
        what = "refuses the login" if refusal.at_login else "refuses to show its folders"
        row = Row("imap-refused", "", "", not refusal.at_login, what, "")
    reason = f"{place} {row.reason}"
    evidence = {"rule": row.id, "text": redact(refusal.said)}
    return Parked(reason, "connection", evidence=evidence) if row.wait else Held(reason, evidence=evidence)


def broken(error: BaseException, place: str) -> Outcome:
    """The connection was not made, or broke. Never the error's own text, which may quote the server."""
    name, what = _trouble(error)
    return Parked(f"{place}: {what}", "connection", evidence={"rule": f"imap-{name}"})


def _trouble(error: BaseException) -> tuple[str, str]:
    match error:
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER"):
            return "tls", "no TLS is spoken there; try tls: starttls, or the port of implicit TLS (993)"
        case TimeoutError():
            return "timeout", "no answer in time while looking"
        case Garbled():
            return "garbled", f"no proper IMAP while looking: {error}"
    kind: Literal["closed", "unreachable"] = "closed" if isinstance(error, ConnectionError) else "unreachable"
    said = {
        "closed": "the connection was closed while looking",
        "unreachable": f"cannot be reached ({type(error).__name__})",
    }
    return network_trouble(error) or (kind, said[kind])
