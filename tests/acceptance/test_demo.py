"""`outtray demo` as a stranger runs it: no terminal, no settings, and nothing left of it afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from outtray_sandbox.demo import run_demo, show
from outtray_sandbox.servers.place import find_place
from outtray_sandbox.servers.postgres import Postgres
from outtray_sandbox.servers.valkey import Valkey
from outtray_schema.settings import load_settings

COMMAND = Path(sys.executable).parent / "outtray"
ENDS_WITHIN = 200

IN_ORDER = (
    "260 messages are enqueued",
    "answers 451 for 8 s",
    "Gmail refuses a handover of nora@studio.example with 429",
    "is revoked at its provider",
    "Redis is flushed right behind them",
    "and answers 504",
    "a message of felix@campus.example is unknown",
    "Outtray looked into the mailbox of felix@campus.example: found the copy of it",
    "is open: the mail is with the server",
    "is killed (kill -9) in the middle of that handover",
    "is unknown: its worker ended",
    "outtray resolve ",
    "by your decision",
    "$ outtray explain --mailbox maya@gmail.example",
    "messages: 500 of 500",
    "$ outtray explain --mailbox sofia@atelier.example",
    "owner",
    "# by SMTP",
    "none: SMTP knows no conversations",
    "# by Gmail",
    "@mail.gmail.com>",
    "# by Graph",
    "none lost",
    "once each",
    "the three ids",
    "as long as asked",
    "OK: the servers confirm it.",
    "outtray send ",
)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(260)
def test_the_demo_plays_every_fault_and_the_servers_confirm_the_promise(tmp_path: Path, seed: int):
    env = environment(tmp_path)
    demo = subprocess.run(
        [str(COMMAND), "demo", "--seed", str(seed)], env=env, cwd=tmp_path, stdin=subprocess.DEVNULL,
        capture_output=True, timeout=ENDS_WITHIN, text=True, check=False,
    )  # fmt: skip
    print(demo.stdout, demo.stderr)
    assert demo.returncode == 0
    assert in_order(demo.stdout, IN_ORDER) is None
    assert re.search(r"maya@gmail\.example +40 +25 +25 +0 +15", demo.stdout), "exactly its last 25 of 500 left"
    assert "nora@studio.example sends again, by itself" in demo.stdout
    for address, count in (("nora@studio.example", 28), ("felix@campus.example", 19)):
        assert re.search(rf"{address} +{count} +{count} +{count} +0 +0", demo.stdout), "all left, once each"
    assert not list(tmp_path.glob("outtray-demo-*")), "the folder is gone"
    assert not left_running(tmp_path), "no process outlives the demo"


def environment(folder: Path) -> dict[str, str]:
    """A stranger's: settings of another installation stand in it, and must not be used."""
    return {
        **os.environ,
        "COLUMNS": "200",
        "TMPDIR": str(folder),
        "OUTTRAY_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/production",
        "OUTTRAY_REDIS_URL": "redis://127.0.0.1:1/0",
        "OUTTRAY_LEASE": "45s",
    }


def in_order(text: str, sentences: tuple[str, ...]) -> str | None:
    """The first sentence that does not stand behind the one before it; None: all do."""
    at = 0
    for sentence in sentences:
        found = text.find(sentence, at)
        if found < 0:
            return sentence
        at = found + len(sentence)
    return None


def left_running(folder: Path) -> list[psutil.Process]:
    """Processes that inherited the demo's environment: its workers, dispatchers and commands."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(folder):
                found.append(process)
    return found


def servers(folder: Path) -> list[psutil.Process]:
    """The PostgreSQL and the Valkey of the demo that runs below this folder."""
    (demo,) = folder.glob("outtray-demo-*")
    place = find_place(demo)
    found = [Postgres(place, durable=True).process, Valkey(place).process]
    return [process for process in found if process is not None]


@pytest.mark.slow
@pytest.mark.processes
def test_a_demo_that_takes_too_long_says_what_it_waited_for_and_keeps_its_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(show, "HARD_STOP", 0.5)
    console = Console(file=StringIO(), width=200)
    assert run_demo(load_settings(), console) == 1
    said = console.file.getvalue()
    assert "the demo was still waiting until every process had said that it is alive" in said
    (kept,) = tmp_path.glob("outtray-demo-*")
    assert str(kept) in said
    assert {log.name for log in kept.iterdir()} == {"dispatcher-1.log", "worker-1.log", "worker-2.log"}


def works(process: psutil.Process) -> bool:
    """Whether it still runs: in a container a dead process may stay unburied."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing_behind(tmp_path: Path, number: signal.Signals):
    demo = subprocess.Popen(
        [str(COMMAND), "demo"], env=environment(tmp_path), cwd=tmp_path, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert demo.stdout is not None
    for line in demo.stdout:
        if "a dispatcher and 2 workers start" in line:
            running = servers(tmp_path)
            demo.send_signal(number)
            break
    rest, _ = demo.communicate(timeout=60)
    assert demo.returncode == 128 + number, rest
    assert len(running) == 2 and not any(map(works, running)), "its servers have ended"
    assert "Traceback" not in rest
    assert not list(tmp_path.glob("outtray-demo-*")), "the folder is gone"
    assert not left_running(tmp_path), "no process outlives the demo"
