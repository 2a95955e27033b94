"""Named points of a message's way at which a fault test lets something happen to this process. Off, they cost a call.

`OUTTRAY_CRASH_AT` names a point, and the process kills itself there as `kill -9` would: no cleanup, no flush, no
goodbye. Or it names a folder (it has a slash): then faults are aimed at single messages and mailboxes, see `Aims`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import UUID

POINTS = (
    "enqueuing", "enqueued",
    "woken", "picked", "published",
    "claiming", "claimed", "due read",
    "preparing", "token asked", "token answered", "token saved", "draft made", "uploaded", "prepared",
    "gate submitted", "gate committed", "gated", "last look", "first byte", "answered", "handed over",
    "record submitted", "record committed", "end submitted", "end committed",
    "looking", "looked", "look written",
)  # fmt: skip
"""In their order. Each begins a step that lasts until the next one that its message or mailbox reaches. The two of
`enqueue` are reached by the tests' own client."""

CrashPoint = Callable[..., None]
"""Called with a point and the ids of the messages or mailboxes that reach it; without ids it is about those that this
task, or the one that began it, named last."""

SOCKET = "referee"
PATIENCE = 60.0
"""Seconds that a process waits for the referee's word before it goes on."""

_about: ContextVar[tuple[UUID, ...]] = ContextVar("_about", default=())


@lru_cache(maxsize=8)
def crash_points(wanted: str | None) -> CrashPoint:
    """What a process calls at each point: one function for all of its parts."""
    if wanted is None:
        return _nothing
    if "/" in wanted:
        return Aims(Path(wanted)).reach

    def reach(point: str, *_: UUID) -> None:
        if point == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return reach


def _nothing(point: str, *_: UUID) -> None:
    return None


class Aims:
    """A file named `file_of(point, id)` in the folder is an aim; whoever reaches it takes it away, and reports.

    The report is one line of JSON to the Unix socket `referee` in the same folder, written before anything happens:
    pid, point and id. Then all of the process waits for an answer: meanwhile it is killed or stopped, or the request
    that follows is made to fail.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reach(self, point: str, *ids: UUID) -> None:
        if ids:
            _about.set(ids)
        for each in ids or _about.get():
            if self._is_aimed_at(point, each):
                self._report(point, each)

    def _is_aimed_at(self, point: str, each: UUID) -> bool:
        try:
            (self._folder / file_of(point, each)).unlink()
        except OSError:
            return False
        return True

    def _report(self, point: str, each: UUID) -> None:
        said = {"pid": os.getpid(), "point": point, "id": str(each)}
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as referee:
            referee.settimeout(PATIENCE)
            referee.connect(str(self._folder / SOCKET))
            referee.sendall(json.dumps(said).encode() + b"\n")
            referee.recv(1)


def file_of(point: str, each: UUID) -> str:
    """The name of an aim's file."""
    return f"{point.replace(' ', '-')}~{each}"


_WORDS = {"Gate": "gate", "Record": "record", "Refusal": "record", "MailboxMove": "end"}


def group_points(wanted: str | None) -> Callable[[Iterable[Any], str], None] | None:
    """For a group commit: told of its items and whether they are `submitted` or `committed`. None: nobody asks."""
    if wanted is None:
        return None
    crash_point = crash_points(wanted)

    def reach(items: Iterable[Any], how: str) -> None:
        for item in items:
            crash_point(f"{_WORDS[type(item).__name__]} {how}", getattr(item, "message_id", None) or item.mailbox_id)

    return reach
