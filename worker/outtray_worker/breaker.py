"""Breakers: a provider host that fails for most mailboxes is asked by one probe at a time, by all workers together.

    closed ── most mailboxes fail within a window ──► open ── a probe is served ──► closed
                                                       │ ▲
                                                       └─┘ a probe fails: the next one after twice the time

Kept by provider app and host: an app whose project is out of quota does not stop the host's others, and a host that
is down does not stop the app's mailboxes elsewhere. While it is open its mailboxes are parked and spend no attempts;
at the provider's end that is one message per interval instead of one per message, each of which would have become
`unknown` where its handover meets the failure. What only one mailbox meets is that mailbox's own: its parks, whose
backoff grows, and a rest once its handovers get no answer several times in a row.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol
from uuid import UUID

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg_pool import PoolTimeout

from outtray_schema.breaking import BREAKER
from outtray_schema.outcome import Drafted, NotBegun, Outcome, Parked, Sent, Unknown
from outtray_schema.settings import Settings
from outtray_worker.backoff import mailbox_backoff
from outtray_worker.breaker_rows import (
    Intervals,
    Key,
    close_breaker,
    free,
    open_breaker,
    read_breakers,
    take_probe,
)
from outtray_worker.deadline import boottime

log = structlog.get_logger()

WINDOW = 30.0
"""Seconds within which mailboxes are counted together. Then the count begins anew."""

LOOK_EVERY = 1.0
"""Seconds until a worker sees what another one opened or closed."""

FREE_AGAIN = (2, 10)
"""So many looks after its closing its mailboxes are freed once more: a turn that ended then has written its rest by
now."""

NO_ANSWERS = "its last handovers got no answer"

_KEYS, _BOXES = 10_000, 50_000
"""Hosts that are watched, and mailboxes whose unanswered handovers are remembered, at once."""


class Box(Protocol):
    """The mailbox of a turn, as far as breakers go by it."""

    @property
    def id(self) -> UUID: ...
    @property
    def host(self) -> str: ...
    @property
    def provider_app(self) -> str | None: ...


def key_of(box: Box) -> Key:
    return box.provider_app or "", box.host


def served(outcome: Outcome) -> bool | None:
    """Whether the provider served this mailbox, be it with a refusal. None: the outcome does not tell.

    What a provider said or did carries evidence; what keeps this worker alone from asking carries none. A refused OAuth
    client has a breaker of its own (`auth/apps.py`).
    """
    match outcome:
        case Sent() | Drafted():
            return True
        case Unknown(evidence=said):
            status = said.get("status")
            return isinstance(status, int) and status < 500
        case NotBegun():
            return None
    if not outcome.evidence or outcome.evidence.get("rule") == "app-refused":
        return None
    return not (isinstance(outcome, Parked) and outcome.scope in ("connection", "app"))


@dataclass(slots=True)
class _Window:
    """Which mailboxes of one key were served last, within one window."""

    until: float
    last: dict[UUID, bool] = field(default_factory=dict)
    failing: int = 0

    def note(self, box: UUID, well: bool) -> None:
        self.failing += (not well) - (not self.last.get(box, True))
        self.last[box] = well

    def most_fail(self, least: int) -> bool:
        """More than half of the mailboxes, and no fewer than so many."""
        return self.failing >= least and self.failing * 2 > len(self.last)


@dataclass(slots=True)
class _Open:
    """An open breaker as this process knows it. `probe_at` is in seconds of the clock."""

    reason: str
    probes: int
    probe_at: float
    probers: set[UUID] = field(default_factory=set)
    """Mailboxes of this process that were let through, and whose outcome is not known yet."""
    written: bool = True


class Breakers:
    """The breakers as one worker process sees them. Belongs to its loop; `connection` gives a pooled one."""

    def __init__(
        self,
        settings: Settings,
        connection: Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]],
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._settings = settings
        self._intervals = Intervals(settings.breaker_probe, settings.breaker_probe_cap)
        self._connection = connection
        self._clock = clock
        self._open: dict[Key, _Open] = {}
        self._windows: dict[Key, _Window] = {}
        self._closed: dict[Key, int] = {}
        """How many looks ago each of these was closed."""
        self._unanswered: OrderedDict[UUID, int] = OrderedDict()
        self._writing = asyncio.Lock()  # a look at the table must not take back what is being written
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """See what other workers open and close, for ever."""
        while True:
            try:
                await self.look()
            except (psycopg.Error, PoolTimeout) as error:
                log.warning("breakers were not read", error=type(error).__name__)
            await asyncio.sleep(LOOK_EVERY)

    async def settle(self) -> None:
        """Return once what was noted so far is written."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    # ── what turns ask ──────────────────────────────────────────────────────────────────────────────────────────

    def holds(self, host: str) -> bool:
        """Whether a breaker of this host is open, for whichever app."""
        return any(key[1] == host for key in self._open)

    async def hold(self, box: Box) -> tuple[timedelta, str] | None:
        """How long this mailbox rests for its host, and why. None: its next message may leave, perhaps as the probe."""
        if not self._open or (held := self._open.get(key_of(box))) is None:
            return None
        if held.written and self._clock() >= held.probe_at and await self._take(box):
            return None
        held = self._open.get(key_of(box))
        return self._rest(key_of(box), held) if held is not None else None

    def _rest(self, key: Key, held: _Open) -> tuple[timedelta, str]:
        # Spread, or all of its mailboxes would come for the one probe at once.
        spread = self._intervals.after(held.probes).total_seconds() / 2 * random.random()  # noqa: S311
        wait = max(0.0, held.probe_at - self._clock()) + spread
        of = f" of the provider app {key[0]}" if key[0] else ""
        return timedelta(seconds=wait), f"{BREAKER}{of} ({key[1]}): {held.reason}"

    def note(self, box: Box, outcome: Outcome) -> timedelta | None:
        """Learn from what became of an attempt. Answers with how long this mailbox itself shall rest now, if at all."""
        well = served(outcome)
        if well is not None:
            self._learn(box, well, outcome)
        return self._own_rest(box.id, isinstance(outcome, Unknown), well)

    def _learn(self, box: Box, well: bool, outcome: Outcome) -> None:
        key = key_of(box)
        held = self._open.get(key)
        if held is None:
            if self._seen(key, box.id, well):
                self._begin(self._open_it(key, outcome))
        elif box.id in held.probers:
            held.probers.discard(box.id)
            if well:
                self._begin(self._close_it(key))

    def _seen(self, key: Key, box: UUID, well: bool) -> bool:
        """Whether most of the key's mailboxes fail, this one among them."""
        window = self._windows.get(key)
        if window is None or self._clock() >= window.until:
            if len(self._windows) >= _KEYS:
                self._windows.clear()
            window = self._windows[key] = _Window(self._clock() + WINDOW)
        window.note(box, well)
        return not well and window.most_fail(self._settings.breaker_mailboxes)

    def _own_rest(self, box: UUID, unknown: bool, well: bool | None) -> timedelta | None:
        if not unknown:
            if well:
                self._unanswered.pop(box, None)
            return None
        times = self._unanswered[box] = self._unanswered.pop(box, 0) + 1
        if len(self._unanswered) > _BOXES:
            self._unanswered.popitem(last=False)
        over = times - self._settings.breaker_unanswered
        return mailbox_backoff(self._settings, over, None) if over >= 0 else None

    # ── what workers share ──────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open_it(self, key: Key, outcome: Outcome) -> None:
        """At once here, then for all."""
        reason, after = str(getattr(outcome, "reason", "")), getattr(outcome, "after", None)
        if key in self._open:
            return
        first = self._clock() + self._intervals.base.total_seconds()
        held = self._open[key] = _Open(reason, 0, first, written=False)
        try:
            async with self._writing, self._connection() as connection:
                ours = await open_breaker(connection, key, reason, after, self._intervals)
                held.written = True
                await self._read(connection)
        except (psycopg.Error, PoolTimeout) as error:  # forgotten at the next look; what fails next tries again
            log.warning("a breaker was not written", host=key[1], error=type(error).__name__)
            held.written = True
        else:
            if ours:
                log.warning("a breaker opens: most mailboxes fail", provider_app=key[0], host=key[1], reason=reason)

    async def _close_it(self, key: Key) -> None:
        try:
            async with self._writing, self._connection() as connection:
                if await close_breaker(connection, key):
                    log.warning("a breaker closes: its probe was served", provider_app=key[0], host=key[1])
                await self._read(connection)
        except (psycopg.Error, PoolTimeout) as error:  # the next probe closes it
            log.warning("a breaker was not closed", host=key[1], error=type(error).__name__)

    async def _take(self, box: Box) -> bool:
        """Whether this mailbox may go on: as the probe of this interval, or since it was closed meanwhile."""
        key = key_of(box)
        try:
            async with self._writing, self._connection() as connection:
                if (held := self._open.get(key)) is None or self._clock() < held.probe_at:
                    return held is None
                taken = await take_probe(connection, key, self._intervals)
                await self._read(connection)
        except (psycopg.Error, PoolTimeout):
            return False
        held = self._open.get(key)
        if taken and held is not None:
            held.probers.add(box.id)
            log.info("a breaker is probed", provider_app=key[0], host=key[1], mailbox_id=str(box.id))
        return taken

    async def look(self) -> None:
        """Take over what the table says; the mailboxes of what was closed go on."""
        async with self._writing, self._connection() as connection:
            await self._read(connection)
            for key in list(self._closed):
                self._closed[key] += 1
                if self._closed[key] in FREE_AGAIN:
                    await free(connection, key)
                if self._closed[key] >= max(FREE_AGAIN):
                    del self._closed[key]

    async def _read(self, connection: AsyncConnection[Any]) -> None:
        found = await read_breakers(connection)
        gone = [key for key, held in self._open.items() if held.written and key not in found]
        for key, row in found.items():
            self._closed.pop(key, None)
            known = self._open.get(key)
            probe_at = self._clock() + row.wait.total_seconds()
            self._open[key] = _Open(row.reason, row.probes, probe_at, known.probers if known else set())
        for key in gone:
            del self._open[key]
            self._windows.pop(key, None)
            self._closed[key] = 0
            await free(connection, key)  # every worker frees: it may have parked one before it saw the closing
