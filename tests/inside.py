"""A whole worker inside the test: its process, engine, registrar and turns, with a scripted provider behind them.

PostgreSQL and Valkey are real, messages come in through the real client; only the network and Celery are left out, so
that a test can stand in the middle of a handover, let a turn die, or move the clock by a day.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb
from redis.exceptions import RedisError

from outtray import Message, Outtray
from outtray_schema import bindings, wakes
from outtray_schema.outcome import Outcome
from outtray_schema.settings import Settings
from outtray_worker.deadline import Deadline
from outtray_worker.pick import arm, pick
from outtray_worker.process import Process
from outtray_worker.providers import Account, Draft, Finding, Mail, Prepared, Session, Trace
from outtray_worker.providers.memory import Answer, MemoryProvider
from outtray_worker.sweep import sweep
from outtray_worker.tend import tend
from world import World, world

SETTLE = timedelta(seconds=60)


@dataclass
class Inside:
    """One worker process in this test's loop."""

    process: Process
    provider: Any
    client: Outtray
    w: World
    shifts: list[tuple[float, float]] = field(default_factory=list)
    """When the clock was moved (monotonic seconds), and how far it then stood ahead in all (seconds)."""

    async def mailbox(self, limits: dict[str, Any] | None = None, **columns: Any) -> UUID:
        """A mailbox of the provider `memory`; without daily limits unless `limits` sets one."""
        mailbox_id = uuid4()
        address = json.dumps({"address": f"box-{mailbox_id}@example.org", "name": "", "aliases": []}).encode()
        no_limits: dict[str, Any] = {"messages": None, "recipients_per_message": None}
        sealed = self.process.vault.addresses.encrypt(address, bindings.mailbox_address(mailbox_id))
        values = {
            "id": mailbox_id, "address": sealed, "address_index": mailbox_id.bytes,
            "limits": Jsonb(no_limits | (limits or {})),
        }  # fmt: skip
        return await self.w.mailbox(**values | columns)

    def enqueue(self, box: UUID, count: int = 1, **fields: Any) -> list[UUID]:
        """Messages by the real client, in the order of their due times."""
        message = {"to": "to@example.net", "subject": "s", "text": "t"} | fields
        return [self.client.enqueue(Message(mailbox=box, **message)).id for _ in range(count)]

    def answers(self, *outcomes: Outcome | Answer) -> None:
        """What the provider says to the next handovers, in turn."""
        for outcome in outcomes:
            self.provider.answer(outcome if isinstance(outcome, Answer) else Answer("hand_over", outcome))

    async def round(self) -> int:
        """One round of all due mailboxes, until its turns have ended. Returns how many turns began."""
        begun = await self.begin()
        await self.process.engine.drain()
        return begun

    async def begin(self) -> int:
        """Admit all due mailboxes, and leave their turns running."""
        await self.take_wakes()
        picked = await pick(self.w.db, 1000, timedelta(0))
        return await self.process.engine.admit(picked)

    async def take_wakes(self) -> None:
        """What the dispatcher does with the hints in Redis."""
        try:
            await arm(self.w.db, wakes.parse(await self.process.redis.zpopmin(wakes.KEY, 1000)))
        except RedisError:
            await sweep(self.w.db)

    async def until_idle(self) -> None:
        """Rounds until nothing is due at this time of the clock."""
        while await self.round():
            pass

    async def round_until(self, condition: Callable[[], Any], within: float = 10.0) -> None:
        """Rounds, one after the other, until the condition is true."""
        async with asyncio.timeout(within):
            while not condition():
                if not await self.round():
                    await asyncio.sleep(0.01)

    async def later(self, by: timedelta) -> None:
        """Move the clock, and let time do what it does to turns and messages."""
        await self.w.shift(by)
        ahead = self.shifts[-1][1] if self.shifts else 0.0
        self.shifts.append((time.monotonic(), ahead + by.total_seconds()))
        await tend(self.w.db, SETTLE)

    async def look(self) -> int:
        """Carry out all looks for evidence that are due. Returns how many there were."""
        begun = await self.process.looks.pick_for_itself()
        await self.process.looks.drain()
        return begun

    async def message(self, message_id: UUID) -> dict[str, Any]:
        return await self.w.row("message", message_id)

    async def box(self, mailbox_id: UUID) -> dict[str, Any]:
        return await self.w.row("mailbox", mailbox_id)

    async def states(self) -> Counter[str]:
        rows = await self.w.rows("SELECT state, count(*) AS n FROM outtray.message GROUP BY state")
        return Counter({row["state"]: row["n"] for row in rows})

    async def events(self, kind: str) -> list[dict[str, Any]]:
        return await self.w.rows("SELECT * FROM outtray.event WHERE kind = %s ORDER BY id", kind)

    async def journal(self, message_id: UUID) -> list[str]:
        query = "SELECT kind FROM outtray.journal WHERE message_id = %s ORDER BY at, id"
        return [row["kind"] for row in await self.w.rows(query, message_id)]

    @property
    def accepted(self) -> list[UUID]:
        """What the provider took, in its order."""
        return [accepted.message_id for accepted in self.provider.accepted]

    @property
    def accepted_at(self) -> list[float]:
        """When the provider took each mail, in seconds on the moved clock."""
        return [taken.monotonic + self._ahead(taken.monotonic) for taken in self.provider.accepted]

    def _ahead(self, moment: float) -> float:
        return next((ahead for since, ahead in reversed(self.shifts) if since <= moment), 0.0)


