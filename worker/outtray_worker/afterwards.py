"""Afterwards: what follows a sending, in a worker, outside any turn: whom it left out, and the copy in Sent.

Nothing here is on a message's way: it may be late, fail and be tried again, and what was sent stays sent. Work is found
by a condition on the rows, in any worker, so that nobody has to hand it on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from outtray_worker.settle import settle_all

if TYPE_CHECKING:
    from outtray_worker.process import Process

log = structlog.get_logger()

EVERY = 2.0
"""Seconds between two looks for such work. With none to do a look is two index look-ups in PostgreSQL."""


async def follow_for_ever(process: Process) -> None:
    """Do what there is to do, until cancelled."""
    while True:
        await follow(process)
        await asyncio.sleep(EVERY)


async def follow(process: Process) -> None:
    """Do once what there is to do now."""
    try:
        async with process.pool.connection() as connection:
            await settle_all(connection, process.vault, process.settings)
    except (psycopg.Error, PoolTimeout) as error:
        log.warning("what follows a sending was left to its time", error=type(error).__name__)
    except Exception as error:  # a bug of ours must not end a worker that delivers
        log.error("what follows a sending ended in an error", error=type(error).__name__, exc_info=True)
