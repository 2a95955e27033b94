"""Replay: outcomes that a dead process left in its spool are written by a living one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import structlog

from outtray_worker.items import Record, Refusal
from outtray_worker.registrar import Registrar
from outtray_worker.spool import Spool, SpoolFile, set_aside

if TYPE_CHECKING:
    from outtray_worker.process import Process

log = structlog.get_logger()

EVERY = 5.0
"""Seconds between two looks at the spool folder."""


class Writes(Protocol):
    """Who can replay: whoever has a registrar that runs."""

    @property
    def spool(self) -> Spool: ...
    @property
    def registrar(self) -> Registrar: ...


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay did. `taken`: outcomes that were news to their messages; `aside`: lines that were set aside."""

    files: int = 0
    outcomes: int = 0
    taken: int = 0
    aside: int = 0


async def replay(by: Writes) -> Replayed:
    """Write what orphaned files hold, then delete them. Writing twice is harmless: a handover's number names it.

    What is damaged is set aside first; a file of which that cannot be done stays.
    """
    done = Replayed()
    for file in by.spool.orphans():
        taken = await asyncio.gather(*(by.registrar.record(_replayed(kept.item)) for kept in file.kept))
        if _set_aside(file):
            file.path.unlink(missing_ok=True)
        done = Replayed(
            done.files + 1, done.outcomes + len(taken), done.taken + sum(taken), done.aside + len(file.damaged)
        )
        log.info("spool replayed", file=file.path.name, outcomes=len(taken), taken=sum(taken))
    return done


def _replayed(item: Record | Refusal) -> Record | Refusal:
    """The same outcome, whose evidence says that it came by the spool: the journal shows it."""
    return replace(item, evidence={**(item.evidence or {}), "replayed": True})


def _set_aside(file: SpoolFile) -> bool:
    """Whether nothing of the file is needed any more."""
    if not file.damaged:
        return True
    try:
        aside = set_aside(file.path, file.damaged)
    except OSError as error:
        log.error("damaged lines of the spool cannot be set aside", file=file.path.name, error=error.strerror)
        return False
    why = sorted({each.why for each in file.damaged})
    log.error("damaged lines of the spool were set aside", file=aside.name, lines=len(file.damaged), why=why)
    return True


async def replay_for_ever(process: Process) -> None:
    """Look for orphaned files at the start and then every few seconds."""
    while True:
        if process.registrar.healthy:
            await replay(process)
        await asyncio.sleep(EVERY)
