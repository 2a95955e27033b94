"""What a worker tells Prometheus about itself (`OUTTRAY_METRICS_PORT`). No label ever holds an address or a mailbox.

What waits, and why, is no process's own figure: it stands in PostgreSQL, behind `outtray status --json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, start_http_server

from outtray_schema.errors import SettingsError
from outtray_schema.outcome import Outcome


class Metrics:
    """The metrics of one worker process, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._outcomes = Counter(
            "outtray_outcomes", "Handovers by their outcome", ["provider", "outcome"], registry=self.registry
        )

    def outcome(self, provider: str, outcome: Outcome) -> None:
        """Count one handover."""
        self._outcomes.labels(provider, type(outcome).__name__.lower()).inc()

    def show(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Gauges by name, each with its help and with what is read at each scrape, in the scraping thread."""
        for name, (text, read) in gauges.items():
            Gauge(name, text, registry=self.registry).set_function(read)

    def serve(self, host: str, port: int) -> None:
        """Answer `GET /metrics` as long as the process lives. Raises `SettingsError` if it cannot listen there."""
        ProcessCollector(registry=self.registry)
        try:
            start_http_server(port, host, self.registry)
        except OSError as error:
            raise SettingsError(
                f"OUTTRAY_METRICS_PORT={port}: cannot listen on {host}: {error.strerror or error}. Each worker process "
                "of a machine needs a port of its own, e.g. OUTTRAY_METRICS_PORT=9465"
            ) from None
