"""The ledger: what a mailbox used in the last 24 hours, read from its messages' handovers and from `usage`.

A handover counts while `counted_at` + 24 h is later than `outtray_now()` (protocol, rule 14): from its recorded end, or
from `handover_until` while it has none. Where `counted_at` is NULL it was definitely refused, and does not count.

Here are the statements and the arithmetic, without a connection: the worker runs them awaiting, `explain` blocking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from outtray_schema.plans import DAILY, Limits

# What each mailbox used; locks nothing. Index-only on message_ledger, and bounded by the quota itself: only mailboxes
# with a daily limit are asked about, and those cannot have more handovers in the window than it allows. The recipients
# themselves are read where unique ones are limited, nowhere else.
USED = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() - interval '24 hours' AS since)
SELECT box.id, used.messages, used.recipients, used.external, seen.externals
FROM unnest(%(ids)s::uuid[], %(unique)s::bool[]) AS box (id, is_unique)
CROSS JOIN LATERAL (
    SELECT coalesce(sum(part.messages), 0)::bigint AS messages, coalesce(sum(part.recipients), 0)::bigint AS recipients,
        coalesce(sum(part.external), 0)::bigint AS external
    FROM (
        SELECT count(*) AS messages, sum(m.recipients) AS recipients, sum(m.external) AS external
        FROM outtray.message m WHERE m.mailbox_id = box.id AND m.counted_at > (SELECT since FROM t)
        UNION ALL
        SELECT sum(u.messages), sum(u.recipients), sum(u.external)
        FROM outtray.usage u WHERE u.mailbox_id = box.id AND u.counted_at > (SELECT since FROM t)) AS part) AS used
LEFT JOIN LATERAL (
    SELECT array_agg(address_index) AS externals FROM (
        SELECT r.address_index
        FROM outtray.message m JOIN outtray.recipient r ON r.message_id = m.id
        WHERE m.mailbox_id = box.id AND m.counted_at > (SELECT since FROM t) AND r.external
        UNION
        SELECT unnest(u.externals)
        FROM outtray.usage u WHERE u.mailbox_id = box.id AND u.counted_at > (SELECT since FROM t)) AS each_once
    ) AS seen ON box.is_unique
"""

# When what a message needs is free, per measure; locks nothing. A measure that stands at `room` or less once the
# oldest have left is free: the youngest moment from which on more than `room` was used, plus 24 hours.
# `room_*` is the allowed less the message's own need, NULL where that measure has no limit.
FREES = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
entry AS (
    SELECT m.counted_at, 1 AS messages, m.recipients, m.external
    FROM outtray.message m WHERE m.mailbox_id = %(id)s AND m.counted_at > (SELECT now FROM t) - interval '24 hours'
    UNION ALL
    SELECT u.counted_at, u.messages, u.recipients, u.external
    FROM outtray.usage u WHERE u.mailbox_id = %(id)s AND u.counted_at > (SELECT now FROM t) - interval '24 hours'),
since AS (
    SELECT counted_at, sum(messages) OVER younger AS messages, sum(recipients) OVER younger AS recipients,
        sum(external) OVER younger AS external
    FROM entry WINDOW younger AS (ORDER BY counted_at DESC)),
seen AS (
    SELECT address_index, max(counted_at) AS counted_at FROM (
        SELECT r.address_index, m.counted_at
        FROM outtray.message m JOIN outtray.recipient r ON r.message_id = m.id
        WHERE %(room_unique)s::bigint IS NOT NULL AND m.mailbox_id = %(id)s AND r.external
          AND m.counted_at > (SELECT now FROM t) - interval '24 hours'
        UNION ALL
        SELECT unnest(u.externals), u.counted_at
        FROM outtray.usage u
        WHERE %(room_unique)s::bigint IS NOT NULL AND u.mailbox_id = %(id)s
          AND u.counted_at > (SELECT now FROM t) - interval '24 hours') AS either
    GROUP BY address_index)
