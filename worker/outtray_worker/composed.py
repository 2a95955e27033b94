"""Storing a message that was made final: content, recipients, counts and journal, in one transaction.

It holds only for the version that was read, and raises it: of two workers one stores, and a gate that still knows the
message as it was before does not pass (protocol, rule 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from outtray_schema import bindings
from outtray_schema.address import Address, is_external
from outtray_schema.content import Head, sealed_content
from outtray_schema.mime import FrozenMime
from outtray_schema.vault import Vault

# Makes a message final: locks its row, and takes it only as it was read. Mailboxes are not touched: a gate waits for
# nobody but this row.
FINAL = """
UPDATE outtray.message m
SET version = m.version + 1, size = %(size)s, recipients = %(recipients)s, external = %(external)s, reason = NULL
WHERE m.id = %(id)s AND m.version = %(version)s AND m.state = 'queued' RETURNING m.id
"""
CONTENT = """
UPDATE outtray.content SET head = %(head)s, body = %(body)s, body_hash = %(body_hash)s WHERE message_id = %(id)s
"""
FORGET_RECIPIENTS = "DELETE FROM outtray.recipient WHERE message_id = %(id)s"
RECIPIENT = """
INSERT INTO outtray.recipient (message_id, n, role, address, address_index, external)
VALUES (%(id)s, %(n)s, %(role)s, %(address)s, %(index)s, %(external)s)
"""
FORGET_CHUNKS = "DELETE FROM outtray.content_chunk WHERE message_id = %(id)s"
CHUNK_ROW = """
INSERT INTO outtray.content_chunk (message_id, n, data) VALUES (%(id)s, %(n)s, %(data)s)
ON CONFLICT (message_id, n) DO UPDATE SET data = EXCLUDED.data
"""
NOTE = """
INSERT INTO outtray.journal (message_id, mailbox_id, kind, detail)
VALUES (%(id)s, %(mailbox_id)s, 'composed', %(detail)s)
"""


class _Digest(Protocol):
    def digest(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Final:
    """What is written of a message that is final. With `whole` the chunks are all of them, else the others stay."""

    head: Head = field(repr=False)
    sealed_head: bytes = field(repr=False)
    body: bytes | None = field(repr=False)
    body_hash: bytes = field(repr=False)
    size: int
    chunks: Sequence[tuple[int, bytes]] = field(repr=False)
    whole: bool


def anew(vault: Vault, message_id: UUID, head: Head, mime: FrozenMime) -> Final:
    """All of it is written anew; it is sealed here, in memory. CPU: some milliseconds per MB."""
    sealed = sealed_content(vault, message_id, head, mime)
    return Final(head, sealed.head, sealed.body, sealed.body_hash, mime.size, list(sealed.chunks()), whole=True)


def with_new_headers(vault: Vault, message_id: UUID, head: Head, headers: bytes, digest: _Digest, size: int) -> Final:
    """Only the first chunk, its own headers, is written anew. `digest` and `size` are of the whole MIME."""
    sealed_head = vault.content.encrypt(head.to_json(), bindings.head(message_id))
    first = vault.content.encrypt(headers, bindings.chunk(message_id, 0))
    body_hash = vault.keyed_hash(message_id, "body", digest.digest())
    return Final(head, sealed_head, None, body_hash, size, [(0, first)], whole=False)


def recipient_rows(vault: Vault, app_id: UUID, message_id: UUID, own: Address, head: Head) -> list[dict[str, Any]]:
    """Its rows of `outtray.recipient`, as the mailbox of that address counts them. CPU: some 10 µs each."""
    return [
        {
            "id": message_id,
            "n": n,
            "role": role,
            "address": vault.addresses.encrypt(email.encode(), bindings.recipient(message_id, n)),
            "index": vault.blind_index(app_id, email),
            "external": is_external(Address(email), own),
        }
        for n, (role, email) in enumerate(head.recipients)
    ]


async def store(
    connection: AsyncConnection[Any],
    mailbox_id: UUID,
    final: Final,
    recipients: Sequence[Mapping[str, Any]],
    named: Mapping[str, Any],
) -> bool:
    """Write it in the caller's transaction. False: the message is no longer what `named` (id, version) says."""
    counts = {"recipients": len(recipients), "external": sum(row["external"] for row in recipients)}
    if (await connection.execute(FINAL, {**named, **counts, "size": final.size})).rowcount == 0:
        return False
    content = {"head": final.sealed_head, "body": final.body, "body_hash": final.body_hash}
    await connection.execute(CONTENT, {**named, **content})
    await connection.execute(FORGET_RECIPIENTS, named)
    async with connection.cursor() as cursor:
        await cursor.executemany(RECIPIENT, recipients)
    if final.whole:
        await connection.execute(FORGET_CHUNKS, named)
    for n, data in final.chunks:
        await connection.execute(CHUNK_ROW, {**named, "n": n, "data": data})
    detail = Jsonb({"recipients": counts["recipients"], "size": final.size})
    await connection.execute(NOTE, {**named, "mailbox_id": mailbox_id, "detail": detail})
    return True
