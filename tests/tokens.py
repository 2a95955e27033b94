"""A token server, mailboxes as rows, and the token parts of any number of workers, all inside one test."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg_pool import AsyncConnectionPool

from databases import Database
from outtray_schema import bindings
from outtray_schema.database import conninfo
from outtray_schema.settings import Settings
from outtray_schema.vault import Vault, load_vault
from outtray_worker.auth.tokens import Auth, MailboxTokens
from outtray_worker.deadline import boottime
from outtray_worker.providers import NoToken
from token_server import CLIENT, SECRET, TokenServer
from world import World, world

GOOGLE_SEND = "https://www.googleapis.com/auth/gmail.send"
SMTP_SCOPE = "https://outlook.office.com/SMTP.Send"


@dataclass
class Box:
    """A mailbox as a claim shows it, as far as tokens need it."""

    id: UUID
    credentials_version: int = 1


@dataclass
class Tokens:
    """A token server, mailboxes, and any number of workers' token parts."""

    w: World
    server: TokenServer
    settings: Settings
    vault: Vault
    notes: list[tuple[str, str]] = field(default_factory=list)
    ahead: float = 0.0
    _workers: list[Auth] = field(default_factory=list)
    _pools: list[Any] = field(default_factory=list)

    def clock(self) -> float:
        return boottime() + self.ahead

    async def worker(self, **changes: Any) -> Auth:
        """The tokens of one more worker process."""
        pool = AsyncConnectionPool(
            conninfo(self.settings), kwargs={"autocommit": True}, min_size=1, max_size=4, open=False, timeout=2
        )
        await pool.open()
        settings = self.settings.model_copy(update=changes)
        auth = Auth(settings, self.vault, pool.connection, lambda *said: self.notes.append(said), self.clock)
        self._workers.append(auth)
        self._pools.append(pool)
        return auth

    async def app(self, name: str = "google-app", provider: str = "google", **columns: Any) -> str:
        secret = columns.pop("secret", SECRET)
        values = {
            "name": name, "provider": provider, "client_id": CLIENT, "tenant": "t1",
            "secret": secret and self.vault.credentials.encrypt(secret.encode(), bindings.provider_app_secret(name, 1)),
        } | columns  # fmt: skip
        await self.w._insert("provider_app", values)
        return name

    async def mailbox(self, app: str | None, credentials: dict[str, Any], scopes: list[str], **columns: Any) -> Box:
        mailbox_id = uuid4()
        sealed = self.vault.credentials.encrypt(json.dumps(credentials).encode(), bindings.credentials(mailbox_id, 1))
        values = {"id": mailbox_id, "credentials": sealed, "provider_app": app, "scopes": scopes}
        await self.w.mailbox(**values | {"provider": "gmail"} | columns)
        return Box(mailbox_id)

    async def google_box(self, person: str = "ann", **columns: Any) -> Box:
        """A Gmail mailbox with its own consent."""
        if not await self.w.rows("SELECT FROM outtray.provider_app WHERE name = 'google-app'"):
            await self.app()
        token = self.server.add_person(person, f"{GOOGLE_SEND} openid")
        return await self.mailbox("google-app", {"kind": "google", "refresh_token": token}, [GOOGLE_SEND], **columns)

    async def stored(self, box: Box) -> dict[str, Any]:
        """What the database has of a mailbox: credentials opened, and their version."""
        row = await self.w.row("mailbox", box.id)
        bound_to = bindings.credentials(box.id, row["credentials_version"])
        return {
            "version": row["credentials_version"],
            **json.loads(self.vault.credentials.decrypt(row["credentials"], bound_to)),
        }

    async def expire(self, box: Box) -> None:
        """Let the stored token be over, and the cached one too."""
        await self.w.db.execute(
            "UPDATE outtray.token SET expires_at = outtray.outtray_now() WHERE mailbox_id = %s", [box.id]
        )
        self.ahead += 2 * self.server.lifetime

    async def close(self) -> None:
        for auth in self._workers:
            await auth.close()
        for pool in self._pools:
            await pool.close()


@asynccontextmanager
async def tokens(database: Database, **server: Any) -> AsyncIterator[Tokens]:
    with TokenServer(**server) as running:
        settings = database.settings.model_copy(update=running.settings)
        async with world(settings) as w:
            made = Tokens(w, running, settings, load_vault(settings))
            try:
                yield made
            finally:
                await made.close()


async def outcome_of(box_tokens: MailboxTokens) -> Any:
    with pytest.raises(NoToken) as refused:
        await box_tokens.access()
    return refused.value.outcome
