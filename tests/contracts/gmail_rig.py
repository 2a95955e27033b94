"""Gmail's rigs: the real provider against the sandbox's Google, by draft and by direct send."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import uvloop
from provider_rigs import TOKEN, USER, Differs, Fault, Taken, digest, quick_settings

from outtray_sandbox.google import GoogleHouse, GoogleServer, Ledger
from outtray_sandbox.google.tokens import Access
from outtray_schema.outcome import Failed, Outcome
from outtray_worker.providers import Account, NoToken
from outtray_worker.providers.gmail import GmailProvider, Sizes

T = TypeVar("T")

AUTH = "https://www.googleapis.com/auth/gmail."
SEND, COMPOSE, METADATA, READONLY, MODIFY = (
    f"{AUTH}{name}" for name in ("send", "compose", "metadata", "readonly", "modify")
)
FULL = "https://mail.google.com/"
FRONT = re.compile(rb"X-Outtray-Key: [0-9a-f-]{36}\r\n(Bcc: [^\r\n]+(?:\r\n [^\r\n]+)*\r\n)?")
REFUSAL = {"error": {"code": 400, "message": "Bad Request", "errors": [{"reason": "badRequest", "domain": "global"}]}}


class StaticTokens:
    """One token until it is refused; `next` are the tokens or refusals that follow."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.next: list[str | Outcome] = []
        self.refuse: list[Outcome] = []
        self.renewals = 0

    async def access(self) -> str:
        if self.refuse:
            raise NoToken(self.refuse.pop(0))
        return self.token

    async def renewed(self, refused: str, claims: str | None = None) -> str:
        assert refused == self.token
        self.renewals += 1
        following = self.next.pop(0) if self.next else self.token
        if not isinstance(following, str):
            raise NoToken(following)
        self.token = following
        return following


@dataclass
class GmailRig:
    """`scopes` decide the route: by draft with gmail.compose and the like, by send with gmail.send."""

    folder: Path
    scopes: tuple[str, ...] = (COMPOSE, METADATA)
    loop: str = "asyncio"
    settings: dict[str, Any] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=Sizes)

    def __post_init__(self) -> None:
        self.by_draft = bool({COMPOSE, MODIFY, FULL} & set(self.scopes))
        self.commit = "drafts.send" if self.by_draft else "messages.send"
        self.name = f"gmail, {'by draft' if self.by_draft else 'by send'}, {self.loop}"
        self.differs = Differs(
            keeps_message_id=False, reads_back=bool({METADATA, READONLY, MODIFY, FULL} & set(self.scopes))
        )
        self.house = GoogleHouse(Ledger(self.folder / "accepted.jsonl"), keep_bodies=64 << 20)
        self.server = GoogleServer(self.house)
        self.tokens = StaticTokens(TOKEN)

    def __enter__(self) -> GmailRig:
        self.server.__enter__()
        self.house.add_user(USER)
        self.house.tokens.access[TOKEN] = Access("sandbox", USER, self.scopes, float("inf"))
        self.provider = GmailProvider(
            quick_settings(self.folder, gmail_url=self.server.url, **self.settings), sizes=self.sizes
        )
        self.account = self.account_with(*self.scopes)
        return self

    def __exit__(self, *error: Any) -> None:
        self.server.__exit__(*error)
        assert self.server.seen.get("errors", 0) == 0, "the sandbox's server failed"

    def account_with(self, *scopes: str) -> Account:
        """The account with these scopes, at the server too."""
        self.house.tokens.access[TOKEN].scopes = scopes
        return Account(UUID(int=1), "gmail.example", {}, USER, {}, frozenset(scopes), self.tokens)

    def misbehave(self, fault: Fault) -> None:
        if fault == "refuses early" and not self.by_draft:
            # A small mail by messages.send asks Gmail for nothing before its handover: only a token can be refused.
            self.tokens.refuse.append(Failed("scripted refusal"))
            return
        stage = "drafts.create" if fault == "refuses early" else self.commit
        rules: dict[Fault, dict[str, Any]] = {
            "refuses early": {"status": 400, "body": REFUSAL},
            "refuses late": {"status": 400, "body": REFUSAL},
            "never answers": {"silent": True},
            "takes, never answers": {"silent": True, "take": True},
            "takes, loses the answer": {"drop": "after"},
            "breaks": {"drop": "before", "reset": True},
        }
        self.server.add_rule(stage=stage.replace(".", r"\."), times=1, **rules[fault])

    def received(self) -> list[bytes]:
        """What the API was given, mail by mail."""
        return [self.house.bodies[mail.sha256] for mail in self.server.ledger.read()]

    def taken(self) -> list[Taken]:
        found = []
        for mail, raw in zip(self.server.ledger.read(), self.received(), strict=True):
            front = FRONT.match(raw)
            assert front is not None, "our key, then Bcc, stand in front of the frozen bytes"
            frozen = raw[front.end() :]
            found.append(Taken(mail.rfc_message_id, mail.sender, mail.recipients, digest(frozen), len(frozen)))
        return found

    def handovers(self) -> int:
        return self.server.seen[self.commit] + self.server.seen[f"upload.{self.commit}"]

    def run(self, steps: Coroutine[Any, Any, T]) -> T:
        async def then_close() -> T:
            try:
                return await steps
            finally:
                await self.provider.web.close()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop if self.loop == "uvloop" else None) as runner:
            return runner.run(then_close())
