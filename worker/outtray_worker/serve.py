"""The long-running processes: a worker under Celery, the dispatcher, and Flower beside them."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any
from uuid import UUID

import redis.asyncio
from celery import Celery, bootsteps
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning
from celery.signals import worker_init, worker_shutdown, worker_shutting_down
from celery.worker.consumer import Tasks
from celery.worker.state import reserved_requests

from outtray_schema.settings import Settings
from outtray_worker.celery import celery_app
from outtray_worker.dispatcher import Dispatcher
from outtray_worker.logs import configure_logs
from outtray_worker.process import Process, ProcessThread, connect
from outtray_worker.providers import Provider
from outtray_worker.providers.late import LateProvider, LateWeb
from outtray_worker.providers.smtp import SmtpProvider
from outtray_worker.providers.web.signals import Signals
from outtray_worker.queues import TASK as QUEUES_TASK
from outtray_worker.rounds import LOOK_TASK, TASK, Rounds

EXPRESS_FETCH = 0.05
"""Seconds that a worker which wants no ordinary round waits for an overtaking one before it asks itself again."""

THREADS = 8
"""Celery threads per worker process: each only waits until its round is admitted."""

ROUNDS_HELD = 3
"""Tasks from which on a worker fetches no ordinary round: all threads waiting for the engine's room would leave none to
fetch a round that overtakes, which then waited for half a second (measured 2026-11)."""

PROVIDERS = "outtray_worker.providers"


def default_providers(settings: Settings, web: LateWeb, signals: Signals) -> Mapping[str, Provider]:
    """The providers that a worker knows by default. Those with large libraries are loaded by their first mailbox."""

    def late(name: str, provider: str) -> LateProvider:
        module = f"{PROVIDERS}.{name}"
        return LateProvider(name, lambda: getattr(import_module(module), provider)(settings, web(), signals))

    return {
        "smtp": SmtpProvider(settings),
        "gmail": late("gmail", "GmailProvider"),
        "microsoft": late("microsoft", "MicrosoftProvider"),
    }


def run_worker(settings: Settings, providers: Mapping[str, Provider] | None = None) -> None:
    """Run one worker process until SIGTERM: handovers under way finish and are recorded, then exit 0.

    Raises `SettingsError` if it cannot listen where Prometheus shall find it.
    """
    configure_logs(settings)
    web, signals = LateWeb(settings), Signals()
    known = providers or default_providers(settings, web, signals)
    process = Process(settings, known, web, signals)
    if settings.metrics_port is not None:
        process.metrics.serve(settings.metrics_host, settings.metrics_port)
    app = worker_app(settings, ProcessThread(process))
    # Celery's advice on pickle as root and on late acks does not concern a worker that takes JSON and acks early.
    warnings.simplefilter("ignore", SecurityWarning)
    warnings.simplefilter("ignore", CPendingDeprecationWarning)
    # As its command line would start it, but without that: it brings a shell and every other command (0.2 s of CPU).
    worker = app.Worker(
        pool_cls="threads",
        concurrency=THREADS,
        hostname=f"outtray-{os.getpid()}@{socket.gethostname()}",
        without_gossip=True,
        without_mingle=True,
        loglevel="WARNING",
        quiet=True,
    )
    worker.start()
    if worker.exitcode:
        raise SystemExit(worker.exitcode)


def worker_app(settings: Settings, thread: ProcessThread) -> Celery:
    """The Celery app of a worker whose rounds go to this engine."""
    app = celery_app(settings, "worker")

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def take_round(mailbox_ids: list[str], express: bool = False) -> None:
        thread.admit(_parsed(mailbox_ids), express)

    @app.task(name=LOOK_TASK)  # type: ignore[untyped-decorator]
    def look(message_ids: list[str]) -> None:
        thread.look(_parsed(message_ids))

    @app.task(name=QUEUES_TASK)  # type: ignore[untyped-decorator]
    def show_queues(**_: int) -> None:
        """Its arguments are what Flower shows."""

    def started(**_: Any) -> None:
        thread.start()
        spare_the_collector()

    def stopping(**_: Any) -> None:
        thread.stop_taking()

    def stopped(**_: Any) -> None:
        thread.drain()

    def wanted() -> bool:
        # Celery takes several tasks in a row before the first of them is seen in the engine's line.
        return thread.process.engine.wants_more and len(reserved_requests) < ROUNDS_HELD

    app.steps["consumer"].add(_fetching_while(wanted))
    app.steps["consumer"].add(EventsBySecond)
    worker_init.connect(started, weak=False)
    worker_shutting_down.connect(stopping, weak=False)
    worker_shutdown.connect(stopped, weak=False)
    return app


def _fetching_while(wanted: Callable[[], bool]) -> type[bootsteps.StartStopStep]:
    """A step of Celery's consumer: unless `wanted()`, fetch only rounds that overtake. It is asked at each fetch.

    An ordinary round that waits in a worker can no longer be overtaken, and eight of them would be seconds of work.
    A fetch is a BRPOP on the keys of the priorities that are looked at (kombu/transport/redis.py, 5.7.0); one that
    looks for overtaking rounds alone ends soon, so that ordinary ones are not missed for longer than that.
    """

    class FetchWhileWanted(bootsteps.StartStopStep):  # type: ignore[misc]
        requires = (Tasks,)

        def start(self, consumer: Any) -> None:
            channel = consumer.task_consumer.channel
            fetch, every = channel._brpop_start, channel.priority_steps

            def fetch_wanted(timeout: float | None = None) -> None:
                ordinary = wanted()
                channel.priority_steps = every if ordinary else every[:1]
                fetch(timeout if ordinary else EXPRESS_FETCH)
                channel.priority_steps = every

            channel._brpop_start = fetch_wanted

    return FetchWhileWanted


class EventsBySecond(bootsteps.StartStopStep):  # type: ignore[misc]
    """A step of Celery's consumer: publish task events once a second, or once 24 of them wait.

    Celery publishes at each turn of its loop in which there was one: half of what a round cost a worker there
    (celery/worker/consumer/consumer.py, 5.7.0; measured 2026-11). Flower sees rounds a second later.
    """

    requires = (Tasks,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        if consumer.event_dispatcher:
            consumer.event_dispatcher.on_send_buffered = None
            self._timer = consumer.timer.call_repeatedly(1.0, consumer.event_dispatcher.flush)

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def spare_the_collector() -> None:
    """Take what is loaded out of Python's cycle collector, and let it look less often at the rest.

    A process with Celery in it has some 300,000 long-lived objects; walking them again and again as messages come and
    go took a fifth of a worker's CPU (measured 2026-11).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def _parsed(ids: object) -> list[UUID]:
    """The ids of a round or of looks; whatever else somebody put into the broker is left out."""
    parsed = []
    for text in ids if isinstance(ids, list) else []:
        try:
            parsed.append(UUID(text))
        except (ValueError, AttributeError, TypeError):
            continue
    return parsed


def run_dispatcher(settings: Settings) -> None:
    """Run one dispatcher until SIGTERM or SIGINT."""
    configure_logs(settings)
    asyncio.run(_dispatch(settings))


async def _dispatch(settings: Settings) -> None:
    broker = redis.asyncio.Redis.from_url(
        str(settings.redis_url), socket_timeout=5, socket_connect_timeout=5, client_name="outtray-dispatcher"
    )
    dispatcher = Dispatcher(
        settings, lambda: connect(settings, "dispatcher"), broker, Rounds(celery_app(settings, "dispatcher"))
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, dispatcher.stop)
    await dispatcher.run()
    await broker.aclose()


def run_flower(settings: Settings, port: int, address: str) -> None:
    """Run Flower read-only. It looks at workers; the queue itself is in PostgreSQL, behind `outtray status`."""
    configure_logs(settings)
    asked = ["flower", f"--port={port}", f"--address={address}", "--read-only", "--logging=warning"]
    celery_app(settings, "flower").start(asked)
