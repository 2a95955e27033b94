"""What a provider's refusal taught: a daily limit below the plan's, which recovers by a tenth a day and is forgotten.

A mailbox keeps `{measure: {"limit", "used", "at"}}`: what we may use from `at` on, and what the ledger showed as used
in the 24 hours before the refusal. How far it has recovered is reckoned whenever it is read; nothing has to write it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

DAY = timedelta(hours=24)

FLOOR = 10
"""Messages, or recipients. A limit is never learned below it: where we used less, others (the person by hand, another
system) used the rest, and a mailbox that may send nothing could never find out that it may (our choice, 2026-11)."""

GROWTH = (11, 10)
"""Ten percent a clean day, one in which the provider did not refuse again (our choice, 2026-11)."""

PATIENCE = 30
"""Clean days after which a limit is forgotten that has no plan's limit to recover to: it is seventeenfold by then."""


@dataclass(frozen=True, slots=True)
class Learned:
    """One limit that a refusal taught, as far as it has recovered. `plan` is what it recovers to; None: no limit."""

    measure: str
    limit: int
    used: int
    at: datetime
    plan: int | None
    taught: int
    """The limit as it was at `at`."""

    @property
    def forgotten_at(self) -> datetime:
        """When it has recovered, if the provider does not refuse again."""
        return self.at + PATIENCE * DAY if self.plan is None else self.reaches(self.plan)

    def reaches(self, limit: int) -> datetime:
        """When it has recovered to at least `limit`."""
        days = 0
        while grown(self.taught, days) < limit:
            days += 1
        return self.at + days * DAY


def grown(limit: int, days: int) -> int:
    """A limit after so many clean days, rounded down once and not day by day, so that a small one grows as well."""
    more, of = GROWTH
    return limit * int(more**days) // int(of**days)


def measures_of(limits: Mapping[str, int]) -> dict[str, int | None]:
    """What a refusal teaches about, of the daily limits in force: messages and recipients, as the mailbox counts them.

    A mailbox that counts neither learns about messages, which are then bounded by nothing.
    """
    counted = {measure: limits[measure] for measure in ("messages", "recipients") if measure in limits}
    return dict(counted) or {"messages": None}


def teach(
    before: Mapping[str, Any], limits: Mapping[str, int | None], used: Mapping[str, int], now: datetime, sent: bool
) -> dict[str, Any]:
    """What to keep of a refusal at `now`: what was known `before`, and an entry for each of `limits`, those in force.

    Of a refusal that follows another one without a mail `sent` between them nothing new is learned, but its day is not
    clean: while a provider has locked a mailbox, what is used of the last 24 hours falls by itself.
    """
    lessons = {
        measure: {"limit": _lesson(before.get(measure), limit, used[measure], sent), "used": used[measure]}
        for measure, limit in limits.items()
    }
    for measure, lesson in lessons.items():
        if measure in before and not sent:
            lesson["used"] = before[measure]["used"]
    return {**before, **{measure: {**lesson, "at": now.isoformat()} for measure, lesson in lessons.items()}}


def _lesson(known: Mapping[str, Any] | None, limit: int | None, used: int, sent: bool) -> int:
    if known is not None and not sent:
        return int(known["limit"]) if limit is None else limit
    least = max(FLOOR, used)
    return least if limit is None else min(limit, least)


def recovered(stored: Mapping[str, Any], plan: Mapping[str, int | None], now: datetime) -> tuple[Learned, ...]:
    """What still binds of what was learned: below the plan's limits, or not yet forgotten where those have none."""
    return tuple(
        each
        for measure, limit in plan.items()
        if measure in stored and (each := _recovered(measure, stored[measure], limit, now)).forgotten_at > now
    )


def _recovered(measure: str, entry: Mapping[str, Any], plan: int | None, now: datetime) -> Learned:
    at, taught = datetime.fromisoformat(entry["at"]), int(entry["limit"])
    days = max(0, (now - at) // DAY)
    # An old one has long been forgotten: its power would only cost time.
    limit = grown(taught, min(days, 1_000))
    return Learned(measure, limit, int(entry["used"]), at, plan, taught)
