"""`outtray up`, as a person starts it: everything runs, deaths are said, one Ctrl-C is clean, two name what is open."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine
from databases import Database
from outtray_sandbox.smtp import SmtpServer
from outtray_sandbox.up import members
from polling import eventually

pytestmark = [pytest.mark.processes, pytest.mark.slow]

PATIENCE = 90.0


class Running:
    """One `outtray up --json`, and what it has said."""

    def __init__(self, line: CommandLine, *flags: str) -> None:
        self.process: subprocess.Popen[str] = line.start("up", "--json", *flags, start_new_session=True)
        self.said: list[dict[str, Any]] = []
        self.pids: set[int] = set()
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def until(self, event: str, process: str | None = None) -> dict[str, Any]:
        """The next line with this event, of this process."""
        deadline = time.monotonic() + PATIENCE
        while True:
            text = self._lines.get(timeout=max(0.01, deadline - time.monotonic()))
            assert text is not None, f"it ended before {event}: {self.said}"
            if not text.startswith("{"):
                continue
            line: dict[str, Any] = json.loads(text)
            self.said.append(line)
            if line["event"] == "started":
                self.pids.add(self.pid_of(line))
            if line["event"] == event and line["process"] == (process or line["process"]):
                return line

    @staticmethod
    def pid_of(started: dict[str, Any]) -> int:
        return int(started["text"].rpartition(" ")[2])

    def end(self, code: int) -> None:
        """Wait for its exit code; nothing that it started is left."""
        assert self.process.wait(PATIENCE) == code, self.said
        assert not [pid for pid in self.pids if Path(f"/proc/{pid}").exists()]


@contextlib.contextmanager
def up(line: CommandLine, *flags: str) -> Iterator[Running]:
    running = Running(line, *flags)
    try:
        yield running
    finally:
        for pid in (*running.pids, running.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.process.wait(PATIENCE)


def test_up_runs_every_entry_of_the_procfile() -> None:
    entries = (Path(__file__).parents[2] / "Procfile").read_text().splitlines()
    named = {line.partition(": outtray ")[2].split()[0] for line in entries if line.strip()}
    assert {member.role for member in members(2, 5555)} == named


def test_up_from_nothing_runs_restarts_and_ends_cleanly(tmp_path: Path) -> None:
    line = CommandLine({"OUTTRAY_DATA_FOLDER": str(tmp_path / "data")})
    with up(line, "--workers", "1", "--flower-port", str(free_port())) as running:
        worker = Running.pid_of(running.until("started", "worker.1"))
        running.until("started", "flower")
        eventually(lambda: alive(line) == {"worker": 1, "dispatcher": 1}, PATIENCE, "both have spoken")
        assert [app["name"] for app in line.process("app", "list", "--json").json] == ["default"]
        os.kill(worker, signal.SIGKILL)
        assert "SIGKILL" in running.until("died", "worker.1")["text"]
        assert Running.pid_of(running.until("started", "worker.1")) != worker
        running.process.send_signal(signal.SIGINT)
        running.until("ending")
        running.end(0)
    assert line.process("status", "--json").json["messages"]["queued"] == 0, "its data is kept"


def alive(line: CommandLine) -> dict[str, int]:
    found = line.process("status", "--json").json["processes"]
    roles = {process["role"] for process in found}
    return {role: sum(process["alive"] for process in found if process["role"] == role) for role in roles}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SmtpServer]:
    with SmtpServer(tmp_path / "accepted.jsonl", users={"ann@example.com": "secret"}, tls="starttls") as running:
        yield running


def test_a_second_ctrl_c_ends_at_once_and_names_what_was_with_the_provider(
    database: Database, server: SmtpServer
) -> None:
    line = CommandLine.on(database.settings)
    line.ok("app", "add", "default")
    line.ok(
        *("mailbox", "add", "smtp", "ann@example.com", "--host", "localhost", "--port", str(server.port)),
        *("--ca-file", str(server.ca_file), "--password-stdin"),
        stdin="secret",
    )
    server.add_rule(stage="dot", silent=True)
    with up(line, "--workers", "1", "--no-flower") as running:
        running.until("started", "dispatcher")
        message = line.ok("send", "--to", "bob@example.org", "--json", stdin="Hi").json["id"]
        eventually(lambda: state_of(database, message) == "handing_over", PATIENCE, "it is with the provider")
        running.process.send_signal(signal.SIGINT)
        running.until("ending")
        running.process.send_signal(signal.SIGINT)
        named = running.until("in_handover")
        assert [each["id"] for each in named["messages"]] == [message]
        running.end(130)
    assert state_of(database, message) == "handing_over", "nobody guesses: its own deadline makes it unknown"


def state_of(database: Database, message: str) -> str:
    with database.connect() as connection:
        row = connection.execute("SELECT state FROM outtray.message WHERE id = %s", [message]).fetchone()
    assert row is not None
    return str(row[0])


def test_processes_end_when_up_itself_is_killed(database: Database) -> None:
    with up(CommandLine.on(database.settings), "--workers", "1", "--no-flower") as running:
        running.until("started", "worker.1")
        running.until("started", "dispatcher")
        running.process.kill()
        running.process.wait(PATIENCE)
        eventually(
            lambda: not [pid for pid in running.pids if is_running(pid)], PATIENCE, "the kernel told them to end"
        )


def is_running(pid: int) -> bool:
    """Whether a process still runs; one that ended but was not waited for does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize(
    "arguments", [("status", "--watch", "--every", "0.2", "--json"), ("events", "--follow", "--json")]
)
def test_what_stays_ends_on_ctrl_c_without_a_traceback(database: Database, arguments: tuple[str, ...]) -> None:
    line = CommandLine.on(database.settings)
    line.ok("app", "add", "default")
    line.ok(
        *("mailbox", "add", "smtp", "ann@example.com", "--host", "smtp.example.com", "--password-stdin"), stdin="secret"
    )
    with line.start(*arguments) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(PATIENCE) == 130
    assert "Traceback" not in rest
