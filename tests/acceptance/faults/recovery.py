"""How long it takes until mail flows from every mailbox again: after Redis lost everything, after every worker died.

Mailboxes with a pace have mail for minutes, so that the load goes on for as long as is watched; and before Redis is
flushed some others get one mail each, whose wake is lost with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
import redis

from acceptance.faults.matrix import ROUTES
from acceptance.faults.town import Box, Town
from outtray import Message
from outtray.wakes import redis_url
from polling import eventually

PER_MINUTE, LETTERS = 60, 150
"""Mails that a mailbox under load may send in a minute, and how many it has: for longer than is watched."""
EACH = 2
"""Mailboxes of each kind and route."""
FLUSHED_WITHIN = 60.0
"""Seconds within which everything flows again after a flush, on any scale of times."""
START = 15.0
"""Seconds that all workers together may take to begin, on a busy machine of two cores. Not counted by the promise."""
PATIENCE = 30.0
"""How much longer is waited, so that a late recovery is measured and not only missed."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds from a trouble's end until each mailbox's next mail was taken, and within how many it should have been.

    `twice`: mails that were taken more than once.
    """

    after: str
    seconds: float
    bound: float
    twice: int

    @property
    def violations(self) -> list[str]:
        found = []
        if self.seconds > self.bound:
            found.append(f"{self.after}: flowing again after {self.seconds:.1f} s, not {self.bound:g}")
        if self.twice:
            found.append(f"{self.after}: {self.twice} mails taken twice")
        return found

    def __str__(self) -> str:
        return (
            f"{self.after}: every mailbox's next mail was taken within {self.seconds:.1f} s (bound: {self.bound:g} s)"
        )


def after_a_flush(town: Town) -> Recovery:
    """FLUSHALL under load, and right behind an enqueue whose wakes are lost by it."""
    busy, idle = _boxes(town, PER_MINUTE), _boxes(town, None)
    to = _enqueue(town, busy, LETTERS)
    _under_load(town, busy)
    with redis.Redis.from_url(redis_url(town.settings), socket_timeout=5) as client:
        to += _enqueue(town, idle, 1)
        client.flushall()
        flushed = time.monotonic()
        client.flushall()
    return _measured(town, "redis flushed", busy + idle, flushed, FLUSHED_WITHIN, to)


def after_killing_all_workers(town: Town) -> Recovery:
    """kill -9 for all workers at once; their supervisor starts others. Back within a lease and a sweep."""
    busy = _boxes(town, PER_MINUTE)
    to = _enqueue(town, busy, LETTERS)
    _under_load(town, busy)
    for member in town.of_role("worker"):
        town.kill(member.pid)
    killed = time.monotonic()
    return _measured(town, "all workers killed", busy, killed, town.times.lease + town.times.sweep + START, to)


def _boxes(town: Town, per_minute: int | None) -> list[Box]:
    return [town.add_box(route, per_minute=per_minute) for route in ROUTES for _ in range(EACH)]


def _enqueue(town: Town, boxes: Sequence[Box], each: int) -> list[str]:
    """That many mails for each of these mailboxes, in one transaction; returns their recipients."""
    to = {box: [f"r{n}.{box.address.partition('@')[0]}@example.net" for n in range(each)] for box in boxes}
    with psycopg.connect(str(town.settings.database_url)) as connection, town.client.transaction(connection):
        for box, recipients in to.items():
            for each_one in recipients:
                message = Message(mailbox=box.id, to=each_one, subject="s", text="t")
                town.client.enqueue(message, connection=connection)
    return [recipient for recipients in to.values() for recipient in recipients]


def _under_load(town: Town, boxes: Sequence[Box]) -> None:
    begun = time.monotonic()
    eventually(lambda: not _silent(town, boxes, begun), PATIENCE * 2, "mail leaves from every mailbox")


def _silent(town: Town, boxes: Sequence[Box], since: float) -> set[str]:
    """Addresses of which no mail was taken since then."""
    return {box.address for box in boxes} - {each.user for each in town.accepted() if each.monotonic > since}


def _measured(town: Town, after: str, boxes: Sequence[Box], since: float, bound: float, to: Sequence[str]) -> Recovery:
    eventually(lambda: not _silent(town, boxes, since), bound + PATIENCE, f"{after}: every mailbox's mail flows again")
    firsts: dict[str, float] = {}
    for each in town.accepted():
        if each.monotonic > since:
            firsts.setdefault(each.user, each.monotonic - since)
    taken = town.taken()
    twice = sum(taken[recipient] > 1 for recipient in to)
    return Recovery(after, max(firsts[box.address] for box in boxes), bound, twice)
