"""A program that has imported everything and bears processes by `fork`: a worker is up in a third of a second of CPU.

Each child is what `outtray worker` or `outtray dispatcher` runs, in a session of its own; the hundreds that a fault run
kills would else spend most of its time importing. `Nursery` is the test's end of it: `bear`, and `died` for the dead.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import IO, Any

TESTS = Path(__file__).parents[2]


@dataclass
class Nursery:
    """Start with `open()`. `died` is called, each time in its own thread, with a child's pid and exit status."""

    env: Mapping[str, str]
    died: Callable[[int, int], None]
    _program: subprocess.Popen[str] | None = None
    _born: queue.Queue[int] = field(default_factory=queue.Queue)
    _alone: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> None:
        self._program = subprocess.Popen(
            [sys.executable, "-m", "acceptance.faults.nursery"],
            env={**self.env, "PYTHONPATH": os.pathsep.join((str(TESTS), self.env.get("PYTHONPATH", "")))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=[self._program.stdout], name="nursery", daemon=True).start()

    def _listen(self, said: IO[str]) -> None:
        for line in said:
            word, pid, status = line.split()
            if word == "born":
                self._born.put(int(pid))
            else:  # in a thread of its own: it may wait for a lock that whoever waits for a birth holds
                threading.Thread(target=self.died, args=[int(pid), int(status)], daemon=True).start()

    def bear(self, role: str, log: Path, *arguments: str) -> int:
        """A new process of this role; returns its pid."""
        assert self._program and self._program.stdin
        with self._alone:
            wanted = {"role": role, "log": str(log), "arguments": arguments}
            self._program.stdin.write(json.dumps(wanted) + "\n")
            self._program.stdin.flush()
            return self._born.get(timeout=60)

    def close(self) -> None:
        """End the nursery itself. Its children are the caller's to end first."""
        if self._program and self._program.stdin:
            self._program.stdin.close()
            self._program.wait(20)


# ── the program ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _roles() -> dict[str, Callable[..., None]]:
    from acceptance.faults.crm import run_crm
    from outtray_schema.settings import load_settings
    from outtray_worker.serve import run_dispatcher, run_worker

    return {
        "worker": lambda: run_worker(load_settings()),
        "worker-elsewhen": lambda hours: (move_wall_clock(float(hours)), run_worker(load_settings())),
        "dispatcher": lambda: run_dispatcher(load_settings()),
        "crm": lambda *arguments: run_crm(load_settings(), *arguments),
    }


def move_wall_clock(hours: float) -> None:
    """Let this process believe that it is so much later: `time.time`, and `datetime.now` in all modules of ours.

    Not by libfaketime, which would move the monotonic clocks too, and which a fresh machine has not (Debian 13 has it
    as a package of its own, 2026-11).
    """
    shift, real = timedelta(hours=hours), time.time

    class Elsewhen(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + shift

    time.time = lambda: real() + shift.total_seconds()
    for name, module in list(sys.modules.items()):
        if name.startswith("outtray") and getattr(module, "datetime", None) is datetime:
            module.datetime = Elsewhen  # type: ignore[attr-defined]


def _import_the_rest() -> None:
    """What the processes import when they run."""
    for name in ("apps.worker", "concurrency.thread", "loaders.app", "worker.components", "worker.consumer"):
        importlib.import_module(f"celery.{name}")
    importlib.import_module("kombu.transport.redis")

    from outtray_worker.providers.gmail.scopes import scopes_of

    scopes_of()


def _child(role: Callable[..., None], wanted: dict[str, Any]) -> None:
    """Never returns."""
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for number, descriptor in ((0, null), (1, log), (2, log)):
            os.dup2(descriptor, number)
        sys.argv = ["outtray", wanted["role"]]
        sys.stdin = open(os.devnull)  # noqa: SIM115 - it is the process's for good
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        role(*wanted["arguments"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def main() -> None:
    roles = _roles()
    _import_the_rest()
    assert threading.active_count() == 1, "a fork copies one thread alone"
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    buffer, children = b"", set[int]()
    while True:
        readable, _, _ = select.select([0, heard], [], [])
        if heard in readable:
            os.read(heard, 4096)
            _reap(children)
        if 0 in readable:
            came = os.read(0, 65536)
            if not came:  # the run has ended, perhaps by being killed: nobody stays behind
                for pid in children:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return
            *lines, buffer = (buffer + came).split(b"\n")
            for line in lines:
                wanted = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _child(roles[wanted["role"]], wanted)
                children.add(pid)
                _say(f"born {pid} 0")


def _reap(children: set[int]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        children.discard(pid)
        _say(f"died {pid} {os.waitstatus_to_exitcode(status)}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
