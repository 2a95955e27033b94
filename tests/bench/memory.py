"""Memory of worker and dispatcher with many scheduled messages, against none: schedules live in PostgreSQL.

Both times the same letters are sent first, so that the same code is loaded; then private memory (USS) is read once it
has stood still.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tests.bench import bulk, ours
from tests.bench.ledgers import Ledgers
from tests.bench.sinks import HttpSink
from tests.bench.stand import Stand, private_memory, wait_for

from outtray_schema import wakes

MAILBOXES = 1000
SENT_FIRST = 1000
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB of private memory, of one process of each role."""

    scheduled: int
    worker: float
    dispatcher: float


def memory(stand: Stand, ledgers: Ledgers, scheduled: int) -> Memory:
    """Private memory of each role with so many messages scheduled for tomorrow."""
    stand.empty()
    ledger = ledgers.new("memory")
    sink = HttpSink(stand, ledger, "0")
    boxes = ours.add_mailboxes(stand, sink.boxes("bench", MAILBOXES))
    if scheduled:
        bulk.schedule(stand, scheduled // MAILBOXES, timedelta(days=1))
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        stand.redis.zadd(wakes.KEY, wakes.zadd_arguments(dict.fromkeys(boxes, tomorrow)))
    now = datetime.now(UTC)
    bulk.deliverable(stand, ((boxes[n % MAILBOXES], now) for n in range(SENT_FIRST)))
    bulk.arm(stand)
    ours.start(stand, workers=1)
    wait_for(f"{SENT_FIRST} messages at the sink", lambda: sink.count() >= SENT_FIRST, within=60)
    read = Memory(scheduled, _still(stand, "worker"), _still(stand, "dispatcher"))
    stand.stop("dispatcher", "worker")
    ledgers.compare(f"memory, {scheduled} scheduled", sink.ledger(), ours.sent(stand, sink.key))
    return read


def _still(stand: Stand, role: str) -> float:
    """MiB, once two looks a second apart differ by less than 0.2 MiB."""
    last = 0.0

    def settled() -> float | None:
        nonlocal last
        before, last = last, private_memory(stand.roles[role]) / MIB
        return last if abs(last - before) < 0.2 else None

    return float(wait_for(f"the {role}'s memory stands still", settled, within=60, every=1.0))
