"""Rotation on a real database: all of a ring under its new key, in small commits, beside live writers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from outtray_schema import bindings, rotation
from outtray_schema.errors import CannotOpen, UnknownKey
from outtray_schema.ids import new_id
from outtray_schema.rotation import keys_in_use, rotate
from outtray_schema.vault import Ring, Vault, add_key, drop_key, new_key_file, vault_of
from polling import eventually

APP = UUID(int=1)
SEALED = {
    "content": [
        ("content", "head", 5),
        ("content", "body", 5),
        ("content_chunk", "data", 2),
        ("attachment_chunk", "data", 2),
    ],
    "addresses": [("recipient", "address", 5), ("mailbox", "address", 3), ("suppression", "address", 1)],
    "credentials": [("mailbox", "credentials", 3), ("token", "access", 3), ("provider_app", "secret", 1)],
}  # fmt: skip


def read_vault(path: Path) -> Vault:
    return vault_of(json.loads(path.read_text()), str(path))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "rotated.json"
    new_key_file(path)
    return path


@pytest.fixture
def connection(database: Any, key_file: Path) -> Iterator[psycopg.Connection[Any]]:
    """A database in which the first keys have sealed three mailboxes, five messages and a suppression."""
    with database.connect() as connection:
        _fill(connection, read_vault(key_file))
        yield connection


def _fill(connection: psycopg.Connection[Any], vault: Vault) -> None:
    connection.execute("INSERT INTO outtray.app (id, name) VALUES (%s, 'rotated')", [APP])
    for n in range(3):
        _add_mailbox(connection, vault, new_id(), b"index%d" % n)
    connection.execute(
        "INSERT INTO outtray.provider_app (name, provider, secret, secret_version) VALUES ('entra', 'x', %s, 4)",
        [vault.credentials.encrypt(b"secret", bindings.provider_app_secret("entra", 4))],
    )
    for n in range(5):
        _add_message(connection, vault, new_id(), chunks=2 if n == 0 else 0)
    file = new_id()
    connection.execute("INSERT INTO outtray.attachment (id, app_id, digest, size) VALUES (%s, %s, 'x', 1)", [file, APP])
    for n in range(2):
        data = vault.content.encrypt(b"file", bindings.attachment(file, n))
        connection.execute("INSERT INTO outtray.attachment_chunk VALUES (%s, %s, %s)", [file, n, data])
    address = vault.addresses.encrypt(b"eve@example.com", bindings.suppression(APP, b"index"))
    connection.execute(
        "INSERT INTO outtray.suppression (app_id, address_index, address, reason) VALUES (%s, 'index', %s, 'asked')",
        [APP, address],
    )


def _add_mailbox(connection: psycopg.Connection[Any], vault: Vault, mailbox: UUID, index: bytes) -> None:
    address = vault.addresses.encrypt(b"{}", bindings.mailbox_address(mailbox))
    password = vault.credentials.encrypt(b"password", bindings.credentials(mailbox, 1))
    connection.execute(
        "INSERT INTO outtray.mailbox (id, app_id, provider, host, address, address_index, plan, credentials)"
        " VALUES (%s, %s, 'smtp', 'mail.example.com', %s, %s, 'smtp', %s)",
        [mailbox, APP, address, index, password],
    )
    connection.execute(
        "INSERT INTO outtray.token (mailbox_id, audience, access, version) VALUES (%s, 'smtp', %s, 7)",
        [mailbox, vault.credentials.encrypt(b"token", bindings.token(mailbox, "smtp", 7))],
    )


def _add_message(connection: psycopg.Connection[Any], vault: Vault, message: UUID, chunks: int) -> None:
    seal = vault.content.encrypt
    connection.execute(
        "INSERT INTO outtray.message (id, app_id, mailbox_id, request_hash, recipients, external, size)"
        " VALUES (%s, %s, %s, '', 1, 0, 10)",
        [message, APP, new_id()],
    )
    connection.execute(
        "INSERT INTO outtray.content (message_id, head, body, body_hash) VALUES (%s, %s, %s, '')",
        [message, seal(b"head", bindings.head(message)), seal(b"body" * 100, bindings.body(message))],
    )
    connection.execute(
        "INSERT INTO outtray.recipient (message_id, n, role, address, address_index, external)"
        " VALUES (%s, 0, 'to', %s, 'index', false)",
        [message, vault.addresses.encrypt(b"ann@example.com", bindings.recipient(message, 0))],
    )
    for n in range(chunks):
        connection.execute(
            "INSERT INTO outtray.content_chunk (message_id, n, data) VALUES (%s, %s, %s)",
            [message, n, seal(b"chunk", bindings.chunk(message, n))],
        )


def _keys_of(connection: psycopg.Connection[Any], ring: Ring, table: str, column: str) -> list[str]:
    rows = connection.execute(f"SELECT {column} FROM outtray.{table}").fetchall()
    return [ring.key_of(row[0]) for row in rows]


@pytest.mark.parametrize("ring_name", SEALED)
def test_every_column_of_a_ring_is_sealed_again_in_bounded_batches(
    connection: psycopg.Connection[Any], key_file: Path, ring_name: str
) -> None:
    add_key(key_file, ring_name)
    vault = read_vault(key_file)
    total = sum(rows for _, _, rows in SEALED[ring_name])
    assert keys_in_use(connection, vault, ring_name) == {"k1": total, "k2": 0}
    batches = list(rotate(connection, vault, ring_name, batch=2))
    assert sum(batches) == total and max(batches) <= 2
    for name, columns in SEALED.items():
        for table, column, rows in columns:
            expected = "k2" if name == ring_name else "k1"
            assert _keys_of(connection, vault.ring(name), table, column) == [expected] * rows
    assert list(rotate(connection, vault, ring_name)) == []
    assert keys_in_use(connection, vault, ring_name) == {"k2": total}


def test_what_was_sealed_again_opens_where_it_stands_without_the_old_key(
    connection: psycopg.Connection[Any], key_file: Path
) -> None:
    for ring_name in SEALED:
        add_key(key_file, ring_name)
    assert all(sum(rotate(connection, read_vault(key_file), ring_name)) for ring_name in SEALED)
    for ring_name in SEALED:
        drop_key(key_file, ring_name, "k1")
    vault = read_vault(key_file)
    for message, head, body in connection.execute("SELECT message_id, head, body FROM outtray.content"):
        assert vault.content.decrypt(head, bindings.head(message)) == b"head"
        assert vault.content.decrypt(body, bindings.body(message)) == b"body" * 100
    for message, n, data in connection.execute("SELECT message_id, n, data FROM outtray.content_chunk"):
        assert vault.content.decrypt(data, bindings.chunk(message, n)) == b"chunk"
    for message, n, address in connection.execute("SELECT message_id, n, address FROM outtray.recipient"):
        assert vault.addresses.decrypt(address, bindings.recipient(message, n)) == b"ann@example.com"
    for mailbox, address, password, version in connection.execute(
        "SELECT id, address, credentials, credentials_version FROM outtray.mailbox"
    ):
        assert vault.addresses.decrypt(address, bindings.mailbox_address(mailbox)) == b"{}"
        assert vault.credentials.decrypt(password, bindings.credentials(mailbox, version)) == b"password"
    for mailbox, audience, token, version in connection.execute(
        "SELECT mailbox_id, audience, access, version FROM outtray.token"
    ):
        assert vault.credentials.decrypt(token, bindings.token(mailbox, audience, version)) == b"token"
    for name, secret, version in connection.execute("SELECT name, secret, secret_version FROM outtray.provider_app"):
        assert vault.credentials.decrypt(secret, bindings.provider_app_secret(name, version)) == b"secret"
    for app, index, address in connection.execute("SELECT app_id, address_index, address FROM outtray.suppression"):
        assert vault.addresses.decrypt(address, bindings.suppression(app, index)) == b"eve@example.com"


def test_a_rotation_that_was_cut_short_goes_on_where_it_stopped(
    connection: psycopg.Connection[Any], key_file: Path
) -> None:
    add_key(key_file, "content")
    vault = read_vault(key_file)
    with closing(rotate(connection, vault, "content", batch=2)) as batches:
        assert next(batches) == 2
    # The first batch is committed, whatever becomes of the rest.
    assert keys_in_use(connection, vault, "content") == {"k1": 12, "k2": 2}
    assert sum(rotate(connection, vault, "content", batch=2)) == 12


def test_a_batch_is_bounded_by_its_bytes_too(
    connection: psycopg.Connection[Any], key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_key(key_file, "content")
    monkeypatch.setattr(rotation, "BATCH_BYTES", 1)
    assert list(rotate(connection, read_vault(key_file), "content")) == [1] * 14


@pytest.mark.parametrize(
    ("ring_name", "column", "version"), [("credentials", "credentials", 2), ("addresses", "address", 1)]
)
def test_what_a_live_writer_changes_meanwhile_stays(
    database: Any, connection: psycopg.Connection[Any], key_file: Path, ring_name: str, column: str, version: int
) -> None:
    mailbox = connection.execute("SELECT id FROM outtray.mailbox ORDER BY id LIMIT 1").fetchone()[0]  # type: ignore[index]
    place = bindings.credentials(mailbox, version) if column == "credentials" else bindings.mailbox_address(mailbox)
    newer = read_vault(key_file).ring(ring_name).encrypt(b"newer", place)
    add_key(key_file, ring_name)
    everything = sum(rows for _, _, rows in SEALED[ring_name])
    change = f"UPDATE outtray.mailbox SET {column} = %s, credentials_version = %s WHERE id = %s"
    with database.connect() as writer, database.connect() as rotator, ThreadPoolExecutor(1) as thread:
        with writer.transaction():
            writer.execute(change, [newer, version, mailbox])
            # Its batch has read the old value by now and waits for the writer's lock.
            rotated = thread.submit(lambda: list(rotate(rotator, read_vault(key_file), ring_name)))
            eventually(lambda: _waits_for_lock(connection, rotator))
        assert sum(rotated.result(timeout=10)) == everything - 1
    kept = connection.execute(f"SELECT {column} FROM outtray.mailbox WHERE id = %s", [mailbox]).fetchone()
    assert kept is not None and kept[0] == newer
    assert sum(rotate(connection, read_vault(key_file), ring_name)) == 1


def test_a_value_that_does_not_open_stops_its_batch_and_is_left_alone(
    connection: psycopg.Connection[Any], key_file: Path
) -> None:
    vault = read_vault(key_file)
    message = connection.execute("SELECT message_id FROM outtray.content ORDER BY 1 LIMIT 1").fetchone()[0]  # type: ignore[index]
    misplaced = vault.content.encrypt(b"head", bindings.head(new_id()))
    connection.execute("UPDATE outtray.content SET head = %s WHERE message_id = %s", [misplaced, message])
    add_key(key_file, "content")
    with pytest.raises(CannotOpen):
        list(rotate(connection, read_vault(key_file), "content"))
    assert keys_in_use(connection, read_vault(key_file), "content") == {"k1": 14, "k2": 0}


def test_a_key_that_is_missing_from_the_file_is_named(connection: psycopg.Connection[Any], key_file: Path) -> None:
    add_key(key_file, "content")
    drop_key(key_file, "content", "k1")
    with pytest.raises(UnknownKey, match="k1"):
        list(rotate(connection, read_vault(key_file), "content"))


def _waits_for_lock(observer: psycopg.Connection[Any], waiting: psycopg.Connection[Any]) -> bool:
    row = observer.execute(
        "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", [waiting.info.backend_pid]
    ).fetchone()
    return bool(row and row[0])
