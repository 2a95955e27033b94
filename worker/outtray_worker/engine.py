"""The engine: one asyncio loop per worker process that runs up to 512 turns at once.

Celery's threads hand it rounds and wait until the last mailbox of the round is *admitted*, not finished: a slow server
never holds a Celery slot, and a full engine stops fetching. No provider host holds more than its share of the turns.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import structlog

from outtray_worker.claim import ClaimedMailbox, claim, give_back, read_hosts
from outtray_worker.deadline import Deadline, boottime
from outtray_worker.lease import Lease
from outtray_worker.quotas.tokens import Tokens, take_together
from outtray_worker.turn import Turn

if TYPE_CHECKING:
    from outtray_worker.process import Process
    from outtray_worker.registrar import Registrar

log = structlog.get_logger()

LOOK_AGAIN = 0.5
"""Seconds between two looks at what keeps a drain from its end."""

A_FEW = 16
"""Mailboxes that are worth a claim of their own, which is three round trips however many it claims."""

CLAIMS = 2
"""Rounds that are admitted at once: one waits for PostgreSQL while the other's turns begin. More than that would fill
the engine before it is seen to be saturated."""

LATE_LOOP = 0.015
LATE_GATE = 0.05
"""Seconds of the event loop's lag, and of a gate's wait, from which on the engine is saturated.

A message waits for the loop some ten times between its gate and its record, so its lag decides how soon a small app's
mail leaves a busy worker. But with a lag of 5 ms for a bound, a server that takes 100 ms has too few turns under way:
2,550 messages/s instead of 3,700 (measured 2026-11: `make bench-spine`). So the smaller bound holds only while there
is a small app's mail to hurry for."""

LATE_EXPRESS = 0.003
"""The bound of the loop's lag while express turns run, and for a while after the last one began."""

EXPRESS_LATELY = 1.0
"""Seconds for which that bound holds after an express round: a small app's next letter is often near."""

GATHER = 0.02
"""Seconds for which freed places are gathered until there are a few."""

HOST_PATIENCE = 0.25
"""Seconds that a round waits for places of a host that moves. It keeps the rounds behind it waiting too."""


HOSTS_KEPT = 50_000
"""Mailboxes whose host is remembered: some 10 MB at most."""


