"""Consent: what a mailbox's owner can grant, as each provider names it, and what holds with it and without.

Scopes decide what we can promise: a draft is consumed by its one send, and a copy that can be looked up tells whether
a handover without an answer left. Sources: Gmail's discovery document (rev. 20261005) for which method takes which
scope; the Graph permissions reference and the Exchange Online OAuth guide for Microsoft (docs, 2026-11).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Issuer = Literal["google", "microsoft"]
"""Who issues tokens. Gmail and Google's SMTP share one, Graph and Exchange's SMTP the other."""
Reach = Literal["send", "compose", "full", "smtp"]

ISSUERS: Mapping[str, Issuer] = MappingProxyType({"gmail": "google", "microsoft": "microsoft"})
"""Of each provider that has its own tokens; an SMTP mailbox names its issuer in its credentials' kind."""

SMTP_AUDIENCE = "smtp"
"""The audience of tokens for SMTP and IMAP; '' is the provider's own API."""

APP_REFUSED = "provider app refused"
"""How the reason of a mailbox begins that waits for its OAuth client: a new secret frees those, and only those."""

_GMAIL = "https://www.googleapis.com/auth/gmail."
_OFFICE = "https://outlook.office.com/"
_GRAPH = "https://graph.microsoft.com/"
OFFICE_IMAP = f"{_OFFICE}IMAP.AccessAsUser.All"
"""The Microsoft scope that lets IMAP in; SMTP has one of its own (docs, 2026-11)."""
GOOGLE_FULL = "https://mail.google.com/"
"""The one Google scope that SMTP and IMAP take (developers.google.com/gmail/imap/xoauth2-protocol, 2026-11)."""

SCOPES: Mapping[Issuer, Mapping[Reach, tuple[str, ...]]] = MappingProxyType(
    {
        "google": MappingProxyType(
            {
                "send": (f"{_GMAIL}send",),
                "compose": (f"{_GMAIL}compose", f"{_GMAIL}metadata"),
                "full": (f"{_GMAIL}modify",),
                "smtp": (GOOGLE_FULL,),
            }
        ),
        "microsoft": MappingProxyType(
            {
                "send": ("Mail.Send",),
                "compose": ("Mail.Send", "Mail.ReadWrite"),
                "full": ("Mail.Send", "Mail.ReadWrite", "User.Read"),
                "smtp": (f"{_OFFICE}SMTP.Send", OFFICE_IMAP),
            }
        ),
    }
)
"""What `outtray mailbox connect` asks for. Beside these, who the person is (openid, email) and a refresh token."""

SIGN_IN = frozenset({"openid", "email", "profile", "offline_access", f"{_GMAIL[:-6]}userinfo.email"})
"""Granted along with the rest, and no matter of sending. Google answers `email` by its long name."""


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What holds for a mailbox with its scopes: facts for machines, `sentences` for people."""

    sends: bool
    drafts: bool
    """A handover sends a draft, which is consumed once: never twice, whatever breaks."""
    looks: bool
    """What was sent can be found again, so an unanswered handover is settled by evidence."""
    reads: bool
    """Any message of the mailbox can be answered, and drafts for the person can be left."""

    @property
    def sentences(self) -> tuple[str, ...]:
        if not self.sends:
            return ("nothing can be sent with these scopes",)
        return (
            "sends each message as a draft first, which its provider consumes once"
            if self.drafts
            else "sends at once: no draft stands between, and none can be left for the person",
            "looks by itself whether a handover without an answer left"
            if self.looks
            else "cannot look whether a handover without an answer left: such a message waits as unknown",
            "can answer and forward any message of the mailbox"
            if self.reads
            else "can answer only messages that were sent through Outtray",
        )


def canonical(scopes: Iterable[str]) -> frozenset[str]:
    """Scopes as they are stored: Graph's without their resource, sign-in's left out.

    Entra answers `https://graph.microsoft.com/Mail.Send` or `Mail.Send` as it likes (docs, 2026-11).
    """
    return frozenset(scope.removeprefix(_GRAPH) for scope in scopes if scope and scope.lower() not in SIGN_IN)


def missing(wanted: Iterable[str], granted: Iterable[str]) -> list[str]:
    """Which of the wanted scopes were not granted, in their order. Microsoft's names have no case."""
    had = {scope.casefold() for scope in canonical(granted)}
    return sorted(scope for scope in canonical(wanted) if scope.casefold() not in had)


def of_audience(scopes: Iterable[str], audience: str) -> list[str]:
    """Those of a Microsoft mailbox's scopes that belong to one resource: an access token is for one only."""
    return sorted(scope for scope in scopes if scope.startswith(_OFFICE) == (audience == SMTP_AUDIENCE))


def guarantee(provider: str, scopes: Iterable[str]) -> Guarantee:
    """What holds for a mailbox of `gmail`, `microsoft` or `smtp` with these scopes."""
    has = {scope.casefold() for scope in canonical(scopes)}
    if provider == "gmail":
        return _gmail(has)
    if provider == "microsoft":
        return _graph(has)
    sends = bool(has & {GOOGLE_FULL, f"{_OFFICE}SMTP.Send".casefold()})
    return Guarantee(sends, drafts=False, looks=bool(has & {GOOGLE_FULL, OFFICE_IMAP.casefold()}), reads=False)


def _gmail(has: set[str]) -> Guarantee:
    def any_of(*names: str) -> bool:
        return GOOGLE_FULL in has or any(f"{_GMAIL}{name}" in has for name in names)

    compose = any_of("compose", "modify")
    return Guarantee(
        sends=compose or any_of("send"),
        drafts=compose,
        looks=any_of("modify", "readonly", "metadata"),
        reads=any_of("modify", "readonly"),
    )


def _graph(has: set[str]) -> Guarantee:
    def either(name: str) -> bool:
        return bool({name, f"{name}.shared"} & has)

    return Guarantee(
        sends=either("mail.send"),
        drafts=either("mail.send") and either("mail.readwrite"),
        looks=either("mail.readwrite") or either("mail.read"),
        reads=either("mail.readwrite") or either("mail.read"),
    )


@dataclass(frozen=True, slots=True)
class Consented:
    """What a person's consent brought. `address` is who logged in, where the provider says so."""

    refresh_token: str = field(repr=False)
    scopes: frozenset[str]
    address: str | None = field(repr=False)
    tenant: str | None = None
