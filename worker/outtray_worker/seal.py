"""Sealing: the journal's entries are linked soon after they are written, and each day's links are sealed.

All of it is conditional on one row that no message's path touches; in any number of dispatchers, one does it. Nothing
waits for it, and it waits for whatever may still commit (docs/journal.md).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import structlog
from psycopg import AsyncConnection

log = structlog.get_logger()

EVERY = 10.0
"""Seconds between two looks. An entry is linked at the third look after it, so within half a minute."""

SPAN = 5000
"""Numbers of entries that one statement links: some 100 ms of PostgreSQL."""

GRACE = timedelta(minutes=10)
"""How long after a day's end it is sealed: an entry has its number that soon after its time."""

# Each locks the one row of `journal_sealing`, or leaves it to the dispatcher that has it.
LOOK = "SELECT outtray.look_at_journal_1()"
LINK = "SELECT outtray.seal_journal_1(%s)"
SEAL = "SELECT outtray.seal_day_1(%s)"


async def seal(connection: AsyncConnection[Any]) -> bool:
    """Link some of what can be linked; then seal the day that has passed, if one has. True: more can be linked at once.

    The connection is in autocommit mode.
    """
    if await _value(connection, LINK, SPAN):
        return True
    day = await _value(connection, SEAL, GRACE)
    if day is not None:
        log.info("journal sealed", day=str(day))
    await connection.execute(LOOK)
    return False


async def _value(connection: AsyncConnection[Any], statement: str, value: Any) -> Any:
    row = await (await connection.execute(statement, [value])).fetchone()
    return row[0] if row is not None else None
