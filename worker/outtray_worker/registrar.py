"""The registrar: the group commit of a worker process.

All gates, outcomes and ends of turns that wait are written in one transaction, then answered; whatever piles up while
one group commits forms the next. One bad item cannot fail its group: the group is then written item by item.

A COMMIT whose answer is lost is read back on a new connection, by handover number and never by state (rule 10). An
outcome is never dropped (rule 7): while PostgreSQL is away it waits in memory, and soon in the spool as well.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
import structlog
from psycopg import AsyncConnection

from outtray_schema.settings import Settings
from outtray_worker.crash import group_points
from outtray_worker.deadline import Deadline, boottime
from outtray_worker.group import GroupAnswer, read_back, why_stopped, write_group
from outtray_worker.items import Gate, Item, MailboxMove, Passed, Record, Refusal, Stopped
from outtray_worker.late import record_late
from outtray_worker.lease import Leases
from outtray_worker.quotas.budgets import Exceeded
from outtray_worker.spool import Spool

log = structlog.get_logger()

Connect = Callable[[], Awaitable[AsyncConnection[Any]]]

FEW_TURNS = 8
GATHER = 0.01
"""Where more turns than these run, a group waits up to so many seconds until about half of them wait in it: a group
costs some 0.5 ms of CPU, whatever it holds. A few turns wait for nobody (measured 2026-11: `make bench-spine`)."""

RECONNECT_PAUSE = 0.2
"""Seconds between two attempts to reach PostgreSQL."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """An item in the queue and whoever awaits its answer."""

    item: Item
    answer: asyncio.Future[Any]
    gate_until: Deadline | None = None
    doubtful: bool = False
    """Its last COMMIT got no answer: it may be written, and may yet be written late."""
    spool_at: Deadline | None = field(default=None)
    spooled: bool = False
    since: float = field(default_factory=boottime)


class Registrar:
    """Writes for turns of one process, on one connection. Start it with `run()` in a task of its own.

    A process may have a second one, an express lane, for turns that shall not wait for the large groups of the others:
    without `leases` it renews none and waits for nobody. All that one turn asks goes to one of them, in its order.
    """

    def __init__(self, settings: Settings, connect: Connect, spool: Spool, leases: Leases | None) -> None:
        self._settings = settings
        self._connect = connect
        self._spool = spool
        self._leases = leases
        self._queue: deque[_Waiting] = deque()
        self._more = asyncio.Event()
        self._enough = asyncio.Event()
        self._connection: AsyncConnection[Any] | None = None
        self._closing = False
        self._waited = 0.0
        self._wrote_at = 0.0
        self._reached = group_points(settings.crash_at)
        self.healthy = True

    # ── what turns ask ──────────────────────────────────────────────────────────────────────────────────────────

    async def gate(self, gate: Gate, begin_by: Deadline) -> Passed | Stopped:
        """Ask for one handover. Past `begin_by` the answer is `Stopped`, unless the gate is known to be written."""
        return await self._submit(gate, gate_until=begin_by)  # type: ignore[no-any-return]

    def record(self, item: Record | Refusal) -> asyncio.Future[bool]:
        """Write an outcome. Resolves to whether the row took it; awaiting it is not needed for it to be written."""
        return self._submit(item, spool_at=Deadline.after(self._settings.spool_after))

    def move(self, move: MailboxMove) -> asyncio.Future[bool]:
        """Park, hold or end. Resolves to whether the mailbox is due again at once."""
        return self._submit(move)

    def _submit(self, item: Item, **waits: Any) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(item, answer, **waits))
        self._more.set()
        if len(self._queue) >= self._turns:  # an outcome and the next gate of half of them
            self._enough.set()
        return answer

    @property
    def _turns(self) -> int:
        """Turns that a group may wait for."""
        return self._leases.turns if self._leases is not None else 0

    @property
    def wait(self) -> float:
        """Seconds that what is written now had to wait; 0 once nothing was written for a second. For any thread."""
        now = boottime()
        lately = self._waited if now - self._wrote_at < 1.0 else 0.0
        try:
            return max(lately, now - self._queue[0].since)
        except IndexError:
            return lately

    @property
    def waiting(self) -> int:
        """Items that are not answered yet."""
        return len(self._queue)

    # ── the loop ────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Write groups until `close()`; then until nothing waits."""
        while not (self._closing and not self._queue):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._leases.next_renewal() if self._leases is not None else None):
                    await self._more.wait()
            self._more.clear()
            await self._renew()
            while self._queue:
                await self._gather()
                await self._write(self._take())
                await self._renew()
        if self._connection is not None:
            await self._connection.close()

    async def _gather(self) -> None:
        """Return once about half of the running turns wait in the queue, or after a moment."""
        turns = self._turns
        if len(self._queue) >= turns or turns < FEW_TURNS or self._closing:
            return
        self._enough.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER):
                await self._enough.wait()

    def close(self) -> None:
        """Let `run()` return once everything that waits is written or spooled."""
        self._closing = True
        self._more.set()

    def _take(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        messages: set[UUID] = set()
        while self._queue and len(group) < self._settings.group_limit:
            message_id = getattr(self._queue[0].item, "message_id", None)
            if message_id in messages:  # one statement writes a row once: its second write belongs to the next group
                break
            if message_id is not None:
                messages.add(message_id)
            group.append(self._queue.popleft())
        return group

    async def _write(self, group: list[_Waiting]) -> None:
        group = self._drop_late_gates(group)
        if not group:
            return
        try:
            answer = await self._commit(group)
        except psycopg.OperationalError:
            await self._after_outage(group)
        except psycopg.Error as error:
            await self._one_by_one(group, error)
        else:
            self.healthy = True
            self._wrote_at = boottime()
            self._waited = self._wrote_at - group[0].since
            await self._answer(group, answer)

    def _drop_late_gates(self, group: list[_Waiting]) -> list[_Waiting]:
        late = [w for w in group if w.gate_until is not None and w.gate_until.passed and not w.doubtful]
        for waiting in late:
            _resolve(waiting, Stopped("too late to begin", turn_over=True))
        return [w for w in group if w not in late] if late else group

    async def _commit(self, group: Sequence[_Waiting]) -> GroupAnswer:
        connection = await self._connected()
        doubts = [waiting.doubtful for waiting in group]
        try:
            async with asyncio.timeout(self._settings.lease.total_seconds()):
                await self._settle_doubts(connection, group)
                _set_doubts(group, [True] * len(group))
                items = [w.item for w in group if not w.answer.done()]
                if self._reached:
                    self._reached(items, "submitted")
                answer = await write_group(connection, items)
                if self._reached:
                    self._reached(items, "committed")
        except TimeoutError:
            await self._disconnect()
            raise psycopg.OperationalError("PostgreSQL did not answer in time") from None
        except psycopg.OperationalError:
            await self._disconnect()
            raise
        except psycopg.Error:
            _set_doubts(group, doubts)
            raise
        return answer

    async def _settle_doubts(self, connection: AsyncConnection[Any], group: Sequence[_Waiting]) -> None:
        """Answer the gates whose lost COMMIT did arrive. The others are tried again, and read back again after it."""
        doubtful = [w for w in group if w.doubtful and isinstance(w.item, Gate)]
        written = (
            await read_back(connection, [w.item for w in doubtful if isinstance(w.item, Gate)]) if doubtful else {}
        )
        for waiting in doubtful:
            if isinstance(waiting.item, Gate) and waiting.item.message_id in written:
                _resolve(waiting, Passed(waiting.item.handover))

    async def _answer(self, group: Sequence[_Waiting], answer: GroupAnswer) -> None:
        stopped: list[_Waiting] = []
        for waiting in group:
            item = waiting.item
            if waiting.answer.done():
                continue
            if isinstance(item, Gate):
                if item.message_id in answer.passed:
                    _resolve(waiting, Passed(answer.passed[item.message_id]))
                elif item.message_id in answer.exceeded:
                    _resolve(waiting, _over_budget(answer.exceeded[item.message_id]))
                else:
                    stopped.append(waiting)
            elif isinstance(item, MailboxMove):
                _resolve(waiting, answer.ended.get(item.mailbox_id, False))
            else:
                await self._answer_record(waiting, item, answer)
        if stopped:
            await self._explain(stopped, answer)

    async def _answer_record(self, waiting: _Waiting, item: Record | Refusal, answer: GroupAnswer) -> None:
        taken = item.message_id in (answer.recorded if isinstance(item, Record) else answer.refused)
        if not taken and isinstance(item, Record):
            try:
                taken = await self._late(item)
            except psycopg.Error as error:
                log.warning("a late record waits", message_id=str(item.message_id), error=type(error).__name__)
                await self._disconnect()
                self._queue.append(waiting)
                return
        if waiting.spooled:
            self._spool.forget(item)
        _resolve(waiting, taken)

    async def _late(self, record: Record) -> bool:
        """The row has moved on since this handover: say what its answer still means (rule 7)."""
        connection = await self._connected()
        async with connection.transaction():
            return await record_late(connection, record)

    async def _explain(self, stopped: Sequence[_Waiting], answer: GroupAnswer) -> None:
        gates = [w.item for w in stopped if isinstance(w.item, Gate)]
        try:
            connection = await self._connected()
            # A first COMMIT that arrives late can have passed the gate between the reading back and the second try.
            written = await read_back(connection, gates)
            why = await why_stopped(connection, gates)
        except psycopg.Error:
            await self._disconnect()
            for waiting in stopped:
                waiting.doubtful = True
            self._queue.extendleft(reversed(stopped))
            return
        for waiting in stopped:
            gate = waiting.item
            if not isinstance(gate, Gate):
                continue
            if gate.message_id in written:
                _resolve(waiting, Passed(gate.handover))
            elif gate.mailbox_id in answer.closed:
                _resolve(waiting, Stopped("the turn is over", turn_over=True))
            else:
                _resolve(waiting, why.get(gate.message_id, Stopped("deleted")))

    # ── trouble ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _after_outage(self, group: list[_Waiting]) -> None:
        """PostgreSQL is away: everything waits in its order; outcomes that have waited long go to the spool as well."""
        self.healthy = False
        self._queue.extendleft(reversed([w for w in group if not w.answer.done()]))
        for waiting in self._queue:
            if (
                isinstance(waiting.item, (Record, Refusal))
                and not waiting.spooled
                and waiting.spool_at
                and waiting.spool_at.passed
            ):
                waiting.spooled = self._spool.keep(waiting.item)
        if self._closing and all(w.spooled or not isinstance(w.item, (Record, Refusal)) for w in self._queue):
            self._give_up()
            return
        await asyncio.sleep(RECONNECT_PAUSE)

    def _give_up(self) -> None:
        """The process must end and PostgreSQL is away: every outcome is in the spool, the rest is left to its lease."""
        for waiting in self._queue:
            _resolve(waiting, Stopped("the worker ends", turn_over=True) if isinstance(waiting.item, Gate) else False)
        self._queue.clear()

    async def _one_by_one(self, group: Sequence[_Waiting], error: psycopg.Error) -> None:
        if len(group) == 1:
            self._reject(group[0], error)
            return
        log.warning(
            "a group is written item by item", items=len(group), error=type(error).__name__, sqlstate=error.sqlstate
        )
        for waiting in group:
            await self._write([waiting])

    def _reject(self, waiting: _Waiting, error: psycopg.Error) -> None:
        """PostgreSQL refuses this item itself, again and again: keep an outcome for the operator, stop a gate."""
        log.error("not written", what=type(waiting.item).__name__, error=type(error).__name__, sqlstate=error.sqlstate)
        if isinstance(waiting.item, (Record, Refusal)):
            self._spool.keep(waiting.item)
        _resolve(waiting, Stopped("not written", turn_over=True) if isinstance(waiting.item, Gate) else False)

    # ── leases ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _renew(self) -> None:
        if self._leases is None or not self._leases.renewal_due():
            return
        try:
            connection = await self._connected()
            async with asyncio.timeout(self._settings.lease.total_seconds() / 3):
                await self._leases.renew(connection)
        except (psycopg.Error, TimeoutError) as error:
            log.warning("leases not renewed", error=type(error).__name__)
            await self._disconnect()
            await asyncio.sleep(RECONNECT_PAUSE)

    # ── connection ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _connected(self) -> AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = await self._connect()
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.close()


def _over_budget(exceeded: Exceeded) -> Stopped:
    never = exceeded.frees_in is None
    return Stopped(f"budget: {exceeded.budget}", turn_over=not never, rest=exceeded.frees_in, never=never)


def _set_doubts(group: Sequence[_Waiting], doubts: Sequence[bool]) -> None:
    for waiting, doubt in zip(group, doubts, strict=True):
        waiting.doubtful = doubt


def _resolve(waiting: _Waiting, value: Any) -> None:
    if not waiting.answer.done():
        waiting.answer.set_result(value)
