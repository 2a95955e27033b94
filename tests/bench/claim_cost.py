"""What a claim costs against the depth of the queue: rounds of 64 mailboxes with ten due messages each.

Two figures: the claim's own statement (rule 3), and the claim with all that the turn then reads in later snapshots
(due messages, ledger). Between two claims the mailboxes are released again, outside the time taken.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from tests.bench import bulk, ours
from tests.bench.ours import Boxes
from tests.bench.stand import Stand

from outtray_schema.database import conninfo
from outtray_worker.claim import claim
from outtray_worker.quotas.check import Quotas

PER_MAILBOX = 10
ROUND = 64
CLAIMS = 500
SEED = 7

RELEASE = """
UPDATE outtray.mailbox
SET turn_until = NULL, next_at = outtray.outtray_now() - interval '1 minute', round_at = outtray.outtray_now()
WHERE id = ANY(%s)
"""


@dataclass(frozen=True, slots=True)
class ClaimCost:
    """Milliseconds, over `CLAIMS` claims."""

    pending: int
    claim_p50: float
    claim_p99: float
    with_reading_p50: float
    with_reading_p99: float


def claim_cost(stand: Stand, pending: int) -> ClaimCost:
    """Fill the queue to `pending` messages and time claims. Leaves the rows for the next question."""
    stand.empty()
    boxes = ours.add_mailboxes(stand, Boxes("bench", pending // PER_MAILBOX, "bench", ("one.bench", "two.bench"), {}))
    bulk.schedule(stand, PER_MAILBOX, timedelta(minutes=-1))
    taken, read = asyncio.run(_time_claims(stand, boxes))
    return ClaimCost(pending, *_percentiles(taken), *_percentiles(read))


def _percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    return 1000 * statistics.median(seconds), 1000 * statistics.quantiles(seconds, n=100)[98]


async def _time_claims(stand: Stand, boxes: list[UUID]) -> tuple[list[float], list[float]]:
    # The connection is the worker's: its options prepare what is asked often, as there.
    connection: AsyncConnection[Any] = await AsyncConnection.connect(conninfo(stand.settings), autocommit=True)
    quotas = Quotas(connection)  # type: ignore[arg-type]
    chance = random.Random(SEED)
    taken: list[float] = []
    read: list[float] = []
    async with connection:
        for _ in range(CLAIMS):
            ids = chance.sample(boxes, min(ROUND, len(boxes)))
            begun = time.perf_counter()
            claimed = await claim(connection, ids, timedelta(seconds=30), "bench")
            taken.append(time.perf_counter() - begun)
            await quotas.read(connection, claimed, stand.settings.turn_messages)
            read.append(time.perf_counter() - begun)
            if len(claimed) != len(ids):
                raise AssertionError(f"{len(claimed)} of {len(ids)} mailboxes were claimed")
            await connection.execute(RELEASE, [ids])
    return taken, read
