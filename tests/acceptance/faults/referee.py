"""The referee: aims faults at steps, hears when one is reached, and lets the fault fall while the process waits."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from outtray_worker.crash import SOCKET, file_of

LONGEST = 4.0
"""How many times as long as it should a process is stopped at most, on a machine that is slow to do what is awaited."""

AWAKE = 1.5
"""Seconds in which a process that goes on has done whatever it was about to do."""

Strike = Callable[["Reached"], None]


@dataclass(frozen=True, slots=True)
class Reached:
    """A process has reached a step at which something was aimed, and waits."""

    pid: int
    point: str
    id: UUID


@dataclass
class Referee:
    """`folder` is what `OUTTRAY_CRASH_AT` names. Every report stands in `folder/fell.jsonl` before its fault falls."""

    folder: Path
    _strikes: dict[tuple[str, UUID], list[Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _asleep: list[int] = field(default_factory=list)
    _woken_at: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self.folder / SOCKET))
        self._socket.listen(64)
        self._log = (self.folder / "fell.jsonl").open("a", buffering=1)
        threading.Thread(target=self._serve, name="referee", daemon=True).start()

    # ── aims ────────────────────────────────────────────────────────────────────────────────────────────────────

    def aim(self, point: str, each: UUID, strike: Strike, nth: int = 1) -> None:
        """Let `strike` fall when this message or mailbox reaches the point for the n-th time."""
        with self._lock:
            self._strikes[point, each] = [strike, nth]
        self._set(point, each)

    def _set(self, point: str, each: UUID) -> None:
        (self.folder / file_of(point, each)).touch()

    def forget(self, point: str, each: UUID) -> None:
        with self._lock:
            self._strikes.pop((point, each), None)
        (self.folder / file_of(point, each)).unlink(missing_ok=True)

    def close(self) -> None:
        self._over.set()
        self._socket.close()
        self._log.close()

    # ── reports ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        while not self._over.is_set():
            try:
                caller, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._hear, args=[caller], daemon=True).start()

    def _hear(self, caller: socket.socket) -> None:
        with caller:
            said = json.loads(caller.makefile("rb").readline())
            reached = Reached(said["pid"], said["point"], UUID(said["id"]))
            strike = self._strike_for(reached)
            if strike is not None:
                self._log.write(json.dumps({**said, "at": time.time()}) + "\n")
                strike(reached)
            try:
                caller.sendall(b".")
            except OSError:
                return  # it is dead

    def _strike_for(self, reached: Reached) -> Strike | None:
        with self._lock:
            aim = self._strikes.get((reached.point, reached.id))
            if aim is None:
                return None
            aim[1] -= 1
            if aim[1] <= 0:
                del self._strikes[reached.point, reached.id]
                return aim[0]
        self._set(reached.point, reached.id)
        return None

    # ── what befalls a process ──────────────────────────────────────────────────────────────────────────────────

    def stop(self, pid: int, seconds: float, until: Callable[[], bool] | None = None) -> None:
        """SIGSTOP now, SIGCONT after so many seconds, and once `until` holds (or has not for long)."""
        os.kill(pid, signal.SIGSTOP)
        self._asleep.append(pid)
        threading.Thread(target=self._thaw, args=[pid, seconds, until], daemon=True).start()

    def _thaw(self, pid: int, seconds: float, until: Callable[[], bool] | None) -> None:
        self._over.wait(seconds)
        last = time.monotonic() + LONGEST * seconds
        while until is not None and not until() and time.monotonic() < last and not self._over.is_set():
            time.sleep(0.1)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        self._woken_at = time.monotonic()
        self._asleep.remove(pid)

    @property
    def sleepers(self) -> bool:
        """Whether a process is stopped, or went on just now: what it does yet belongs to the verdict."""
        return bool(self._asleep) or time.monotonic() - self._woken_at < AWAKE
