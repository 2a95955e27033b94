"""Pace: token buckets in Redis, and what stands in for them while Redis is away.

In any span of time a bucket lets at most `burst` + span x `per_minute` handovers begin. The worst that a loss in Redis
does is to slow: a missing bucket is rebuilt from what was handed over in the last minute, or begins empty.

While Redis is away, `fallback.py` paces by the ledger alone: slower, never over, and mail still leaves.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path

import redis.asyncio
import structlog
from redis.exceptions import RedisError

from outtray_schema.settings import Settings
from outtray_worker.quotas.buckets import MINUTE, Grant, Want, bucket_key
from outtray_worker.quotas.fallback import Fallback, Recent

log = structlog.get_logger()

__all__ = ["Grant", "Pace", "Want", "bucket_key"]

LEAVE_ALONE = 5.0
"""Seconds for which Redis is not asked again after it failed."""

MICROSECONDS = 1_000_000

GIVE_BACK = """
local stored = redis.pcall('GET', KEYS[1])
local tat = type(stored) == 'string' and tonumber(stored)
if tat then redis.call('SET', KEYS[1], string.format('%.0f', tat - ARGV[1]), 'KEEPTTL') end
"""


def microseconds_per_unit(per_minute: int) -> int:
    """Whole microseconds, rounded up: what is lost by that only slows."""
    return math.ceil(MINUTE * MICROSECONDS / per_minute)


@cache
def _script() -> str:
    return (Path(__file__).parent / "gcra.lua").read_text()


class Pace:
    """The buckets, as one process sees them. `clock` is in seconds and only ever rises."""

    def __init__(
        self, client: redis.asyncio.Redis, settings: Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._take = client.register_script(_script())
        self._give_back = client.register_script(GIVE_BACK)
        self._timeout = settings.redis_timeout.total_seconds()
        self._clock = clock
        self._away_until = -math.inf
        self._working = True
        self._recent = Recent(clock)
        self._fallback = Fallback(clock, self._recent)
        self._rebuilt: set[str] = set()

    @property
    def away(self) -> bool:
        """Redis failed a moment ago and is left alone."""
        return self._clock() < self._away_until

    async def take(self, wants: Sequence[Want]) -> list[Grant]:
        """Take from all these buckets in one call; one grant for each want, in their order. Never raises."""
        if not wants:
            return []
        grants = None if self.away else await self._ask(wants)
        if grants is None:
            grants = [self._fallback.grant(want) for want in wants]
        for want, grant in zip(wants, grants, strict=True):
            self._recent.add(want.key, grant.tokens * want.cost)
        return grants

    async def give_back(self, key: str, tokens: int, cost: int = 1) -> None:
        """Return tokens that moved nothing, each of `cost` units. Where that fails they are lost, which only slows."""
        self._recent.add(key, -tokens * cost)
        if self.away:
            return
        interval = microseconds_per_unit(int(key.rsplit(":", 2)[1])) * cost
        try:
            async with asyncio.timeout(self._timeout):
                await self._give_back(keys=[key], args=[tokens * interval])
        except (RedisError, OSError) as error:
            self._leave_alone(error)

    async def _ask(self, wants: Sequence[Want]) -> list[Grant] | None:
        if self._away_until + MINUTE <= self._clock():
            self._rebuilt.clear()
            self._fallback.forget()
        arguments = [number for want in wants for number in self._arguments(want)]
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._take(keys=[want.key for want in wants], args=arguments)
        except (RedisError, OSError) as error:
            self._leave_alone(error)
            return None
        if not self._working:
            self._working = True
            log.info("pace by Redis again")
        pairs = zip(answer[::2], answer[1::2], strict=True)
        return [Grant(int(tokens), timedelta(microseconds=int(wait))) for tokens, wait in pairs]

    def _arguments(self, want: Want) -> tuple[int, int, int, int, int]:
        # For a minute after Redis was away, its keys know nothing of what was granted without it.
        distrust = self._clock() < self._away_until + MINUTE and want.key not in self._rebuilt
        if distrust:
            self._rebuilt.add(want.key)
        used = want.burst if want.used_units is None else want.used_units + self._recent.unseen(want)
        unit = microseconds_per_unit(want.per_minute)
        return unit * want.cost, unit * want.burst, want.tokens, unit * used, int(distrust)

    def _leave_alone(self, error: Exception) -> None:
        self._away_until = self._clock() + LEAVE_ALONE
        self._rebuilt.clear()
        if self._working:
            self._working = False
            log.warning("pace without Redis: slower, by the ledger alone", error=type(error).__name__)
