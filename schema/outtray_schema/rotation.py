"""Rotation: everything that a ring sealed under older keys is sealed again under its primary key.

It goes on beside live processes: each row is written only if it still holds the value that was read, so a writer's
newer value stays, and its own lock wait is one row's. Batches are committed one by one; a rotation that was cut short
is simply run again, since rows under the primary key are passed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from outtray_schema import bindings
from outtray_schema.vault import Ring, Vault

BATCH_BYTES = 32 * 1024 * 1024
"""Sealed bytes that one batch reads at most, beyond its first row: bodies have up to 1 MiB each."""


@dataclass(frozen=True, slots=True)
class _Column:
    """One sealed column: its table, its key, and what a value is bound to, told from the key and `extra` columns."""

    table: str
    name: str
    key: tuple[str, ...]
    types: tuple[str, ...]
    bound_to: Callable[..., str]
    extra: tuple[str, ...] = ()

    def select(self, go_on: bool) -> str:
        """The next rows that the primary key did not seal, within rows and bytes; locks nothing."""
        key = ", ".join(self.key)
        picked = ", ".join((*self.key, *self.extra))
        values = ", ".join(f"%(after_{name})s::{type_}" for name, type_ in zip(self.key, self.types, strict=True))
        # A condition of its own, not one that a parameter switches off: a prepared plan would read the whole table.
        after = f"({key}) > ({values}) AND" if go_on else ""
        return f"""
            SELECT {picked}, sealed FROM (
                SELECT {picked}, sealed, sum(octet_length(sealed)) OVER (ORDER BY {key}) AS total
                FROM (SELECT {picked}, {self.name} AS sealed FROM outtray.{self.table}
                      WHERE {after} {self.name} IS NOT NULL AND octet_length({self.name}) > 0
                        AND substring({self.name} FROM 1 FOR %(length)s) <> %(prefix)s
                      ORDER BY {key} LIMIT %(batch)s) AS old) AS counted
            WHERE total - octet_length(sealed) < %(bytes)s ORDER BY {key}"""

    def update(self) -> str:
        """Write one row if it still holds what was read; locks that row."""
        same = " AND ".join(f"{name} = %({name})s" for name in (*self.key, *self.extra))
        return f"UPDATE outtray.{self.table} SET {self.name} = %(new)s WHERE {same} AND {self.name} = %(sealed)s"

    def count(self) -> str:
        """How many values each prefix sealed, with one value of each; reads the whole table."""
        return f"""
            SELECT substring({self.name} FROM 1 FOR 2 + get_byte({self.name}, 1)) AS prefix, count(*)
            FROM outtray.{self.table} WHERE {self.name} IS NOT NULL AND octet_length({self.name}) > 2 GROUP BY 1"""


_COLUMNS: dict[str, tuple[_Column, ...]] = {
    "content": (
        _Column("content", "head", ("message_id",), ("uuid",), bindings.head),
        _Column("content", "body", ("message_id",), ("uuid",), bindings.body),
        _Column("content_chunk", "data", ("message_id", "n"), ("uuid", "integer"), bindings.chunk),
        _Column("attachment_chunk", "data", ("attachment_id", "n"), ("uuid", "integer"), bindings.attachment),
        _Column("template", "source", ("app_id", "name", "version"), ("uuid", "text", "integer"), bindings.template),
    ),
    "addresses": (
        _Column("recipient", "address", ("message_id", "n"), ("uuid", "smallint"), bindings.recipient),
        _Column("mailbox", "address", ("id",), ("uuid",), bindings.mailbox_address),
        _Column("suppression", "address", ("app_id", "address_index"), ("uuid", "bytea"), bindings.suppression),
    ),
    # The version stands in the binding, so it belongs to the comparison; it stays, because the secret is the same.
    "credentials": (
        _Column("mailbox", "credentials", ("id",), ("uuid",), bindings.credentials, ("credentials_version",)),
        _Column("token", "access", ("mailbox_id", "audience"), ("uuid", "text"), bindings.token, ("version",)),
        _Column("provider_app", "secret", ("name",), ("text",), bindings.provider_app_secret, ("secret_version",)),
    ),
}


def rotate(connection: psycopg.Connection[Any], vault: Vault, ring_name: str, batch: int = 500) -> Iterator[int]:
    """Seal everything of a ring under its primary key, in committed batches; yields the rows that each one wrote.

    `connection` must stand outside a transaction. Raises `UnknownKey` where a key is missing from the key file, and
    `CannotOpen` where a value is damaged: nothing of that batch is written then.
    """
    ring = vault.ring(ring_name)
    for column in _COLUMNS[ring_name]:
        after: Sequence[Any] | None = None
        while True:
            with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
                rows = cursor.execute(column.select(after is not None), _bounds(column, ring, after, batch)).fetchall()
                written = _reseal(cursor, column, ring, rows)
            if not rows:
                break
            after = rows[-1][: len(column.key)]
            yield written


def keys_in_use(connection: psycopg.Connection[Any], vault: Vault, ring_name: str) -> dict[str, int]:
    """How many stored values each key of a ring sealed, by key id. Reads whole tables; before a key is dropped."""
    ring = vault.ring(ring_name)
    found: Counter[str] = Counter()
    with connection.cursor(row_factory=tuple_row) as cursor:
        for column in _COLUMNS[ring_name]:
            for prefix, count in cursor.execute(column.count()).fetchall():
                found[prefix[2:].decode("ascii", "replace")] += count
    return {ring.primary: 0, **found}


def _bounds(column: _Column, ring: Ring, after: Sequence[Any] | None, batch: int) -> dict[str, Any]:
    bounds = {f"after_{name}": value for name, value in zip(column.key, after or (), strict=after is not None)}
    return {**bounds, "batch": batch, "bytes": BATCH_BYTES, "length": len(ring.prefix), "prefix": ring.prefix}


def _reseal(cursor: psycopg.Cursor[Any], column: _Column, ring: Ring, rows: Sequence[Sequence[Any]]) -> int:
    """Write a batch, row by row in the order of the key; returns how many still held what was read."""
    if not rows:
        return 0
    names = (*column.key, *column.extra)
    changes = []
    for *key, sealed in rows:
        bound_to = column.bound_to(*key)
        new = ring.encrypt(ring.decrypt(sealed, bound_to), bound_to)
        changes.append({**dict(zip(names, key, strict=True)), "new": new, "sealed": sealed})
    cursor.executemany(column.update(), changes)
    return cursor.rowcount
