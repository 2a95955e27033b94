"""Learning from a refusal: the limit of a mailbox falls to what its ledger shows, in the transaction that parks it.

The mailbox's row is locked already, and each statement has a later snapshot than the outcome's: the message that was
refused counts no more. It happens at most once per refusal by the provider, so three statements are cheap enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from outtray_schema import ledger
from outtray_schema.learned import teach

# Reads what was learned before, and when something was last sent; locks nothing, the rows are locked.
KNOWN = """
SELECT m.id, m.learned, outtray.outtray_now() AS now, (
    SELECT s.counted_at FROM outtray.message s
    WHERE s.mailbox_id = m.id AND s.counted_at IS NOT NULL AND s.state = 'sent'
    ORDER BY s.counted_at DESC LIMIT 1) AS sent_at
FROM outtray.mailbox m WHERE m.id = ANY(%(ids)s)
"""

# Writes the rows that are locked, and their journal.
LEARN = """
WITH learned AS (
    UPDATE outtray.mailbox m SET learned = l.learned
    FROM unnest(%(ids)s::uuid[], %(learned)s::jsonb[]) AS l (id, learned) WHERE m.id = l.id
    RETURNING m.id, m.learned)
INSERT INTO outtray.journal (at, mailbox_id, kind, detail)
SELECT outtray.outtray_now(), id, 'learned', learned FROM learned
"""


async def learn(connection: AsyncConnection[Any], lessons: Mapping[UUID, Mapping[str, int | None]]) -> None:
    """Lower the limits of these mailboxes. Call it in the transaction that locked them and wrote the refusals."""
    ids = list(lessons)
    async with connection.cursor(row_factory=dict_row) as cursor:
        known = await (await cursor.execute(KNOWN, {"ids": ids})).fetchall()
        rows = await (await cursor.execute(ledger.USED, {"ids": ids, "unique": [False] * len(ids)})).fetchall()
        used = {row["id"]: row for row in rows}
        taught = [_taught(row, lessons[row["id"]], used[row["id"]]) for row in known]
        await cursor.execute(LEARN, {"ids": [row["id"] for row in known], "learned": taught})


def _taught(row: Mapping[str, Any], limits: Mapping[str, int | None], used: Mapping[str, int]) -> Jsonb:
    before = row["learned"]
    last = max((datetime.fromisoformat(entry["at"]) for entry in before.values()), default=None)
    sent = row["sent_at"] is not None and (last is None or row["sent_at"] > last)
    return Jsonb(teach(before, limits, {measure: int(used[measure]) for measure in limits}, row["now"], sent))
