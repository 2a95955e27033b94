"""The provider of all mailboxes at Gmail: one object per process, and what `check` shows of a mailbox."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from uuid import UUID

from outtray_schema.outcome import Held, Outcome
from outtray_schema.settings import Settings
from outtray_worker.providers import Account
from outtray_worker.providers.gmail.api import Api
from outtray_worker.providers.gmail.caller import Ended, Recent
from outtray_worker.providers.gmail.scopes import least_for
from outtray_worker.providers.gmail.session import GmailSession
from outtray_worker.providers.web import Web
from outtray_worker.providers.web.signals import Signals

_REMEMBERED = 20_000
"""Mailboxes, and messages without a draft's answer, that one process remembers at once."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Where one shape of a mail ends and the next begins, in bytes of MIME."""

    json: int = 3_500_000
    """JSON requests end at 5 MB, and base64 takes a third more (field reports, 2026-11)."""
    multipart: int = 8 << 20
    """Above it a break should not cost the whole upload; Google advises 5 MB and more (guide "uploads", 2026-11)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A From address that Gmail knows for this mailbox. One that is not `verified` is silently replaced on sending."""

    address: str = field(repr=False)
    name: str = field(repr=False)
    verified: bool
    is_default: bool
    is_primary: bool


@dataclass(frozen=True, slots=True)
class Check:
    """What a mailbox showed: for `outtray mailbox test`. Nothing was sent."""

    place: str
    route: str
    """`by draft` or `by send`."""
    can_look: str
    """What could be looked at after a handover without an answer, in words."""
    address_matches: bool | None
    """Whether the token is of the mailbox's own address; None where the scopes do not tell."""


class GmailProvider:
    """All mailboxes at Gmail. One object per process; `web` and `signals` are shared with other providers."""

    name = "gmail"

    def __init__(
        self,
        settings: Settings,
        web: Web | None = None,
        signals: Signals | None = None,
        sizes: Sizes = Sizes(),
    ) -> None:
        self.settings = settings
        self.web = web or Web(settings)
        self.signals = signals or Signals()
        self.sizes = sizes
        self.api = Api(settings.gmail_url)
        self.orphaned = Remembered()
        self._recent: OrderedDict[UUID, Recent] = OrderedDict()

    def open(self, account: Account) -> GmailSession:
        return GmailSession(self, account)

    def recent(self, mailbox_id: UUID) -> Recent:
        """What is remembered of a mailbox's answers, in this process alone."""
        found = self._recent.setdefault(mailbox_id, Recent())
        self._recent.move_to_end(mailbox_id)
        if len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)
        return found

    async def check(self, account: Account) -> Check | Outcome:
        """Get a token and look at the profile where the scopes allow it, sending nothing."""
        session = self.open(account)
        grants = session.grants
        if not grants.send:
            reason = f"a permission was not granted: messages.send needs {least_for('messages.send')}"
            return Held(reason, evidence={"rule": "scope-missing"})
        try:
            await session.caller.token()
            matches = await self._matches(session) if grants.see_profile else None
        except Ended as end:
            return end.outcome
        route = "by draft" if grants.drafts else "by send"
        return Check(urlsplit(self.settings.gmail_url).netloc, route, _can_look(session), matches)

    async def _matches(self, session: GmailSession) -> bool:
        said = await session.caller.call(self.api.profile(), "read", "getProfile")
        return str(said.get("emailAddress", "")).casefold() == session.account.address.casefold()

    async def identities(self, account: Account) -> tuple[Identity, ...] | Outcome:
        """The From addresses that Gmail lets this mailbox use; an outcome where the scopes do not show them."""
        session = self.open(account)
        if not session.grants.see_identities:
            reason = (
                f"the From addresses cannot be read: settings.sendAs.list needs {least_for('settings.sendAs.list')}"
            )
            return Held(reason, evidence={"rule": "scope-missing"})
        try:
            said = await session.caller.call(self.api.send_as(), "read", "settings.sendAs.list")
        except Ended as end:
            return end.outcome
        return tuple(_identity(each) for each in said.get("sendAs") or [])


def _identity(said: dict[str, object]) -> Identity:
    primary = bool(said.get("isPrimary"))
    return Identity(
        address=str(said.get("sendAsEmail", "")),
        name=str(said.get("displayName", "")),
        # The primary address has no status: it needs none (discovery document, 2026-10).
        verified=primary or said.get("verificationStatus") == "accepted",
        is_default=bool(said.get("isDefault")),
        is_primary=primary,
    )


def _can_look(session: GmailSession) -> str:
    grants = session.grants
    if grants.see_messages:
        return "the draft and what was sent" if grants.see_drafts else "what was sent"
    return "the draft alone" if grants.see_drafts else "nothing"


class Remembered(OrderedDict[UUID, None]):
    """A set of ids that forgets its oldest."""

    def add(self, key: UUID) -> None:
        self[key] = None
        if len(self) > _REMEMBERED:
            self.popitem(last=False)

    def discard(self, key: UUID) -> None:
        self.pop(key, None)
