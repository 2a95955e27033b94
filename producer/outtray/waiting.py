"""How often to look again while waiting for something in the database: soon at first, then at most once a second."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

SOONEST = 0.02
LONGEST = 1.0


def pauses() -> Iterator[float]:
    """Seconds between two looks: doubling from 20 ms to a second."""
    for n in count():
        yield min(LONGEST, SOONEST * 2 ** min(n, 16))


def is_settled(state: str) -> bool:
    """Whether nothing will change by itself: it has ended, or only evidence or a decision moves it on."""
    return state not in ("queued", "handing_over")
