"""The dispatcher: wakes become due mailboxes, due mailboxes become rounds, and time is kept.

It may run in any number of copies; every step is a conditional write that skips what another copy holds. Redis brings
hints and takes rounds. While it is away, everything else here goes on, and workers pick mailboxes themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import redis.asyncio
import structlog
from kombu.exceptions import KombuError
from psycopg import AsyncConnection
from redis.exceptions import RedisError

from outtray_schema import wakes
from outtray_schema.settings import Settings
from outtray_worker import queues
from outtray_worker.crash import crash_points
from outtray_worker.deadline import boottime
from outtray_worker.heartbeat import EVERY, beat, leave
from outtray_worker.pick import arm, pick, pick_few, unpick
from outtray_worker.prune import prune
from outtray_worker.reconcile.pick import pick_looks
from outtray_worker.reconcile.schedule import Schedules
from outtray_worker.rounds import EXPRESS, ORDINARY, Rounds
from outtray_worker.seal import EVERY as SEAL_EVERY
from outtray_worker.seal import seal
from outtray_worker.sweep import sweep
from outtray_worker.tend import tend

log = structlog.get_logger()

WAKES_AT_ONCE = 1000
TROUBLE_PAUSE = 0.5
"""Seconds that a loop rests after PostgreSQL or Redis failed it."""

FULL_PAUSE = 0.02
"""Seconds until a full queue of rounds is looked at again: workers empty it in tens of milliseconds."""

LOOKS_AT_ONCE = 64
"""Messages in one task of looks."""

Connect = Callable[[], Awaitable[AsyncConnection[Any]]]


class Dispatcher:
    """One process's dispatcher. `run()` returns once `stop()` was called and nothing is half done."""

    def __init__(self, settings: Settings, connect: Connect, broker: redis.asyncio.Redis, rounds: Rounds) -> None:
        self._settings = settings
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._connect = connect
        self._redis = broker
        self._rounds = rounds
        self._broker = asyncio.Lock()  # the loops share one connection to it, which is one thread's at a time
        self._schedules = Schedules.of(settings)
        self._due = asyncio.Event()
        self._stopping = asyncio.Event()
        self._redis_away = False
        self._swept_at = -math.inf
        self._crash_point = crash_points(settings.crash_at)

    async def run(self) -> None:
        """Run every loop until `stop()`; a loop that PostgreSQL or Redis fails rests and goes on."""
        loops = (
            self._take_wakes,
            self._publish,
            self._look,
            self._tend,
            self._sweep,
            self._seal,
            self._show_queues,
            self._prune,
            self._beat,
        )
        async with asyncio.TaskGroup() as group:
            for loop in loops:
                group.create_task(self._for_ever(loop))
        with contextlib.suppress(psycopg.Error):
            async with await self._connect() as connection:
                await leave(connection, self._name)

    def stop(self) -> None:
        """Ask every loop to end after its present step."""
        self._stopping.set()
        self._due.set()

    async def _for_ever(self, step: Callable[[AsyncConnection[Any]], Awaitable[float]]) -> None:
        """Run a step again and again on a connection of its own; a step returns its rest in seconds."""
        connection: AsyncConnection[Any] | None = None
        while not self._stopping.is_set():
            try:
                if connection is None or connection.closed:
                    connection = await self._connect()
                rest = await step(connection)
            except (psycopg.Error, RedisError, KombuError, OSError) as error:
                log.warning("a step of the dispatcher failed", step=step.__name__, error=type(error).__name__)
                rest = TROUBLE_PAUSE
            await self._rest(rest)
        if connection is not None:
            await connection.close()

    async def _rest(self, seconds: float) -> None:
        if seconds:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()

    # ── wakes and rounds ────────────────────────────────────────────────────────────────────────────────────────

    async def _take_wakes(self, connection: AsyncConnection[Any]) -> float:
        taken = await self._pop_wakes()
        if taken:
            self._crash_point("woken", *taken)
            await arm(connection, taken)
            if min(taken.values()) <= datetime.now(UTC):
                self._due.set()
        return 0.0

    async def _pop_wakes(self) -> dict[UUID, datetime]:
        try:
            first = await self._redis.bzpopmin([wakes.KEY], timeout=1)
            pairs = [first[1:], *await self._redis.zpopmin(wakes.KEY, WAKES_AT_ONCE)] if first else []
        except (RedisError, OSError):
            self._redis_away = True
            raise
        self._redis_away = False
        return wakes.parse(pairs)

    async def _publish(self, connection: AsyncConnection[Any]) -> float:
        self._due.clear()
        room = await self._backlog_room()
        picked: list[UUID] = []
        overtaking = await self._overtake(connection, room)
        if room > 0:
            size = self._settings.round_mailboxes
            # Where there are more small apps than overtake at once, what is left of them is picked like the others'.
            picked = await pick(connection, room * size, self._settings.round_again, spare_small=overtaking < size)
            await self._send(connection, picked, ORDINARY)
        if room <= 0:
            await self._rest(FULL_PAUSE)
        elif not picked:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.pick_every.total_seconds()):
                    await self._due.wait()
        return 0.0

    async def _backlog_room(self) -> int:
        """How many tasks may still wait in the broker."""
        async with self._broker:
            return self._settings.round_backlog - await asyncio.to_thread(self._rounds.waiting)

    async def _overtake(self, connection: AsyncConnection[Any], room: int) -> int:
        """Small apps are served by rounds that overtake all others; at most as many again may wait.

        Returns how many of their mailboxes were picked.
        """
        if room <= -self._settings.round_backlog:
            return 0
        few = await pick_few(connection, self._settings.round_mailboxes, self._settings.round_again)
        await self._send(connection, few, EXPRESS)
        return len(few)

    async def _send(self, connection: AsyncConnection[Any], picked: list[UUID], priority: int) -> None:
        size = self._settings.round_mailboxes
        self._crash_point("picked", *picked)
        for start in range(0, len(picked), size):
            try:
                async with self._broker:
                    await asyncio.to_thread(self._rounds.publish, picked[start : start + size], priority)
            except Exception:
                await unpick(connection, picked[start:])
                raise
        self._crash_point("published", *picked)

    async def _look(self, connection: AsyncConnection[Any]) -> float:
        """Publish due looks for evidence while rounds leave room for them. One that nobody carries out is due again."""
        settings, every = self._settings, self._settings.tend_every.total_seconds()
        if await self._backlog_room() <= 0:
            return every
        picked = await pick_looks(connection, LOOKS_AT_ONCE, settings.round_again + settings.look_limit)
        if picked:
            async with self._broker:
                await asyncio.to_thread(self._rounds.publish_looks, picked)
        return 0.0 if len(picked) == LOOKS_AT_ONCE else every

    # ── time ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _tend(self, connection: AsyncConnection[Any]) -> float:
        settings = self._settings
        moved = await tend(connection, settings.settle_time, self._schedules, settings.attempts)
        if any(moved.values()):
            log.info("tended", **{name.replace(" ", "_"): count for name, count in moved.items() if count})
            self._due.set()
        return settings.tend_every.total_seconds()

    async def _sweep(self, connection: AsyncConnection[Any]) -> float:
        """Once a minute; oftener while Redis is away, for then every wake is lost."""
        settings = self._settings
        every = (settings.sweep_every_without_redis if self._redis_away else settings.sweep_every).total_seconds()
        if boottime() - self._swept_at >= every:
            self._swept_at = boottime()
            armed = await sweep(connection)
            if armed:
                log.info("lost wakes found", mailboxes=armed)
                self._due.set()
        return min(1.0, every / 4)

    async def _beat(self, connection: AsyncConnection[Any]) -> float:
        await beat(connection, self._name, "dispatcher", {"redis": not self._redis_away})
        return EVERY

    async def _seal(self, connection: AsyncConnection[Any]) -> float:
        return 0.0 if await seal(connection) else SEAL_EVERY

    async def _show_queues(self, connection: AsyncConnection[Any]) -> float:
        """Once a minute, by whichever dispatcher comes first, and only while rounds leave room."""
        if await self._backlog_room() > 0 and await queues.is_our_turn(self._redis):
            counts = await queues.read_counts(connection)
            async with self._broker:
                await asyncio.to_thread(self._rounds.publish_queues, counts)
        return queues.EVERY / 6

    async def _prune(self, connection: AsyncConnection[Any]) -> float:
        await prune(connection, self._settings)
        return self._settings.prune_every.total_seconds()
