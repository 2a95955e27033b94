"""The end of every run: what the sink took, key by key, against what PostgreSQL says was sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count


@dataclass(frozen=True, slots=True)
class Verdict:
    """One run's ledgers side by side. `took` counts requests, `sent` rows; the rest are keys that disagree."""

    run: str
    took: int
    sent: int
    twice: int
    unrecorded: int
    never_taken: int

    @property
    def agrees(self) -> bool:
        return not (self.twice or self.unrecorded or self.never_taken)


@dataclass(slots=True)
class Ledgers:
    """The verdicts of every run so far, and names for the ledgers of runs to come."""

    verdicts: list[Verdict] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    def new(self, arm: str) -> str:
        return f"{arm}-{next(self._numbers)}"

    def compare(self, run: str, taken: Mapping[str, int], sent: set[str]) -> Verdict:
        """Each message exactly once in both, or the verdict counts what is not."""
        verdict = Verdict(
            run,
            took=sum(taken.values()),
            sent=len(sent),
            twice=sum(times > 1 for times in taken.values()),
            unrecorded=len(taken.keys() - sent),
            never_taken=len(sent - taken.keys()),
        )
        self.verdicts.append(verdict)
        return verdict

    @property
    def disagreeing(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if not verdict.agrees]
