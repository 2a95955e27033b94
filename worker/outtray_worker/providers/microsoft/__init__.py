"""Microsoft Graph: a draft, complete with its files, and then `send`; or `sendMail` where only sending was granted.

    POST /me/messages (JSON or MIME), createReply…     `prepare`: a draft with our key, repeatable
    attachments, upload sessions                        `prepare`
    POST /me/messages/{id}/send, or /me/sendMail        `hand_over`: after the gate, once; 202 has no body
    GET /me/messages/{id}, Sent Items                   afterwards: the ids of the sent copy, and evidence

`routes` says which way a mail takes and `scopes` what was granted; `answers` holds what Graph's answers mean. Every
request asks for immutable ids and names itself by a client-request-id, which is kept with Microsoft's request-id.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from uuid import UUID

from outtray_schema.outcome import Outcome
from outtray_schema.settings import Settings
from outtray_worker.deadline import boottime
from outtray_worker.providers import Account
from outtray_worker.providers.microsoft.check import MicrosoftCheck, check, identities
from outtray_worker.providers.microsoft.limits import Lanes
from outtray_worker.providers.microsoft.session import MicrosoftSession
from outtray_worker.providers.web import Web
from outtray_worker.providers.web.signals import Signals

__all__ = ["MicrosoftCheck", "MicrosoftProvider", "MicrosoftSession"]

LOOKS_AFTER = (0.0, 1.0, 2.0)
"""Seconds before each look for a sent copy: it shows up once transport took the mail, mostly within two."""

_DOUBTS = 10_000


class MicrosoftProvider:
    """Mailboxes of Microsoft 365 and Outlook.com. One object per process."""

    name = "microsoft"

    def __init__(
        self,
        settings: Settings,
        web: Web,
        signals: Signals | None = None,
        looks_after: tuple[float, ...] = LOOKS_AFTER,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self.settings = settings
        self.web = web
        self.signals = signals or Signals()
        self.looks_after = looks_after
        self.lanes = Lanes(clock)
        self._doubts: OrderedDict[UUID, None] = OrderedDict()

    def open(self, account: Account) -> MicrosoftSession:
        return MicrosoftSession(self, account)

    async def check(self, account: Account) -> MicrosoftCheck | Outcome:
        """Get a token, look if that was granted, and send nothing; or the outcome that a mail would get."""
        session = self.open(account)
        try:
            return await check(session)
        finally:
            await session.close()

    async def identities(self, account: Account) -> list[str] | Outcome:
        """The addresses that the mailbox may send from, its own one first."""
        session = self.open(account)
        try:
            return await identities(session)
        finally:
            await session.close()

    # ── drafts that may have been left ──────────────────────────────────────────────────────────────────────────

    def doubtful(self, message_id: UUID) -> bool:
        """Whether this process may have left a draft of that message. Of other processes, `Mail.suspect` tells."""
        return message_id in self._doubts

    def distrust(self, message_id: UUID) -> None:
        self._doubts[message_id] = None
        if len(self._doubts) > _DOUBTS:
            self._doubts.popitem(last=False)

    def trust(self, message_id: UUID) -> None:
        self._doubts.pop(message_id, None)
