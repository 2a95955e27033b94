"""The watchdog: a worker whose event loop stands still takes itself out of service, and its supervisor starts another.

A blocked loop renews no lease, so its mailboxes go on elsewhere after one; but it would hold its place, its memory and
Celery's rounds for ever. The watchdog is a thread: once a tick it asks the loop for a sign. Time counts only while the
watchdog itself is awake, at most two ticks at a time: a machine that was suspended, or a process that was stopped and
continued, wakes up to a loop that simply has not had its turn yet. Should even this thread not run, because a C call
keeps Python's global lock, `faulthandler` ends the process from outside Python, much later.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType

import structlog

from outtray_worker.deadline import boottime

log = structlog.get_logger()

EXIT = 70
"""EX_SOFTWARE of sysexits.h; not 0, so that every supervisor starts the worker again."""

LAST_WORDS = 5.0
"""Seconds that the log gets: what blocks the loop may be the log's own pipe."""

FRAMES = 12
"""Of each thread's stack, from the innermost outwards."""

_TICK = 1.0
_LOCKED_OUT = 20
"""Times the limit, after which a process whose threads all stand still is ended without Python's help."""


def end_process() -> None:
    """Without cleaning up: whoever is stuck cannot, and what was under way is found through leases and deadlines."""
    os._exit(EXIT)


class Watchdog:
    """Watches one loop from a thread of its own, between `start()` and `stop()`; one for a process."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limit: timedelta,
        give_up: Callable[[], None] = end_process,
        last_resort: bool = True,
    ) -> None:
        """`last_resort`: let `faulthandler`, which is the whole process's, end it should no thread run any more."""
        self._loop = loop
        self._limit = limit.total_seconds()
        self._tick = min(_TICK, self._limit / 10)
        self._give_up = give_up
        self._last_resort = last_resort
        self._signs = self._asked = 0
        self._late = 0.0
        self._last = boottime()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Watch from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stop.set()
        self._thread.join()

    def is_stuck(self, now: float) -> bool:
        """One tick at this second of the clock: whether the loop has given no sign for too long. Asks it for the next.

        Raises `RuntimeError` if the loop is closed.
        """
        if self._signs >= self._asked:
            self._late = 0.0
            self._asked += 1
            self._loop.call_soon_threadsafe(self._sign)
        else:
            self._late += min(now - self._last, 2 * self._tick)
        self._last = now
        return self._late > self._limit

    def _sign(self) -> None:
        self._signs += 1

    def _watch(self) -> None:
        try:
            while not self._stop.wait(self._tick):
                if self._last_resort:
                    faulthandler.dump_traceback_later(self._limit * _LOCKED_OUT, exit=True)
                if self.is_stuck(boottime()):
                    self._report_and_end()
        except RuntimeError:  # the loop is closed: there is nothing to watch
            pass
        finally:
            if self._last_resort:
                faulthandler.cancel_dump_traceback_later()

    def _report_and_end(self) -> None:
        stacks = list(stacks_of(sys._current_frames()))
        words = threading.Thread(target=self._report, args=(stacks,), daemon=True)
        words.start()
        words.join(LAST_WORDS)
        self._stop.set()
        self._give_up()

    def _report(self, stacks: list[str]) -> None:
        log.critical("the process ends: its event loop stands still", seconds=round(self._late), stacks=stacks)


def stacks_of(frames: dict[int, FrameType]) -> Iterator[str]:
    """Each thread in a line: files, lines and functions from the innermost outwards, and never a value."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in frames.items():
        yield f"{names.get(ident, ident)}: {' < '.join(_places(frame))}"


def _places(frame: FrameType | None) -> Iterator[str]:
    for _ in range(FRAMES):
        if frame is None:
            return
        yield f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