SELECT t.now,
    coalesce(max(s.messages), 0)::bigint AS used_messages,
    max(s.counted_at) FILTER (WHERE s.messages > %(room_messages)s::bigint) + interval '24 hours' AS messages,
    coalesce(max(s.recipients), 0)::bigint AS used_recipients,
    max(s.counted_at) FILTER (WHERE s.recipients > %(room_recipients)s::bigint) + interval '24 hours' AS recipients,
    coalesce(max(s.external), 0)::bigint AS used_external,
    max(s.counted_at) FILTER (WHERE s.external > %(room_external)s::bigint) + interval '24 hours' AS external,
    (SELECT count(*) FROM seen) AS used_unique_external,
    (SELECT counted_at + interval '24 hours' FROM seen WHERE address_index <> ALL (%(externals)s::bytea[])
     ORDER BY counted_at DESC OFFSET greatest(%(room_unique)s::bigint, 0) LIMIT 1) AS unique_external
FROM t LEFT JOIN since s ON true GROUP BY t.now
"""

# The distinct external recipients of one message, as blind indexes; locks nothing.
EXTERNALS = "SELECT DISTINCT address_index FROM outtray.recipient WHERE message_id = %(id)s AND external"


DAY = timedelta(hours=24)

NEARLY = 95
"""Percent of a daily limit from which on it counts as nearly used up (our choice, 2026-11)."""


class Counted(Protocol):
    """A message, as far as the ledger needs it."""

    @property
    def id(self) -> UUID: ...
    @property
    def recipients(self) -> int: ...
    @property
    def external(self) -> int: ...


NOBODY: frozenset[bytes] = frozenset()


class Allowance:
    """What one turn may still send: read once the mailbox is claimed, then counted down by the turn.

    That is exact, because only the holder of the fence gates. `externals` are blind indexes of distinct external
    recipients; only an allowance that `needs_externals` looks at them.
    """

    def __init__(self, limits: Limits, used: Mapping[str, int], externals: Iterable[bytes] = ()) -> None:
        self.limits = limits
        self._allowed = limits.daily
        self._used = {measure: used.get(measure, 0) for measure in DAILY}
        self._seen = frozenset(externals)
        self._taken: Counter[bytes] = Counter()
        self._externals: dict[UUID, frozenset[bytes]] = {}

    @property
    def needs_externals(self) -> bool:
        """Whether distinct external recipients are limited, so that `binding` has to be told a message's."""
        return "unique_external" in self._allowed

    @property
    def nearly_used(self) -> bool:
        """Whether some daily limit is nearly used up, what was taken last included."""
        return any(100 * self.used(measure) >= NEARLY * allowed for measure, allowed in self._allowed.items())

    def used(self, measure: str) -> int:
        """What counts now. `measure` is one of `DAILY`."""
        return len(self._known()) if measure == "unique_external" else self._used[measure]

    def binding(self, message: Counted, externals: frozenset[bytes] = NOBODY) -> str | None:
        """The first limit that this message would break now; None: it fits. Remembers `externals` for `take`."""
        most = self.limits.recipients_per_message
        if most is not None and message.recipients > most:
            return "recipients_per_message"
        if self.needs_externals:
            self._externals[message.id] = externals
        for measure, allowed in self._allowed.items():
            if self._would_use(measure, message, externals) > allowed:
                return measure
        return None

    def _would_use(self, measure: str, message: Counted, externals: frozenset[bytes]) -> int:
        if measure == "unique_external":
            return len(self._known() | externals)
        return self._used[measure] + needed(measure, message)

    def _known(self) -> frozenset[bytes]:
        return self._seen | (+self._taken).keys()

    def take(self, message: Counted) -> None:
        """The message passed the gate: it counts from now on."""
        self._count(message, 1)
        self._taken.update(self._externals.get(message.id, NOBODY))

    def give_back(self, message: Counted) -> None:
        """The message that was taken was definitely refused: it does not count."""
        self._count(message, -1)
        self._taken.subtract(self._externals.get(message.id, NOBODY))

    def _count(self, message: Counted, times: int) -> None:
        for measure in ("messages", "recipients", "external"):
            self._used[measure] += times * needed(measure, message)


def needed(measure: str, message: Counted) -> int:
    """How much of `messages`, `recipients` or `external` one message uses."""
    return 1 if measure == "messages" else int(getattr(message, measure))


