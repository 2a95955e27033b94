"""A small world for tests of the protocol: one app, mailboxes and messages as rows, and real sessions on PostgreSQL.

Rows are written directly: these tests are about what happens to a row, not about how it came in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from outtray_schema.database import conninfo
from outtray_schema.settings import Settings
from outtray_worker.claim import ClaimedMailbox, DueMessage, claim
from outtray_worker.group import GroupAnswer, write_group
from outtray_worker.items import Gate, Item
from readings import read_due

LEASE = timedelta(seconds=30)
HANDOVER = timedelta(seconds=60)


@dataclass
class World:
    """Rows of one test, and a connection to look at them."""

    settings: Settings
    db: AsyncConnection[Any]
    app_id: UUID = field(default_factory=uuid4)

    async def connect(self) -> AsyncConnection[Any]:
        return await AsyncConnection.connect(conninfo(self.settings), autocommit=True)

    async def mailbox(self, **columns: Any) -> UUID:
        mailbox_id = uuid4()
        values: dict[str, Any] = {
            "id": mailbox_id, "app_id": self.app_id, "provider": "memory", "host": "memory", "address": b"",
            "address_index": mailbox_id.bytes, "plan": "smtp",
        } | columns  # fmt: skip
        await self._insert("mailbox", values)
        await self.db.execute(
            "UPDATE outtray.mailbox SET next_at = outtray.outtray_now() WHERE id = %s", [values["id"]]
        )
        return UUID(str(values["id"]))

    async def message(self, mailbox_id: UUID, **columns: Any) -> UUID:
        message_id = uuid4()
        now = await self.now()
        values: dict[str, Any] = {
            "id": message_id, "app_id": self.app_id, "mailbox_id": mailbox_id, "request_hash": b"", "due_at": now,
            "recipients": 1, "external": 1, "size": 100, "rfc_message_id": f"<{message_id}@example.org>",
        } | columns  # fmt: skip
        await self._insert("message", values)
        return message_id

    async def recipient(self, message_id: UUID, index: bytes) -> None:
        values = {
            "message_id": message_id,
            "n": 0,
            "role": "to",
            "address": b"",
            "address_index": index,
            "external": True,
        }
        await self._insert("recipient", values)

    async def _insert(self, table: str, values: dict[str, Any]) -> None:
        names, places = ", ".join(values), ", ".join(["%s"] * len(values))
        await self.db.execute(f"INSERT INTO outtray.{table} ({names}) VALUES ({places})", list(values.values()))

    async def now(self) -> Any:
        row = await (await self.db.execute("SELECT outtray.outtray_now()")).fetchone()
        return row[0] if row else None

    async def shift(self, by: timedelta) -> None:
        """Move the database's clock."""
        await self.db.execute("UPDATE outtray.clock SET shift = shift + %s", [by])

    async def row(self, table: str, row_id: UUID) -> dict[str, Any]:
        async with self.db.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(f"SELECT * FROM outtray.{table} WHERE id = %s", [row_id])
            row = await cursor.fetchone()
        assert row is not None
        return row

    async def rows(self, statement: str, *parameters: Any) -> list[dict[str, Any]]:
        async with self.db.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(statement, parameters)
            return await cursor.fetchall()

    async def claim(self, mailbox_id: UUID, connection: AsyncConnection[Any] | None = None) -> ClaimedMailbox | None:
        claimed = await claim(connection or self.db, [mailbox_id], LEASE, "test")
        return claimed[0] if claimed else None

    async def due(self, mailbox_id: UUID, connection: AsyncConnection[Any] | None = None) -> list[DueMessage]:
        return (await read_due(connection or self.db, [mailbox_id], 50)).get(mailbox_id, [])

    async def write(self, *items: Item) -> GroupAnswer:
        async with self.db.transaction():
            return await write_group(self.db, items)

    async def gate_one(self, mailbox_id: UUID) -> tuple[ClaimedMailbox, DueMessage]:
        """Claim, and pass the gate with the first due message."""
        box = await self.claim(mailbox_id)
        assert box is not None
        message = (await self.due(mailbox_id))[0]
        answer = await self.write(gate(box, message))
        assert message.id in answer.passed
        return box, message

    async def waits_for_a_lock(self, connection: AsyncConnection[Any]) -> None:
        """Return once that session waits for a row that somebody else holds."""
        pid = connection.info.backend_pid
        async with asyncio.timeout(10):
            while True:
                rows = await self.rows("SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s", pid)
                if rows and rows[0]["wait_event_type"] == "Lock":
                    return
                await asyncio.sleep(0.005)


def gate(box: ClaimedMailbox, message: DueMessage, **changes: Any) -> Gate:
    """The gate request that a turn would make for this message."""
    values: dict[str, Any] = {
        "message_id": message.id, "mailbox_id": box.id, "fence": box.fence, "version": message.version,
        "handover": message.handover + 1, "provider": box.provider, "within": HANDOVER,
    } | changes  # fmt: skip
    return Gate(**values)


@asynccontextmanager
async def world(settings: Settings) -> AsyncIterator[World]:
    async with await AsyncConnection.connect(conninfo(settings), autocommit=True) as connection:
        made = World(settings, connection)
        await connection.execute("INSERT INTO outtray.app (id, name) VALUES (%s, %s)", [made.app_id, made.app_id.hex])
        yield made


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run one asynchronous test to its end."""
    asyncio.run(test)
