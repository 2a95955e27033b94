"""A forecast's run against a simulation by brute force, which asks everything anew each minute."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from outtray.forecast_run import Course, Rules, Used, Waiting, run_through
from outtray_schema.plans import Limits
from outtray_schema.times import Gap, Times
from outtray_schema.windows import Span, Window

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(hours=24)
NOW = datetime(2026, 10, 24, 12, tzinfo=UTC)
LONG = 12 * 24 * 60
"""Minutes that are walked: more than twelve messages at one a day take."""


@dataclass
class Walk:
    """Minute after minute: whoever may leave, leaves. Nothing is remembered but what left."""

    rules: Rules
    used: list[Used]
    waiting: list[Waiting]
    course: Course = field(default_factory=Course)
    left: list[tuple[Waiting, datetime]] = field(default_factory=list)
    parked_until: datetime = NOW

    def through(self) -> Course:
        for minute in range(LONG):
            t = NOW + minute * MINUTE
            if t >= max(self.rules.not_before, self.parked_until):
                while self.waiting and self._one_leaves(t):
                    pass
        assert not self.waiting, "the walk is too short"
        return self.course

    def _one_leaves(self, t: datetime) -> bool:  # noqa: PLR0911 - one question after the other
        due = [each for each in self.waiting if each.due_at <= t]
        if not due:
            return False
        message = min(due, key=lambda each: (each.priority, each.due_at, each.id))
        if message.expires_at is not None and message.expires_at <= t:
            return self._ends(message, self.course.expire)
        if message.window is not None and not self._open(message, t):
            opens = next((t + n * MINUTE for n in range(2 * 1440) if self._open(message, t + n * MINUTE)), None)
            if opens is None:
                return self._ends(message, self.course.never)
            self.waiting[self.waiting.index(message)] = replace(message, due_at=opens)
            return True
        if not self._box_open(t):
            self.parked_until = next(t + n * MINUTE for n in range(2 * 1440) if self._box_open(t + n * MINUTE))
            return False
        if self._over(message, []):
            return self._ends(message, self.course.never)
        gap = self.rules.times.gap
        if gap is not None and self.left and t < self.left[-1][1] + gap.least:
            self.parked_until = self.left[-1][1] + gap.least
            return False
        if self._over(message, self._counted(t)):  # the mailbox is parked until this one fits, whatever comes meanwhile
            later = (t + n * MINUTE for n in range(3 * 1440))
            self.parked_until = next(at for at in later if not self._over(message, self._counted(at)))
            return False
        if not self._paced(t):
            self.parked_until = next(t + n * MINUTE for n in range(60) if self._paced(t + n * MINUTE))
            return False
        self.waiting.remove(message)
        self.left.append((message, t))
        self.course.leaves.append((message.id, t))
        return True

    def _counted(self, t: datetime) -> list[Used]:
        counted = [each for each in self.used if each.counted_at + DAY > t]
        return counted + [as_used(each, at) for each, at in self.left if at + DAY > t]

    def _ends(self, message: Waiting, where: list[UUID]) -> bool:
        self.waiting.remove(message)
        where.append(message.id)
        return True

    def _open(self, message: Waiting, t: datetime) -> bool:
        return shows(message.window, t) and self._box_open(t)

    def _box_open(self, t: datetime) -> bool:
        return shows(self.rules.times.window, t)

    def _over(self, message: Waiting, counted: list[Used]) -> bool:
        limits, people = self.rules.limits, set(message.externals)
        for each in counted:
            people |= each.externals
        sums = {
            "messages": sum(each.messages for each in counted) + 1,
            "recipients": sum(each.recipients for each in counted) + message.recipients,
            "unique_external": len(people),
        }
        return any(sums[measure] > allowed for measure, allowed in limits.daily.items())

    def _paced(self, t: datetime) -> bool:
        burst = self.rules.limits.burst
        if self.rules.limits.per_minute is None:
            return True
        # At one a minute, no span of n minutes may hold more than n plus the burst less one.
        full = NOW
        for _, at in self.left:
            full = max(full, at) + MINUTE
        return full + MINUTE - burst * MINUTE <= t


def as_used(message: Waiting, at: datetime) -> Used:
    return Used(at, 1, message.recipients, message.external, message.externals)


def shows(window: Window | None, t: datetime) -> bool:
    """These windows are in UTC and open every day."""
    minute = t.hour * 60 + t.minute
    return window is None or any(
        span.begins <= minute < span.ends if span.begins < span.ends else not span.ends <= minute < span.begins
        for span in window.spans
    )


every_day = frozenset(range(1, 8))
windows = st.one_of(
    st.none(),
    st.builds(
        lambda begins, length: Window("UTC", (Span(every_day, begins * 60, (begins + length) % 24 * 60),)),
        st.integers(0, 23),
        st.integers(1, 20),
    ),
)
minutes = st.integers(0, 3 * 1440)
people = st.frozensets(st.sampled_from([bytes([n]) for n in range(6)]), min_size=1, max_size=3)


def waiting(draw, n):
    externals = draw(people)
    window, due, expires = draw(windows) if draw(st.booleans()) else None, draw(minutes), draw(st.none() | minutes)
    return Waiting(
        UUID(int=n),
        draw(st.integers(0, 2)),
        NOW + (due - 1440) * MINUTE,
        None if expires is None else NOW + (expires + 1) * MINUTE,
        len(externals),
        len(externals),
        0,
        window,
        externals,
    )


@st.composite
def scenes(draw):
    queue = [waiting(draw, n) for n in range(draw(st.integers(1, 10)))]
    used = [
        as_used(replace(queue[0], externals=draw(people)), NOW - draw(st.integers(0, 1500)) * MINUTE)
        for _ in range(draw(st.integers(0, 4)))
    ]
    limits = Limits(
        messages=draw(st.none() | st.integers(2, 6)),
        recipients=draw(st.none() | st.integers(4, 12)),
        unique_external=draw(st.none() | st.integers(3, 5)),
        per_minute=draw(st.sampled_from([None, 1])),
        burst=draw(st.integers(1, 3)),
    )
    gap = draw(st.none() | st.integers(1, 90).map(lambda n: Gap(n * MINUTE, n * MINUTE)))
    return Rules(limits, Times(draw(windows), gap), NOW + draw(st.integers(0, 600)) * MINUTE), used, queue


@settings(max_examples=40)
@given(scenes())
def test_a_forecast_is_what_a_walk_over_minutes_finds_and_never_earlier(scene):
    rules, used, queue = scene
    found = run_through(NOW, rules, used, queue)
    walked = Walk(rules, used, list(queue)).through()
    assert [at for _, at in found.leaves] >= [at for _, at in walked.leaves]
    assert found.leaves == walked.leaves
    assert sorted(found.expire) == sorted(walked.expire) and sorted(found.never) == sorted(walked.never)


def test_ten_thousand_messages_take_a_working_week():
    queue = [Waiting(UUID(int=n), 1, NOW, None, 1, 1, 0) for n in range(10_000)]
    hours = Window("Europe/Berlin", (Span(frozenset(range(1, 6)), 540, 1050),))
    limits = Limits(messages=2_000, recipients=10_000, per_minute=30)
    course = run_through(NOW, Rules(limits, Times(hours), NOW), [], queue)
    assert len(course.leaves) == 10_000
    # 30 a minute from 08:00 UTC on Monday 26 October on: 2,000 by 09:06:38, and so each day to Friday.
    assert course.leaves[-1][1] == datetime(2026, 10, 30, 9, 6, 38, tzinfo=UTC)


def test_what_is_open_at_the_provider_counts_until_its_own_deadline():
    """Its 24 hours begin later than those of what leaves after it."""
    used = [Used(NOW + 10 * MINUTE, 1, 1, 1)]
    queue = [Waiting(UUID(int=n), 1, NOW, None, 1, 1, 0) for n in range(3)]
    course = run_through(NOW, Rules(Limits(messages=2), Times(), NOW), used, queue)
    assert [at for _, at in course.leaves] == [NOW, NOW + DAY, NOW + DAY + 10 * MINUTE]
