"""When a provider is looked at after a handover without an outcome, and from when on its silence means something.

The times are data with their sources. After the provider's own steps every schedule goes on alike: 15 minutes, an
hour, then hourly up to a day, then daily for as long as the message is unknown (rule 11).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise

from outtray_schema.settings import Settings

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def _after(*seconds: int) -> tuple[timedelta, ...]:
    return tuple(timedelta(seconds=each) for each in seconds)


GOING_ON = (timedelta(minutes=15), *(hour * HOUR for hour in range(1, 25)))


@dataclass(frozen=True, slots=True)
class Schedule:
    """`steps`: the first looks, from the moment the doubt arose. `settle`: how long after a handover's deadline what
    it sent may still be on its way to where it is looked for."""

    steps: tuple[timedelta, ...]
    settle: timedelta
    source: str
    read_on: date
    going_on: tuple[timedelta, ...] = GOING_ON

    @property
    def moments(self) -> tuple[timedelta, ...]:
        """All looks of the first day, from the moment the doubt arose."""
        return self.steps + tuple(each for each in self.going_on if each > self.steps[-1])

    def wait(self, looks: int) -> timedelta:
        """How long to wait for the next look after so many."""
        waits = [self.moments[0], *(later - earlier for earlier, later in pairwise(self.moments))]
        return waits[looks] if looks < len(waits) else DAY

    def is_over(self, looks: int) -> bool:
        """Whether the first day's looks are done."""
        return looks >= len(self.moments)

    def scaled(self, by: float) -> Schedule:
        steps, going_on = (tuple(each * by for each in times) for times in (self.steps, self.going_on))
        return Schedule(steps, self.settle * by, self.source, self.read_on, going_on)


SCHEDULES: Mapping[str, Schedule] = {
    "gmail": Schedule(
        _after(10, 60, 300),
        timedelta(minutes=5),
        "the SENT label lists a mail right after its sending, drafts.send settles in 30 to 60 s; field measurements",
        date(2026, 8, 1),
    ),
    "microsoft": Schedule(
        _after(5, 30, 120, 300),
        timedelta(minutes=5),
        "the sent copy appears only after transport took the mail, in a few minutes; "
        "learn.microsoft.com/graph/outlook-things-to-know-about-send-mail",
        date(2026, 11, 1),
    ),
    "smtp": Schedule(
        _after(10, 30, 120, 300),
        timedelta(minutes=10),
        "no server says when it files a copy; ten minutes are our own choice",
        date(2026, 11, 1),
    ),
}
OTHERS = Schedule(_after(10, 60, 300), timedelta(0), "our own choice", date(2026, 11, 1))
"""Of a provider that the table does not know. Nothing settles sooner than `settle_time` anyway."""


@dataclass(frozen=True, slots=True)
class Schedules:
    """The schedules of all providers, as the settings have them."""

    by_provider: Mapping[str, Schedule]
    others: Schedule
    settle_time: timedelta

    @classmethod
    def of(cls, settings: Settings) -> Schedules:
        scale = settings.look_scale
        return cls(
            {name: schedule.scaled(scale) for name, schedule in SCHEDULES.items()},
            OTHERS.scaled(scale),
            settings.settle_time,
        )

    def of_provider(self, name: str) -> Schedule:
        return self.by_provider.get(name, self.others)

    def settle(self, name: str) -> timedelta:
        """From a handover's deadline until absence may count."""
        return max(self.settle_time, self.of_provider(name).settle)


DEFAULT = Schedules(SCHEDULES, OTHERS, timedelta(seconds=60))
