"""What was sent, the same for all servers: for the page, for JSON, and for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from outtray_sandbox.smtp.house import Recent
from outtray_sandbox.web import SentMail


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail that a server sent. `ids` are the server's own, by the names that it gives them."""

    server: str
    at: datetime
    user: str
    sender: str
    recipients: tuple[str, ...]
    subject: str
    text: str
    ids: Mapping[str, str]
    raw: bytes = field(repr=False)
    """As its recipients get it; empty if it was too large to be kept."""

    @property
    def key(self) -> str:
        """What its address on the page ends with."""
        named = f"{self.server} {sorted(self.ids.items())} {self.at.isoformat()}"
        return hashlib.sha256(named.encode()).hexdigest()[:16]

    @property
    def html(self) -> str:
        """Its HTML, empty where it has none."""
        return _part(_parsed(self.raw), "html")

    def fits(self, to: str | None, user: str | None, subject: str | None, server: str | None) -> bool:
        """Whether it is to, by and about these; what is not named fits."""
        recipients = {each.casefold() for each in self.recipients}
        return (
            (not to or to.casefold() in recipients)
            and (not user or user.casefold() == self.user.casefold())
            and (not subject or subject in self.subject)
            and (not server or server == self.server)
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "server": self.server,
            "at": self.at.isoformat(),
            "user": self.user,
            "sender": self.sender,
            "recipients": list(self.recipients),
            "subject": self.subject,
            "text": self.text,
            "html": self.html,
            "ids": dict(self.ids),
        }


def mails_of(server: str, kept: Sequence[SentMail | Recent]) -> Iterator[Mail]:
    """The mails that a server kept."""
    for each in kept:
        yield _of_smtp(each) if isinstance(each, Recent) else _of_web(server, each)


def newest_first(mails: Iterable[Mail]) -> list[Mail]:
    return sorted(mails, key=lambda mail: mail.at, reverse=True)


def _of_web(server: str, mail: SentMail) -> Mail:
    at = datetime.fromtimestamp(mail.at, UTC)
    text = mail.text
    if mail.raw:
        text = _part(_parsed(mail.raw), "plain") or mail.text
    return Mail(server, at, mail.user, mail.sender, mail.recipients, mail.subject, text, mail.ids, mail.raw)


def _of_smtp(recent: Recent) -> Mail:
    taken, parsed = recent.accepted, _parsed(recent.body)
    at = datetime.fromtimestamp(taken.accepted_at, UTC)
    text = _part(parsed, "plain") or _part(parsed, "html")
    ids = {"queue": recent.queue_id, "Message-ID": taken.rfc_message_id}
    subject = str(parsed.get("Subject", ""))
    return Mail("smtp", at, taken.user, taken.sender, taken.recipients, subject, text, ids, recent.body)


def _parsed(raw: bytes) -> EmailMessage:
    parsed = message_from_bytes(raw, policy=policy.default)
    assert isinstance(parsed, EmailMessage)  # noqa: S101 (what the default policy makes)
    return parsed


def _part(parsed: EmailMessage, kind: str) -> str:
    part = parsed.get_body((kind,))
    try:
        return str(part.get_content()) if part is not None else ""
    except (LookupError, ValueError):  # a charset that nobody knows: the source still shows it
        return ""
