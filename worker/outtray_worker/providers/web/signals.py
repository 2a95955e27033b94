"""Answers that no row of a provider's table knows: counted in memory until somebody takes them to the database.

    signals = Signals()                     one per process, given to the providers
    signals.note("gmail", "commit 418 …")   the text redacted, and short: it is the key by which it is counted
    for (provider, signal), times in signals.take().items(): …

`outtray_worker.unknown_signals` writes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

_KINDS = 200
"""Different signals held at once: a provider that puts a new number into each text must not fill the memory."""
_LONGEST = 200


class Signals:
    """Not for several threads: it belongs to the loop on which the providers run."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def note(self, provider: str, signal: str) -> None:
        """Count one; `signal` must be redacted."""
        key = (provider, signal[:_LONGEST])
        if key not in self._counts and len(self._counts) >= _KINDS:
            key = (provider, "others")
        self._counts[key] += 1

    def give_back(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Keep what could not be written."""
        self._counts.update(counts)

    def take(self) -> Counter[tuple[str, str]]:
        """All that was counted since the last call."""
        taken, self._counts = self._counts, Counter()
        return taken
