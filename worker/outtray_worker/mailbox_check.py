"""Would a mail leave from this mailbox? Its server is asked as a worker would ask it, and nothing is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row

from outtray_schema.errors import NotFound, WrongState
from outtray_schema.outcome import Outcome
from outtray_schema.settings import Settings
from outtray_schema.vault import load_vault
from outtray_worker.accounts import open_account
from outtray_worker.providers.smtp import Check, SmtpProvider

# Reads one mailbox with its sealed fields; locks nothing.
STORED = """
SELECT m.id, m.provider, m.host, m.server, m.address, m.credentials, m.credentials_version
FROM outtray.mailbox m WHERE m.id = %(id)s
"""


@dataclass(frozen=True, slots=True)
class StoredMailbox:
    """A mailbox as it is stored, its sealed fields still encrypted."""

    id: UUID
    provider: str
    host: str
    server: Mapping[str, Any]
    address: bytes = field(repr=False)
    credentials: bytes | None = field(repr=False)
    credentials_version: int


async def check_mailbox(settings: Settings, connection: Connection[Any], mailbox_id: UUID) -> Check | Outcome:
    """What its server offers, or the outcome that a mail would get now. Raises `NotFound`, `WrongState`."""
    with connection.cursor(row_factory=class_row(StoredMailbox)) as cursor:
        box = cursor.execute(STORED, {"id": mailbox_id}).fetchone()
    if box is None:
        raise NotFound("the mailbox has just been removed")
    if box.provider != SmtpProvider.name:
        raise WrongState(f"a mailbox of the provider {box.provider!r} has no server of its own to test")
    return await SmtpProvider(settings).check(open_account(load_vault(settings), box))
