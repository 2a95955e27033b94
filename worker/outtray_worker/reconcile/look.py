"""Look: ask the provider, for as many messages at once as may be, and write what it showed.

A look holds no lease, no lock and no transaction while it waits. Looks at one mailbox follow one another on one
session; no provider host holds more than its share of the looks of a process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from outtray_schema.outcome import Held
from outtray_worker.providers import Finding, Removed, Remover, Session
from outtray_worker.reconcile.decide import Rules
from outtray_worker.reconcile.pick import pick_looks
from outtray_worker.reconcile.read import Case, read_case, read_places
from outtray_worker.reconcile.schedule import Schedules
from outtray_worker.reconcile.write import Look, write_look

if TYPE_CHECKING:
    from outtray_worker.process import Process

log = structlog.get_logger()

AHEAD = 4
"""Messages that may wait for a look in this process, as a multiple of those looked for at once."""


@dataclass(slots=True)
class _Host:
    """A provider host's share of the looks, kept for as long as one waits for it."""

    places: asyncio.Semaphore
    users: int = field(default=0)


class Looks:
    """The looks of one worker process. All methods belong to its loop."""

    def __init__(self, process: Process) -> None:
        self._process = process
        settings = process.settings
        self._schedules = Schedules.of(settings)
        self._places = asyncio.Semaphore(settings.looks_at_once)
        self._share = max(1, int(settings.looks_at_once * settings.host_share))
        self._hosts: dict[str, _Host] = {}
        self._waiting: set[UUID] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    # ── taking in ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def room(self) -> int:
        """Messages that could be taken in now."""
        most = self._process.settings.looks_at_once * AHEAD
        return 0 if self._process.draining else max(0, most - len(self._waiting))

    async def admit(self, message_ids: Sequence[UUID]) -> int:
        """Begin to look for these messages, as room allows; returns for how many. For the others it is time again soon.

        Ids of what wants no look, or is no message, end here.
        """
        wanted = [each for each in dict.fromkeys(message_ids) if each not in self._waiting][: self.room]
        if not wanted:
            return 0
        self._waiting.update(wanted)
        try:
            async with self._process.pool.connection() as connection:
                places = await read_places(connection, wanted)
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("looks were left to their time", messages=len(wanted), error=type(error).__name__)
            self._waiting.difference_update(wanted)
            return 0
        # A host that fails for most mailboxes is left in peace; what was picked for it is due again in a while.
        places = {place: ids for place, ids in places.items() if not self._process.breakers.holds(place[1])}
        taken = [each for ids in places.values() for each in ids]
        self._waiting.difference_update(set(wanted) - set(taken))
        for (_, host), ids in places.items():
            task = asyncio.create_task(self._look_into(host, ids))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return len(taken)

    async def pick_for_itself(self) -> int:
        """Pick due looks without a broker; returns how many were begun."""
        if self.room == 0:
            return 0
        with contextlib.suppress(psycopg.Error, PoolTimeout):
            async with self._process.pool.connection() as connection:
                picked = await pick_looks(connection, self.room, look_again(self._process))
            return await self.admit(picked)
        return 0

    async def drain(self) -> None:
        """Return when no look is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """End every look where it stands: nothing was sent by it, and its time comes again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ── one mailbox ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _look_into(self, host: str, ids: Sequence[UUID]) -> None:
        session: Session | None = None
        try:
            async with self._place_at(host), self._places:
                for message_id in ids:
                    case = await self._read(message_id)
                    if case is None:
                        continue
                    session = session or self._process.open_session(case.mailbox)
                    look = await self._look(session, case)
                    await self._write(look)
                    if look.finding.kind == "failed":  # the others' time comes again; nobody knocks twice at once
                        break
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("a look was left to its time", error=type(error).__name__)
        except Exception as error:
            log.error("looks ended in an error", error=type(error).__name__, exc_info=True)
        finally:
            self._waiting.difference_update(ids)
            await self._leave(session)

    @contextlib.asynccontextmanager
    async def _place_at(self, host: str) -> AsyncIterator[None]:
        """A place among the looks at this host. Who waits for it holds no other place."""
        line = self._hosts.setdefault(host, _Host(asyncio.Semaphore(self._share)))
        line.users += 1
        try:
            async with line.places:
                yield
        finally:
            line.users -= 1
            if not line.users:
                del self._hosts[host]

    async def _leave(self, session: Session | None) -> None:
        if session is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(self._process.settings.connect_timeout.total_seconds()):
                    await session.close()

    # ── one message ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self, message_id: UUID) -> Case | None:
        async with self._process.pool.connection() as connection:
            return await read_case(connection, self._process.vault, message_id)

    async def _look(self, session: Session, case: Case) -> Look:
        if case.mailbox_status == "disabled":
            held = Held("the mailbox is removed or disabled", "disabled")
            return Look(case, Finding("failed", "nowhere", outcome=held))
        if case.trouble is not None:
            return Look(case, Finding("failed", f"nowhere: {case.trouble}"))
        try:
            async with asyncio.timeout(self._process.settings.look_limit.total_seconds()):
                finding = await self._find(session, case)
                return Look(case, finding, await _remove(session, case, finding))
        except TimeoutError:
            return Look(case, Finding("failed", "the provider did not answer in time"))
        except Exception as error:  # a bug of ours; the message must not be left without a next look for it
            log.error(
                "a look ended in an error", message_id=str(case.message_id), error=type(error).__name__, exc_info=True
            )
            return Look(case, Finding("failed", f"internal error: {type(error).__name__}"))

    async def _find(self, session: Session, case: Case) -> Finding:
        if case.handover == 0:
            return Finding("absent", "nowhere: it was never handed over")
        self._process.crash_point("looking", case.message_id)
        return await session.find_evidence(case.trace)

    async def _write(self, look: Look) -> None:
        self._process.crash_point("looked", look.case.message_id)
        async with self._process.pool.connection() as connection:
            verdict = await write_look(connection, look, self.rules(look.case))
        self._process.crash_point("look written", look.case.message_id)
        log.info(
            "looked",
            message_id=str(look.case.message_id),
            finding=look.finding.kind,
            verdict=type(verdict).__name__.lower(),
        )

    def settle(self, provider: str) -> timedelta:
        """How long what was sent may be on its way to where it is looked for."""
        return self._schedules.settle(provider)

    def rules(self, case: Case) -> Rules:
        """What a decision about this case goes by."""
        settings, provider = self._process.settings, case.mailbox.provider
        schedule, settle = self._schedules.of_provider(provider), self._schedules.settle(provider)
        return Rules(schedule, settle, settings.attempts, settings.park_hint_cap)


async def _remove(session: Session, case: Case, finding: Finding) -> Removed | None:
    """Take away the draft of a message that has ended, unless it was sent after all (rule 12)."""
    if not case.has_ended or not isinstance(session, Remover):
        return None
    left = finding.kind == "still_draft" or (case.trace.draft is None and finding.kind != "sent")
    return await session.remove_draft(case.trace) if left else None


def look_again(process: Process) -> timedelta:
    """When a picked look is due again, should nobody carry it out: it had time to wait and to end."""
    return process.settings.round_again + process.settings.look_limit
