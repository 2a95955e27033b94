"""What the queue looks like at this moment, as facts: for `outtray status`. Reads only; decides nothing.

Everything pending is counted through partial indexes. What has ended is counted only as far as two seconds allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import redis
from psycopg import Connection
from psycopg.rows import DictRow
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from outtray.door import open_address
from outtray.wakes import redis_url
from outtray_schema.settings import Settings
from outtray_schema.vault import Vault

ROUNDS = ("outtray:q:rounds", "outtray:q:rounds\x06\x161")
"""The Redis lists in which Celery keeps rounds that wait, one for each priority: those that overtake, and the others.
Key prefix and queue are of the worker's Celery settings, the separator is kombu's (kombu/transport/redis.py, 5.7.0)."""

SILENT_AFTER = timedelta(seconds=30)
"""A process that did not beat for this long counts as gone."""

ATTENTION = 20
"""Mailboxes that wait for something are listed up to this many."""

NOW = "SELECT outtray.outtray_now() AS now"

# Counts what is pending, through partial indexes; locks nothing. `ready` is due in a mailbox that may send now.
PENDING = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
open_box AS MATERIALIZED (
    SELECT b.id FROM outtray.mailbox b, t
    WHERE b.status = 'active' AND (b.parked_until IS NULL OR b.parked_until <= t.now)
      AND NOT outtray.switched_off(b.app_id, b.provider)),
queued AS MATERIALIZED (
    SELECT m.mailbox_id, count(*) AS n, count(*) FILTER (WHERE m.due_at <= t.now) AS due, min(m.due_at) AS first
    FROM outtray.message m, t
    WHERE m.state = 'queued' AND m.due_at IS NOT NULL AND (%(app)s::uuid IS NULL OR m.app_id = %(app)s)
    GROUP BY m.mailbox_id)
SELECT coalesce(sum(q.n), 0)::bigint AS queued, coalesce(sum(q.due), 0)::bigint AS due,
    coalesce(sum(q.due) FILTER (WHERE o.id IS NOT NULL), 0)::bigint AS ready,
    min(q.first) FILTER (WHERE o.id IS NOT NULL AND q.due > 0) AS oldest_ready,
    min(q.first) FILTER (WHERE q.due = 0) AS next_due
FROM queued q LEFT JOIN open_box o ON o.id = q.mailbox_id
"""

# Counts what is with a provider and what needs an eye, each through an index; locks nothing.
OPEN = """
SELECT (SELECT count(*) FROM outtray.message m
        WHERE m.state = 'handing_over' AND (%(app)s::uuid IS NULL OR m.app_id = %(app)s)) AS handing_over,
    (SELECT count(*) FROM outtray.message m
        WHERE m.state = 'unknown' AND (%(app)s::uuid IS NULL OR m.app_id = %(app)s)) AS unknown,
    (SELECT count(*) FROM outtray.message m
        WHERE m.state = 'failed' AND (%(app)s::uuid IS NULL OR m.app_id = %(app)s)) AS failed
"""

# Counts all that has ended and is still kept; reads the whole table, so its caller bounds its time.
ENDED = """
SELECT m.state, count(*) AS n FROM outtray.message m
WHERE m.state IN ('sent', 'drafted', 'cancelled', 'expired')
    AND (%(app)s::uuid IS NULL OR m.app_id = %(app)s) GROUP BY m.state
"""

# Reads the mailboxes that do not send at this moment, those that wait for a person first; locks nothing.
HELD = """
SELECT b.id, b.address, b.status, b.status_reason, b.status_at, b.parked_until, b.parked_reason
FROM outtray.mailbox b, LATERAL (SELECT outtray.outtray_now() AS now) AS t
WHERE (%(app)s::uuid IS NULL OR b.app_id = %(app)s) AND b.status_reason IS DISTINCT FROM 'removed'
  AND (b.status <> 'active' OR b.parked_until > t.now)
ORDER BY array_position(ARRAY['reconnect', 'disabled', 'paused', 'active'], b.status), b.parked_until LIMIT %(limit)s
"""

# Counts mailboxes by what they are doing; locks nothing.
BOXES = """
SELECT CASE WHEN b.status = 'active' AND b.parked_until > t.now THEN 'parked' ELSE b.status END AS state, count(*) AS n
FROM outtray.mailbox b, LATERAL (SELECT outtray.outtray_now() AS now) AS t
WHERE (%(app)s::uuid IS NULL OR b.app_id = %(app)s) AND b.status_reason IS DISTINCT FROM 'removed' GROUP BY 1
"""

# Reads what is paused, with the names of apps; locks nothing.
SWITCHES = """
SELECT s.kind, s.since, s.actor, s.why,
    CASE s.kind WHEN 'app' THEN a.name
        WHEN 'tag' THEN coalesce(a.name || ':', '') || split_part(s.target, ':', 2) ELSE s.target END AS target
FROM outtray.switch s
LEFT JOIN outtray.app a ON s.kind IN ('app', 'tag') AND a.id::text = split_part(s.target, ':', 1) ORDER BY s.since
"""

# Reads the provider hosts that fail for most mailboxes, and when each is probed next; locks nothing.
BREAKERS = """
SELECT nullif(b.provider_app, '') AS provider_app, b.host, b.reason, b.opened_at, b.probes, b.probe_at
FROM outtray.breaker b WHERE b.closed_at IS NULL ORDER BY b.opened_at
"""

