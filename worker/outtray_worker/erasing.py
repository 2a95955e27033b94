"""Erasing by time, and what somebody asked to be erased while it was still with the provider. Part of `prune`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from outtray_schema.erasing import CHUNK, ERASE_ASKED, ERASE_OLD, FORGET_REFUSALS
from outtray_schema.settings import Settings


async def erase(connection: AsyncConnection[Any], settings: Settings) -> int:
    """Erase the content of what ended long ago, and whole what was asked about; forget old refusals."""
    before = await _earliest_id(connection, settings.keep_content)
    count = await _in_chunks(connection, ERASE_OLD, {"keep": settings.keep_content, "before": before})
    count += await _in_chunks(connection, ERASE_ASKED, {"ids": None, "actor": None})
    await connection.execute(FORGET_REFUSALS, {"keep": settings.keep_refusals})
    return count


async def _earliest_id(connection: AsyncConnection[Any], keep: timedelta) -> UUID:
    """The least id of a message made so long ago: UUIDv7 begins with the milliseconds since 1970 (RFC 9562 5.7)."""
    ask = "SELECT (extract(epoch FROM outtray.outtray_now() - %s) * 1000)::bigint"
    row = await (await connection.execute(ask, [keep])).fetchone()
    return UUID(int=(row[0] if row else 0) << 80)


async def _in_chunks(connection: AsyncConnection[Any], statement: str, parameters: dict[str, Any]) -> int:
    total = 0
    while True:
        erased = (await connection.execute(statement, {**parameters, "chunk": CHUNK})).rowcount
        total += erased
        if erased < CHUNK:
            return total
