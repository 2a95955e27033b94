"""The run of a forecast: a mailbox's queue let through its limits, pace, gap and windows, event by event.

It knows no connection and no clock: what it is given is all that it goes by. Each message leaves at the first moment at
which everything lets it, in the order in which turns take them.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from outtray_schema.ledger import DAY, NOBODY, needed
from outtray_schema.plans import Limits
from outtray_schema.times import Gap, Times, open_for_both
from outtray_schema.windows import Window


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued message, as far as its time depends on it. `externals` matter where unique ones are limited."""

    id: UUID
    priority: int
    due_at: datetime
    expires_at: datetime | None
    recipients: int
    external: int
    handover: int
    window: Window | None = None
    externals: frozenset[bytes] = NOBODY
    only_draft: bool = False


@dataclass(frozen=True, slots=True)
class Used:
    """What counts in the ledger, or will: it frees 24 hours after `counted_at`."""

    counted_at: datetime
    messages: int
    recipients: int
    external: int
    externals: frozenset[bytes] = NOBODY


@dataclass(frozen=True, slots=True)
class Rules:
    """What the mailbox keeps to. `not_before`: it is parked until then. `gap_free_at`: the last mail's gap is over."""

    limits: Limits
    times: Times
    not_before: datetime
    gap_free_at: datetime | None = None
    last_minute: int = 0
    """Handovers of the last minute: what the pace knows of."""


@dataclass(slots=True)
class Course:
    """What becomes of each message: when it leaves, or that it expires before, or never fits."""

    leaves: list[tuple[UUID, datetime]] = field(default_factory=list)
    expire: list[UUID] = field(default_factory=list)
    never: list[UUID] = field(default_factory=list)


def run_through(now: datetime, rules: Rules, used: Iterable[Used], waiting: Iterable[Waiting]) -> Course:
    """Let the queue leave, message by message; `now` is the database's clock."""
    return _Run(now, rules, used, waiting).course()


class _Run:
    def __init__(self, now: datetime, rules: Rules, used: Iterable[Used], waiting: Iterable[Waiting]) -> None:
        self._t = max(now, rules.not_before)
        self._rules = rules
        self._ledger = _Ledger(rules.limits, used)
        self._pace = _Pace(rules, now)
        self._later = [(each.due_at, each.id, each) for each in waiting]
        heapq.heapify(self._later)
        self._ready: list[tuple[int, datetime, UUID, Waiting]] = []
        self._course = Course()
        self._openings: dict[Window | None, tuple[datetime, datetime | None] | None] = {}

    def course(self) -> Course:
        while self._ready or self._later:
            self._step()
        return self._course

    def _step(self) -> None:
        while self._later and self._later[0][0] <= self._t:
            due_at, _, each = heapq.heappop(self._later)
            heapq.heappush(self._ready, (each.priority, due_at, each.id, each))
        if not self._ready:
            self._t = self._later[0][0]
            return
        message = self._ready[0][-1]
        if message.expires_at is not None and message.expires_at <= self._t:
            self._course.expire.append(heapq.heappop(self._ready)[-1].id)
        else:
            self._try(message)

    def _opening(self, window: Window | None) -> tuple[datetime, datetime | None] | None:
        """When a message with this window may leave; looked up anew once that has closed."""
        known = self._openings.get(window)
        if window not in self._openings or (known is not None and known[1] is not None and known[1] <= self._t):
            known = self._openings[window] = open_for_both(window, self._rules.times.window, self._t)
        return known if known is None else (max(known[0], self._t), known[1])

    def _try(self, message: Waiting) -> None:
        """Let it leave now, or move the time, or the message, to where the first thing that stops it ends."""
        found = self._opening(message.window)
        if message.window is not None and (found is None or found[0] > self._t):
            heapq.heappop(self._ready)
            if found is None:
                self._course.never.append(message.id)
            else:
                heapq.heappush(self._later, (found[0], message.id, message))
            return
        if found is None:
            self._course.never += [each[-1].id for each in self._ready] + [each.id for _, _, each in self._later]
            self._ready, self._later = [], []
            return
        fits_at = self._t if message.only_draft else self._ledger.fits_at(message, self._t)
        if found[0] <= self._t and fits_at is None:
            self._course.never.append(heapq.heappop(self._ready)[-1].id)
            return
        # As a turn asks: the mailbox rests for the first that stops this message, and then takes what is first by then.
        rests = (found[0], self._pace.gap_over(self._t), fits_at or self._t, self._pace.token_at(self._t))
        self._t, now = next((at for at in rests if at > self._t), self._t), self._t
        if self._t == now:
            heapq.heappop(self._ready)
            self._leave(message)

    def _leave(self, message: Waiting) -> None:
        self._course.leaves.append((message.id, self._t))
        self._pace.take(message, self._t)
        if not message.only_draft:
            self._ledger.take(message, self._t)


