"""Messages that may have killed a worker are prepared one at a time, so that only the guilty one is counted twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta


class Quarantine:
    """At most one suspect is prepared at a time in a process, for as long as a crash would show."""

    def __init__(self, longest: timedelta) -> None:
        self._longest = longest.total_seconds()
        self._free = asyncio.Semaphore(1)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Hold the quarantine while the body runs, but no longer than the setting: a slow server is no crash."""
        await self._free.acquire()
        timer = asyncio.get_running_loop().call_later(self._longest, self._free.release)
        try:
            yield
        finally:
            if asyncio.get_running_loop().time() < timer.when():
                timer.cancel()
                self._free.release()
