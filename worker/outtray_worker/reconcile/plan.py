"""Plan: what wants looks gets the time of its first one. A condition on the row finds it, whoever brought it there."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from outtray_worker.reconcile.schedule import Schedules

CHUNK = 500
"""Messages that one statement plans."""

# As the index message_unlooked has it, word for word: an unknown handover, or one that was taken and yet is doubted,
# that no looks are planned about; or an ended message whose draft may lie in somebody's mailbox.
_UNLOOKED = """
    ((m.state = 'unknown' OR m.state = 'sent' AND m.evidence ? 'look_again')
        AND m.look_handover IS DISTINCT FROM m.handover
     OR m.state IN ('cancelled', 'expired', 'failed') AND (m.draft IS NOT NULL OR m.prepares > 0)
        AND m.draft_end IS NULL AND m.look_handover IS DISTINCT FROM -1)"""

# Locks the messages that it plans, and skips what somebody else holds. A draft that nobody needs is looked at at once.
PLAN = f"""
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now), unlooked AS (
    SELECT m.id, m.mailbox_id, m.state FROM outtray.message m WHERE {_UNLOOKED}
    LIMIT %(chunk)s FOR NO KEY UPDATE OF m SKIP LOCKED),
planned AS (
    SELECT u.id,
        CASE WHEN u.state IN ('unknown', 'sent') THEN coalesce(w.wait, %(others)s) ELSE interval '0' END AS wait
    FROM unlooked u JOIN outtray.mailbox b ON b.id = u.mailbox_id
        LEFT JOIN unnest(%(providers)s::text[], %(waits)s::interval[]) AS w (provider, wait) USING (provider))
UPDATE outtray.message m
SET look_at = t.now + p.wait, looks = 0,
    look_handover = CASE WHEN m.state IN ('unknown', 'sent') THEN m.handover ELSE -1 END,
    looked = CASE WHEN m.state NOT IN ('unknown', 'sent') THEN m.looked END
FROM planned p, t WHERE m.id = p.id
"""


async def plan_looks(connection: AsyncConnection[Any], schedules: Schedules) -> int:
    """Give every message that wants looks the time of its first. Returns how many there were."""
    first = {name: schedule.wait(0) for name, schedule in schedules.by_provider.items()}
    parameters = {
        "providers": list(first),
        "waits": list(first.values()),
        "others": schedules.others.wait(0),
        "chunk": CHUNK,
    }
    total = 0
    while True:
        planned = (await connection.execute(PLAN, parameters)).rowcount
        total += planned
        if planned < CHUNK:
            return total
