"""Dropping old days of the journal: entries and their links go together, and only once they are sealed.

The seals stay for ever, a row a day. A seal whose entries are gone can no longer be counted up, so it is marked in the
same transaction; that the next one continues it can still be seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Any

import structlog
from psycopg import AsyncConnection, sql

log = structlog.get_logger()

# The newest seal; locks nothing. Seals are only ever added.
SEALED = "SELECT s.day, s.to_id FROM outtray.journal_seal s ORDER BY s.day DESC LIMIT 1"

# Marks the seals that hold entries between two numbers; locks them.
MARK = """
UPDATE outtray.journal_seal s SET dropped_at = outtray.outtray_now()
WHERE s.dropped_at IS NULL AND s.after_id < %(highest)s AND s.to_id >= %(lowest)s
"""

# What lies in no day's partition, as the first days do. Locks the rows that it deletes.
DELETE_ENTRIES = """
WITH gone AS (DELETE FROM outtray.journal_default j WHERE j.at < %(before)s AND j.id <= %(to)s RETURNING j.id)
SELECT min(id), max(id) FROM gone
"""
# Links may lie elsewhere than their entries: a partition is not made ahead for a day that has rows already.
DELETE_LINKS = """
DELETE FROM outtray.journal_link l WHERE l.at < %(before)s AND l.id <= %(to)s
  AND NOT EXISTS (SELECT FROM outtray.journal j WHERE j.id = l.id)
"""


async def drop_sealed(connection: AsyncConnection[Any], days: Iterable[date], before: date) -> int:
    """Drop those of the days that are older than `before` and sealed; says in the log which ones are not yet."""
    seal = await (await connection.execute(SEALED)).fetchone()
    last, to = seal if seal is not None else (date.min, -1)
    dropped = 0
    for day in sorted(day for day in days if day < before):
        dropped += await _drop(connection, day, last, to)
    async with connection.transaction():
        values = {"before": f"{before} 00:00:00+00", "to": to}
        await _mark(connection, await (await connection.execute(DELETE_ENTRIES, values)).fetchone())
        await connection.execute(DELETE_LINKS, values)
    return dropped


async def _drop(connection: AsyncConnection[Any], day: date, last: date, to: int) -> bool:
    entries, links = (sql.Identifier("outtray", f"{table}_{day:%Y%m%d}") for table in ("journal", "journal_link"))
    async with connection.transaction():
        numbers = sql.SQL("SELECT min(id), max(id) FROM {}").format(entries)
        span = await (await connection.execute(numbers)).fetchone()
        if day > last or (span is not None and span[1] is not None and span[1] > to):
            log.warning("a day of the journal is kept: it is not sealed yet", day=str(day))
            return False
        await _mark(connection, span)
        await connection.execute(sql.SQL("DROP TABLE {}").format(entries))
        await connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(links))
    return True


async def _mark(connection: AsyncConnection[Any], span: Any) -> None:
    if span is not None and span[0] is not None:
        await connection.execute(MARK, {"lowest": span[0], "highest": span[1]})
