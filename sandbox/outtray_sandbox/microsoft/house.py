"""What the fake Graph and its Entra know and allow: mailboxes, tokens, clients, limits, and how unkind they are."""

from __future__ import annotations

import base64
import json
import secrets
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, Literal

from outtray_sandbox.microsoft.mailbox import Item, Mailbox
from outtray_sandbox.web import House

GRAPH = "https://graph.microsoft.com"
DAY = 86_400.0
EVERY_SCOPE = "Mail.Send Mail.ReadWrite User.Read offline_access openid profile email"


@dataclass
class Token:
    """An access token: whose, for what. `user` is "" for an application's own."""

    user: str
    scopes: frozenset[str]
    audience: str
    until: float
    client_id: str = ""
    claims: bool = False
    """Issued in answer to a claims challenge."""

    @property
    def app_only(self) -> bool:
        return not self.user


@dataclass
class Client:
    """A registered application. Without a secret and a certificate it is a public one."""

    client_id: str
    secret: str | None = None
    certificate: bytes | None = field(default=None, repr=False)
    """PEM of the certificate whose key signs its assertions."""
    secret_expired: bool = False
    tenant: str = "common"
    roles: tuple[str, ...] = ("Mail.Send", "Mail.ReadWrite")
    """Application permissions that an administrator granted."""
    policy: set[str] | None = None
    """Application access policy: the only mailboxes it may use; None: all."""


@dataclass
class Refreshing:
    """A refresh token: whose, and whether it was used."""

    user: str
    client_id: str
    scopes: frozenset[str]
    used: bool = False
    revoked: bool = False


@dataclass
class Limits:
    """As documented, 2026-11: throttling limits, Exchange Online limits."""

    body: int = 4 * 1024 * 1024
    at_once: int = 4
    recipients_a_day: int = 10_000
    recipients: int = 500
    attachment: int = 150_000_000
    piece: int = 4 * 1024 * 1024
    message: int = 150_000_000
    token_lives: float = 3600.0


