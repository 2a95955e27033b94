"""Partial delivery: what becomes of the recipients whom a server refused while it took the others.

    note      before the gate: whom this handover leaves out, and whether for now or for good
    settle    once the message has ended (`settle.py`): each recipient's result, and a message for those refused for now

What was noted belongs to a handover's number, so that the answer may come by any way (the turn, the spool, a look for
evidence, a person's decision): the message that is sent says which notes hold. Only messages of `recipients="accepted"`
pay for any of it, and the gate and the record know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from outtray_worker.providers import RefusedRecipient
from outtray_worker.record import Attempt

# Replaces what an earlier preparation of the same handover noted. Locks mailbox and message against a newer turn: one
# whose fence is lost writes nothing, and passes no gate either.
NOTE = """
WITH live AS (
    SELECT m.id FROM outtray.mailbox b JOIN outtray.message m ON m.mailbox_id = b.id
    WHERE b.id = %(mailbox)s AND b.turn_fence = %(fence)s
      AND m.id = %(id)s AND m.state = 'queued' AND m.handover = %(handover)s - 1
    FOR SHARE OF b, m),
gone AS (
    DELETE FROM outtray.refused_recipient r USING live
    WHERE r.message_id = live.id AND r.handover = %(handover)s AND r.n <> ALL(%(n)s::smallint[]))
INSERT INTO outtray.refused_recipient (message_id, handover, n, again, reason)
SELECT live.id, %(handover)s, r.n, r.again, r.reason
FROM live, unnest(%(n)s::smallint[], %(again)s::bool[], %(reason)s::text[]) AS r (n, again, reason)
ON CONFLICT (message_id, handover, n) DO UPDATE SET again = excluded.again, reason = excluded.reason
"""


async def note(
    pool: AsyncConnectionPool[AsyncConnection[Any]], attempt: Attempt, refused: Sequence[RefusedRecipient]
) -> None:
    """Write whom the next handover of this message leaves out, none included. Raises what psycopg raises."""
    row = {
        "mailbox": attempt.mailbox.id,
        "fence": attempt.mailbox.fence,
        "id": attempt.message.id,
        "handover": attempt.message.handover + 1,
        "n": [each.n for each in refused],
        "again": [each.again for each in refused],
        "reason": [each.reason for each in refused],
    }
    async with pool.connection() as connection:
        await connection.execute(NOTE, row)
