"""The spool: where outcomes survive while PostgreSQL is away (protocol, rule 7; docs/spool.md).

One file per process, one line per outcome, flushed to the disk before it is trusted. A file is replayed by whichever
process finds its owner gone. What is damaged is set aside under a name of its own: nothing is ever dropped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import structlog

from outtray_worker.items import Record, Refusal
from outtray_worker.spool_entry import Damaged, Kept, encode, read_lines

log = structlog.get_logger()

SUFFIX = ".spool"
BEFORE = ".jsonl"
"""Files of releases whose lines had no length; they leave ours alone, and we read theirs."""

ASIDE = ".damaged"


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """What a file holds. `owned`: a living process writes it."""

    path: Path
    owned: bool
    kept: Sequence[Kept]
    damaged: Sequence[Damaged]


class Spool:
    """This process's spool file; it exists only while something is kept in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / f"{os.getpid()}-{uuid4().hex[:8]}{SUFFIX}"
        self._file: int | None = None
        self._whole = 0
        self._failing = False
        self._kept: dict[str, Record | Refusal] = {}

    def keep(self, item: Record | Refusal) -> bool:
        """Write one outcome durably. False: the disk would not take it, and memory is all that holds it now."""
        try:
            self._append(encode(item))
        except OSError as error:
            self._say_failing(error)
            return False
        self._kept[_key(item)] = item
        if self._failing:
            self._failing = False
            log.info("the spool takes outcomes again", folder=str(self.folder))
        return True

    def forget(self, item: Record | Refusal) -> None:
        """PostgreSQL has it now. The file goes once nothing is kept any more."""
        self._kept.pop(_key(item), None)
        if not self._kept and self._file is not None:
            self._path.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """This process ends: whatever is still kept is an orphan from now on."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._whole)
            os.close(self._file)
            self._file = None

    def orphans(self) -> Iterator[SpoolFile]:
        """Files of processes that are gone, with what they kept. Each is locked while it is yielded."""
        for path in spool_files(self.folder):
            if path == self._path:
                continue
            with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is(path, file.fileno()):  # else another process has just replayed it
                    yield SpoolFile(path, False, *read_lines(file))

    def _append(self, line: bytes) -> None:
        file = self._opened()
        try:
            _write_all(file, line)
            os.fsync(file)
        except OSError:
            # Half a line would spoil the next one. Where it cannot be cut off either, the next one cuts it off.
            with contextlib.suppress(OSError):
                os.ftruncate(file, self._whole)
            raise
        self._whole += len(line)

    def _opened(self) -> int:
        """The file, locked, ending where its last whole line ends."""
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = _locked(self._path)
            self._whole = os.fstat(self._file).st_size  # what was kept before a `close` stays
            _sync_folder(self.folder)
        os.ftruncate(self._file, self._whole)
        return self._file

    def _say_failing(self, error: OSError) -> None:
        if not self._failing:
            self._failing = True
            log.error("the spool cannot be written; outcomes wait in memory alone", folder=str(self.folder),
                      error=error.strerror)  # fmt: skip


def spool_files(folder: Path) -> list[Path]:
    """Files with outcomes, oldest name first; none if there is no such folder."""
    return sorted([*folder.glob(f"*{SUFFIX}"), *folder.glob(f"*{BEFORE}")])


def look_into(folder: Path) -> list[SpoolFile]:
    """Everything that lies in the folder, what was set aside included. Changes nothing, and waits for nobody."""
    found = []
    for path in [*spool_files(folder), *sorted(folder.glob(f"*{ASIDE}"))]:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            found.append(SpoolFile(path, _is_owned(file.fileno()), *read_lines(file)))
    return found


def set_aside(path: Path, damaged: Sequence[Damaged]) -> Path:
    """Keep what is damaged under a name of its own, durably. Doing it twice is doing it once. Raises `OSError`."""
    aside, new = path.with_suffix(ASIDE), path.with_suffix(".new")
    descriptor = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        _write_all(descriptor, b"".join(each.line.rstrip(b"\n") + b"\n" for each in damaged))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.replace(aside)
    _sync_folder(path.parent)
    return aside


def _locked(path: Path) -> int:
    """A file of this name that is ours: who looks for orphans may lock a new one first, and take it away."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is(path, descriptor):
            return descriptor
        os.close(descriptor)


def _is(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _is_owned(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _write_all(descriptor: int, data: bytes) -> None:
    """Write all of it; a disk that fills up takes a part first."""
    while data:
        data = data[os.write(descriptor, data) :]


def _sync_folder(folder: Path) -> None:
    """The name of a new file is durable only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _key(item: Record | Refusal) -> str:
    number = item.handover if isinstance(item, Record) else -item.version
    return f"{item.message_id}:{number}"
