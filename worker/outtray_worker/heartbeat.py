"""A process says that it is alive, for `outtray status` and `doctor`. No decision ever reads it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb
from psycopg_pool import PoolTimeout

if TYPE_CHECKING:
    from outtray_worker.process import Process

EVERY = 5.0
"""Seconds between two beats. A process that was silent for 30 s counts as gone."""

BEAT = """
INSERT INTO outtray.process (id, role, info) VALUES (%s, %s, %s)
ON CONFLICT (id) DO UPDATE SET beat_at = outtray.outtray_now(), info = excluded.info
"""
LEAVE = "DELETE FROM outtray.process WHERE id = %s"


async def beat(connection: AsyncConnection[Any], name: str, role: str, info: Mapping[str, object]) -> None:
    """Say once that the process is alive."""
    await connection.execute(BEAT, [name, role, Jsonb(dict(info))])


async def leave(connection: AsyncConnection[Any], name: str) -> None:
    """Say that the process ends in good order."""
    await connection.execute(LEAVE, [name])


async def beat_for_ever(process: Process) -> None:
    """Beat for a worker until it is cancelled; then take leave."""
    try:
        while True:
            with contextlib.suppress(psycopg.Error, PoolTimeout):
                async with process.pool.connection() as connection:
                    info = {
                        "turns": process.engine.turns,
                        "waiting": process.registrar.waiting + process.express_lane.waiting,
                    }
                    await beat(connection, process.name, "worker", info)
            await asyncio.sleep(EVERY)
    finally:
        with contextlib.suppress(psycopg.Error, PoolTimeout):
            async with process.pool.connection() as connection:
                await leave(connection, process.name)
