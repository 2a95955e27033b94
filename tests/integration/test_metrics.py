"""What a worker tells Prometheus, and a port that is taken."""

from __future__ import annotations

import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from command_line import CommandLine
from inside import inside
from outtray_schema.errors import SettingsError
from outtray_schema.outcome import Failed
from outtray_worker.metrics import Metrics
from world import run

HOST = "127.0.0.1"


def free_port() -> int:
    with socket.create_server((HOST, 0)) as taken:
        return int(taken.getsockname()[1])


def scraped(port: int) -> dict[str, float]:
    """Sample by name and labels."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        each.name + "".join(f" {value}" for _, value in sorted(each.labels.items())): each.value
        for family in families
        for each in family.samples
    }


def test_outcomes_and_what_runs_now_are_scraped_and_nothing_of_a_mail(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            port = free_port()
            office.process.metrics.serve(HOST, port)
            box = await office.mailbox()
            office.answers(Failed("550 canary@elsewhere.example is unknown"))
            office.enqueue(box, 3)
            await office.until_idle()
            found = scraped(port)
            assert found["outtray_outcomes_total sent memory"] == 2
            assert found["outtray_outcomes_total failed memory"] == 1
            assert (found["outtray_turns"], found["outtray_open_handovers"], found["outtray_postgresql_up"]) == (
                0,
                0,
                1,
            )
            assert found["outtray_loop_lag_seconds"] >= 0 and found["outtray_gate_wait_seconds"] >= 0
            assert found["process_open_fds"] > 0
            assert not any("canary" in name or str(box) in name for name in found)

    run(scene())


def test_a_port_that_is_taken_is_named_with_the_cure():
    with (
        socket.create_server((HOST, 0)) as taken,
        pytest.raises(SettingsError, match=r"OUTTRAY_METRICS_PORT=\d+: cannot listen .* a port of its own"),
    ):
        Metrics().serve(HOST, taken.getsockname()[1])


def test_a_worker_does_not_begin_without_its_port(database):
    with socket.create_server((HOST, 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = CommandLine.on(database.settings).process("worker", OUTTRAY_METRICS_PORT=port)
    assert ran.code == 2 and "OUTTRAY_METRICS_PORT" in ran.err
