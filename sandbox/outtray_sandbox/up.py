"""`outtray up`: every process of the Procfile on this machine, in one terminal, until Ctrl-C.

One Ctrl-C ends all cleanly: handovers under way finish and are recorded. A second one ends all at once, and names the
messages that were in a handover. A process that dies is said to have died, and started again after a growing pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from outtray_schema.database import connect_options, conninfo
from outtray_schema.settings import Settings

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
"""Seconds before a process that died is started again: the first, doubled each time, up to the longest."""

STEADY_AFTER = 60.0
"""Seconds that a process must have lived for its next death to count as its first."""

REMINDER = 10.0
"""Seconds between two lines that say who has not ended yet."""

_PR_SET_PDEATHSIG = 1

# Reads messages that were in a handover of these worker processes; locks nothing.
IN_HANDOVER = """
SELECT m.id, m.handover_until AS until FROM outtray.message m JOIN outtray.mailbox b ON b.id = m.mailbox_id
WHERE m.state = 'handing_over' AND b.turn_worker = ANY(%(workers)s) ORDER BY m.id
"""


@dataclass(frozen=True, slots=True)
class Member:
    """One process to be kept running: its name on the screen, and the command of ours that it runs."""

    name: str
    arguments: tuple[str, ...]

    @property
    def role(self) -> str:
        return self.arguments[0]


@dataclass(frozen=True, slots=True)
class OpenHandover:
    """A message that was with a provider when its worker was ended. It is `unknown` from `until` on."""

    id: UUID
    until: datetime


@dataclass(frozen=True, slots=True)
class Line:
    """Something to show: a line that a process wrote, or, with an `event`, what happened to it."""

    member: Member | None
    text: str
    event: str = ""


def members(workers: int, flower_port: int | None) -> list[Member]:
    """Every process of the Procfile, as many workers as asked for."""
    found = [Member(f"worker.{number}", ("worker",)) for number in range(1, workers + 1)]
    found.append(Member("dispatcher", ("dispatcher",)))
    if flower_port is not None:
        found.append(Member("flower", ("flower", "--port", str(flower_port))))
    return found


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port(wanted: int, tries: int = 10) -> int | None:
    """The wanted port of loopback, or the next free one; `None` if so many in a row are taken."""
    for port in range(wanted, min(wanted + tries, 65536)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    return None


def environment(settings: Settings, base: Mapping[str, str]) -> dict[str, str]:
    """What the processes are started with: this process's environment, and the services as they were found."""
    found = {**base, "OUTTRAY_DATABASE_URL": str(settings.database_url), "OUTTRAY_REDIS_URL": str(settings.redis_url)}
    found["OUTTRAY_DATA_FOLDER"] = str(settings.data_folder)
    if settings.key_file is not None:
        found["OUTTRAY_KEY_FILE"] = str(settings.key_file)
    # A pipe would hold lines back until a block is full; a dying process would take them along.
    found["PYTHONUNBUFFERED"] = "1"
    return found


@dataclass
class Up:
    """The processes of one `outtray up`. `show` is called for every line; `run` returns the exit code."""

    members: Sequence[Member]
    environment: Mapping[str, str]
    show: Callable[[Line], None]
    running: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    worker_names: list[str] = field(default_factory=list)
    asked: int = 0
    """How often it was asked to end."""

    async def run(self) -> bool:
        """Keep all running until `stop`. True: all ended cleanly; False: they were ended at once."""
        self._stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        slow = asyncio.create_task(self._name_the_slow())
        async with asyncio.TaskGroup() as group:
            for member in self.members:
                group.create_task(self._keep_running(member))
        slow.cancel()
        return self.asked < 2

    def stop(self) -> None:
        """Asked once: end all cleanly. Asked again: end all at once."""
        self.asked += 1
        if self.asked == 1:
            self.show(
                Line(None, "Ending: handovers under way finish and are recorded. Ctrl-C again ends at once.", "ending")
            )
        elif self.asked == 2:
            self.show(Line(None, "Ending at once.", "killing"))
        self._stopping.set()
        for process in self.running.values():
            self._signal(process)

    def _signal(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM if self.asked == 1 else signal.SIGKILL)

    async def _keep_running(self, member: Member) -> None:
        deaths = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._run_once(member)
            if self._stopping.is_set():
                self.show(Line(member, ending(code), "ended"))
                return
            deaths = 1 if time.monotonic() - began >= STEADY_AFTER else deaths + 1
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (deaths - 1))
            self.show(Line(member, f"{ending(code)} unasked; starting it again in {pause:g} s", "died"))
            await self._rest(pause)

    async def _run_once(self, member: Member) -> int:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "outtray.cli.main", *member.arguments),
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # The terminal's Ctrl-C goes to us alone; what they are told is ours to say.
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self.running[member.name] = process
        if member.role == "worker":
            self.worker_names.append(f"{socket.gethostname()}:{process.pid}")
        if self.asked:
            self._signal(process)
        self.show(Line(member, f"started, process {process.pid}", "started"))
        async for text in _lines(process.stdout):
            self.show(Line(member, text))
        code = await process.wait()
        del self.running[member.name]
        return code

    async def _name_the_slow(self) -> None:
        """A server may take ten minutes to answer: while we wait, say for whom."""
        await self._stopping.wait()
        while True:
            await asyncio.sleep(REMINDER)
            self.show(Line(None, f"Still ending: {', '.join(sorted(self.running))}", "waiting"))

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


def open_handovers(settings: Settings, worker_names: Sequence[str]) -> list[OpenHandover]:
    """The messages that ended workers had with a provider. Raises psycopg's errors."""
    with (
        psycopg.connect(conninfo(settings), **connect_options(settings, "up")) as connection,
        connection.cursor(row_factory=class_row(OpenHandover)) as cursor,
    ):
        return cursor.execute(IN_HANDOVER, {"workers": list(worker_names)}).fetchall()


def die_with_parent() -> None:
    """Runs in the new process: should we be killed, the kernel asks it to end (Linux; elsewhere it lives on)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended, exit {code}"
    return f"ended by {signal.Signals(-code).name}"


async def _lines(stream: asyncio.StreamReader | None) -> AsyncIterator[str]:
    """The lines of a process, of any length; a last one without its end too."""
    rest = b""
    while stream is not None and (piece := await stream.read(65536)):
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", "replace")