@dataclass
class MicrosoftHouse(House):
    """One tenant's servers. Its methods are also the commands of the control."""

    commands: tuple[str, ...] = (
        "add_rule", "forget", "shift_clock", "stats", "add_user", "add_client", "consent", "revoke", "challenge",
        "set_limit", "set_unkind", "approve_device", "refreshes_of", "expire_tokens",
    )  # fmt: skip
    sent_copy_after: float = 0.5
    """Seconds on the server's clock until the copy stands in Sent Items; meanwhile the draft looks like one yet."""
    ids_change: bool = False
    """Whether a draft's immutable id changes as well when it is sent (threads of 2019 and 2021)."""
    vanishing: bool = False
    """Whether the draft is gone while its copy is not there yet, instead of looking like a draft."""
    accept_retry_after: int | None = None
    """Retry-After that comes with 202."""
    strict_rotation: bool = False
    """Whether a refresh token dies by its first use. Entra keeps it (refresh tokens, docs, 2026-11)."""
    lose_copies: bool = False
    """Whether no copy is filed: a rule or a person took it away."""
    rewrite_ids: bool = False
    """Whether transport gives the mail a Message-ID of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.limits = Limits()
        self.mailboxes: dict[str, Mailbox] = {}
        self.consents: dict[str, set[str]] = defaultdict(set)
        self.clients: dict[str, Client] = {}
        self.tokens: dict[str, Token] = {}
        self.refresh_tokens: dict[str, Refreshing] = {}
        self.codes: dict[str, dict[str, Any]] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, dict[str, Any]] = {}
        self.challenged: set[str] = set()
        self.refreshes: Counter[str] = Counter()
        self.open_refreshes: Counter[str] = Counter()
        self.handed: dict[str, deque[tuple[float, int]]] = defaultdict(deque)
        self.requests: deque[dict[str, Any]] = deque(maxlen=5000)
        """What came to Graph: stage, mailbox, Prefer, client-request-id, size, whether a token came with it."""
        self.next_user: str | None = None
        self.deny: str | None = None
        """What the owner answers at the next consent: an error of OAuth (`access_denied`)."""
        self.untick: set[str] = set()
        """Scopes that the owner does not grant at the next consent."""

    # ── commands ────────────────────────────────────────────────────────────────────────────────────────────────

    def add_user(self, address: str, aliases: tuple[str, ...] | list[str] = (), scopes: str = EVERY_SCOPE) -> None:
        """A mailbox, and what its owner has agreed to."""
        self.mailboxes[address.casefold()] = Mailbox(address, set(aliases))
        self.consents[address.casefold()] = set(scopes.split())

    def add_client(self, client_id: str, **fields: Any) -> None:
        self.clients[client_id] = Client(client_id, **fields)

    def consent(self, address: str, scopes: str) -> None:
        """From now on these scopes are granted, and no others."""
        self.consents[address.casefold()] = set(scopes.split())

    def revoke(self, address: str) -> None:
        """Every token of the user dies: password changed, sessions revoked."""
        for refresh in self.refresh_tokens.values():
            refresh.revoked = refresh.revoked or refresh.user == address.casefold()
        self.tokens = {text: token for text, token in self.tokens.items() if token.user != address.casefold()}

    def challenge(self, address: str) -> None:
        """Access tokens of the user are refused until one comes that answers the claims (CAE)."""
        self.challenged.add(address.casefold())

    def answer_challenge(self, user: str) -> None:
        """A token that answers it is about to be issued: older ones are dead for good."""
        self.challenged.discard(user)
        self.tokens = {text: token for text, token in self.tokens.items() if token.user != user}

    def expire_tokens(self) -> None:
        """Every access token issued so far has expired."""
        for token in self.tokens.values():
            token.until = 0.0

    def set_limit(self, name: str, value: float) -> None:
        """One of `Limits`. Raises `ValueError` for another."""
        if name not in vars(self.limits):
            raise ValueError(f"no such limit: {name}")
        setattr(self.limits, name, value)

    def set_unkind(
        self,
        name: Literal[
            "sent_copy_after", "ids_change", "vanishing", "accept_retry_after", "strict_rotation", "lose_copies",
            "rewrite_ids",
        ],
        value: Any,
    ) -> None:  # fmt: skip
        """Switch one of the ways in which Graph is less kind than its guide."""
        setattr(self, name, value)

    def approve_device(self, user_code: str, user: str) -> None:
        """The owner entered the code and agreed; with user "" they declined."""
        device = next(each for each in self.devices.values() if each["user_code"] == user_code)
        device["user"] = user.casefold()

    def refreshes_of(self) -> dict[str, int]:
        """How many refreshes each user had; `open:` before those that are under way."""
        return {**self.refreshes, **{f"open:{user}": times for user, times in self.open_refreshes.items() if times}}

    # ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────

    def issue(
        self, user: str, scopes: str = EVERY_SCOPE, audience: str = GRAPH, client_id: str = "", claims: bool = False
    ) -> str:
        """An access token, as Entra would issue it. It is opaque to the client, as a real one is meant to be."""
        text = f"eyJ0eXAi.{secrets.token_urlsafe(60)}"
        until = self.now() + self.limits.token_lives
        self.tokens[text] = Token(user.casefold(), frozenset(scopes.split()), audience, until, client_id, claims)
        return text

    def issue_refresh(self, user: str, client_id: str, scopes: frozenset[str]) -> str:
        text = f"0.AXoA{secrets.token_urlsafe(60)}"
        self.refresh_tokens[text] = Refreshing(user.casefold(), client_id, scopes)
        return text

    def claims_of(self, user: str) -> str:
        """What a challenge asks for, as WWW-Authenticate carries it."""
        wanted = {"access_token": {"nbf": {"essential": True, "value": str(int(self.now()))}}}
        return base64.b64encode(json.dumps(wanted).encode()).decode()

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────

    def used(self, user: str) -> int:
        """Recipients of the user's last 24 hours."""
        handed = self.handed[user]
        while handed and handed[0][0] <= self.now() - DAY:
            handed.popleft()
        return sum(recipients for _, recipients in handed)

    def mailbox(self, address: str) -> Mailbox | None:
        return self.mailboxes.get(address.casefold())

    def file(self, mailbox: Mailbox, draft: Item) -> None:
        """The sent copy, later; until then looks see what was."""
        mailbox.remove(draft)
        if self.lose_copies:
            return
        copy = Item("sentitems", dict(draft.properties), draft.mime, draft.attachments, is_draft=False)
        copy.immutable = copy.immutable if self.ids_change else draft.immutable
        copy.visible_at = self.now() + self.sent_copy_after
        if not self.vanishing and draft.folder == "drafts" and draft.visible_at <= self.now():
            # Looks see a draft, but it is one no more: nobody can send it again.
            copy.replaces = draft
        mailbox.items.append(copy)
