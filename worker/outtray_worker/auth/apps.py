"""OAuth clients: read with their secret, refused once for all, tried again now and then, and their mailboxes freed.

A client that is refused (its secret expired) is nobody's consent: its mailboxes are parked, the operator is alarmed,
and no mailbox asks the provider in vain meanwhile, but for one try every few minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from outtray_schema import bindings
from outtray_schema.freeing import CHUNK, FREE, LOCK_WAITING
from outtray_schema.vault import Vault
from outtray_worker.auth.grant import Client
from outtray_worker.deadline import boottime

log = structlog.get_logger()

KEPT = 3.0
"""Seconds for which an active client is believed to be unchanged. A refused one is always read anew."""

NOBODY = UUID(int=0)

# Reads one OAuth client; locks nothing.
READ = """
SELECT p.name, p.kind, p.client_id, p.tenant, p.secret, p.secret_version, p.status, p.status_reason
FROM outtray.provider_app p WHERE p.name = %(name)s
"""

# Marks a client as refused, once per fall and only with the secret that was refused; tells every app that uses it.
REFUSE = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
refused AS (
    UPDATE outtray.provider_app p SET status = 'refused', status_reason = %(reason)s, status_at = t.now
    FROM t WHERE p.name = %(name)s AND p.status = 'active' AND p.secret_version = %(secret_version)s
    RETURNING p.name, p.app_id),
told AS (
    INSERT INTO outtray.event (at, app_id, kind, data)
    SELECT t.now, users.app_id, 'provider_app.refused', %(data)s
    FROM t, refused, LATERAL (
        SELECT refused.app_id WHERE refused.app_id IS NOT NULL
        UNION SELECT m.app_id FROM outtray.mailbox m
        WHERE m.provider_app = refused.name AND m.credentials IS NOT NULL) AS users)
SELECT name FROM refused
"""

# Takes the one try that a refused client is given per interval; a try that is refused again moves the next one on.
TRY_AGAIN = """
UPDATE outtray.provider_app p SET status_at = outtray.outtray_now()
WHERE p.name = %(name)s AND p.status = 'refused' AND p.status_at <= outtray.outtray_now() - %(every)s
RETURNING p.name
"""

# A refused client that was just not refused works again; locks its row.
RESTORE = """
UPDATE outtray.provider_app p SET status = 'active', status_reason = NULL, status_at = outtray.outtray_now()
WHERE p.name = %(name)s AND p.status = 'refused' AND p.secret_version = %(secret_version)s RETURNING p.name
"""


@dataclass(frozen=True, slots=True)
class ProviderApp:
    """An OAuth client as it is stored, its secret still sealed."""

    name: str
    kind: str
    client_id: str | None
    tenant: str | None
    secret: bytes | None = field(repr=False)
    secret_version: int
    status: str
    status_reason: str | None

    @property
    def refused(self) -> bool:
        return self.status == "refused"

    def client(self, vault: Vault) -> Client:
        """What the provider knows us by. Raises what the vault raises."""
        secret = None
        if self.secret is not None:
            bound_to = bindings.provider_app_secret(self.name, self.secret_version)
            secret = vault.credentials.decrypt(self.secret, bound_to).decode()
        return Client(self.client_id or "", secret, self.secret_version, self.tenant)


class ProviderApps:
    """The clients that one process has seen lately."""

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[float, ProviderApp]] = {}

    async def read(self, connection: AsyncConnection[Any], name: str) -> ProviderApp | None:
        """The client of that name. A changed secret is seen within `KEPT` seconds, the end of a refusal at once."""
        until, app = self._seen.get(name, (0.0, None))
        if app is not None and self._clock() < until:
            return app
        return await self.read_anew(connection, name)

    async def read_anew(self, connection: AsyncConnection[Any], name: str) -> ProviderApp | None:
        """The client as it stands now."""
        async with connection.cursor(row_factory=class_row(ProviderApp)) as cursor:
            await cursor.execute(READ, {"name": name})
            app = await cursor.fetchone()
        self._seen.pop(name, None)
        if app is not None and not app.refused:
            self._seen[name] = (self._clock() + KEPT, app)
        return app

    async def refuse(self, connection: AsyncConnection[Any], app: ProviderApp, reason: str) -> None:
        """Let nobody ask with this secret again, and alarm the operator; both once per fall."""
        self._seen.pop(app.name, None)
        said = {
            "name": app.name,
            "secret_version": app.secret_version,
            "reason": reason,
            "data": Jsonb({"provider_app": app.name, "reason": reason}),
        }
        if await (await connection.execute(REFUSE, said)).fetchone():
            log.error("an OAuth client is refused: its mailboxes wait", provider_app=app.name, reason=reason)

    async def may_try(self, connection: AsyncConnection[Any], app: ProviderApp, every: timedelta) -> bool:
        """Whether this process takes the one try of this interval."""
        cursor = await connection.execute(TRY_AGAIN, {"name": app.name, "every": every})
        return await cursor.fetchone() is not None

    async def restore(self, connection: AsyncConnection[Any], app: ProviderApp) -> None:
        """It was not refused any more: free its mailboxes."""
        said = {"name": app.name, "secret_version": app.secret_version}
        if await (await connection.execute(RESTORE, said)).fetchone():
            log.warning("an OAuth client works again: its mailboxes go on", provider_app=app.name)
            await free(connection, app.name)


async def free(connection: AsyncConnection[Any], name: str) -> int:
    """End the wait of every mailbox that waits for this client, and arm it. Answers with how many there were."""
    after, freed = NOBODY, 0
    while True:
        async with connection.transaction():
            cursor = await connection.execute(LOCK_WAITING, {"name": name, "after": after, "chunk": CHUNK})
            ids = [row[0] for row in await cursor.fetchall()]
            if ids:
                await connection.execute(FREE, {"ids": ids})
        freed += len(ids)
        if len(ids) < CHUNK:
            return freed
        after = ids[-1]
