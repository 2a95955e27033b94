"""Publishing wakes: the hint in Redis, after the commit, that a mailbox has mail due. Losing one only delays.

Redis is never waited for longer than `redis_timeout`, and after a failure not asked again for five seconds: an enqueue
that is committed has succeeded, and the dispatcher's sweep finds what no wake told of.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from itertools import islice

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from outtray.plan import Wakes
from outtray_schema import wakes as hints
from outtray_schema.errors import SettingsError
from outtray_schema.settings import Settings

log = logging.getLogger("outtray.wakes")

QUIET = 5.0
"""Seconds without another try after Redis did not answer."""
CHUNK = 1000
"""Mailboxes in one ZADD."""


def redis_url(settings: Settings) -> str:
    """The URL as redis-py reads it: kombu's `redis+socket://` form of a Unix socket is accepted too."""
    if settings.redis_url is None:
        raise SettingsError(
            "OUTTRAY_REDIS_URL is not set. Example: OUTTRAY_REDIS_URL=redis://cache:6379/0 (docs/settings.md)"
        )
    if not settings.redis_url.startswith("redis+socket://"):
        return settings.redis_url
    return "unix://" + settings.redis_url.removeprefix("redis+socket://").replace("virtual_host=", "db=")


class Circuit:
    """Whether to ask Redis at all: not for `QUIET` seconds after a failure, and one warning for each such pause."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._closed_until = float("-inf")

    @property
    def lets_pass(self) -> bool:
        return self._clock() >= self._closed_until

    def failed(self, error: Exception, mailboxes: int) -> None:
        self._closed_until = self._clock() + QUIET
        # The error's class only: its text may quote the server's address with credentials in it.
        log.warning(
            "Redis did not take the wakes of %d mailboxes (%s); the sweep finds their mail. Not asked again for %d s",
            mailboxes,
            type(error).__name__,
            QUIET,
        )


def _chunks(due: Wakes) -> Iterator[dict[str, float]]:
    pairs = iter(hints.zadd_arguments(due).items())
    while chunk := dict(islice(pairs, CHUNK)):
        yield chunk


class WakePublisher:
    """Publishes wakes, blocking for at most `redis_timeout`. Safe to share between threads and over a fork."""

    def __init__(self, settings: Settings, circuit: Circuit | None = None) -> None:
        self._circuit = circuit or Circuit()
        seconds = settings.redis_timeout.total_seconds()
        self._redis = redis.Redis.from_url(
            redis_url(settings),
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),
        )

    def publish(self, due: Wakes) -> None:
        """Tell of these mailboxes; an earlier time that is already known wins. Never raises for Redis's sake."""
        if not due or not self._circuit.lets_pass:
            return
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for chunk in _chunks(due):
                    pipeline.zadd(hints.KEY, chunk, lt=True)
                pipeline.execute()
        except (RedisError, OSError) as error:
            self._circuit.failed(error, len(due))

    def close(self) -> None:
        self._redis.close()


class AsyncWakePublisher:
    """`WakePublisher`, awaiting; belongs to one event loop."""

    def __init__(self, settings: Settings, circuit: Circuit | None = None) -> None:
        self._circuit = circuit or Circuit()
        seconds = settings.redis_timeout.total_seconds()
        self._redis = redis.asyncio.Redis.from_url(
            redis_url(settings),
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=AsyncRetry(NoBackoff(), 0),
        )

    async def publish(self, due: Wakes) -> None:
        """Tell of these mailboxes; an earlier time that is already known wins. Never raises for Redis's sake."""
        if not due or not self._circuit.lets_pass:
            return
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for chunk in _chunks(due):
                    pipeline.zadd(hints.KEY, chunk, lt=True)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            self._circuit.failed(error, len(due))

    async def close(self) -> None:
        await self._redis.aclose()
