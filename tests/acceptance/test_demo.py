"""`outtray demo` as a stranger runs it: no terminal, no settings, and nothing left of it afterwards."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

COMMAND = Path(sys.executable).parent / "outtray"
ENDS_WITHIN = 200

IN_ORDER = (
    "260 messages are enqueued",
    "answers 451 for 8 s",
    "is revoked at its provider",
    "Redis is flushed right behind them",
    "is open: the mail is with the server",
    "is killed (kill -9) in the middle of that handover",
    "is unknown: ",
    "outtray resolve ",
    "by your decision",
    "none lost",
    "once each",
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


def left_running(folder: Path) -> list[str]:
    """Commands of processes that work in the demo's folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if str(folder) in words and process.pid != os.getpid():
            found.append(words)
    return found
