"""Would a mail leave from this mailbox? Its provider is asked as a worker would ask it, and nothing is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row

from outtray_schema.errors import NotFound, WrongState
from outtray_schema.outcome import Outcome
from outtray_schema.settings import Settings
from outtray_schema.vault import load_vault
from outtray_worker.accounts import open_account
from outtray_worker.auth.tokens import own_auth
from outtray_worker.providers import Account
from outtray_worker.providers.gmail import Check as GmailCheck
from outtray_worker.providers.gmail import GmailProvider
from outtray_worker.providers.microsoft import MicrosoftCheck, MicrosoftProvider
from outtray_worker.providers.smtp import Check, SmtpProvider
from outtray_worker.providers.web import Web

Found = Check | GmailCheck | MicrosoftCheck
"""What a provider shows of a mailbox that may send."""

# Reads one mailbox with its sealed fields; locks nothing.
STORED = """
SELECT m.id, m.provider, m.host, m.server, m.address, m.credentials, m.credentials_version, m.scopes
FROM outtray.mailbox m WHERE m.id = %(id)s
"""


@dataclass(slots=True)
class StoredMailbox:
    """A mailbox as it is stored, its sealed fields still encrypted."""

    id: UUID
    provider: str
    host: str
    server: Mapping[str, Any]
    address: bytes = field(repr=False)
    credentials: bytes | None = field(repr=False)
    credentials_version: int
    scopes: Sequence[str]


class Checking(Protocol):
    """A provider that can be asked without sending anything."""

    async def check(self, account: Account) -> Found | Outcome: ...


async def check_mailbox(settings: Settings, connection: Connection[Any], mailbox_id: UUID) -> Found | Outcome:
    """What its server offers, or the outcome that a mail would get now. Raises `NotFound`, `WrongState`."""
    with connection.cursor(row_factory=class_row(StoredMailbox)) as cursor:
        box = cursor.execute(STORED, {"id": mailbox_id}).fetchone()
    if box is None:
        raise NotFound("the mailbox has just been removed")
    web = Web(settings)
    try:
        async with own_auth(settings) as auth:
            return await _provider(settings, web, box.provider).check(open_account(load_vault(settings), box, auth))
    finally:
        await web.close()


async def read_senders(settings: Settings, connection: Connection[Any], mailbox_id: UUID) -> list[str] | Outcome:
    """The addresses that the provider lets this mailbox stand in From, its own among them.

    An outcome where its scopes do not show them. Raises `NotFound`, and `WrongState` where the provider keeps no list.
    """
    with connection.cursor(row_factory=class_row(StoredMailbox)) as cursor:
        box = cursor.execute(STORED, {"id": mailbox_id}).fetchone()
    if box is None:
        raise NotFound("the mailbox has just been removed")
    web = Web(settings)
    try:
        async with own_auth(settings) as auth:
            account = open_account(load_vault(settings), box, auth)
            match box.provider:
                case "gmail":
                    found = await GmailProvider(settings, web).identities(account)
                    return found if isinstance(found, Outcome) else [each.address for each in found if each.verified]
                case "microsoft":
                    return await MicrosoftProvider(settings, web).identities(account)
    finally:
        await web.close()
    raise WrongState(f"a mailbox of the provider {box.provider!r} keeps no list of its From addresses; enter them")


def _provider(settings: Settings, web: Web, name: str) -> Checking:
    match name:
        case "smtp":
            return SmtpProvider(settings)
        case "gmail":
            return GmailProvider(settings, web)
        case "microsoft":
            return MicrosoftProvider(settings, web)
    raise WrongState(f"a mailbox of the provider {name!r} has no server of its own to test")
