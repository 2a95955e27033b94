"""The watchdog: what counts as a loop that stands still, and what is said of it before the process ends."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
import structlog

from outtray_worker.watchdog import Watchdog, stacks_of
from polling import eventually


class Loop:
    """A loop that runs what it is asked only when it is let."""

    def __init__(self) -> None:
        self.asked: list = []

    def call_soon_threadsafe(self, callback) -> None:
        self.asked.append(callback)

    def run(self) -> None:
        for callback in self.asked:
            callback()
        self.asked.clear()


def watched(limit: float = 30.0) -> tuple[Loop, Watchdog, float]:
    loop = Loop()
    watchdog = Watchdog(loop, timedelta(seconds=limit))  # type: ignore[arg-type]
    return loop, watchdog, watchdog._last


def test_a_loop_that_gives_no_sign_for_the_limit_is_stuck():
    _, watchdog, begun = watched()
    stuck = [watchdog.is_stuck(begun + second) for second in range(1, 33)]
    assert stuck == [False] * 31 + [True], "asked at the first second, and thirty more have passed"


def test_a_late_sign_is_a_sign():
    loop, watchdog, begun = watched()
    for second in range(1, 300):
        assert not watchdog.is_stuck(begun + second)
        if second % 25 == 0:
            loop.run()


@pytest.mark.parametrize("asleep", [60, 3600, 86400])
def test_a_machine_that_was_asleep_finds_no_stuck_loop(asleep: int):
    loop, watchdog, now = watched()
    for _ in range(10):
        now += 1
        assert not watchdog.is_stuck(now)
        now += asleep  # the sign was asked for, and everything stood still
        assert not watchdog.is_stuck(now)
        loop.run()


def test_a_closed_loop_is_watched_no_more():
    loop = asyncio.new_event_loop()
    loop.close()
    watchdog = Watchdog(loop, timedelta(seconds=1), lambda: pytest.fail("nothing is stuck"), last_resort=False)
    watchdog.start()
    watchdog._thread.join(5)
    assert not watchdog._thread.is_alive()
    watchdog.stop()


def test_a_blocked_loop_is_reported_with_its_stack_and_without_values_and_the_process_ends():
    ended, go_on = threading.Event(), threading.Event()
    loop = asyncio.new_event_loop()
    with structlog.testing.capture_logs() as said:
        thread = threading.Thread(
            target=loop.run_until_complete, args=(blocking(go_on, "ann@example.org"),), name="engine"
        )
        thread.start()
        watchdog = Watchdog(loop, timedelta(seconds=0.2), ended.set, last_resort=False)
        watchdog.start()
        assert ended.wait(10)
        go_on.set()
        thread.join()
        watchdog.stop()
    assert said[0]["log_level"] == "critical" and "stands still" in said[0]["event"]
    (engine,) = [stack for stack in said[0]["stacks"] if stack.startswith("engine: ")]
    assert "test_watchdog.py" in engine and "blocking" in engine
    assert "ann@example.org" not in json.dumps(said, default=str)


async def blocking(go_on: threading.Event, secret: str) -> str:
    while not go_on.is_set():
        time.sleep(0.01)
    return secret


def test_the_log_that_blocks_does_not_keep_the_process(monkeypatch):
    """Its reader may be what is stuck."""
    ended = threading.Event()
    monkeypatch.setattr("outtray_worker.watchdog.LAST_WORDS", 0.05)
    watchdog = Watchdog(Loop(), timedelta(seconds=0.1), ended.set, last_resort=False)  # type: ignore[arg-type]
    never = threading.Event()
    monkeypatch.setattr(watchdog, "_report", lambda stacks: never.wait(5))
    watchdog.start()
    eventually(ended.is_set, 5, "it ends all the same")
    never.set()
    watchdog.stop()


LOCKED = """
import asyncio, ctypes, threading
from datetime import timedelta
from outtray_worker.watchdog import Watchdog
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
Watchdog(loop, timedelta(seconds=0.1)).start()
threading.Event().wait(0.5)
ctypes.PyDLL(None).usleep(60_000_000)  # a C call that keeps Python's lock: no thread of ours runs any more
"""


def test_a_c_call_that_keeps_the_global_lock_ends_the_process_as_well():
    ran = subprocess.run([sys.executable, "-c", LOCKED], capture_output=True, text=True, timeout=40, check=False)
    assert ran.returncode == 1 and "Timeout" in ran.stderr


def test_stacks_are_short():
    def deep(left: int) -> list[str]:
        return deep(left - 1) if left else list(stacks_of(sys._current_frames()))

    (own,) = [line for line in deep(100) if "deep" in line]
    assert own.count(" < ") <= 11
