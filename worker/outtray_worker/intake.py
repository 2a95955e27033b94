"""The intake: apps that already have Celery put sealed messages into a queue of Redis; this process enqueues them.

    task outtray.enqueue(sealed)     queue enqueue.APP, one for each app, so that Redis' ACL says who may write where

It is no worker: here a task is acknowledged late, after its message is in PostgreSQL. A process that dies in between
leaves it to be delivered again (Celery's visibility timeout), which does no harm: a message without an idempotency key
gets one from its sealed bytes. What can never be accepted is remembered as a refusal and acknowledged; while PostgreSQL
is away, the task waits here.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import structlog
from celery import Celery
from celery.exceptions import Reject
from celery.signals import worker_shutting_down
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from kombu.entity import Queue

from outtray_schema.errors import CannotOpen, NotFound, Problem, Unavailable
from outtray_schema.sealing import unseal
from outtray_schema.settings import Settings
from outtray_worker.celery import celery_app
from outtray_worker.logs import configure_logs

log = structlog.get_logger()

TASK = "outtray.enqueue"
THREADS = 4
AGAIN = 1.0
"""Seconds until PostgreSQL is asked once more."""
VISIBILITY = 300
"""Seconds after which Redis offers what a dead process had taken to another (Celery's visibility timeout)."""


Answer = Literal["accepted", "known", "refused"]


def queue_of(app: str) -> str:
    return f"enqueue.{app}"


class Desk(Protocol):
    """Where an app's messages are accepted. Both raise `Unavailable` and `NotFound`."""

    def accept(self, fields: Mapping[str, Any]) -> Answer:
        """Enqueue one message, and remember it where it is refused."""
        ...

    def refuse(self, problem: Problem) -> None:
        """Remember that something came which is no message."""
        ...


class Intake:
    """Takes sealed messages of one app."""

    def __init__(self, desk: Desk, key: X25519PrivateKey, app: str) -> None:
        self._desk = desk
        self._key = key
        self._app = app
        self.stopping = threading.Event()

    def take(self, sealed: object) -> Answer:
        """What became of it. Raises `Unavailable` and `NotFound`."""
        try:
            fields = unseal(self._key, sealed, self._app)
        except CannotOpen as error:
            log.warning("a sealed message cannot be opened")
            self._desk.refuse(Problem("payload", str(error)))
            return "refused"
        fields.setdefault("idempotency_key", f"celery:{hashlib.sha256(str(sealed).encode()).hexdigest()}")
        answer = self._desk.accept(fields)
        if answer == "refused":
            log.warning("a sealed message was refused")
        return answer

    def take_patiently(self, sealed: object) -> Answer:
        """`take`, waiting while PostgreSQL is away. Raises `Reject`, back into the queue, where this process ends."""
        while True:
            try:
                return self.take(sealed)
            except (Unavailable, NotFound) as error:
                log.warning("the intake waits", error=type(error).__name__)
                if self.stopping.wait(AGAIN):
                    raise Reject(error, requeue=True) from error


def intake_app(settings: Settings, intake: Intake, app: str) -> Celery:
    """The Celery app of the intake: its own queue, late acknowledgement, no results."""
    celery = celery_app(settings, "intake")
    transport = {**celery.conf.broker_transport_options, "ack_emulation": True, "visibility_timeout": VISIBILITY}
    transport.pop("priority_steps")
    celery.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_queues=[Queue(queue_of(app), routing_key=queue_of(app))],  # type: ignore[no-untyped-call]
        task_default_queue=queue_of(app),
        broker_transport_options=transport,
    )

    @celery.task(name=TASK)  # type: ignore[untyped-decorator]
    def enqueue(sealed: object = None, *_: Any, **__: Any) -> None:
        intake.take_patiently(sealed)

    def stopping(**_: Any) -> None:
        intake.stopping.set()

    worker_shutting_down.connect(stopping, weak=False)
    return celery


def run_intake(settings: Settings, intake: Intake, app: str) -> None:
    """Run the intake of one app until SIGTERM."""
    configure_logs(settings)
    intake_app(settings, intake, app).worker_main(
        ["--quiet", "worker", "--pool=threads", f"--concurrency={THREADS}", "--without-gossip", "--without-mingle",
         f"--hostname=outtray-intake-{app}-{os.getpid()}@{socket.gethostname()}", "--loglevel=WARNING"]
    )  # fmt: skip
