"""What befalls Redis, PostgreSQL, whole processes and clocks, while mail is under way on all six routes.

Each is a function that makes its trouble for about `seconds` and mends it. None of them may leave one `unknown`, on any
route: nobody dies in a handover here.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from uuid import uuid4

import psycopg
import redis

from acceptance.faults.matrix import ROUTES
from acceptance.faults.town import Town
from acceptance.faults.wave import Tally, Wave
from outtray.wakes import redis_url
from outtray_sandbox.services import Services
from outtray_schema import wakes
from outtray_worker.celery import celery_app
from outtray_worker.rounds import EXPRESS, ORDINARY, Rounds
from polling import eventually

RESTARTS = 10


@dataclass
class Stage:
    """What a trouble is made with."""

    town: Town
    services: Services
    chance: random.Random
    seconds: float

    @property
    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(redis_url(self.town.settings), socket_timeout=5)

    def rest(self, part: float = 1.0) -> None:
        time.sleep(self.seconds * part)


Trouble = Callable[[Stage], None]


# ── Redis ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def redis_killed(stage: Stage) -> None:
    stage.services.valkey.kill()
    stage.rest()
    stage.services.valkey.start()


def redis_flushed(stage: Stage) -> None:
    with stage.redis as client:
        for _ in range(10):
            client.flushall()
            stage.rest(0.1)


def redis_hung(stage: Stage) -> None:
    stage.services.valkey.pause()
    stage.rest()
    stage.services.valkey.resume()


def redis_full(stage: Stage) -> None:
    """Every write is refused: OOM, and nothing is evicted."""
    with stage.redis as client:
        client.config_set("maxmemory", 1)
        stage.rest()
        client.config_set("maxmemory", 0)


def redis_read_only(stage: Stage) -> None:
    """A primary that was made a replica of somebody whom it cannot reach: READONLY."""
    with stage.redis as client:
        client.replicaof("127.0.0.1", 1)
        stage.rest()
        client.replicaof("NO", "ONE")


def redis_failed_over(stage: Stage) -> None:
    """The new primary lacks the end of what the old one had: here all of it."""
    stage.services.valkey.kill()
    for file in sorted(stage.services.valkey.folder.glob("appendonlydir/*")):
        file.unlink()
    stage.services.valkey.start()
    stage.rest()


def redis_resets(stage: Stage) -> None:
    with stage.redis as client:
        for _ in range(6):
            client.client_kill_filter(_type="normal", skipme=True)
            stage.rest(1 / 6)


# ── PostgreSQL ──────────────────────────────────────────────────────────────────────────────────────────────────────


def postgres_restarts(stage: Stage) -> None:
    for mode in ("immediate", "fast", "immediate"):
        stage.services.postgres.stop(mode)  # type: ignore[arg-type]
        stage.services.postgres.start()
        stage.rest(0.3)


def postgres_hung(stage: Stage) -> None:
    """Connections stay open and nobody answers."""
    server = stage.services.postgres.process
    assert server is not None
    processes = [server, *server.children(recursive=True)]
    for process in processes:
        with suppress(Exception):
            process.suspend()
    stage.rest(0.5)
    for process in processes:
        with suppress(Exception):
            process.resume()


def postgres_without_connections(stage: Stage) -> None:
    """Every connection is taken, and those of the fleet are ended: it cannot come back while that lasts."""
    end = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'outtray-%%' AND pid <> %s"
    )
    with ExitStack() as stack:
        first = stack.enter_context(_connected(stage))
        with suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(_connected(stage))
        first.execute(end, [first.info.backend_pid])
        with suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(_connected(stage))
        stage.rest(0.5)


def postgres_lock_held(stage: Stage) -> None:
    with _connected(stage) as connection, connection.transaction():
        connection.execute("LOCK TABLE outtray.mailbox IN ACCESS EXCLUSIVE MODE")
        stage.rest(0.5)


def postgres_long_snapshot(stage: Stage) -> None:
    with _connected(stage) as connection, connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM outtray.message")
        stage.rest()


def _connected(stage: Stage) -> psycopg.Connection:
    return psycopg.connect(str(stage.town.settings.database_url), autocommit=True)


# ── processes, clocks, hints ────────────────────────────────────────────────────────────────────────────────────────


def rolling_restarts(stage: Stage) -> None:
    """Worker by worker, and dispatcher by dispatcher: what is under way is finished, and the process ends with 0."""
    town = stage.town
    for n in range(RESTARTS):
        role = "dispatcher" if n % 3 == 2 else "worker"
        member = town.of_role(role)[0]
        successor = town.bear(role)
        member.wanted = False
        os.kill(member.pid, signal.SIGTERM)
        assert member.ended.wait(60), "it ends"
        assert successor.pid in town.members


def wall_clocks(stage: Stage) -> None:
    """Workers that believe it is an hour earlier, or later, among the others. The last right ones go."""
    town = stage.town
    right = town.of_role("worker")
    strange = [town.bear("worker-elsewhen", hours, wanted=False) for hours in ("1", "-1")]
    town.wait_alive()
    for member in right:
        town.referee.stop(member.pid, stage.seconds)
    stage.rest()
    eventually(lambda: all(not member.ended.is_set() for member in right), 5)
    for member in strange:
        os.kill(member.pid, signal.SIGTERM)
        assert member.ended.wait(60), "it ends"


def hints(stage: Stage) -> None:
    """Rounds and wakes twice, too late, for nobody and for nothing."""
    boxes = [box.id for box in stage.town.boxes]
    rounds = Rounds(celery_app(stage.town.settings, "dispatcher"))
    with stage.redis as client:
        for n in range(20):
            some = stage.chance.sample(boxes, min(8, len(boxes)))
            rounds.publish(some + some, ORDINARY if n % 2 else EXPRESS)
            rounds.publish([uuid4()] * 3)
            rounds.publish([])
            rounds.publish_looks([uuid4(), *some])
            now = time.time()
            client.zadd(
                wakes.KEY, {str(each): now - 3600 for each in some} | {str(uuid4()): now, "no id": now, "": now}
            )
            stage.rest(1 / 20)
    rounds.close()


TROUBLES: Mapping[str, Trouble] = {
    "redis killed": redis_killed,
    "redis flushed": redis_flushed,
    "redis hung": redis_hung,
    "redis full": redis_full,
    "redis read-only": redis_read_only,
    "redis failed over": redis_failed_over,
    "redis resets": redis_resets,
    "postgres restarts": postgres_restarts,
    "postgres hung": postgres_hung,
    "postgres without connections": postgres_without_connections,
    "postgres lock held": postgres_lock_held,
    "postgres long snapshot": postgres_long_snapshot,
    "rolling restarts": rolling_restarts,
    "wall clocks": wall_clocks,
    "hints": hints,
}


@contextmanager
def mended(stage: Stage):
    """Whatever happens, both servers run afterwards."""
    try:
        yield
    finally:
        stage.services.valkey.start()
        stage.services.postgres.start()


def trouble(
    town: Town, services: Services, name: str, chance: random.Random, seconds: float, messages: int = 60
) -> Tally:
    """Mail on all routes while it lasts, and what became of it. Tallied apart: nobody may be `unknown`."""
    tally = Tally()
    wave = Wave(town, (), chance, tally, beside=messages, lasting=seconds, limits=False)
    wave.enqueue()
    stage = Stage(town, services, chance, seconds)
    with mended(stage):
        TROUBLES[name](stage)
    wave.wait()
    wave.judge()
    return tally


assert len(ROUTES) == 6