class _Ledger:
    """The last 24 hours, counted on: `schema/outtray_schema/ledger.py` in memory."""

    def __init__(self, limits: Limits, used: Iterable[Used]) -> None:
        self._most = limits.recipients_per_message
        self._allowed = limits.daily
        self._entries = deque(sorted(used, key=lambda each: each.counted_at))
        self._used = Counter[str]()
        self._people = Counter[bytes]()
        for each in self._entries:
            self._count(each, 1)

    def fits_at(self, message: Waiting, t: datetime) -> datetime | None:
        """When it fits, if nothing else leaves before; `None`: never."""
        while self._entries and self._entries[0].counted_at + DAY <= t:
            self._count(self._entries.popleft(), -1)
        if (self._most is not None and message.recipients > self._most) or not self._fits_alone(message):
            return None
        used, people = self._used.copy(), self._people
        if self._fits(message, used, people):
            return t
        people = people.copy() if message.externals else people
        for entry in self._entries:
            _count(entry, -1, used, people if message.externals else Counter())
            if self._fits(message, used, people):
                return entry.counted_at + DAY
        return None

    def take(self, message: Waiting, at: datetime) -> None:
        entry = Used(at, 1, message.recipients, message.external, message.externals)
        # What is open counts from its deadline, which may lie ahead of what leaves after it.
        place = len(self._entries)
        while place and self._entries[place - 1].counted_at > at:
            place -= 1
        self._entries.insert(place, entry)
        self._count(entry, 1)

    def _fits_alone(self, message: Waiting) -> bool:
        return all(_need(measure, message) <= allowed for measure, allowed in self._allowed.items())

    def _fits(self, message: Waiting, used: Counter[str], people: Counter[bytes]) -> bool:
        for measure, allowed in self._allowed.items():
            if measure == "unique_external":
                if len(people.keys() | message.externals) > allowed:
                    return False
            elif used[measure] + _need(measure, message) > allowed:
                return False
        return True

    def _count(self, entry: Used, times: int) -> None:
        _count(entry, times, self._used, self._people)


def _count(entry: Used, times: int, used: Counter[str], people: Counter[bytes]) -> None:
    for measure in ("messages", "recipients", "external"):
        used[measure] += times * int(getattr(entry, measure))
    for each in entry.externals:
        people[each] += times
        if not people[each]:
            del people[each]


def _need(measure: str, message: Waiting) -> int:
    return len(message.externals) if measure == "unique_external" else needed(measure, message)


class _Pace:
    """The bucket (GCRA) and the gap."""

    def __init__(self, rules: Rules, now: datetime) -> None:
        per_minute = rules.limits.per_minute
        self._each = timedelta(minutes=1) / per_minute if per_minute else None
        self._window = self._each * rules.limits.burst if self._each else timedelta(0)
        self._full_at = now + min(self._window, (self._each or timedelta(0)) * rules.last_minute)
        self._gap: Gap | None = rules.times.gap
        self._gap_free_at = rules.gap_free_at

    def gap_over(self, t: datetime) -> datetime:
        return t if self._gap_free_at is None else max(t, self._gap_free_at)

    def token_at(self, t: datetime) -> datetime:
        return t if self._each is None else max(t, self._full_at + self._each - self._window)

    def take(self, message: Waiting, at: datetime) -> None:
        if self._each is not None:
            self._full_at = max(self._full_at, at) + self._each
        if self._gap is not None and not message.only_draft:
            self._gap_free_at = at + self._gap.after(message.id, message.handover + 1)
