"""Answers of providers that no row of their tables knows, counted for the operator in `outtray.unknown_signal`.

They are counted in memory (`providers.web.signals.Signals`) and written now and then, so that a provider that answers
nothing but strange things costs one statement a minute, and a database that is away loses nothing.
"""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from outtray_worker.providers.web.signals import Signals

# Adds to the row of each signal; locks those rows only.
COUNT = """
INSERT INTO outtray.unknown_signal AS known (provider, signal, times) VALUES (%s, %s, %s)
ON CONFLICT (provider, signal) DO UPDATE SET times = known.times + excluded.times, last_at = outtray.outtray_now()
"""


async def write_signals(connection: AsyncConnection[Any], signals: Signals) -> int:
    """Write what was counted since the last call; how many different ones. What fails to be written stays counted."""
    counts = signals.take()
    if not counts:
        return 0
    try:
        async with connection.transaction(), connection.cursor() as cursor:
            # In order: two processes that write the same rows must not wait for each other in a ring.
            await cursor.executemany(COUNT, [(*key, counts[key]) for key in sorted(counts)])
    except BaseException:
        signals.give_back(counts)
        raise
    return len(counts)
