"""What `explain` reads: one message or mailbox with all that could hold it, as it stands at this moment.

Every statement here only reads, and locks nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from uuid import UUID

from outtray.evidence import COLUMNS
from outtray.plan import Plan, Row, rows
from outtray_schema import ledger
from outtray_schema.plans import Limits

_SWITCHES = """
    ARRAY(
        SELECT jsonb_build_object('kind', s.kind, 'target', s.target, 'since', s.since, 'actor', s.actor, 'why', s.why)
        FROM outtray.switch s
        WHERE (s.kind, s.target) IN (('all', ''), ('app', b.app_id::text), ('provider', b.provider))
           OR s.kind = 'tag' AND s.target IN (SELECT b.app_id::text || ':' || tag FROM unnest({tags}) AS tag)
        ORDER BY array_position(ARRAY['all', 'app', 'provider', 'tag'], s.kind), s.target) AS switches"""

_MAILBOX = """t.now, b.id AS mailbox_id, b.provider, b.plan, b.limits, b.learned, b.times AS mailbox_times, b.status,
    b.status_reason, b.status_at, b.parked_until, b.parked_reason, b.next_at, b.round_at, b.turn_until, b.turn_worker,
    (SELECT max(p.beat_at) FROM outtray.process p WHERE p.role = 'worker') AS worker_at,
    (SELECT max(p.beat_at) FROM outtray.process p WHERE p.role = 'dispatcher') AS dispatcher_at"""

MESSAGE = f"""
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now)
SELECT {_MAILBOX}, {_SWITCHES.format(tags="m.tags")},
    m.id, m.state, m.due_at, m.priority, m.attempt, m.failing_since, m.expires_at, m.recipients, m.external,
    m.handed_at, m.handover_until, m.may_have_left, m.cancel_asked_at, m.reason, m.ended_at, m.times,
    m.follows, m.follow_after, m.follow_from,
    coalesce(m.on_unknown, b.on_unknown, a.on_unknown) AS on_unknown,
    outtray.suppressed(m.app_id, m.id) AS suppressed, m.draft_end, {COLUMNS}
FROM t, outtray.message m JOIN outtray.mailbox b ON b.id = m.mailbox_id JOIN outtray.app a ON a.id = m.app_id
WHERE m.id = %(id)s AND m.app_id = %(app)s
"""

MAILBOX = f"""
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now)
SELECT {_MAILBOX}, {_SWITCHES.format(tags="'{}'::text[]")},
    (SELECT count(*) FROM outtray.message m WHERE m.mailbox_id = b.id AND m.state = 'queued' AND m.due_at IS NOT NULL)
        AS queued,
    (SELECT count(*) FROM outtray.message m WHERE m.app_id = b.app_id AND m.mailbox_id = b.id AND m.state = 'unknown')
        AS unknown
FROM t, outtray.mailbox b WHERE b.id = %(id)s AND b.app_id = %(app)s
"""

# The message that a mailbox sends next: the first that is due, by priority and time, or else the earliest to come.
NEXT = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now)
SELECT m.id FROM t, outtray.message m
WHERE m.mailbox_id = %(mailbox)s AND m.state = 'queued' AND m.due_at IS NOT NULL
ORDER BY m.due_at > t.now OR outtray.tag_paused(m.app_id, m.tags), CASE WHEN m.due_at <= t.now THEN m.priority END,
    m.due_at, m.id LIMIT 1
"""

# What this mailbox sends before a message: what is due, not held by its tag, and ahead by priority, time and id.
AHEAD = """
WITH t AS MATERIALIZED (
    SELECT outtray.outtray_now() AS now, EXISTS (SELECT FROM outtray.switch s WHERE s.kind = 'tag') AS tags)
SELECT count(*) AS messages, coalesce(sum(o.recipients), 0)::bigint AS recipients,
    coalesce(sum(o.external), 0)::bigint AS external
FROM t, outtray.message o
WHERE o.mailbox_id = %(mailbox)s AND o.state = 'queued' AND o.due_at <= t.now
  AND (o.priority, o.due_at, o.id) < (%(priority)s::smallint, %(due)s::timestamptz, %(id)s::uuid)
  AND (o.expires_at IS NULL OR o.expires_at > t.now) AND NOT (t.tags AND outtray.tag_paused(o.app_id, o.tags))
"""


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a mailbox sends before a message."""

    messages: int = 0
    recipients: int = 0
    external: int = 0


def ahead_of(row: Row) -> Plan[Ahead]:
    """How much stands before a queued message in its mailbox."""
    found = yield from rows(AHEAD, mailbox=row["mailbox_id"], priority=row["priority"], due=row["due_at"], id=row["id"])
    return Ahead(**found[0])


def next_of(mailbox_id: UUID) -> Plan[UUID | None]:
    """The message that a mailbox sends next."""
    found = yield from rows(NEXT, mailbox=mailbox_id)
    return found[0]["id"] if found else None


def fits_at(row: Row, limits: Limits, ahead: Ahead) -> Plan[ledger.Frees]:
    """When the daily limits let a message pass, all that is ahead of it included."""
    most = limits.recipients_per_message
    if most is not None and row["recipients"] > most:
        return ledger.Frees(row["now"], None, "recipients_per_message", row["recipients"], most)
    if not limits.daily:
        return ledger.Frees(row["now"], row["now"])
    unique = limits.unique_external is not None
    externals = (yield from rows(ledger.EXTERNALS, id=row["id"])) if unique else []
    people = frozenset(each["address_index"] for each in externals)
    own = ledger.needs(Alone(row["id"], row["recipients"], row["external"]), people)
    need, days = ledger.queue_needs(own, asdict(ahead), limits)
    found = yield from rows(ledger.FREES, **ledger.frees_parameters(row["mailbox_id"], limits, need, people))
    return ledger.frees(found[0], limits, need, days)


@dataclass(frozen=True, slots=True)
class Alone:
    """A message as the ledger counts it."""

    id: UUID
    recipients: int
    external: int
