"""The table of tokens: what is stored, who may refresh, and the save that loses nothing. One statement per verb.

A mailbox has one refresh token, so it has one lease, whatever audience is refreshed: it stands on the row of the
audience ''. The lease keeps others from asking the token endpoint; that nothing newer is ever overwritten is kept by
the versions in the save itself, and would be without any lease.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row

from outtray_schema import bindings
from outtray_schema.vault import Vault
from outtray_worker.auth.grant import Grant

# Reads one mailbox's token for an audience, and its credentials; locks nothing.
READ = """
SELECT m.credentials, m.credentials_version, m.provider_app, m.scopes, t.access, coalesce(t.version, 0) AS version,
    extract(epoch FROM t.expires_at - n.now)::float8 AS seconds
FROM (SELECT outtray.outtray_now() AS now) AS n, outtray.mailbox m
LEFT JOIN outtray.token t ON t.mailbox_id = m.id AND t.audience = %(audience)s
WHERE m.id = %(mailbox)s
"""

# Takes the lease if nobody holds it; locks the mailbox's row of the audience ''. Its answer lost, it is left to end.
LEASE = """
INSERT INTO outtray.token AS t (mailbox_id, audience, refreshing, refreshing_until)
VALUES (%(mailbox)s, '', 1, outtray.outtray_now() + %(lease)s)
ON CONFLICT (mailbox_id, audience) DO UPDATE
SET refreshing = t.refreshing + 1, refreshing_until = excluded.refreshing_until
WHERE t.refreshing_until IS NULL OR t.refreshing_until <= outtray.outtray_now()
RETURNING t.refreshing
"""

# Gives the lease back, if it is still that holder's.
RELEASE = """
UPDATE outtray.token t SET refreshing_until = NULL
WHERE t.mailbox_id = %(mailbox)s AND t.audience = '' AND t.refreshing = %(fence)s
"""

# Writes a refresh, if the credentials are still those that it was made with: a newer refresh token, or a new consent,
# is never overwritten. Locks the mailbox's row, then the token's, as every consent does.
SAVE = """
WITH box AS MATERIALIZED (
    SELECT m.id FROM outtray.mailbox m WHERE m.id = %(mailbox)s AND m.credentials_version = %(credentials_version)s
    FOR NO KEY UPDATE),
rotated AS (
    UPDATE outtray.mailbox m
    SET credentials = %(credentials)s, credentials_version = %(credentials_version)s + 1
    FROM box WHERE m.id = box.id AND %(credentials)s::bytea IS NOT NULL)
INSERT INTO outtray.token AS t (mailbox_id, audience, access, version, expires_at)
SELECT box.id, %(audience)s, %(access)s, %(version)s, outtray.outtray_now() + %(lifetime)s FROM box
ON CONFLICT (mailbox_id, audience) DO UPDATE
SET access = excluded.access, version = excluded.version, expires_at = excluded.expires_at
WHERE t.version = excluded.version - 1
RETURNING t.version
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database has of one mailbox and audience; the sealed fields are still encrypted."""

    credentials: bytes | None = field(repr=False)
    credentials_version: int
    provider_app: str | None
    scopes: Sequence[str]
    access: bytes | None = field(repr=False)
    version: int
    seconds: float | None
    """Until the access token expires, on the database's clock."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """A successful refresh on its way into the database, with the versions that it was made from."""

    mailbox_id: UUID
    audience: str
    fence: int
    grant: Grant
    credentials: Mapping[str, Any] = field(repr=False)
    """What was refreshed; the rotated refresh token goes in its place."""
    credentials_version: int
    version: int

    @property
    def rotated(self) -> bool:
        new = self.grant.refresh_token
        return new is not None and new != self.credentials.get("refresh_token")

    @property
    def credentials_after(self) -> int:
        """The credentials' version once this is saved."""
        return self.credentials_version + self.rotated


async def read(connection: AsyncConnection[Any], mailbox_id: UUID, audience: str) -> Stored | None:
    """What is stored; None if the mailbox is gone."""
    async with connection.cursor(row_factory=class_row(Stored)) as cursor:
        await cursor.execute(READ, {"mailbox": mailbox_id, "audience": audience})
        return await cursor.fetchone()


async def take_lease(connection: AsyncConnection[Any], mailbox_id: UUID, lease: timedelta) -> int | None:
    """The lease's fence, or None: somebody else refreshes this mailbox now."""
    row = await (await connection.execute(LEASE, {"mailbox": mailbox_id, "lease": lease})).fetchone()
    return row[0] if row else None


async def release(connection: AsyncConnection[Any], mailbox_id: UUID, fence: int) -> None:
    """Let others refresh this mailbox."""
    await connection.execute(RELEASE, {"mailbox": mailbox_id, "fence": fence})


async def save(connection: AsyncConnection[Any], vault: Vault, renewal: Renewal, lifetime: float) -> bool:
    """Write token, rotated refresh token and the lease's end in one transaction. False: nothing was to be written.

    `lifetime` is what remains of the token, in seconds. False means that newer ones stand there, or that this very
    renewal does, written by a COMMIT whose answer was lost: `is_saved` tells which.
    """
    async with connection.transaction():
        cursor = await connection.execute(SAVE, _parameters(vault, renewal, lifetime))
        written = await cursor.fetchone() is not None
        await release(connection, renewal.mailbox_id, renewal.fence)
        return written


def _parameters(vault: Vault, renewal: Renewal, lifetime: float) -> dict[str, Any]:
    mailbox_id, ring = renewal.mailbox_id, vault.credentials
    version = renewal.version + 1
    sealed = None
    if renewal.rotated:
        secret = json.dumps({**renewal.credentials, "refresh_token": renewal.grant.refresh_token}).encode()
        sealed = ring.encrypt(secret, bindings.credentials(mailbox_id, renewal.credentials_after))
    token = json.dumps({"token": renewal.grant.access, "lifetime": renewal.grant.lifetime}).encode()
    return {
        "mailbox": mailbox_id,
        "audience": renewal.audience,
        "credentials": sealed,
        "credentials_version": renewal.credentials_version,
        "access": ring.encrypt(token, bindings.token(mailbox_id, renewal.audience, version)),
        "version": version,
        "lifetime": timedelta(seconds=max(lifetime, 0.0)),
    }


async def is_saved(connection: AsyncConnection[Any], vault: Vault, renewal: Renewal) -> bool:
    """Read back by version whether this very renewal stands in the database (protocol, rule 10)."""
    stored = await read(connection, renewal.mailbox_id, renewal.audience)
    if stored is None:
        return False
    if stored.credentials_version != renewal.credentials_after or stored.version != renewal.version + 1:
        return False
    opened = open_access(vault, renewal.mailbox_id, renewal.audience, stored)
    return opened is not None and opened[0] == renewal.grant.access


def open_access(vault: Vault, mailbox_id: UUID, audience: str, stored: Stored) -> tuple[str, float] | None:
    """The stored access token, and how many seconds it was to live when it was new. Raises what the vault raises."""
    if stored.access is None:
        return None
    opened = json.loads(vault.credentials.decrypt(stored.access, bindings.token(mailbox_id, audience, stored.version)))
    return opened["token"], float(opened["lifetime"])


def open_credentials(vault: Vault, mailbox_id: UUID, stored: Stored) -> dict[str, Any]:
    """A mailbox's credentials; empty if they were erased. Raises what the vault raises."""
    if stored.credentials is None:
        return {}
    bound_to = bindings.credentials(mailbox_id, stored.credentials_version)
    opened: dict[str, Any] = json.loads(vault.credentials.decrypt(stored.credentials, bound_to))
    return opened
