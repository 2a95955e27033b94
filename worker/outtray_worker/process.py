"""What the turns of one worker process share, and how it is brought up and taken down.

The asyncio loop runs in a thread of its own beside Celery's: Celery's threads hand rounds in, the loop does the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import threading
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import redis.asyncio
import structlog
import uvloop
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from redis.exceptions import RedisError

from outtray_schema import wakes
from outtray_schema.database import connect_options, conninfo
from outtray_schema.errors import CannotOpen, UnknownKey
from outtray_schema.outcome import Held, Parked
from outtray_schema.settings import Settings
from outtray_schema.vault import Vault, load_vault
from outtray_worker.accounts import SealedMailbox, open_account
from outtray_worker.afterwards import EVERY, follow_for_ever
from outtray_worker.auth.tokens import Auth
from outtray_worker.breaker import Breakers
from outtray_worker.content import READERS, ContentReader
from outtray_worker.copies import file_for_ever
from outtray_worker.crash import crash_points
from outtray_worker.deadline import Deadline
from outtray_worker.engine import Engine
from outtray_worker.heartbeat import beat_for_ever
from outtray_worker.lag import Lag
from outtray_worker.lease import Leases
from outtray_worker.metrics import Metrics
from outtray_worker.pick import pick
from outtray_worker.providers import Provider, Session, Shut
from outtray_worker.providers.late import LateWeb
from outtray_worker.providers.web.signals import Signals
from outtray_worker.quarantine import Quarantine
from outtray_worker.quotas.check import Quotas
from outtray_worker.quotas.pace import Pace
from outtray_worker.reconcile.look import Looks
from outtray_worker.registrar import Registrar
from outtray_worker.replay import replay_for_ever
from outtray_worker.spool import Spool
from outtray_worker.unknown_signals import write_signals
from outtray_worker.watchdog import Watchdog

log = structlog.get_logger()

FORWARDS = 2
"""Forwards that are put together at once: each holds up to some 150 MB while it is (25 MiB and as much again, sealed
and in base64)."""

SIGNALS_EVERY = 60.0
"""Seconds between two writings of the answers that no provider's table knows."""

CANCEL_AGAIN = 0.2
"""Seconds after which a loop that did not end is cancelled once more."""

PROBE = "outtray:probe"
"""Written now and then to see that Redis takes writes: a read-only one, or one that is full, answers a PING too, and
brings no rounds."""

POOL_SIZE = 4
"""Connections for claims and quotas; the registrar has one of its own."""


async def connect(settings: Settings, role: str) -> AsyncConnection[Any]:
    """A connection outside any pool, autocommit."""
    options = connect_options(settings, role)
    return await AsyncConnection.connect(conninfo(settings), autocommit=True, **options)


