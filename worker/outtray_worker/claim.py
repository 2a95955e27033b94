"""Claim: a round's free mailboxes become turns, each under a fence of its own (protocol, rule 3).

Two claims of one mailbox can never both succeed: the conditions stand on the locked and updated row itself. What
the turn may send is read by a *later* statement, hence a later snapshot: every gate of an earlier fence is in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import dict_row

from outtray_worker.deadline import boottime

# Locks the round's mailboxes in the order of their ids. A parked mailbox needs no condition of its own: `next_at` is
# never earlier than `parked_until`. A turn whose lease ran out counts as dead, whoever notices it first.
CLAIM = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now, EXISTS (SELECT FROM outtray.switch) AS switches), free AS (
    SELECT m.id FROM outtray.mailbox m, t
    WHERE m.id = ANY(%(ids)b::uuid[]) AND m.status = 'active' AND m.next_at <= t.now
      AND (m.turn_until IS NULL OR m.turn_until <= t.now)
      AND NOT (t.switches AND outtray.switched_off(m.app_id, m.provider))
    ORDER BY m.id FOR NO KEY UPDATE OF m)
UPDATE outtray.mailbox m
SET turn_fence = m.turn_fence + 1, turn_until = t.now + %(lease)s, turn_worker = %(worker)s,
    dead_turns = m.dead_turns + (m.turn_until IS NOT NULL)::int, next_at = NULL, round_at = NULL
FROM free, t
WHERE m.id = free.id AND m.status = 'active' AND m.next_at <= t.now
  AND (m.turn_until IS NULL OR m.turn_until <= t.now)
RETURNING m.id, m.app_id, m.provider, m.provider_app, m.host, m.server, m.address, m.credentials, m.credentials_version,
    m.scopes, m.plan, m.limits, m.learned, m.times, m.logins, m.turn_fence AS fence, m.dead_turns, m.parks, t.now,
    EXISTS (SELECT FROM outtray.mailbox_budget b WHERE b.mailbox_id = m.id) AS has_budgets
"""

# Reads what each claimed mailbox has due, by priority and then by due time; locks nothing.
DUE = """
SELECT m.mailbox_id, m.id, m.version, m.priority, m.due_at, m.attempt, m.prepares, m.handover, m.failing_since,
    m.give_up_after, m.recipients, m.external, m.size, m.rfc_message_id, m.draft, m.only_draft, t.now,
    m.times
FROM (SELECT outtray.outtray_now() AS now) t, unnest(%(ids)b::uuid[]) AS box (id),
    (VALUES (0::smallint), (1::smallint), (2::smallint)) AS p (priority), LATERAL (
    SELECT * FROM outtray.message m
    WHERE m.mailbox_id = box.id AND m.priority = p.priority AND m.state = 'queued' AND m.due_at <= t.now
      AND (m.expires_at IS NULL OR m.expires_at > t.now) AND (m.tags = '{}' OR NOT outtray.tag_paused(m.app_id, m.tags))
    ORDER BY m.due_at, m.id LIMIT %(limit)s) AS m
"""

# Gives picked mailboxes back unclaimed: their host holds its share of this engine, or the engine stops.
GIVE_BACK = """
WITH box AS (
    SELECT id FROM outtray.mailbox WHERE id = ANY(%(ids)s) AND turn_until IS NULL AND next_at IS NOT NULL
    ORDER BY id FOR NO KEY UPDATE)
UPDATE outtray.mailbox m
SET round_at = NULL, next_at = greatest(m.next_at, t.now + %(pause)s),
    parked_until = greatest(m.parked_until, t.now + %(pause)s),
    parked_reason = CASE WHEN m.parked_until > t.now + %(pause)s THEN m.parked_reason ELSE %(reason)s END
FROM box, (SELECT outtray.outtray_now() AS now) AS t WHERE m.id = box.id
"""

HOSTS = "SELECT id, host FROM outtray.mailbox WHERE id = ANY(%(ids)s)"


