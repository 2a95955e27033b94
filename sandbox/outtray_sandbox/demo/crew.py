"""The demo's processes: workers and a dispatcher, started, killed and ended by their real commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

COMMAND = (sys.executable, "-m", "outtray.cli.main")
"""What `outtray` runs, in this environment whatever the shell's path says."""

END_WITHIN = 15.0
COMMAND_WITHIN = 5.0
"""Seconds for a process to end by SIGTERM, and for a command's last words."""


class EndedByItself(Exception):
    """A process of the demo is gone that nobody ended. Its log says why."""


@dataclass(frozen=True, slots=True)
class Member:
    """One process, as people call it: `worker 2`."""

    role: str
    number: int
    process: subprocess.Popen[bytes]
    log: Path

    def __str__(self) -> str:
        return self.role if self.role == "dispatcher" else f"{self.role} {self.number}"

    @property
    def id(self) -> str:
        """How it names itself in `outtray.process` and `mailbox.turn_worker`."""
        return f"{os.uname().nodename}:{self.process.pid}"


@dataclass(frozen=True, slots=True)
class Command:
    """A command under way. What it prints is a few lines, which the pipe holds."""

    process: subprocess.Popen[bytes]

    @property
    def is_over(self) -> bool:
        return self.process.poll() is not None

    def result(self) -> tuple[int, str]:
        """Its exit status and what it printed, once it is over."""
        said, _ = self.process.communicate(timeout=COMMAND_WITHIN)
        return self.process.returncode, said.decode("utf-8", "replace").strip()


class Crew:
    """The processes that are alive. `close` ends all of them."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self._environment = _inherited() | dict(environment)
        self._folder = folder
        self._started: Counter[str] = Counter()
        self._commands: list[Command] = []
        self.members: list[Member] = []

    def start(self, role: str) -> Member:
        """Start `outtray worker` or `outtray dispatcher`."""
        self._started[role] += 1
        number = self._started[role]
        path = self._folder / f"{role}-{number}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and words of our own
                [*COMMAND, role],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        member = Member(role, number, process, path)
        self.members.append(member)
        return member

    def kill(self, member: Member) -> None:
        """`kill -9`: no cleanup, no goodbye."""
        member.process.kill()
        member.process.wait()
        self.members.remove(member)

    def named(self, process_id: str | None) -> Member | None:
        """The member that names itself so, if it is one that is alive."""
        return next((member for member in self.members if member.id == process_id), None)

    def check(self) -> None:
        """Raise `EndedByItself` if a process is gone that nobody ended."""
        for member in self.members:
            if (status := member.process.poll()) is not None:
                raise EndedByItself(
                    f"{member} ended by itself with status {status}; its last lines:\n{_tail(member.log)}"
                )

    def end(self) -> dict[str, int]:
        """SIGTERM to all, and how each ended: its exit status by name. One that does not end in time is killed (-9)."""
        for member in self.members:
            member.process.send_signal(signal.SIGTERM)
        ended = {str(member): _ended(member) for member in self.members}
        self.members = []
        return ended

    def begin(self, *arguments: str) -> Command:
        """Begin `outtray` with these arguments."""
        environment = self._environment | {"COLUMNS": "200", "NO_COLOR": "1"}
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and words of our own
            [*COMMAND, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        command = Command(process)
        self._commands.append(command)
        return command

    def close(self) -> None:
        """End whatever is still there."""
        self.end()
        for command in self._commands:
            command.process.kill()
            command.process.communicate()


def _ended(member: Member) -> int:
    try:
        return member.process.wait(END_WITHIN)
    except subprocess.TimeoutExpired:
        member.process.kill()
        return member.process.wait()


def _inherited() -> dict[str, str]:
    """What our children need of our environment: none of the settings of a real installation."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OUTTRAY_")}


def _tail(log: Path, size: int = 1500) -> str:
    return log.read_bytes()[-size:].decode("utf-8", "replace").strip()