def most_within(moments: list[float], window: float) -> int:
    """The greatest number of moments within any window of so many seconds."""
    most, begin = 0, 0
    ordered = sorted(moments)
    for end, moment in enumerate(ordered):
        while moment - ordered[begin] >= window:
            begin += 1
        most = max(most, end - begin + 1)
    return most


class Scripted(MemoryProvider):
    """The memory provider, with a hook before each preparation, and hosts that do not answer until they are told."""

    def __init__(self) -> None:
        super().__init__()
        self.before_prepare: Callable[[UUID], Awaitable[None]] | None = None
        self.silent: dict[str, asyncio.Event] = {}
        """Hosts whose handovers wait for this event."""
        self.most: Counter[str] = Counter()
        """The greatest number of handovers that were open at once, by host."""
        self._now: Counter[str] = Counter()

    def open(self, account: Account) -> Session:
        return _ScriptedSession(self, account, super().open(account))

    @asynccontextmanager
    async def handing_over(self, host: str) -> AsyncIterator[None]:
        self._now[host] += 1
        self.most[host] = max(self.most[host], self._now[host])
        try:
            if host in self.silent:
                await self.silent[host].wait()
            yield
        finally:
            self._now[host] -= 1


@dataclass
class _ScriptedSession:
    provider: Scripted
    account: Account
    real: Session

    async def prepare(self, mail: Mail) -> Any:
        if self.provider.before_prepare:
            await self.provider.before_prepare(mail.message_id)
        prepared = await self.real.prepare(mail)
        return prepared if isinstance(prepared, Outcome) else _ScriptedPrepared(self, prepared)

    async def find_evidence(self, trace: Trace) -> Finding:
        return await self.real.find_evidence(trace)

    async def close(self) -> None:
        await self.real.close()


@dataclass
class _ScriptedPrepared:
    session: _ScriptedSession
    real: Prepared

    async def hand_over(self, begin_by: Deadline, answer_by: Deadline) -> Outcome:
        async with self.session.provider.handing_over(self.session.account.host):
            return await self.real.hand_over(begin_by, answer_by)

    @property
    def draft(self) -> Draft | None:
        return self.real.draft

    async def abandon(self) -> None:
        await self.real.abandon()


class Died(asyncio.CancelledError):
    """Raised inside a turn it ends it where it stands: nothing is written, no lease is given back, as by `kill -9`."""


def dies_at(point: str, when: Callable[[], bool] = lambda: True) -> Callable[..., None]:
    """A crash point that ends the one turn instead of the process."""

    def reach(reached: str, *_: UUID) -> None:
        if reached == point and when():
            raise Died

    return reach


@asynccontextmanager
async def inside(settings: Settings, provider: Any = None, **changes: Any) -> AsyncIterator[Inside]:
    """A worker's process, opened; `changes` are settings of this worker alone."""
    memory = provider or MemoryProvider()
    async with world(settings) as w:
        scaled = {"drain_limit": timedelta(seconds=5)} | changes
        process = Process(settings.model_copy(update=scaled), {memory.name: memory})
        await process.open()
        app = w.app_id.hex
        with Outtray(settings, app=app) as client:
            try:
                yield Inside(process, memory, client, w)
            finally:
                await process.close()
