"""Waiting without sleeping: a condition, a deadline, and a clear failure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any], within: float = 10.0) -> Any:
    """Await a condition's truth on the running loop."""
    async with asyncio.timeout(within):
        while not (value := condition()):
            await asyncio.sleep(0.01)
        return value


def eventually(condition: Callable[[], Any], within: float = 10.0, what: str = "") -> Any:
    """Poll a condition until it is true; fail with its name once the deadline has passed."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within} s: {what or condition}"
        time.sleep(0.02)
    return value
