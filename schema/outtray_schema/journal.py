"""The journal's chain: an entry as text, the hash that follows another, the digest of many links (docs/journal.md).

PostgreSQL makes the links and seals (`migrations/versions/0006_chain.sql`); this page makes the same ones anew, from
what is stored, so that what one says can be held against the other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from uuid import UUID

NOTHING = bytes(32)
"""What comes before the first link of a chain, and before the first seal."""

NOBODY = UUID(int=0)
"""The chain of entries that name neither a message nor a mailbox: switches."""

STATE_AFTER = """
CASE WHEN j.kind IN ('look', 'composed', 'rescheduled', 'draft', 'deleted') THEN NULL
     ELSE coalesce(j.detail->>'state', CASE j.kind WHEN 'enqueued' THEN 'queued' WHEN 'gate' THEN 'handing_over'
         WHEN 'resend' THEN 'queued' WHEN 'unknown' THEN 'unknown' WHEN 'expired' THEN 'expired'
         WHEN 'sent' THEN 'sent' WHEN 'drafted' THEN 'drafted' WHEN 'failed' THEN 'failed'
         WHEN 'cancelled' THEN 'cancelled' END) END
"""
"""SQL: the state of its message after the entry `j`; NULL where the entry leaves it as it was."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as it is hashed. `micros`: its time, in microseconds since 1970; `detail`: PostgreSQL's text of it."""

    id: int
    micros: int
    message_id: UUID | None
    mailbox_id: UUID | None
    kind: str
    handover: int | None
    actor: str | None
    detail: str | None

    @property
    def chain(self) -> UUID:
        """The message, else the mailbox, that it belongs to."""
        return self.message_id or self.mailbox_id or NOBODY

    def text(self) -> bytes:
        """Itself as PostgreSQL writes a JSON array of it: keys of `detail` sorted, a blank after comma and colon."""
        named = (self.id, self.micros, _plain(self.message_id), _plain(self.mailbox_id), self.kind, self.handover)
        head = [json.dumps(value, ensure_ascii=False) for value in (*named, self.actor)]
        return f"[{', '.join([*head, self.detail or 'null'])}]".encode()


def _plain(value: UUID | None) -> str | None:
    return str(value) if value is not None else None


def next_hash(before: bytes, entry: Entry) -> bytes:
    """The hash of an entry that follows another in its chain."""
    return sha256(before + entry.text()).digest()


def digest_with(digest: bytes, link_id: int, link_hash: bytes) -> bytes:
    """The digest of the links so far and one more, in the order of their numbers."""
    return sha256(digest + link_id.to_bytes(8, "big", signed=True) + link_hash).digest()


def sealed(digest: bytes, day: date, after_id: int, to_id: int, links: int) -> bytes:
    """The digest of a seal: that of its links, and what it says of them."""
    return sha256(digest + json.dumps([day.isoformat(), after_id, to_id, links]).encode()).digest()
