"""Forecast: when will this mailbox's backlog be done, if nothing more comes in and nothing fails?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

from outtray import mailboxes
from outtray.door import Door, MailboxName
from outtray.explain import explain_mailbox
from outtray.forecast_run import Course, Rules, Used, Waiting, run_through
from outtray.plan import Plan, Row, rows
from outtray_schema.times import Times, read_times

MOST = 100_000
"""Messages that a forecast looks at; what is behind them is said to be left out."""

# A mailbox's queue in the order of its sending, without what a switch of its tag holds; locks nothing.
QUEUE = """
SELECT m.id, m.priority, m.due_at, m.expires_at, m.recipients, m.external, m.handover, m.times, m.only_draft
FROM outtray.message m
WHERE m.mailbox_id = %(mailbox)s AND m.state = 'queued' AND m.due_at IS NOT NULL
  AND (m.tags = '{}' OR NOT outtray.tag_paused(m.app_id, m.tags))
ORDER BY m.due_at, m.id LIMIT %(limit)s
"""

# The followers that wait for another message, and what a paused tag holds; locks nothing.
LEFT_OUT = """
SELECT count(*) FILTER (WHERE m.due_at IS NULL) AS followers, count(*) FILTER (WHERE m.due_at IS NOT NULL) AS held,
    outtray.outtray_now() AS now
FROM outtray.message m
WHERE m.mailbox_id = %(mailbox)s AND m.state = 'queued'
  AND (m.due_at IS NULL OR m.tags <> '{}' AND outtray.tag_paused(m.app_id, m.tags))
"""

# What counts in a mailbox's ledger, and when it began; locks nothing. With the people only where they are asked for.
COUNTED = """
SELECT m.counted_at, 1 AS messages, m.recipients, m.external, m.id, m.handover, m.handed_at,
    CASE WHEN %(people)s THEN ARRAY(
        SELECT DISTINCT r.address_index FROM outtray.recipient r WHERE r.message_id = m.id AND r.external)
    ELSE '{}' END AS externals
FROM outtray.message m
WHERE m.mailbox_id = %(mailbox)s AND m.counted_at > outtray.outtray_now() - interval '24 hours'
UNION ALL
SELECT u.counted_at, u.messages, u.recipients, u.external, coalesce(u.message_id, %(mailbox)s), coalesce(u.handover, 0),
    u.counted_at, u.externals
FROM outtray.usage u
WHERE u.mailbox_id = %(mailbox)s AND u.counted_at > outtray.outtray_now() - interval '24 hours'
"""

# The external recipients of a mailbox's queue, as blind indexes; locks nothing.
PEOPLE = """
SELECT r.message_id, r.address_index FROM outtray.recipient r JOIN outtray.message m ON m.id = r.message_id
WHERE m.mailbox_id = %(mailbox)s AND m.state = 'queued' AND m.due_at IS NOT NULL AND r.external
"""

ASSUMED = (
    "nothing more comes in, and nobody changes limits, windows or times",
    "the provider takes each message at once and refuses none, and workers are running and have room",
    "what is with the provider now or unknown goes on counting until its time",
    "what others send through shared budgets and provider apps leaves room for it",
)


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a mailbox's backlog is done. `done_at`: its last message leaves; `None` where none leaves.

    `waiting` messages were looked at: `leave` of them do, `expire` before they can, `never` fit its limits or windows.
    `left_out` were not: followers, those of a paused tag, and what is beyond the first 100,000. `held` is why nothing
    leaves at present: then all is reckoned as if that ended now. `days`: how many leave on each day, in UTC.
    """

    mailbox_id: UUID
    now: datetime
    waiting: int
    leave: int
    first_at: datetime | None
    done_at: datetime | None
    expire: int = 0
    never: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    held: str | None = None
    days: tuple[tuple[date, int], ...] = ()
    assumed: tuple[str, ...] = ASSUMED


def forecast(door: Door, mailbox: MailboxName = None) -> Plan[Forecast]:
    """When this mailbox's (default: the app's) backlog is done. Raises `NotFound`."""
    box = yield from mailboxes.get(door, mailbox)
    held = yield from explain_mailbox(door, box.id)
    left_out = (yield from rows(LEFT_OUT, mailbox=box.id))[0]
    queue = yield from rows(QUEUE, mailbox=box.id, limit=MOST + 1)
    unique = box.limits.unique_external is not None
    people = (yield from _people(box.id)) if unique else {}
    counted = yield from rows(COUNTED, mailbox=box.id, people=unique)
    now: datetime = left_out["now"]
    waiting = [_waiting(row, people) for row in queue[:MOST]]
    course = run_through(now, _rules(box, counted, now), map(_used, counted), waiting)
    behind = {"followers": left_out["followers"], "paused tags": left_out["held"], "beyond": len(queue) - len(waiting)}
    return Forecast(
        box.id,
        now,
        len(waiting),
        held=held.reason if held.code.startswith(("paused_", "mailbox_", "limits_", "times_", "no_")) else None,
        left_out={name: count for name, count in behind.items() if count},
        **_summary(course),
    )


def _people(mailbox_id: UUID) -> Plan[dict[UUID, frozenset[bytes]]]:
    found: defaultdict[UUID, set[bytes]] = defaultdict(set)
    for row in (yield from rows(PEOPLE, mailbox=mailbox_id)):
        found[row["message_id"]].add(bytes(row["address_index"]))
    return {message_id: frozenset(people) for message_id, people in found.items()}


def _waiting(row: Row, people: Mapping[UUID, frozenset[bytes]]) -> Waiting:
    stored = {name: row[name] for name in _AS_STORED}
    return Waiting(**stored, window=_times(row["times"]).window, externals=people.get(row["id"], frozenset()))


_AS_STORED = ("id", "priority", "due_at", "expires_at", "recipients", "external", "handover", "only_draft")


def _times(stored: Any) -> Times:
    try:
        return read_times(stored)
    except ValueError:  # then the mailbox is held, and says so
        return Times()


def _used(row: Row) -> Used:
    people = frozenset(map(bytes, row["externals"]))
    return Used(row["counted_at"], row["messages"], row["recipients"], row["external"], people)


def _rules(box: mailboxes.Mailbox, counted: list[Row], now: datetime) -> Rules:
    times = _times(box.times)
    gap = times.gap
    frees = [row["handed_at"] + gap.after(row["id"], row["handover"]) for row in counted] if gap else []
    return Rules(
        box.limits,
        times,
        max(now, box.parked_until or now),
        max(frees, default=None),
        sum(row["messages"] for row in counted if row["handed_at"] > now - timedelta(minutes=1)),
    )


def _summary(course: Course) -> dict[str, Any]:
    times = [at for _, at in course.leaves]
    days = Counter(at.astimezone(UTC).date() for at in times)
    return {
        "leave": len(times),
        "first_at": min(times, default=None),
        "done_at": max(times, default=None),
        "expire": len(course.expire),
        "never": len(course.never),
        "days": tuple(sorted(days.items())),
    }