@dataclass(slots=True)
class ClaimedMailbox:
    """A mailbox under this process's fence, as the claim returned it. Sealed fields are still encrypted.

    Only `credentials_version` changes: it follows the tokens that the turn is given, so that a hold is written against
    the credentials that were refused.
    """

    id: UUID
    app_id: UUID
    provider: str
    provider_app: str | None
    host: str
    server: Mapping[str, Any]
    address: bytes = field(repr=False)
    credentials: bytes | None = field(repr=False)
    credentials_version: int
    scopes: Sequence[str]
    plan: str
    limits: Mapping[str, Any]
    learned: Mapping[str, Any]
    fence: int
    dead_turns: int
    parks: int
    now: datetime
    """The database's clock at the claim."""
    has_budgets: bool
    times: Mapping[str, Any] | None = None
    logins: Mapping[str, Any] | None = None
    asked_at: float = 0.0
    """`boottime()` when the claim was sent: the database's clock read `now` at that moment or later."""

    @property
    def logins_are_clean(self) -> bool:
        """No login failed of late, and no turn died in one: the first needs no count before it is tried."""
        return not self.logins and not self.dead_turns


@dataclass(frozen=True, slots=True)
class DueMessage:
    """A queued message as the turn read it. `version` and `handover` are what the gate must still find."""

    mailbox_id: UUID
    id: UUID
    version: int
    priority: int
    due_at: datetime
    attempt: int
    prepares: int
    handover: int
    failing_since: datetime | None
    give_up_after: timedelta | None
    recipients: int
    external: int
    size: int
    rfc_message_id: str
    draft: Mapping[str, Any] | None
    only_draft: bool
    now: datetime
    times: Mapping[str, Any] | None = None


async def claim(
    connection: AsyncConnection[Any], ids: Sequence[UUID], lease: timedelta, worker: str
) -> list[ClaimedMailbox]:
    """Claim the free and due ones of `ids`. If the answer is lost, the claim is left to its lease, never guessed."""
    asked_at = boottime()
    async with connection.cursor(row_factory=dict_row, binary=True) as cursor:
        await cursor.execute(CLAIM, {"ids": list(ids), "lease": lease, "worker": worker}, prepare=True)
        return [ClaimedMailbox(**row, asked_at=asked_at) for row in await cursor.fetchall()]


async def ask_due(connection: AsyncConnection[Any], ids: Sequence[UUID], limit: int) -> AsyncCursor[Any]:
    """Ask for what each mailbox has due, in a pipeline if there is one; `due_of` reads the answer."""
    # Rows by position and in binary: a round reads up to 3,200 of them, and by name they cost twice as much.
    return await connection.execute(DUE, {"ids": list(ids), "limit": limit}, prepare=True, binary=True)


async def due_of(cursor: AsyncCursor[Any], limit: int) -> dict[UUID, list[DueMessage]]:
    """Each mailbox's due messages in the order of sending: priority, due time, id; at most `limit` each."""
    due: dict[UUID, list[DueMessage]] = defaultdict(list)
    for row in await cursor.fetchall():
        due[row[0]].append(DueMessage(*row))
    for messages in due.values():
        messages.sort(key=lambda message: (message.priority, message.due_at, message.id))
        del messages[limit:]
    return due


async def give_back(connection: AsyncConnection[Any], ids: Sequence[UUID], pause: timedelta, reason: str) -> None:
    """Return mailboxes that were picked for us but that we do not claim; they may be picked again after `pause`."""
    await connection.execute(GIVE_BACK, {"ids": list(ids), "pause": pause, "reason": reason})


async def read_hosts(connection: AsyncConnection[Any], ids: Sequence[UUID]) -> dict[UUID, str]:
    """Which provider host each mailbox talks to."""
    cursor = await connection.execute(HOSTS, {"ids": list(ids)})
    return dict(await cursor.fetchall())
