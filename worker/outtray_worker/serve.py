"""The long-running processes: a worker under Celery, the dispatcher, and Flower beside them."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import warnings
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import redis.asyncio
from celery import Celery, bootsteps
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning
from celery.signals import worker_init, worker_shutdown, worker_shutting_down
from celery.worker.consumer import Tasks

from outtray_schema.settings import Settings
from outtray_worker.celery import celery_app
from outtray_worker.dispatcher import Dispatcher
from outtray_worker.logs import configure_logs
from outtray_worker.process import Process, ProcessThread, connect
from outtray_worker.providers import Provider
from outtray_worker.providers.smtp import SmtpProvider
from outtray_worker.rounds import TASK, Rounds

THREADS = 8
"""Celery threads per worker process: each only waits until its round is admitted."""


def default_providers(settings: Settings) -> Mapping[str, Provider]:
    """The providers that a worker knows by default."""
    return {"smtp": SmtpProvider(settings)}


def run_worker(settings: Settings, providers: Mapping[str, Provider] | None = None) -> None:
    """Run one worker process until SIGTERM: handovers under way finish and are recorded, then exit 0."""
    configure_logs(settings)
    thread = ProcessThread(Process(settings, providers or default_providers(settings)))
    app = worker_app(settings, thread)
    # Celery's advice on pickle as root and on late acks does not concern a worker that takes JSON and acks early.
    warnings.simplefilter("ignore", SecurityWarning)
    warnings.simplefilter("ignore", CPendingDeprecationWarning)
    app.worker_main(
        [
            "--quiet",
            "worker",
            "--pool=threads",
            f"--concurrency={THREADS}",
            "--without-gossip",
            "--without-mingle",
            f"--hostname=outtray-{os.getpid()}@{socket.gethostname()}",
            "--loglevel=WARNING",
        ]
    )


def worker_app(settings: Settings, thread: ProcessThread) -> Celery:
    """The Celery app of a worker whose rounds go to this engine."""
    app = celery_app(settings, "worker")

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def take_round(mailbox_ids: list[str]) -> None:
        thread.admit(_parsed(mailbox_ids))

    def started(**_: Any) -> None:
        thread.start()
        spare_the_collector()

    def stopping(**_: Any) -> None:
        thread.stop_taking()

    def stopped(**_: Any) -> None:
        thread.drain()

    app.steps["consumer"].add(_fetching_while(lambda: thread.process.engine.wants_more))
    app.steps["consumer"].add(EventsBySecond)
    worker_init.connect(started, weak=False)
    worker_shutting_down.connect(stopping, weak=False)
    worker_shutdown.connect(stopped, weak=False)
    return app


def _fetching_while(wanted: Callable[[], bool]) -> type[bootsteps.StartStopStep]:
    """A step of Celery's consumer: fetch no task unless `wanted()`. It is asked at each turn of Celery's loop.

    A round that waits in a worker can no longer be overtaken, and eight of them would be seconds of work. Celery's own
    `worker_disable_prefetch` does the same for busy threads (celery/worker/consumer/tasks.py, 5.7.0).
    """

    class FetchWhileWanted(bootsteps.StartStopStep):  # type: ignore[misc]
        requires = (Tasks,)

        def start(self, consumer: Any) -> None:
            qos = consumer.task_consumer.channel.qos
            can_consume = qos.can_consume
            qos.can_consume = lambda: wanted() and can_consume()

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


def _parsed(mailbox_ids: object) -> list[UUID]:
    """The ids of a round; whatever else somebody put into the broker is left out."""
    parsed = []
    for text in mailbox_ids if isinstance(mailbox_ids, list) else []:
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
