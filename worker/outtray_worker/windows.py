"""Times in a turn: may this mailbox send now, may this message leave now, and until when may a handover begin?

The answers cost no statement: windows come with the claim and with the due messages. The time is the database's clock
as the claim read it, and what has passed since on a clock that runs on while the machine sleeps. How long the claim's
answer took is not known, so that an opening is judged by the latest moment at which the clock can have been read, and
a closing by the earliest: nothing begins too early, and nothing too late.

Only the gap asks once a turn when the mailbox last began a handover: a worker that died told nobody.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import structlog
from psycopg_pool import AsyncConnectionPool

from outtray_schema.times import ALWAYS, Gap, Times, open_for_both, read_times
from outtray_schema.windows import Window, next_open
from outtray_worker.claim import ClaimedMailbox, DueMessage
from outtray_worker.deadline import Deadline, boottime
from outtray_worker.quotas.tokens import PATIENCE

log = structlog.get_logger()

CLOSED = "window"
"""The reason of a mailbox that is parked until its window opens, and of a message whose own was closed."""

PACED = "pace"
"""A gap is a pace: it parks as one, and tells nobody of each mail."""

UNREADABLE = "times that this version does not know"
LOOK_AGAIN = timedelta(hours=1)
NEVER = timedelta(days=1)
"""How long a message waits whose window and its mailbox's never open together: the mailbox's may be changed."""

# When a mailbox last began handovers that count, those that only `usage` still shows among them; locks nothing. What
# counts ends no earlier than it began, so that the ledger's index finds it.
LAST = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now)
(SELECT m.id, m.handover, m.handed_at FROM outtray.message m, t
 WHERE m.mailbox_id = %(id)s AND m.counted_at > t.now - %(most)s ORDER BY m.handed_at DESC LIMIT 1)
UNION ALL
(SELECT coalesce(u.message_id, %(id)s), coalesce(u.handover, 0), u.counted_at FROM outtray.usage u, t
 WHERE u.mailbox_id = %(id)s AND u.counted_at > t.now - %(most)s ORDER BY u.counted_at DESC LIMIT 1)
"""


class TurnTimes:
    """What one turn keeps to. A mailbox and messages without windows and gaps cost next to nothing."""

    def __init__(self, pool: AsyncConnectionPool[Any], box: ClaimedMailbox) -> None:
        self._pool = pool
        self._box = box
        self._read_at = boottime()
        times = _readable(box.times, mailbox_id=str(box.id))
        self._unreadable = times is None
        self._window = (times or ALWAYS).window
        self._gap = (times or ALWAYS).gap
        self._open: tuple[datetime, datetime] | None = None
        self._free_at: float | None = None

    async def rest(self, turn_until: Deadline) -> tuple[timedelta, str] | None:
        """How long the mailbox rests now, and why. `None`: it may send. Waits out what is left of a short gap."""
        if self._unreadable:
            return LOOK_AGAIN, UNREADABLE
        if self._window is not None and (wait := self._until_open(self._window)):
            return wait, CLOSED
        if self._gap is not None and (wait := await self._rest_of(self._gap, turn_until)):
            return wait, PACED
        return None

    def wait_of(self, message: DueMessage) -> timedelta | None:
        """How long this message waits for its own window, to be open together with its mailbox's; `None`: no more."""
        if message.times is None:
            return None
        own = _readable(message.times, message_id=str(message.id))
        if own is None:
            return LOOK_AGAIN
        found = open_for_both(own.window, self._window, self._now())
        return NEVER if found is None else found[0] - self._now() if found[0] > self._now() else None

    def begin_by(self, deadline: Deadline, message: DueMessage) -> Deadline:
        """The deadline, or the closing of a window if that comes first."""
        if self._window is None and message.times is None:
            return deadline
        own = _readable(message.times) or ALWAYS
        found = open_for_both(own.window, self._window, self._now())
        if found is None:
            return Deadline(self._box.asked_at)
        if found[1] is None:
            return deadline
        return deadline.earlier(Deadline(self._box.asked_at + (found[1] - self._box.now).total_seconds()))

    def began(self, message: DueMessage) -> None:
        """A handover of this message begins: the gap runs from here."""
        if self._gap is not None and not message.only_draft:
            self._free_at = boottime() + self._gap.after(message.id, message.handover + 1).total_seconds()

    def _now(self) -> datetime:
        """The database's clock, as late as it can have been read: never ahead of it."""
        return self._box.now + timedelta(seconds=boottime() - self._read_at)

    def _until_open(self, window: Window) -> timedelta | None:
        now = self._now()
        if self._open is None or self._open[1] <= now:
            self._open = next_open(window, now)
        if self._open is None:
            return NEVER
        return self._open[0] - now if self._open[0] > now else None

    async def _rest_of(self, gap: Gap, turn_until: Deadline) -> timedelta | None:
        if self._free_at is None:
            self._free_at = await self._read_gap(gap)
        wait = timedelta(seconds=max(0.0, self._free_at - boottime()))
        if not wait or (wait <= PATIENCE and wait.total_seconds() < turn_until.left()):
            await asyncio.sleep(wait.total_seconds())
            return None
        return wait

    async def _read_gap(self, gap: Gap) -> float:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(LAST, {"id": self._box.id, "most": gap.most})
            frees = [at + gap.after(message, handover) for message, handover, at in await cursor.fetchall()]
        now = self._now()
        return boottime() + max(((free - now).total_seconds() for free in frees), default=0.0)


def _readable(stored: Any, **about: str) -> Times | None:
    """What was stored; `None` where this version cannot read it: then nothing is guessed, and it waits."""
    try:
        return read_times(stored)
    except ValueError as error:
        log.error("what waits has times that cannot be read", problem=str(error), **about)
        return None
