"""Which process is the server of this folder? A pid file alone cannot say: pids are used again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from outtray_schema.errors import SettingsError


def server_of(folder: Path, pid_file: Path) -> psutil.Process | None:
    """The living process that the pid file names, if it works in `folder`; `None` for a stale file or a zombie."""
    with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
        process = psutil.Process(int(pid_file.read_text().split()[0]))
        if _works_in(process, folder):
            return process
    return None


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).samefile(folder)
    except (OSError, psutil.Error):
        return False


def working_in(folder: Path) -> list[psutil.Process]:
    """Every living process whose working directory is this folder."""
    return [process for process in psutil.process_iter() if _works_in(process, folder)]


def wait_gone(processes: list[psutil.Process], within: float) -> bool:
    """Whether all of them have ended within so many seconds; a zombie that nobody reaps has ended."""
    deadline = time.monotonic() + within
    while any(_lives(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL, and wait until they are gone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if not wait_gone(processes, 10):
        raise SettingsError(f"these server processes cannot be ended: {[process.pid for process in processes]}")


def write_private(path: Path, text: str, owner: tuple[int, int] | None = None) -> None:
    """Write a file of mode 0600 as a whole or not at all; `owner` is a (uid, gid) to give it to."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    with _private(new) as descriptor:
        os.write(descriptor, text.encode())
        if owner:
            os.fchown(descriptor, *owner)
    new.replace(path)


@contextlib.contextmanager
def _private(path: Path) -> Iterator[int]:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def tail(log: Path, lines: int = 5) -> str:
    """The log's last lines, for an error's text."""
    try:
        last = log.read_text(errors="replace").strip().splitlines()[-lines:]
    except OSError:
        return "(there is no log)"
    return "\n".join(last)


def keep_short(log: Path, limit: int = 10 * 1024 * 1024) -> None:
    """Begin a new log once the old one is long; one old one is kept."""
    if log.exists() and log.stat().st_size > limit:
        log.replace(log.with_name(log.name + ".old"))
