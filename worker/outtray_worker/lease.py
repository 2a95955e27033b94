"""Leases of the turns that run in this process, renewed while the registrar can write (protocol, rule 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from outtray_worker.deadline import Deadline

# Locks the mailboxes in the order of their ids, then moves the leases that still carry the fence.
RENEW = """
WITH held AS (
    SELECT m.id FROM outtray.mailbox m
    JOIN unnest(%(ids)s::uuid[], %(fences)s::bigint[]) AS h (id, fence) USING (id)
    WHERE m.turn_fence = h.fence AND m.turn_until IS NOT NULL ORDER BY m.id FOR NO KEY UPDATE OF m)
UPDATE outtray.mailbox m SET turn_until = outtray.outtray_now() + %(lease)s FROM held WHERE m.id = held.id
RETURNING m.id, m.turn_fence
"""


@dataclass(slots=True, eq=False)
class Lease:
    """One turn's hold on its mailbox."""

    mailbox_id: UUID
    fence: int
    renew_until: Deadline
    """The turn's end plus the longest handover: nothing renews beyond that, however alive the process looks."""
    lost: bool = False


class Leases:
    """The leases of one process. A lease is `lost` once the row no longer carries its fence."""

    def __init__(self, lease: timedelta) -> None:
        self._length = lease
        self._held: set[Lease] = set()
        self._next = Deadline.after(lease / 3)

    def add(self, lease: Lease) -> None:
        self._held.add(lease)

    def remove(self, lease: Lease) -> None:
        self._held.discard(lease)

    @property
    def turns(self) -> int:
        """How many turns run."""
        return len(self._held)

    def next_renewal(self) -> float:
        """Seconds until the next renewal; at least a little, so that a loop around it always rests."""
        return max(0.01, self._next.left())

    def renewal_due(self) -> bool:
        return self._next.passed

    async def renew(self, connection: AsyncConnection[Any]) -> None:
        """Renew all in one statement; those that the row no longer knows are marked lost."""
        renewed: Sequence[Lease] = [lease for lease in self._held if not lease.lost and not lease.renew_until.passed]
        if renewed:
            ids, fences = [lease.mailbox_id for lease in renewed], [lease.fence for lease in renewed]
            cursor = await connection.execute(RENEW, {"ids": ids, "fences": fences, "lease": self._length})
            kept = set(await cursor.fetchall())
            for lease in renewed:
                lease.lost = (lease.mailbox_id, lease.fence) not in kept
        self._next = Deadline.after(self._length / 3)
