"""Microsoft Graph in the contract: the real provider, a fake Graph on a port of this machine, one rig per route."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import uvloop
from provider_rigs import USER, Differs, Fault, Taken, digest, quick_settings

from outtray_sandbox.microsoft import Ledger, MicrosoftHouse, MicrosoftServer
from outtray_schema.outcome import Failed, Outcome
from outtray_worker.providers import Account, NoToken
from outtray_worker.providers.microsoft import MicrosoftProvider
from outtray_worker.providers.web import Web
from outtray_worker.providers.web.signals import Signals

T = TypeVar("T")

SCOPES = {
    "draft": "Mail.Send Mail.ReadWrite User.Read",
    "sendMail": "Mail.Send",
    "sendMail, readable": "Mail.Send Mail.Read",
}
LATE = "messages.send|sendMail"
REFUSAL = {"error": {"code": "ErrorInvalidRecipients", "message": "canary-to@first.example is not valid"}}
DENIAL = {"error": {"code": "ErrorExceededMaxRecipientLimit", "message": "canary-user@sender.example has too many"}}
FAULTS: dict[Fault, dict[str, Any]] = {
    "refuses late": {"stage": LATE, "status": 400, "body": REFUSAL, "times": 1},
    "never answers": {"stage": LATE, "silent": True, "times": 1},
    "takes, never answers": {"stage": LATE, "silent": True, "take": True, "times": 1},
    "takes, loses the answer": {"stage": LATE, "drop": "after", "times": 1},
    "breaks": {"stage": LATE, "drop": "before", "reset": True, "times": 1},
}


@dataclass
class RigTokens:
    """Tokens of the fake Entra's house, as `Tokens` gives them; it counts, and can be told to have none."""

    house: MicrosoftHouse
    user: str
    scopes: str
    current: str = ""
    renewals: list[str | None] = field(default_factory=list)
    none: Outcome | None = None
    refuse: list[Outcome] = field(default_factory=list)
    """Refusals that come once each."""

    async def access(self) -> str:
        if self.refuse:
            raise NoToken(self.refuse.pop())
        if self.none is not None:
            raise NoToken(self.none)
        self.current = self.current or self.house.issue(self.user, self.scopes)
        return self.current

    async def renewed(self, refused: str, claims: str | None = None) -> str:
        """A new token, once for each that was refused."""
        self.renewals.append(claims)
        if refused == self.current:
            self.current = self.house.issue(self.user, self.scopes, claims=claims is not None)
        return await self.access()


@dataclass
class GraphRig:
    """`route` says what its owner granted: `draft`, or `sendMail` alone."""

    folder: Path
    route: str = "draft"
    loop: str = "uvloop"
    settings: dict[str, Any] = field(default_factory=dict)
    server_settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = f"microsoft, {self.route}"
        # A draft from JSON is a mail that Exchange writes.
        self.differs = Differs(keeps_bytes=self.route != "draft")
        self.house = MicrosoftHouse(Ledger(self.folder / "graph.jsonl"), sent_copy_after=0.0)
        self.house.add_user(USER, aliases=["canary-alias@sender.example"])
        self.server = MicrosoftServer(self.house)

    def __enter__(self) -> GraphRig:
        self.server.__enter__()
        settings = quick_settings(self.folder, graph_url=self.server.graph_url, **self.settings)
        self.web = Web(settings)
        self.signals = Signals()
        self.provider = MicrosoftProvider(settings, self.web, self.signals, looks_after=(0.0, 0.05))
        self.tokens = RigTokens(self.house, USER, SCOPES[self.route])
        self.account = self.account_of()
        return self

    def __exit__(self, *error: Any) -> None:
        self.server.__exit__(*error)
        assert self.server.seen.get("errors", 0) == 0, "the sandbox's server failed"

    def account_of(self, scopes: str | None = None, **server: Any) -> Account:
        granted = frozenset((scopes or SCOPES[self.route]).split())
        return Account(
            UUID(int=1),
            "graph.microsoft.com",
            {**server, **self.server_settings},
            USER,
            {"kind": "microsoft", "refresh_token": "canary-refresh"},
            granted,
            self.tokens,
        )

    def misbehave(self, fault: Fault) -> None:
        if fault == "refuses early" and self.route == "draft":
            self.server.add_rule(stage="messages.create", status=400, body=DENIAL, times=1)
        elif fault == "refuses early":
            # sendMail has no step of Graph's before the handover: what can refuse early is the token.
            self.tokens.refuse.append(Failed("scripted refusal"))
        else:
            self.server.add_rule(**FAULTS[fault])

    def taken(self) -> list[Taken]:
        ledger = self.house.ledger.read()
        if self.differs.keeps_bytes:
            return [Taken(each.rfc_message_id, each.sender, each.recipients, each.sha256, each.size) for each in ledger]
        texts = [each.text.encode() for each in self.house.sent]
        return [
            Taken(each.rfc_message_id, each.sender, each.recipients, digest(text), len(text))
            for each, text in zip(ledger, texts, strict=True)
        ]

    def handovers(self) -> int:
        return self.server.handovers()

    def requests(self, stage: str = "") -> list[dict[str, Any]]:
        return [each for each in self.house.requests if not stage or each["stage"] == stage]

    def run(self, steps: Coroutine[Any, Any, T]) -> T:
        async def all_of_it() -> T:
            try:
                return await steps
            finally:
                await self.web.close()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop if self.loop == "uvloop" else None) as runner:
            return runner.run(all_of_it())
