"""The pace tokens of one turn: taken for the whole turn ahead, topped up as it goes, returned when unused."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

from outtray_worker.deadline import Deadline
from outtray_worker.quotas.pace import Grant, Pace, Want

PATIENCE = timedelta(seconds=2)
"""A turn waits this long for its next token; a longer wait is left to a later turn."""


class Tokens:
    """What this turn may hand over by pace. A mailbox without a pace has no wants and always may."""

    def __init__(self, pace: Pace, wants: list[Want], granted: int) -> None:
        self._pace = pace
        self._wants = wants
        self._left = granted
        self._returning: set[asyncio.Task[None]] = set()

    async def take(self, turn_until: Deadline) -> timedelta | None:
        """Take one token. None: it was taken; otherwise how long the mailbox has to rest."""
        if not self._wants:
            return None
        while not self._left:
            granted, wait = await take_together(self._pace, [[replace(want, tokens=1) for want in self._wants]])
            self._left = granted[0]
            if not self._left:
                if wait[0] > PATIENCE or wait[0].total_seconds() >= turn_until.left():
                    return wait[0]
                await asyncio.sleep(wait[0].total_seconds())
        self._left -= 1
        return None

    def give_back(self) -> None:
        """The token that was last taken moved nothing."""
        self._left += 1

    def return_unused(self) -> None:
        """Give what is left to the buckets; losing it only slows, so nobody waits for it."""
        left, self._left = self._left, 0
        if left and self._wants:
            task = asyncio.ensure_future(self._return(left))
            self._returning.add(task)
            task.add_done_callback(self._returning.discard)

    async def _return(self, tokens: int) -> None:
        for want in self._wants:
            await self._pace.give_back(want.key, tokens, want.cost)


async def take_together(pace: Pace, mailboxes: list[list[Want]]) -> tuple[list[int], list[timedelta]]:
    """Take for many mailboxes in one call. Each needs a token from all of its buckets; what one refuses goes back."""
    flat = [want for wants in mailboxes for want in wants]
    grants = iter(await pace.take(flat) if flat else [])
    granted, waits = [], []
    for wants in mailboxes:
        mine: list[Grant] = [next(grants) for _ in wants]
        least = min((grant.tokens for grant in mine), default=0)
        for want, grant in zip(wants, mine, strict=True):
            if grant.tokens > least:
                await pace.give_back(want.key, grant.tokens - least, want.cost)
        granted.append(least)
        waits.append(max((grant.wait for grant in mine if grant.tokens == least), default=timedelta(0)))
    return granted, waits
