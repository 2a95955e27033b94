"""The engine: one asyncio loop per worker process that runs up to 512 turns at once.

Celery's threads hand it rounds and wait until the last mailbox of the round is *admitted*, not finished: a slow server
never holds a Celery slot, and a full engine stops fetching. No provider host holds more than its share of the turns.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from outtray_worker.claim import ClaimedMailbox, claim, give_back, read_due, read_hosts
from outtray_worker.deadline import Deadline
from outtray_worker.lease import Lease
from outtray_worker.quotas.tokens import Tokens, take_together
from outtray_worker.turn import Turn

if TYPE_CHECKING:
    from outtray_worker.process import Process

log = structlog.get_logger()

LOOK_AGAIN = 0.5
"""Seconds between two looks at what keeps a drain from its end."""


class Engine:
    """Admits rounds and runs their turns. All methods but the constructor belong to its loop."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._running: dict[UUID, str] = {}
        self._room = asyncio.Condition()
        self._turns: set[asyncio.Task[None]] = set()

    @property
    def turns(self) -> int:
        """Turns that run now."""
        return len(self._running)

    @property
    def free(self) -> int:
        """Turns that could begin now."""
        return 0 if self._process.draining else self._process.settings.engine_turns - len(self._running)

    # ── rounds ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def admit(self, mailbox_ids: Sequence[UUID]) -> int:
        """Claim the round's mailboxes and start their turns, as room allows. Returns how many turns began.

        What cannot be claimed is somebody else's or not due: duplicate, late and invented hints end here.
        """
        waiting = [box for box in dict.fromkeys(mailbox_ids) if box not in self._running]
        begun = 0
        while waiting:
            async with self._room:
                await self._room.wait_for(lambda: self.free > 0 or self._process.draining)
            if self._process.draining:
                await self._give_back(waiting, "its worker ends")
                break
            taken, waiting = waiting[: self.free], waiting[self.free :]
            begun += await self._begin(taken)
        return begun

    async def _begin(self, boxes: list[UUID]) -> int:
        self._running.update(dict.fromkeys(boxes, ""))  # holds their places while the claim is under way
        started: set[UUID] = set()
        try:
            async with self._process.pool.connection() as connection:
                wanted = await self._within_host_share(boxes, await read_hosts(connection, boxes))
                claimed = await claim(connection, wanted, self._process.settings.lease, self._process.name)
                if claimed:
                    self._process.crash_point("claimed")
                    started = await self._start(connection, claimed)
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("a round was left to its lease", mailboxes=len(boxes), error=type(error).__name__)
        finally:
            await self._free_places([box for box in boxes if box not in started])
        return len(started)

    async def _within_host_share(self, boxes: list[UUID], hosts: dict[UUID, str]) -> list[UUID]:
        for box in boxes:
            self._running.pop(box)
        share = max(1, int(self._process.settings.engine_turns * self._process.settings.host_share))
        held = Counter(host for host in self._running.values() if host)
        wanted: list[UUID] = []
        surplus: list[UUID] = []
        for box in boxes:
            host = hosts.get(box, "")
            self._running[box] = host
            held[host] += 1
            (wanted if held[host] <= share else surplus).append(box)
        if surplus:
            log.info("mailboxes given back: their host holds its share of this worker", mailboxes=len(surplus))
            await self._give_back(surplus, "its host is busy")
        return wanted

    async def _give_back(self, boxes: list[UUID], reason: str) -> None:
        with contextlib.suppress(psycopg.Error):
            async with self._process.pool.connection() as connection:
                await give_back(connection, boxes, self._process.settings.host_busy_pause, reason)

    # ── turns ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _start(self, connection: psycopg.AsyncConnection[Any], claimed: list[ClaimedMailbox]) -> set[UUID]:
        """Read, in later snapshots than the claim's, what the claimed mailboxes may send; then start their turns."""
        process = self._process
        due = await read_due(connection, [box.id for box in claimed], process.settings.turn_messages)
        allowances = await process.quotas.read(connection, claimed)
        wants = await process.quotas.wants(connection, claimed, {box: len(messages) for box, messages in due.items()})
        granted, _ = await take_together(process.pace, [wants[box.id] for box in claimed])
        for box, tokens in zip(claimed, granted, strict=True):
            turn = Turn(
                process,
                box,
                due.get(box.id, []),
                allowances[box.id],
                Tokens(process.pace, wants[box.id], tokens),
                process.open_session(box),
                self._lease(box),
            )
            task = asyncio.create_task(self._run(turn))
            self._turns.add(task)
            task.add_done_callback(self._turns.discard)
        return {box.id for box in claimed}

    def _lease(self, box: ClaimedMailbox) -> Lease:
        settings = self._process.settings
        return Lease(box.id, box.fence, Deadline.after(settings.turn_length + settings.handover_limit))

    async def _run(self, turn: Turn) -> None:
        self._process.leases.add(turn.lease)
        try:
            if await turn.run():
                self._process.wake(turn.lease.mailbox_id)
        finally:
            self._process.leases.remove(turn.lease)
            await self._free_places([turn.lease.mailbox_id])

    async def _free_places(self, boxes: Sequence[UUID]) -> None:
        for box in boxes:
            self._running.pop(box, None)
        await self.notify()

    async def notify(self) -> None:
        """Rounds that wait for room look again whether there is any, or never will be."""
        async with self._room:
            self._room.notify_all()

    async def drain(self) -> None:
        """Return when every turn has ended at its next message and is written.

        While PostgreSQL is away turns cannot end; then it is enough that no handover is open.
        """
        await self.notify()
        while self._turns and (self._process.registrar.healthy or self._process.handing_over):
            await asyncio.wait(self._turns, timeout=LOOK_AGAIN)
