"""Replay: outcomes that a dead process left in its spool are written by a living one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from outtray_worker.process import Process

log = structlog.get_logger()

EVERY = 5.0
"""Seconds between two looks at the spool folder."""


async def replay(process: Process) -> int:
    """Write what orphaned files hold, then delete them. Writing twice is harmless: records are conditional."""
    replayed = 0
    for path, items in process.spool.orphans():
        await asyncio.gather(*(process.registrar.record(item) for item in items))
        path.unlink(missing_ok=True)
        replayed += len(items)
        log.info("spool replayed", file=path.name, outcomes=len(items))
    return replayed


async def replay_for_ever(process: Process) -> None:
    """Look for orphaned files at the start and then every few seconds."""
    while True:
        if process.registrar.healthy:
            await replay(process)
        await asyncio.sleep(EVERY)