async def _refuse_closed(connection: AsyncConnection[Any]) -> None:
    """Raise if the server closed this pooled connection: it can be read then. Asking it would be a round trip a use."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN | select.POLLHUP)
    if poll.poll(0):
        await connection.close()  # the pool replaces what is closed; what is only refused it would offer again for ever
        raise psycopg.OperationalError("the server closed this connection while it was idle")


class Process:
    """The shared parts of one worker process. Belongs to its loop, except `start`, `submit` and `stop`."""

    def __init__(
        self,
        settings: Settings,
        providers: Mapping[str, Provider],
        web: LateWeb | None = None,
        signals: Signals | None = None,
    ) -> None:
        """`web` and `signals` are what the providers share: closed, and written, by the process."""
        self.settings = settings
        self._web = web
        self._signals = signals or Signals()
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.draining = False
        self.handing_over = 0
        self._ending = False
        self.vault: Vault = load_vault(settings)
        self.metrics = Metrics()
        self.crash_point = crash_points(settings.crash_at)
        self._providers = providers
        self._woken: dict[UUID, datetime] = {}

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Make everything that needs the loop, and start the loops that serve turns."""
        settings = self.settings
        self.redis = redis.asyncio.Redis.from_url(
            str(settings.redis_url),
            socket_timeout=settings.redis_timeout.total_seconds(),
            socket_connect_timeout=settings.redis_timeout.total_seconds(),
            client_name="outtray-engine",
        )
        self.pool = self._new_pool(POOL_SIZE)
        self._content_pool = self._new_pool(READERS)  # no crowd of claims may keep a message under way waiting
        await self.pool.open()
        await self._content_pool.open()
        self.leases = Leases(settings.lease)
        self.spool = Spool(settings.spool)
        self.registrar = Registrar(settings, self._registrar_connection, self.spool, self.leases)
        self.express_lane = Registrar(settings, self._registrar_connection, self.spool, None)
        self.auth = Auth(settings, self.vault, self.pool.connection, self._signals.note)
        self.content = ContentReader(self._content_pool, self.vault, settings.content_memory)
        self.pace = Pace(self.redis, settings)
        self.quotas = Quotas(self.pool)
        self.breakers = Breakers(settings, self.pool.connection)
        self.quarantine = Quarantine(settings.suspect_alone)
        self.forwarding = asyncio.Semaphore(FORWARDS)
        self.lag = Lag()
        self.engine = Engine(self)
        self.looks = Looks(self)
        self._show_metrics()
        self._wake_now = asyncio.Event()
        self._loops = [
            self._vital(self.content.run(), "content"),
            self._vital(self.lag.run(), "lag"),
            self._vital(self._publish_wakes(), "wakes"),
            self._vital(self._serve_without_broker(), "fallback"),
            self._vital(replay_for_ever(self), "replay"),
            self._vital(beat_for_ever(self), "heartbeat"),
            self._vital(follow_for_ever(self), "afterwards"),
            self._vital(file_for_ever(self, EVERY), "copies"),
            self._vital(self._write_signals(), "signals"),
            self._vital(self.breakers.run(), "breakers"),
        ]
        self._registrar_task = self._vital(self.registrar.run(), "registrar")
        self._express_task = self._vital(self.express_lane.run(), "express lane")

    def _show_metrics(self) -> None:
        self.metrics.show(
            {
                "outtray_turns": ("Turns that run now", lambda: self.engine.turns),
                "outtray_open_handovers": ("Handovers that are open now", lambda: self.handing_over),
                "outtray_loop_lag_seconds": ("How late the event loop comes to what is due", lambda: self.lag.seconds),
                "outtray_gate_wait_seconds": ("How long a gate waits to be written", lambda: self.registrar.wait),
                "outtray_postgresql_up": ("1 while gates and outcomes are written", lambda: self.writing),
            }
        )

    def _new_pool(self, size: int) -> AsyncConnectionPool[AsyncConnection[Any]]:
        return AsyncConnectionPool[AsyncConnection[Any]](
            conninfo(self.settings),
            kwargs=connect_options(self.settings, "worker") | {"autocommit": True},
            min_size=1,
            max_size=size,
            open=False,
            timeout=self.settings.database_timeout.total_seconds(),
            check=_refuse_closed,
        )

    async def _registrar_connection(self) -> AsyncConnection[Any]:
        return await connect(self.settings, "registrar")

    def _vital(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a loop that the process cannot do without: should it end by an error, so does the process.

        A worker whose registrar is dead would hold its leases and answer nothing; ending it hands its mailboxes over.
        """
        task = asyncio.create_task(work, name=name)

        def ended(task: asyncio.Task[None]) -> None:
            if not self._ending and not task.cancelled() and task.exception() is not None:
                log.critical("the process ends: a vital loop failed", loop=name, exc_info=task.exception())
                os._exit(70)

        task.add_done_callback(ended)
        return task

    async def close(self) -> None:
        """Drain: nothing new begins, handovers under way finish and are written."""
        self.draining = True
        await self.looks.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_limit.total_seconds()):
                await self.engine.drain()
        self.registrar.close()
        self.express_lane.close()
        await asyncio.gather(self._registrar_task, self._express_task)
        self.spool.close()
        await self._end_loops()
        await self._write_signals_once()
        if self._web is not None:
            await self._web.close()
        await self.auth.close()
        await self.pool.close()
        await self._content_pool.close()
        await self.redis.aclose()

    async def _end_loops(self) -> None:
        """Cancel the loops until they have ended.

        Once is not enough: what is cancelled in the midst of a query can get psycopg's `QueryCanceled` instead, and a
        loop that outlives errors of PostgreSQL then goes on (psycopg 3.3; a worker did not end on SIGTERM, 2026-11).
        """
        self._ending = True
        waiting = set(self._loops)
        while waiting:
            for task in waiting:
                task.cancel()
            _, waiting = await asyncio.wait(waiting, timeout=CANCEL_AGAIN)

    @property
    def writing(self) -> bool:
        """Whether what turns ask is being written: neither registrar has lost PostgreSQL."""
        return self.registrar.healthy and self.express_lane.healthy

    # ── what turns ask ──────────────────────────────────────────────────────────────────────────────────────────

    def open_session(self, box: SealedMailbox) -> Session:
        """The provider's session for one turn of this mailbox, or for looks into it. Nothing is connected yet.

        A mailbox that cannot be opened gets a session that says so: it must not take its round's others with it.
        """
        provider = self._providers.get(box.provider)
        if provider is None:
            return Shut(Parked(f"this worker has no provider {box.provider}", scope="app"))
        try:
            return provider.open(open_account(self.vault, box, self.auth))
        except UnknownKey as error:
            log.error("a key is missing", ring=error.ring, mailbox_id=str(box.id))
            return Shut(
                Parked("this worker's key file lacks the key that its credentials were sealed with", scope="app")
            )
        except CannotOpen:
            return Shut(Held("its stored credentials are damaged; connect it again"))

    def wake(self, mailbox_id: UUID) -> None:
        """This mailbox is due again at once. A hint; losing it costs one pick."""
        self._woken[mailbox_id] = datetime.now(UTC)
        self._wake_now.set()

    async def _publish_wakes(self) -> None:
        while True:
            await self._wake_now.wait()
            self._wake_now.clear()
            woken, self._woken = self._woken, {}
            with contextlib.suppress(RedisError, OSError):
                await self.redis.zadd(wakes.KEY, wakes.zadd_arguments(woken), lt=True)

    async def _write_signals(self) -> None:
        while True:
            await asyncio.sleep(SIGNALS_EVERY)
            await self._write_signals_once()

    async def _write_signals_once(self) -> None:
        with contextlib.suppress(psycopg.Error, PoolTimeout):  # what is not written now stays counted
            async with self.pool.connection() as connection:
                await write_signals(connection, self._signals)

    async def _serve_without_broker(self) -> None:
        """A worker whose broker has been unreachable for a while picks due mailboxes itself (rule 2)."""
        settings = self.settings
        reached = Deadline.after(settings.broker_patience)
        while True:
            try:
                await self.redis.set(PROBE, b"1", ex=60)
                reached = Deadline.after(settings.broker_patience)
                await asyncio.sleep(min(1.0, settings.broker_patience.total_seconds() / 3))
            except (RedisError, OSError):
                await self._pick_for_itself() if reached.passed else await asyncio.sleep(0.1)

    async def _pick_for_itself(self) -> None:
        picked: list[UUID] = []
        room = min(self.engine.free, self.settings.round_mailboxes)
        if room > 0:
            with contextlib.suppress(psycopg.Error):
                async with self.pool.connection() as connection:
                    picked = await pick(connection, room, self.settings.round_again)
        looking = await self.looks.pick_for_itself()
        if picked:
            await self.engine.admit(picked)
        elif not looking:
            await asyncio.sleep(self.settings.pick_every.total_seconds())


class ProcessThread:
    """A `Process` on its own loop in its own thread, for Celery's threads to use."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watchdog: Watchdog | None = None
        self._ready = threading.Event()
        self._trouble: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Return once the engine takes rounds. Raises what kept it from starting."""
        self._thread.start()
        self._ready.wait()
        if self._trouble is not None:
            raise self._trouble
        if self._loop is not None:
            self._watchdog = Watchdog(self._loop, self.process.settings.watchdog)
            self._watchdog.start()

    def admit(self, mailbox_ids: list[UUID], express: bool = False) -> int:
        """Block until the round's last mailbox is admitted."""
        return int(self._call(self.process.engine.admit(mailbox_ids, express)))

    def look(self, message_ids: list[UUID]) -> int:
        """Return once looks for these messages have begun, as far as there is room."""
        return int(self._call(self.process.looks.admit(message_ids)))

    def stop_taking(self) -> None:
        """From now on nothing new begins; rounds that wait for room return."""
        self.process.draining = True
        self._call(self.process.engine.notify())

    def drain(self) -> None:
        """Block until every handover under way is finished and written."""
        self._call(self.process.close())
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if self._watchdog is not None:
            self._watchdog.stop()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        if self._loop is None:
            raise RuntimeError("the engine was not started")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _run(self) -> None:
        self._loop = uvloop.new_event_loop()
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self.process.open())
        except BaseException as error:
            self._trouble = error
            return
        finally:
            self._ready.set()
        self._loop.run_forever()