# Reads the processes that said they are alive, and how long ago; locks nothing.
PROCESSES = """
SELECT p.id, p.role, p.started_at, p.beat_at, p.info, outtray.outtray_now() - p.beat_at AS silent FROM outtray.process p
WHERE p.beat_at > outtray.outtray_now() - interval '1 day' ORDER BY p.role DESC, p.id
"""


@dataclass(frozen=True, slots=True)
class Pending:
    """Messages that are not ended. `ready` are due in a mailbox that may send now; the other due ones are held."""

    queued: int
    due: int
    ready: int
    oldest_ready: datetime | None
    next_due: datetime | None
    handing_over: int
    unknown: int
    failed: int


@dataclass(frozen=True, slots=True)
class HeldMailbox:
    """A mailbox that does not send now: `state` is parked, reconnect, paused or disabled."""

    id: UUID
    address: str = field(repr=False)
    state: str
    reason: str
    since: datetime | None
    until: datetime | None


@dataclass(frozen=True, slots=True)
class BreakerFacts:
    """A provider host that is only probed, since it failed for most mailboxes of a provider app (None: of no app)."""

    provider_app: str | None
    host: str
    reason: str
    opened_at: datetime
    probes: int
    probe_at: datetime

    @property
    def whose(self) -> str:
        """The host, with the provider app where there is one."""
        return f"{self.host} ({self.provider_app})" if self.provider_app else self.host


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """A worker or dispatcher. `alive`: it has spoken within the last 30 s."""

    id: str
    role: str
    alive: bool
    silent: timedelta
    info: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """Whether Redis answers, and the rounds that wait there for a worker."""

    reachable: bool
    rounds: int | None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """The whole page. `ended` is None where there were too many to count in time."""

    now: datetime
    pending: Pending
    ended: Mapping[str, int] | None
    mailboxes: Mapping[str, int]
    held: list[HeldMailbox]
    switches: list[dict[str, Any]]
    breakers: list[BreakerFacts]
    processes: list[ProcessFacts]
    redis: RedisFacts

    def alive(self, role: str) -> int:
        """How many processes of a role are alive."""
        return sum(process.alive for process in self.processes if process.role == role)


def read_facts(settings: Settings, connection: Connection[DictRow], vault: Vault, app_id: UUID | None) -> QueueFacts:
    """All facts, of one app or of all. `connection` in autocommit. Raises psycopg's errors; Redis's are a fact."""
    scope = {"app": app_id}
    return QueueFacts(
        now=_one(connection, NOW, {})["now"],
        pending=Pending(**_one(connection, PENDING, scope), **_one(connection, OPEN, scope)),
        ended=_ended(connection, scope),
        mailboxes={row["state"]: row["n"] for row in connection.execute(BOXES, scope)},
        held=[_held(vault, row) for row in connection.execute(HELD, {**scope, "limit": ATTENTION})],
        switches=list(connection.execute(SWITCHES)),
        breakers=read_breakers(connection),
        processes=read_processes(connection),
        redis=read_redis(settings),
    )


def read_breakers(connection: Connection[DictRow]) -> list[BreakerFacts]:
    """Every open breaker."""
    return [BreakerFacts(**row) for row in connection.execute(BREAKERS)]


def read_processes(connection: Connection[DictRow]) -> list[ProcessFacts]:
    """Every process that beat within the last day."""
    return [
        ProcessFacts(row["id"], row["role"], row["silent"] < SILENT_AFTER, row["silent"], row["info"])
        for row in connection.execute(PROCESSES)
    ]


def read_redis(settings: Settings) -> RedisFacts:
    """Whether Redis answers within `redis_timeout`. Never raises for Redis's sake."""
    client = redis_client(settings)
    try:
        return RedisFacts(True, sum(int(client.llen(key)) for key in ROUNDS))
    except (RedisError, OSError) as error:
        return RedisFacts(False, None, type(error).__name__)
    finally:
        client.close()


def redis_client(settings: Settings) -> redis.Redis:
    """A client that asks once and waits for no longer than `redis_timeout`."""
    seconds = settings.redis_timeout.total_seconds()
    return redis.Redis.from_url(
        redis_url(settings), socket_timeout=seconds, socket_connect_timeout=seconds, retry=Retry(NoBackoff(), 0)
    )


def _one(connection: Connection[DictRow], sql: str, parameters: Mapping[str, Any]) -> DictRow:
    row = connection.execute(sql, parameters).fetchone()
    if row is None:
        raise psycopg.DataError("an aggregate returned no row")
    return row


def _ended(connection: Connection[DictRow], scope: Mapping[str, Any]) -> Mapping[str, int] | None:
    try:
        with connection.transaction():
            connection.execute("SET LOCAL statement_timeout = '2s'")
            return {row["state"]: row["n"] for row in connection.execute(ENDED, scope)}
    except psycopg.errors.QueryCanceled:
        return None


def _held(vault: Vault, row: DictRow) -> HeldMailbox:
    parked = row["status"] == "active"
    return HeldMailbox(
        id=row["id"],
        address=open_address(vault, row["id"], row["address"])["address"],
        state="parked" if parked else row["status"],
        reason=(row["parked_reason"] if parked else row["status_reason"]) or "",
        since=None if parked else row["status_at"],
        until=row["parked_until"] if parked else None,
    )
