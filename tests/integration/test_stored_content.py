"""Content through a real database: written in chunks, read in chunks, complete, and in clear nowhere."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from outtray_schema.address import Address
from outtray_schema.attachment import Attachment
from outtray_schema.content import CHUNK, BodyCheck, Head, open_chunk, open_head, sealed_content
from outtray_schema.errors import CannotOpen
from outtray_schema.ids import new_id
from outtray_schema.keyfile import new_keys
from outtray_schema.message import Message
from outtray_schema.mime import FrozenMime, freeze
from outtray_schema.vault import vault_of

VAULT = vault_of(new_keys(), "test")
SENDER = Address("canary-sender@example.com", "Canary")


def _store(connection: psycopg.Connection[Any], message_id: UUID, file: Path) -> FrozenMime:
    message = Message(
        to="canary-to@example.com", subject="canary-subject", text="canary-text", metadata={"id": "canary-id"},
        attachments=[Attachment("large.bin", path=file)],
    )  # fmt: skip
    mime = freeze(message, sender=SENDER, rfc_message_id="<a@example.com>", date=datetime(2027, 1, 1, tzinfo=UTC))
    sealed = sealed_content(VAULT, message_id, Head.of(message, SENDER), mime)
    connection.execute(
        "INSERT INTO outtray.message (id, app_id, mailbox_id, request_hash, recipients, external, size)"
        " VALUES (%s, %s, %s, '', 1, 1, %s)",
        [message_id, new_id(), new_id(), mime.size],
    )
    connection.execute(
        "INSERT INTO outtray.content (message_id, head, body, body_hash) VALUES (%s, %s, %s, %s)",
        [message_id, sealed.head, sealed.body, sealed.body_hash],
    )
    for n, data in sealed.chunks():
        connection.execute("INSERT INTO outtray.content_chunk VALUES (%s, %s, %s)", [message_id, n, data])
    return mime


def _read(connection: psycopg.Connection[Any], message_id: UUID) -> tuple[Head, bytes]:
    """The head and the hash of the body, verified, one chunk in memory at a time."""
    query = "SELECT head, body_hash FROM outtray.content WHERE message_id = %s"
    row = connection.execute(query, [message_id]).fetchone()
    assert row is not None
    check, digest = BodyCheck(VAULT, message_id, row[1]), hashlib.sha256()
    chunks = "SELECT n, data FROM outtray.content_chunk WHERE message_id = %s ORDER BY n"
    with connection.transaction(), connection.cursor("chunks") as cursor:
        for n, data in cursor.execute(chunks, [message_id]):
            piece = open_chunk(VAULT, message_id, n, data)
            assert len(piece) <= CHUNK
            check.add(piece)
            digest.update(piece)
    check.verify()
    return open_head(VAULT, message_id, row[0]), digest.digest()


def test_a_large_message_comes_back_from_its_chunks_and_is_in_clear_nowhere(database: Any, tmp_path: Path) -> None:
    file = tmp_path / "large.bin"
    file.write_bytes(b"canary-file" * 300_000)
    message_id = new_id()
    with database.connect() as connection:
        mime = _store(connection, message_id, file)
        head, digest = _read(connection, message_id)
        columns = "SELECT head FROM outtray.content UNION ALL SELECT data FROM outtray.content_chunk"
        stored = b"".join(bytes(row[0]) for row in connection.execute(columns))
    assert digest == mime.hash
    assert (head.subject, head.recipients, head.metadata) == (
        "canary-subject", (("to", "canary-to@example.com"),), {"id": "canary-id"},
    )  # fmt: skip
    assert len(stored) > mime.size and b"canary" not in stored


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM outtray.content_chunk WHERE n = 2",
        "UPDATE outtray.content_chunk SET n = n + 100",
        "UPDATE outtray.content SET body_hash = 'x'",
    ],
)
def test_a_body_that_lost_or_moved_a_chunk_is_never_taken_for_whole(database: Any, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "large.bin"
    file.write_bytes(bytes(2_000_000))
    message_id = new_id()
    with database.connect() as connection:
        _store(connection, message_id, file)
        connection.execute(damage)
        with pytest.raises(CannotOpen):
            _read(connection, message_id)