@dataclass(frozen=True, slots=True)
class Frees:
    """When a message fits its mailbox's limits, which of them it waits for longest, and how that one stands.

    `at` is None where it never can: the message alone needs more than `allowed`. `limit` is None where it fits now.
    `now` is the database's clock as it was asked.
    """

    now: datetime
    at: datetime | None
    limit: str | None = None
    used: int = 0
    allowed: int = 0


def used_parameters(boxes: Sequence[tuple[UUID, Limits]]) -> dict[str, Any] | None:
    """Parameters of `USED` for those boxes that have a daily limit; None where none has, and nothing is to be read."""
    limited = [(box, limits) for box, limits in boxes if limits.daily]
    if not limited:
        return None
    return {"ids": [box for box, _ in limited], "unique": [limits.unique_external is not None for _, limits in limited]}


def allowances(boxes: Sequence[tuple[UUID, Limits]], rows: Iterable[Mapping[str, Any]]) -> dict[UUID, Allowance]:
    """What the rows of `USED` leave each mailbox."""
    used = {row["id"]: row for row in rows}
    return {box: _allowance(limits, used.get(box)) for box, limits in boxes}


def _allowance(limits: Limits, row: Mapping[str, Any] | None) -> Allowance:
    return Allowance(limits, row or {}, (row or {}).get("externals") or ())


def needs(message: Counted, externals: Collection[bytes] = NOBODY) -> dict[str, int]:
    """What one message uses of each daily measure."""
    return {
        "messages": 1,
        "recipients": message.recipients,
        "external": message.external,
        "unique_external": len(set(externals)),
    }


def frees_parameters(
    mailbox_id: UUID, limits: Limits, need: Mapping[str, int], externals: Collection[bytes] = NOBODY
) -> dict[str, Any]:
    """Parameters of `FREES` for what is `need`ed of each daily measure; of unique externals, for these."""
    room = {measure: allowed - need[measure] for measure, allowed in limits.daily.items()}
    return {
        "id": mailbox_id,
        "room_messages": room.get("messages"),
        "room_recipients": room.get("recipients"),
        "room_external": room.get("external"),
        "room_unique": room.get("unique_external"),
        "externals": list(externals),
    }


def queue_needs(
    own: Mapping[str, int], ahead: Mapping[str, int], limits: Limits
) -> tuple[dict[str, int], dict[str, int]]:
    """What a message needs together with all that is sent before it, and how many whole days that takes, per measure.

    A mailbox that is full sends what it sent 24 hours before. So where more is ahead than a day holds, each further
    day's worth of it adds 24 hours to the time at which the rest fits.
    """
    need, days = dict(own), {}
    for measure, allowed in limits.daily.items():
        together = own[measure] + ahead.get(measure, 0)
        days[measure] = (together - 1) // allowed if allowed and together else 0
        need[measure] = max(own[measure], min(allowed, together - days[measure] * allowed))
    return need, days


def _recovers(limits: Limits, measure: str, need: int) -> datetime | None:
    """When a learned limit has recovered to what one message needs alone; None: the plan itself has no room for it."""
    planned, lesson = limits.planned(measure), limits.lesson(measure)
    if lesson is None or (planned is not None and need > planned):
        return None
    return lesson.forgotten_at if planned is None else lesson.reaches(need)


def frees(
    row: Mapping[str, Any], limits: Limits, need: Mapping[str, int], days: Mapping[str, int] | None = None
) -> Frees:
    """What the one row of `FREES` says of the daily limits; `days` are added to each measure's time."""
    now: datetime = row["now"]
    for measure, allowed in limits.daily.items():
        if need[measure] > allowed:
            return Frees(now, _recovers(limits, measure, need[measure]), measure, row[f"used_{measure}"], allowed)
    times = {measure: max(row[measure] or now, now) + (days or {}).get(measure, 0) * DAY for measure in limits.daily}
    binding = max(times, key=lambda measure: times[measure], default=None)
    if binding is None or times[binding] <= now:
        return Frees(now, now)
    return Frees(now, times[binding], binding, row[f"used_{binding}"], limits.daily[binding])
