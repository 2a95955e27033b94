"""Read: a message to be looked for, and its mailbox, as they stand when the look begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from outtray_schema import bindings
from outtray_schema.errors import CannotOpen, UnknownKey
from outtray_schema.vault import Vault
from outtray_worker.providers import Draft, Trace
from outtray_worker.reconcile.pick import WANTS_LOOKS

# Reads one message with its sealed mailbox; locks nothing. What may have left more than once is looked for since its
# first gate: provider ids for any handover make it sent.
READ = f"""
SELECT outtray.outtray_now() AS began, m.id, m.mailbox_id, m.state, m.handover, m.rfc_message_id, m.conversation_id,
    m.draft, m.continues, b.status,
    coalesce(CASE WHEN m.may_have_left THEN
        (SELECT min(j.at) FROM outtray.journal j WHERE j.message_id = m.id AND j.kind = 'gate') END,
        m.handed_at, m.created_at) AS since,
    ARRAY(SELECT r.address FROM outtray.recipient r WHERE r.message_id = m.id ORDER BY r.n) AS addresses,
    ARRAY(SELECT r.n FROM outtray.recipient r WHERE r.message_id = m.id ORDER BY r.n) AS numbers,
    b.provider, b.host, b.server, b.address, b.credentials, b.credentials_version, b.scopes
FROM outtray.message m JOIN outtray.mailbox b ON b.id = m.mailbox_id
WHERE m.id = %(id)s AND m.look_at IS NOT NULL AND {WANTS_LOOKS}
"""

# Which mailbox each of these messages is in, and which provider host that talks to; locks nothing.
PLACES = """
SELECT m.id, m.mailbox_id, b.host FROM outtray.message m JOIN outtray.mailbox b ON b.id = m.mailbox_id
WHERE m.id = ANY(%(ids)s) AND m.look_at IS NOT NULL
"""


LEFT_BEHIND = -1
"""In `look_handover`: the looks are about what a message that has ended left behind."""


@dataclass(slots=True)
class LookedMailbox:
    """A mailbox as it is stored, its sealed fields still encrypted."""

    id: UUID
    provider: str
    host: str
    server: Mapping[str, Any]
    address: bytes = field(repr=False)
    credentials: bytes | None = field(repr=False)
    credentials_version: int
    scopes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Case:
    """What a look is about. `began`: the database's clock when it began, before anything else of it."""

    message_id: UUID
    state: str
    handover: int
    began: datetime
    mailbox: LookedMailbox
    mailbox_status: str
    trace: Trace = field(repr=False)
    trouble: str | None = None
    """Why nobody can look from here: what must be kept out of evidence cannot be read."""

    @property
    def has_ended(self) -> bool:
        """It is over, and only what it left behind is looked for."""
        return self.state not in ("unknown", "sent")

    @property
    def about(self) -> int:
        """What the looks are about, as `look_handover` has it: the handover, or what an end left behind."""
        return LEFT_BEHIND if self.has_ended else self.handover


async def read_case(connection: AsyncConnection[Any], vault: Vault, message_id: UUID) -> Case | None:
    """What there is to look for, if that message still wants a look."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(READ, {"id": message_id})
        row = await cursor.fetchone()
    return _case(vault, row) if row is not None else None


async def read_places(connection: AsyncConnection[Any], ids: Sequence[UUID]) -> dict[tuple[UUID, str], list[UUID]]:
    """The messages that want a look, by their mailbox and its host."""
    places: dict[tuple[UUID, str], list[UUID]] = {}
    cursor = await connection.execute(PLACES, {"ids": list(ids)})
    found = {row[0]: (row[1], row[2]) for row in await cursor.fetchall()}
    for message_id in ids:
        if message_id in found:
            places.setdefault(found[message_id], []).append(message_id)
    return places


def _case(vault: Vault, row: Mapping[str, Any]) -> Case:
    box = LookedMailbox(
        row["mailbox_id"], row["provider"], row["host"], row["server"], row["address"], row["credentials"],
        row["credentials_version"], row["scopes"],
    )  # fmt: skip
    try:
        recipients, trouble = _recipients(vault, row), None
    except UnknownKey as error:
        recipients, trouble = (), f"this worker's key file lacks a key of the ring {error.ring}"
    except CannotOpen:
        recipients, trouble = (), "its stored recipients are damaged"
    trace = Trace(
        row["id"],
        row["rfc_message_id"],
        row["since"],
        recipients,
        Draft(**row["draft"]) if row["draft"] else None,
        row["conversation_id"],
        key_only=row["continues"] is not None,
    )
    return Case(row["id"], row["state"], row["handover"], row["began"], box, row["status"], trace, trouble)


def _recipients(vault: Vault, row: Mapping[str, Any]) -> tuple[str, ...]:
    numbered = zip(row["numbers"], row["addresses"], strict=True)
    sealed = ((address, bindings.recipient(row["id"], n)) for n, address in numbered)
    return tuple(vault.addresses.decrypt(address, binding).decode() for address, binding in sealed)
