"""What the fake Google knows: users and their mailboxes, quotas, OAuth clients, and what tests may tell it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from outtray_sandbox.google.mailbox import Mailbox
from outtray_sandbox.google.tokens import Client, ServiceAccount, Tokens
from outtray_sandbox.web import House

DAY = 86_400.0
GMAIL = "https://www.googleapis.com/auth/gmail."

COMMANDS = (
    "add_rule", "forget", "shift_clock", "stats", "add_client", "break_client", "add_user", "add_alias", "grant",
    "access", "script_consent", "set_lifetime", "set_rotation", "expire_access", "revoke_user", "refuse_refresh",
    "withdraw_scope", "add_service_account", "refreshes", "limit_daily", "lose_next", "set_search_lag",
    "delete_message",
)  # fmt: skip


@dataclass
class User:
    """A person with a mailbox."""

    email: str
    mailbox: Mailbox
    name: str = ""
    aliases: dict[str, str] = field(default_factory=dict)
    """Further From addresses and their `verificationStatus`: `accepted` or `pending`."""
    messages: int | None = None
    recipients: int | None = None
    """What may be sent in a rolling day."""
    sent: deque[tuple[float, int]] = field(default_factory=deque)
    lose: int = 0
    """So many of the next sendings are answered with 200 and send nothing."""


@dataclass
class GoogleHouse(House):
    """Its methods named in `COMMANDS` are also the commands of the control."""

    commands: tuple[str, ...] = COMMANDS
    search_lag: float = 120.0
    """Seconds on the house's clock before the search knows a message."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.users: dict[str, User] = {}
        self.tokens = Tokens(self.now)
        self.consent: dict[str, Any] = {}

    # ── people and their tokens ─────────────────────────────────────────────────────────────────────────────────

    def add_user(self, email: str, name: str = "") -> None:
        self.users[email] = User(email, Mailbox(self.now, self.keep_bodies), name)

    def add_alias(self, email: str, alias: str, status: str = "accepted") -> None:
        self.users[email].aliases[alias] = status

    def add_client(
        self, client_id: str, secret: str, project: str | None = None, redirects: Iterable[str] = ()
    ) -> None:
        self.tokens.clients[client_id] = Client(client_id, secret, project or client_id, tuple(redirects))

    def break_client(self, client_id: str, error: str | None = "invalid_client") -> None:
        """From now on the client itself is refused; None heals it."""
        self.tokens.clients[client_id].broken = error

    def add_service_account(self, email: str, public_key: str, scopes: Iterable[str]) -> None:
        """`scopes` are what the domain's administrator delegated to it."""
        self.tokens.service_accounts[email] = ServiceAccount(email, public_key, frozenset(scopes))

    def grant(self, email: str, scopes: Iterable[str], client_id: str) -> str:
        """A refresh token, as after a consent."""
        return self.tokens.new_refresh(client_id, email, scopes)

    def access(self, email: str, *scopes: str, lifetime: float | None = None) -> str:
        """An access token out of the blue."""
        return self.tokens.new_access("sandbox", email, scopes, lifetime)

    def script_consent(self, user: str | None = None, deny: bool = False, untick: Iterable[str] = ()) -> None:
        """What the next people do on the consent page: who they are, whether they agree, what they untick."""
        self.consent = {"user": user, "deny": deny, "untick": tuple(untick)}

    def set_lifetime(self, seconds: float) -> None:
        """Of access tokens made from now on."""
        self.tokens.lifetime = seconds

    def set_rotation(self, rotation: str) -> None:
        """`none`, `overlap` or `strict`, as in `Tokens`."""
        self.tokens.rotation = rotation

    def expire_access(self, email: str) -> None:
        """Every access token of the user ends now; refresh tokens stay."""
        for held in self.tokens.access.values():
            held.until = 0.0 if held.email == email else held.until

    def revoke_user(self, email: str, project: str | None = None) -> None:
        """The person removed the app in their account, or changed the password."""
        self.tokens.forget(email, project)

    def refuse_refresh(self, email: str, error: str | None, description: str = "Bad Request", **more: str) -> None:
        """What a refresh of this user gets, e.g. `invalid_grant` with `error_subtype="invalid_rapt"`; None heals it."""
        if error is None:
            self.tokens.refused.pop(email, None)
        else:
            self.tokens.refused[email] = {"error": error, "description": description, **more}

    def withdraw_scope(self, email: str, scope: str) -> None:
        self.tokens.withdraw(email, scope)

    def refreshes(self, email: str | None = None) -> int:
        """Refreshes that succeeded, of one user or of all."""
        return self.tokens.refreshes[email] if email else self.tokens.refreshes.total()

    # ── mail ────────────────────────────────────────────────────────────────────────────────────────────────────

    def limit_daily(self, email: str, messages: int | None = None, recipients: int | None = None) -> None:
        """What the user may send in a rolling day; None lifts the limit."""
        self.users[email].messages, self.users[email].recipients = messages, recipients

    def lose_next(self, email: str, times: int = 1) -> None:
        """Near the quota: the next sendings are answered with 200 and never leave (guide "handle errors")."""
        self.users[email].lose = times

    def set_search_lag(self, seconds: float) -> None:
        self.search_lag = seconds

    def delete_message(self, email: str, message_id: str) -> None:
        """The person deletes a message or a draft for good."""
        self.users[email].mailbox.remove(message_id)

    def used(self, user: User) -> tuple[int, int]:
        """Messages and recipients of the rolling day."""
        while user.sent and user.sent[0][0] <= self.now() - DAY:
            user.sent.popleft()
        return len(user.sent), sum(recipients for _, recipients in user.sent)
