"""What the demo sees: the mailboxes as they stand now, read from PostgreSQL as any observer could."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from outtray_sandbox.demo.cast import PLAYERS, Player
from outtray_sandbox.demo.stage import Stage
from outtray_schema.ledger import USED, Allowance, allowances, used_parameters

# Reads every mailbox with its messages by state; locks nothing.
LOOK = """
SELECT b.id, b.status, b.status_reason, b.turn_until IS NOT NULL AS in_turn, b.turn_worker, t.now,
    CASE WHEN b.parked_until > t.now THEN b.parked_until END AS parked_until,
    CASE WHEN b.parked_until > t.now THEN b.parked_reason END AS parked_reason, m.*
FROM outtray.mailbox b, (SELECT outtray.outtray_now() AS now) AS t, LATERAL (
    SELECT count(*) FILTER (WHERE m.state = 'queued') AS queued,
        count(*) FILTER (WHERE m.state = 'handing_over') AS handing_over,
        count(*) FILTER (WHERE m.state = 'sent') AS sent,
        count(*) FILTER (WHERE m.state = 'unknown') AS unknown,
        count(*) FILTER (WHERE m.state IN ('failed', 'cancelled', 'expired')) AS failed
    FROM outtray.message m WHERE m.mailbox_id = b.id) AS m
"""

# Reads the open handovers of a mailbox that began after a moment, with the worker that holds them; locks nothing.
OPEN_HANDOVERS = """
SELECT m.id, b.turn_worker FROM outtray.message m JOIN outtray.mailbox b ON b.id = m.mailbox_id
WHERE m.mailbox_id = %(mailbox)s AND m.state = 'handing_over' AND m.handed_at > %(after)s
"""
CLOCK = "SELECT outtray.outtray_now() AS now"

# Reads which processes have said that they are alive; locks nothing.
ALIVE = "SELECT p.id FROM outtray.process p"


@dataclass(frozen=True, slots=True)
class BoxNow:
    """One mailbox at one moment. `used` and `allowed` speak of the daily limit that it is nearest to, `measure`.

    `failed` counts whatever ended without being sent.
    """

    player: Player
    status: str
    status_reason: str | None
    queued: int
    handing_over: int
    sent: int
    unknown: int
    failed: int
    worker: str | None
    in_turn: bool
    parked_reason: str | None
    parked_until: datetime | None
    parked_for: timedelta
    used: int
    allowed: int
    measure: str
    per_minute: int | None

    @property
    def at_its_limit(self) -> bool:
        return self.parked_reason is not None and self.parked_reason.startswith("quota")

    @property
    def settled(self) -> bool:
        """Whether nothing more will happen here: what is left, if anything, waits for hours or for its owner."""
        if self.handing_over or self.unknown or self.in_turn:
            return False
        return self.queued == 0 or self.status != "active" or self.at_its_limit

    @property
    def state(self) -> str:
        """The state and its reason in words, without the server's own."""
        if self.status != "active":
            return f"{self.status}: {_short(self.status_reason)}"
        if self.queued and self.parked_until is not None:
            return self._parked(self.parked_until)
        if self.queued + self.handing_over == 0:
            return self._done()
        if self.worker:
            return f"{self.worker} is sending"
        return "its worker is gone: free when the lease ends" if self.in_turn else "waits for its turn"

    def _parked(self, until: datetime) -> str:
        if self.at_its_limit:
            limit = f"{self.allowed:,} {self.measure}"
            return f"parked until {until.astimezone():%H:%M}: its daily limit of {limit} is reached"
        if self.parked_reason == "pace":
            return f"paced: {self.per_minute} a minute"
        return f"parked for {math.ceil(self.parked_for.total_seconds())} s: {_short(self.parked_reason)}"

    def _done(self) -> str:
        if self.unknown and self.player.can_be_looked_into:
            return "Outtray looks whether it left"
        if self.unknown:
            return "waits for a decision: nobody can tell whether it left"
        return "all sent" if self.sent else "nothing to do"


@dataclass(frozen=True, slots=True)
class Now:
    """All mailboxes at one moment."""

    boxes: tuple[BoxNow, ...]

    def count(self, column: str) -> int:
        """The sum of a column over all mailboxes, such as `sent`."""
        return sum(getattr(box, column) for box in self.boxes)

    def of(self, player: Player) -> BoxNow:
        return next(box for box in self.boxes if box.player == player)

    @property
    def undecided(self) -> int:
        """Unknown messages that only a person can decide about."""
        return sum(box.unknown for box in self.boxes if not box.player.can_be_looked_into)

    @property
    def settled(self) -> bool:
        return all(box.settled for box in self.boxes)


def _short(reason: str | None) -> str:
    """A reason without what the server said, which stands behind it in brackets."""
    return (reason or "").partition(" (")[0]


def look(stage: Stage) -> Now:
    """Read how things stand."""
    rows = {row["id"]: row for row in stage.database.execute(LOOK).fetchall()}
    limits = [(box.id, box.limits) for box in stage.boxes.values()]
    left = allowances(limits, stage.database.execute(USED, used_parameters(limits)).fetchall())
    ids = [(player, stage.boxes[player.address].id) for player in PLAYERS]
    return Now(tuple(_box(stage, player, rows[box], left[box]) for player, box in ids))


def clock(stage: Stage) -> datetime:
    """The database's clock, which every time in the tables is read from."""
    return _only(stage.database.execute(CLOCK).fetchone())["now"]  # type: ignore[no-any-return]


def open_handovers(stage: Stage, player: Player, after: datetime) -> list[tuple[UUID, str | None]]:
    """The open handovers of a mailbox that began after a moment: message, and the process that holds it."""
    asked = {"mailbox": stage.boxes[player.address].id, "after": after}
    return [(row["id"], row["turn_worker"]) for row in stage.database.execute(OPEN_HANDOVERS, asked).fetchall()]


def all_alive(stage: Stage) -> bool:
    """Whether every process of the crew has said that it is alive."""
    beaten = {row["id"] for row in stage.database.execute(ALIVE).fetchall()}
    return {member.id for member in stage.crew.members} <= beaten


def _box(stage: Stage, player: Player, row: Mapping[str, Any], allowance: Allowance) -> BoxNow:
    daily = stage.boxes[player.address].limits.daily
    measure = max(daily, key=lambda name: allowance.used(name) / daily[name])
    until: datetime | None = row["parked_until"]
    worker = stage.crew.named(row["turn_worker"])
    return BoxNow(
        player=player,
        **{name: row[name] for name in _AS_READ},
        worker=str(worker) if worker else None,
        parked_for=until - row["now"] if until else timedelta(0),
        used=allowance.used(measure),
        allowed=daily[measure],
        measure=measure,
        per_minute=stage.boxes[player.address].limits.per_minute,
    )


_AS_READ = (
    "status", "status_reason", "queued", "handing_over", "sent", "unknown", "failed", "in_turn", "parked_reason",
    "parked_until",
)  # fmt: skip


def _only(row: Mapping[str, Any] | None) -> Mapping[str, Any]:
    assert row is not None  # noqa: S101 - the statement has exactly one row
    return row
