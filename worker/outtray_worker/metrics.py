"""What a worker counts about itself, for Prometheus. No label ever holds an address or a mailbox."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from outtray_schema.outcome import Outcome


class Metrics:
    """The counters of one worker process, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._outcomes = Counter(
            "outtray_outcomes", "Handovers by their outcome", ["provider", "outcome"], registry=self.registry
        )

    def outcome(self, provider: str, outcome: Outcome) -> None:
        """Count one handover."""
        self._outcomes.labels(provider, type(outcome).__name__.lower()).inc()