class Engine:
    """Admits rounds and runs their turns. All methods but the constructor belong to its loop."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._running: dict[UUID, str] = {}
        self._held: Counter[str] = Counter()
        self._moved: dict[str, float] = {}
        self._seen_hosts: dict[UUID, str] = {}
        self._room = asyncio.Event()
        self._first_in_line = asyncio.Lock()
        self._claims = asyncio.Semaphore(CLAIMS)
        self._hurry_until = 0.0
        self.line = 0
        """Rounds that are not admitted yet."""
        self._turns: set[asyncio.Task[Any]] = set()
        self._again: dict[UUID, bool] = {}
        """Mailboxes that were hinted at while they were in their turns here, and whether by an express round."""

    @property
    def turns(self) -> int:
        """Turns that run now."""
        return len(self._running)

    @property
    def free(self) -> int:
        """Turns that could begin now."""
        return 0 if self._process.draining else self._process.settings.engine_turns - len(self._running)

    @property
    def wants_more(self) -> bool:
        """Whether a further round could be admitted now; else it waits better in the broker, or in PostgreSQL."""
        return self.line < CLAIMS

    @property
    def saturated(self) -> bool:
        """This process has as much to do as it can: its loop is late, or its gates wait long for their group commit.

        More turns than that only make each of them slower, and what is taken in can no longer be picked fairly. A few
        turns are always taken: one slow step must not stop everything.
        """
        bound = LATE_EXPRESS if boottime() < self._hurry_until else LATE_LOOP
        late = self._process.lag.seconds > bound or self._process.registrar.wait > LATE_GATE
        return late and len(self._running) >= A_FEW

    # ── rounds ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def admit(self, mailbox_ids: Sequence[UUID], express: bool = False) -> int:
        """Claim the round's mailboxes and start their turns, as room allows. Returns how many turns began.

        What cannot be claimed is somebody else's or not due: duplicate, late and invented hints end here. An express
        round waits neither in the line nor for a saturated engine.
        """
        if express:
            return await self._admit_express(list(dict.fromkeys(mailbox_ids)))
        self.line += 1
        try:
            async with self._claims:
                return await self._admit(list(dict.fromkeys(mailbox_ids)))
        finally:
            self.line -= 1

    async def _admit_express(self, boxes: list[UUID]) -> int:
        hosts = await self._hosts(boxes)
        fitting = self._fitting(self._out_of_turn(boxes, express=True), hosts, spare=A_FEW)
        taken = self._hold(fitting, hosts) if not self._process.draining else set()
        self._hurry_until = boottime() + EXPRESS_LATELY if taken else self._hurry_until
        await self._give_back([box for box in boxes if box not in taken and box not in self._running])
        return await self._begin(taken, self._process.express_lane) if taken else 0

    async def _admit(self, waiting: list[UUID]) -> int:
        hosts = await self._hosts(waiting)
        begun = 0
        while waiting:
            async with self._first_in_line:
                waiting = self._out_of_turn(waiting)
                taken = await self._places(waiting, hosts)
            if not taken:
                await self._give_back(waiting)
                break
            begun += await self._begin(taken, self._process.registrar)
            waiting = [box for box in waiting if box not in taken]
        return begun

    def _out_of_turn(self, boxes: Sequence[UUID], express: bool = False) -> list[UUID]:
        """Those that are in no turn here. The others are admitted behind their turns.

        Such a turn may be over in the database and its mailbox picked anew, while its task has yet to hear of it: a
        hint that is thrown away then is not repeated for `round_again`.
        """
        for box in boxes:
            if box in self._running:
                self._again[box] = express or self._again.get(box, False)
        return [box for box in boxes if box not in self._running]

    async def _hosts(self, boxes: list[UUID]) -> Mapping[UUID, str]:
        """Which host each mailbox talks to, as it was last seen: it seldom changes, and bounds turns, nothing else."""
        unseen = [box for box in boxes if box not in self._seen_hosts]
        if unseen:
            if len(self._seen_hosts) > HOSTS_KEPT:
                self._seen_hosts.clear()
                unseen = boxes
            with contextlib.suppress(psycopg.Error):  # the claim meets the same trouble, and says so
                async with self._process.pool.connection() as connection:
                    self._seen_hosts.update(await read_hosts(connection, unseen))
        return self._seen_hosts

    async def _places(self, waiting: Sequence[UUID], hosts: Mapping[UUID, str]) -> set[UUID]:
        """Hold places for those that may begin. None: the engine drains, or their hosts have no place to give.

        A full engine, or a saturated one, is waited for however long it takes: that is what stops fetching. A host that
        holds its share is waited for while it moves; one that does not answer must not keep the others waiting.
        """
        patience = Deadline.after(timedelta(seconds=HOST_PATIENCE))
        gathered = False
        while not self._process.draining:
            if self.saturated:
                await self._gather()
                continue
            fitting = self._fitting(waiting, hosts)
            room_for_more = len(fitting) < self.free  # then it is their hosts that keep the others waiting
            if len(fitting) >= min(len(waiting), A_FEW) or (fitting and (gathered or room_for_more)):
                return self._hold(fitting, hosts)
            if not fitting and self.free and (patience.passed or not self._moving(waiting, hosts)):
                break
            await self._gather()
            gathered = True
        return set()

    def _fitting(self, waiting: Sequence[UUID], hosts: Mapping[UUID, str], spare: int = 0) -> list[UUID]:
        share = max(1, int(self._process.settings.engine_turns * self._process.settings.host_share))
        held = self._held.copy()
        fitting: list[UUID] = []
        for box in waiting:
            host = hosts.get(box, "")
            if len(fitting) < self.free + spare and (not host or held[host] < share):
                held[host] += 1
                fitting.append(box)
        return fitting

    def _hold(self, boxes: Sequence[UUID], hosts: Mapping[UUID, str]) -> set[UUID]:
        for box in boxes:
            self._running[box] = hosts.get(box, "")
            self._held[self._running[box]] += 1
        return set(boxes)

    def _moving(self, waiting: Sequence[UUID], hosts: Mapping[UUID, str]) -> bool:
        """Whether a turn of one of these hosts ended lately."""
        since = boottime() - self._process.settings.host_busy_pause.total_seconds()
        return any(self._moved.get(host, 0.0) > since for host in {hosts.get(box, "") for box in waiting})

    async def _gather(self) -> None:
        """Return once a place was freed, and those that are freed with it; or after a moment, to look at the time."""
        self._room.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HOST_PATIENCE):
                await self._room.wait()
        await asyncio.sleep(0 if self._process.draining else GATHER)

    async def _begin(self, boxes: set[UUID], registrar: Registrar) -> int:
        started: set[UUID] = set()
        try:
            async with self._process.pool.connection() as connection:
                self._process.crash_point("claiming", *boxes)
                claimed = await claim(connection, list(boxes), self._process.settings.lease, self._process.name)
                if claimed:
                    self._seen_hosts.update((box.id, box.host) for box in claimed)
                    self._process.crash_point("claimed", *(box.id for box in claimed))
                    started = await self._start(connection, claimed, registrar)
        except psycopg.Error as error:
            log.warning("a round was left to its lease", mailboxes=len(boxes), error=type(error).__name__)
        finally:
            self._free_places(boxes - started)
        return len(started)

    async def _give_back(self, boxes: list[UUID]) -> None:
        draining = self._process.draining
        if not boxes:
            return
        if not draining:
            log.info("mailboxes given back: their host holds its share of this worker", mailboxes=len(boxes))
        reason = "its worker ends" if draining else "its host is busy"
        with contextlib.suppress(psycopg.Error):
            async with self._process.pool.connection() as connection:
                await give_back(connection, boxes, self._process.settings.host_busy_pause, reason)

    # ── turns ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _start(
        self, connection: psycopg.AsyncConnection[Any], claimed: list[ClaimedMailbox], registrar: Registrar
    ) -> set[UUID]:
        """Read, in later snapshots than the claim's, what the claimed mailboxes may send; then start their turns."""
        process = self._process
        begun = await process.quotas.read(connection, claimed, process.settings.turn_messages)
        process.crash_point("due read", *(each.mailbox.id for each in begun if each.messages))
        granted, _ = await take_together(process.pace, [each.wants for each in begun])
        for each, tokens in zip(begun, granted, strict=True):
            turn = Turn(
                process,
                each.mailbox,
                each.messages,
                each.allowance,
                Tokens(process.pace, each.wants, tokens),
                process.open_session(each.mailbox),
                self._lease(each.mailbox),
                registrar,
            )
            self._begin_task(self._run(turn))
        return {box.id for box in claimed}

    def _begin_task(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._turns.add(task)
        task.add_done_callback(self._turns.discard)

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
            self._moved[self._running.get(turn.lease.mailbox_id, "")] = boottime()
            self._free_places([turn.lease.mailbox_id])

    def _free_places(self, boxes: Iterable[UUID]) -> None:
        for box in boxes:
            host = self._running.pop(box, None)
            if host is not None:
                self._held[host] -= 1
            if box in self._again:
                self._begin_task(self.admit([box], self._again.pop(box)))
        self._room.set()

    async def notify(self) -> None:
        """Rounds that wait for room look again whether there is any, or never will be."""
        self._room.set()

    async def drain(self) -> None:
        """Return when every turn has ended at its next message and is written.

        While PostgreSQL is away turns cannot end; then it is enough that no handover is open.
        """
        await self.notify()
        while self._turns and (self._process.writing or self._process.handing_over):
            await asyncio.wait(self._turns, timeout=LOOK_AGAIN)
