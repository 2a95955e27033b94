"""Who is there to begin with: two OAuth clients, and at each provider a few people who have agreed already.

Ids, tokens and passwords are the same in every run, so that a configuration can hold them. They open nothing but this.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from outtray_sandbox.google import GoogleHouse
from outtray_sandbox.google.tokens import Refresh
from outtray_sandbox.microsoft import Client, MicrosoftHouse
from outtray_sandbox.microsoft.house import Refreshing
from outtray_schema.consent import SCOPES, Issuer, Reach

Provider = Literal["gmail", "microsoft", "smtp"]
SIGN_IN = ("openid", "email")
SMTP_TOKENS = frozenset({"https://outlook.office.com", "https://outlook.office365.com"})
"""The audiences under which Exchange takes a token for SMTP (Exchange Online OAuth guide, 2026-11)."""


@dataclass(frozen=True, slots=True)
class App:
    """An OAuth client that is registered at a provider of the sandbox."""

    issuer: Issuer
    client_id: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with a mailbox. `secret` is their refresh token, or for SMTP their password."""

    provider: Provider
    address: str
    name: str
    grants: Reach | None
    secret: str = field(repr=False)

    @property
    def issuer(self) -> Issuer:
        return "google" if self.provider == "gmail" else "microsoft"

    @property
    def scopes(self) -> tuple[str, ...]:
        """What they granted, as their provider names it; nothing at SMTP."""
        return SCOPES[self.issuer][self.grants] if self.grants else ()


APPS = (
    App("google", "sandbox-google", "sandbox-google-secret"),
    App("microsoft", "sandbox-microsoft", "sandbox-microsoft-secret"),
)

PEOPLE = (
    Person("gmail", "full@gmail.example", "Fay Full", "full", "1//sandbox-google-full"),
    Person("gmail", "compose@gmail.example", "Cora Compose", "compose", "1//sandbox-google-compose"),
    Person("gmail", "send@gmail.example", "Sam Send", "send", "1//sandbox-google-send"),
    Person("microsoft", "full@contoso.example", "Fred Full", "full", "0.sandbox-microsoft-full"),
    Person("microsoft", "compose@contoso.example", "Carl Compose", "compose", "0.sandbox-microsoft-compose"),
    Person("microsoft", "send@contoso.example", "Sue Send", "send", "0.sandbox-microsoft-send"),
    Person("smtp", "ann@smtp.example", "Ann Password", None, "sandbox-smtp-password"),
)


def app_of(issuer: Issuer) -> App:
    return next(app for app in APPS if app.issuer == issuer)


def passwords() -> dict[str, str]:
    """Of those who log in by one."""
    return {each.address: each.secret for each in PEOPLE if each.provider == "smtp"}


def settle_at_google(house: GoogleHouse) -> None:
    """Client and people, with the refresh tokens of consents that they gave."""
    app = app_of("google")
    house.add_client(app.client_id, app.secret)
    for each in PEOPLE:
        if each.provider == "gmail":
            house.add_user(each.address, each.name)
            granted = Refresh(app.client_id, each.address, (*each.scopes, *SIGN_IN), each.secret)
            house.tokens.refresh[each.secret] = granted


def settle_at_microsoft(house: MicrosoftHouse) -> None:
    """The same at Entra."""
    app = app_of("microsoft")
    house.clients[app.client_id] = Client(app.client_id, app.secret)
    for each in PEOPLE:
        if each.provider == "microsoft":
            house.add_user(each.address, scopes=" ".join((*each.scopes, *SIGN_IN, "offline_access")))
            house.refresh_tokens[each.secret] = Refreshing(each.address, app.client_id, frozenset(each.scopes))


def opens_smtp(google: GoogleHouse, microsoft: MicrosoftHouse, user: str, token: str) -> bool:
    """Whether an access token of either provider opens this user's mailbox by SMTP."""
    held = google.tokens.holder(token)
    if held is not None:
        return held.email == user and "https://mail.google.com/" in held.scopes
    issued = microsoft.tokens.get(token)
    if issued is None or issued.until <= microsoft.now() or issued.audience not in SMTP_TOKENS:
        return False
    return issued.user == user.casefold() and any(scope.endswith("SMTP.Send") for scope in issued.scopes)
