"""The spool: where outcomes survive while PostgreSQL is away (protocol, rule 7).

One file per process, one JSON line per outcome, flushed to the disk before it is trusted. It holds ids, codes and
redacted reply texts: no address, subject, body or token. A file is replayed by whichever process finds its owner gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import IO, Any
from uuid import UUID, uuid4

import structlog

from outtray_worker.items import MailboxMove, Record, Refusal

log = structlog.get_logger()


class Spool:
    """This process's spool file; it exists only while something is kept in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / f"{os.getpid()}-{uuid4().hex[:8]}.jsonl"
        self._file: IO[bytes] | None = None
        self._kept: dict[str, Record | Refusal] = {}

    def keep(self, item: Record | Refusal) -> bool:
        """Write one outcome durably. False: the disk would not take it, and memory is all that holds it now."""
        try:
            file = self._opened()
            file.write(encode(item))
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            log.error("the spool cannot be written", folder=str(self.folder), error=error.strerror)
            return False
        self._kept[_key(item)] = item
        return True

    def forget(self, item: Record | Refusal) -> None:
        """PostgreSQL has it now. The file goes once nothing is kept any more."""
        self._kept.pop(_key(item), None)
        if not self._kept and self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def close(self) -> None:
        """This process ends: whatever is still kept is an orphan from now on."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def orphans(self) -> Iterator[tuple[Path, list[Record | Refusal]]]:
        """Files of processes that are gone, with what they kept. Each is locked while it is yielded."""
        for path in sorted(self.folder.glob("*.jsonl")):
            if path == self._path:
                continue
            with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield path, [item for item in map(decode, file) if item is not None]

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
            self._file = os.fdopen(descriptor, "ab")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            folder = os.open(self.folder, os.O_RDONLY)
            os.fsync(folder)  # the name of a new file is durable only once its folder is
            os.close(folder)
        return self._file


def _key(item: Record | Refusal) -> str:
    number = item.handover if isinstance(item, Record) else -item.version
    return f"{item.message_id}:{number}"


def encode(item: Record | Refusal) -> bytes:
    """One line: a checksum, a blank, the JSON. A line cut short by a crash fails its checksum and is left out."""
    text = json.dumps({"is": type(item).__name__, **_plain(asdict(item))}, separators=(",", ":")).encode()
    return hashlib.sha256(text).hexdigest()[:16].encode() + b" " + text + b"\n"


def decode(line: bytes) -> Record | Refusal | None:
    """The outcome of a line, or None where the line is damaged (said in the log, never guessed)."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if hashlib.sha256(text).hexdigest()[:16].encode() != checksum:
        log.error("a damaged line in the spool was left out", length=len(line))
        return None
    values = json.loads(text)
    kind = Record if values.pop("is") == "Record" else Refusal
    if values["move"] is not None:
        values["move"] = MailboxMove(**_typed(values["move"]))
    return kind(**_typed(values))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, dict):
        return _plain(value)
    if isinstance(value, UUID):
        return str(value)
    return value.total_seconds() if isinstance(value, timedelta) else value


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    for name in ("message_id", "mailbox_id"):
        if name in values:
            values[name] = UUID(values[name])
    for name in ("again", "park"):
        if values.get(name) is not None:
            values[name] = timedelta(seconds=values[name])
    return values
