"""A fleet of real processes for one test: dispatchers and workers started by the command line, killed and started anew.

Everything is judged from outside: by the sandbox server's own ledger and by the rows in PostgreSQL.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outtray_schema.settings import Settings
from polling import eventually

COMMAND = Path(sys.executable).parent / "outtray"


def environment(settings: Settings, **scaled: str) -> dict[str, str]:
    """The environment of a process with these settings; `scaled` names time constants that the test shortens."""
    assert settings.database_url and settings.redis_url
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("OUTTRAY_")},
        "OUTTRAY_DATABASE_URL": settings.database_url,
        "OUTTRAY_REDIS_URL": settings.redis_url,
        "OUTTRAY_KEY_FILE": str(settings.key_file),
        "OUTTRAY_DATA_FOLDER": str(settings.data_folder),
        **{f"OUTTRAY_{name.upper()}": value for name, value in scaled.items()},
    }


@dataclass
class Member:
    """One process of the fleet."""

    role: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def name_in_table(self) -> str:
        """How the process names itself in `mailbox.turn_worker`."""
        return f"{os.uname().nodename}:{self.process.pid}"


@dataclass
class Fleet(AbstractContextManager["Fleet"]):
    """Processes by role, each restarted by hand. Leaving the context ends all of them and prints their logs' ends."""

    env: Mapping[str, str]
    folder: Path
    members: list[Member] = field(default_factory=list)
    started: Counter[str] = field(default_factory=Counter)
    _stack: ExitStack = field(default_factory=ExitStack)

    def start(self, role: str, count: int = 1) -> list[Member]:
        begun = []
        for _ in range(count):
            self.started[role] += 1
            log = self.folder / f"{role}-{self.started[role]}.log"
            output = self._stack.enter_context(log.open("wb"))
            process = subprocess.Popen(
                [str(COMMAND), role],
                env=dict(self.env),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            begun.append(Member(role, process, log))
        self.members += begun
        return begun

    def adopt(self, role: str, process: subprocess.Popen[bytes], log: Path) -> None:
        """Take in a process that was started otherwise, so that it ends with the fleet."""
        self.members.append(Member(role, process, log))

    def kill(self, member: Member, number: int = signal.SIGKILL) -> None:
        """Kill and forget; with another signal than SIGKILL the process may still be running when this returns."""
        member.process.send_signal(number)
        if number == signal.SIGKILL:
            member.process.wait()
        self.members.remove(member)

    def stop(self, member: Member, within: float = 30.0) -> int:
        """SIGTERM, and the exit status."""
        member.process.send_signal(signal.SIGTERM)
        status = member.process.wait(within)
        self.members.remove(member)
        return status

    def assert_alive(self) -> None:
        """Nobody ended by itself."""
        for member in self.members:
            assert member.process.poll() is None, f"{member.role} ended by itself:\n{_tail(member.log)}"

    def wait_alive(self, database: Any, within: float = 60.0) -> None:
        """Until every member has beaten once."""

        def beaten() -> bool:
            self.assert_alive()
            rows = database.execute("SELECT id FROM outtray.process").fetchall()
            return {member.name_in_table for member in self.members} <= {row[0] for row in rows}

        eventually(beaten, within, "every process has said that it is alive")

    def __exit__(self, *_: Any) -> None:
        for member in self.members:
            member.process.send_signal(signal.SIGTERM)
        for member in self.members:
            try:
                member.process.wait(20)
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()
        self._stack.close()
        for log in sorted(self.folder.glob("*.log")):
            print(f"── {log.name}\n{_tail(log)}")


def _tail(log: Path, size: int = 1500) -> str:
    return log.read_bytes()[-size:].decode("utf-8", "replace")
