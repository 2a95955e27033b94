"""Abandon: give up a mail that no gate let pass, with its draft only where nobody else can have it (protocol, rule 6).

A draft that no gate bound is found by our key, and adopted, by the turn that follows a dead one. A worker that stood
still until its lease was over has become that dead one: what it would delete by then may be the other's draft, or at
Graph, where a draft keeps its id when it is sent, the very copy of the mail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg_pool import PoolTimeout

from outtray_worker.items import Stopped
from outtray_worker.providers import Draft, Prepared
from outtray_worker.record import Attempt

if TYPE_CHECKING:
    from outtray_worker.process import Process

log = structlog.get_logger()

# Whether the draft is this turn's alone: it is not the one that is bound, and our turn goes on, or another one is bound
# (no second one ever will be), or the message has ended (nobody prepares it again). Locks nothing.
IS_OURS = """
SELECT m.draft->>'id' IS DISTINCT FROM %(draft)s AND (
    m.draft IS NOT NULL OR m.ended_at IS NOT NULL
    OR b.turn_fence = %(fence)s AND coalesce(b.turn_until > outtray.outtray_now(), false))
FROM outtray.message m JOIN outtray.mailbox b ON b.id = m.mailbox_id WHERE m.id = %(id)s
"""


async def abandon(process: Process, attempt: Attempt, prepared: Prepared, stopped: Stopped) -> None:
    """Give the mail up; leave a draft that may be another turn's. What is left is found by our key."""
    draft = prepared.draft if attempt.message.draft is None else None
    # Where the turn goes on, the gate's own statement has just seen the fence on the locked row.
    if draft is None or not stopped.turn_over or await _is_ours(process, attempt, draft):
        await prepared.abandon()


async def _is_ours(process: Process, attempt: Attempt, draft: Draft) -> bool:
    try:
        async with process.pool.connection() as connection:
            return await is_ours(connection, attempt, draft)
    except (psycopg.Error, PoolTimeout) as error:
        log.warning("a draft was left", message_id=str(attempt.message.id), error=type(error).__name__)
        return False


async def is_ours(connection: AsyncConnection[Any], attempt: Attempt, draft: Draft) -> bool:
    """Whether nobody else has this draft of the attempt's message, nor ever will."""
    row = {"id": attempt.message.id, "fence": attempt.mailbox.fence, "draft": draft.id}
    found = await (await connection.execute(IS_OURS, row)).fetchone()
    return found is None or bool(found[0])
