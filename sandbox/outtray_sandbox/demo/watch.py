"""What the demo sees: the mailboxes as they stand now, read from PostgreSQL as any observer could."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from outtray_sandbox.demo.cast import PLAYERS, Player
from outtray_sandbox.demo.stage import Stage

# Reads every mailbox with its messages by state and what counts in its ledger now; locks nothing.
LOOK = """
SELECT b.id, b.status, b.status_reason, b.parked_reason, b.turn_until IS NOT NULL AS in_turn, b.turn_worker,
    CASE WHEN b.parked_until > t.now THEN b.parked_until END AS parked_until, t.now,
    m.queued, m.handing_over, m.sent, m.unknown, m.failed, m.others,
    m.messages + u.messages AS messages, m.recipients + u.recipients AS recipients, m.external + u.external AS external
FROM outtray.mailbox b, (SELECT outtray.outtray_now() AS now) AS t, LATERAL (
    SELECT count(*) FILTER (WHERE m.state = 'queued') AS queued,
        count(*) FILTER (WHERE m.state = 'handing_over') AS handing_over,
        count(*) FILTER (WHERE m.state = 'sent') AS sent,
        count(*) FILTER (WHERE m.state = 'unknown') AS unknown,
        count(*) FILTER (WHERE m.state = 'failed') AS failed,
        count(*) FILTER (WHERE m.state IN ('cancelled', 'expired')) AS others,
        count(*) FILTER (WHERE m.counted_at > t.now - interval '24 h') AS messages,
        coalesce(sum(m.recipients) FILTER (WHERE m.counted_at > t.now - interval '24 h'), 0) AS recipients,
        coalesce(sum(m.external) FILTER (WHERE m.counted_at > t.now - interval '24 h'), 0) AS external
    FROM outtray.message m WHERE m.mailbox_id = b.id) AS m, LATERAL (
    SELECT coalesce(sum(u.messages), 0) AS messages, coalesce(sum(u.recipients), 0) AS recipients,
        coalesce(sum(u.external), 0) AS external
    FROM outtray.usage u WHERE u.mailbox_id = b.id AND u.counted_at > t.now - interval '24 h') AS u
"""

# Reads the handovers of a mailbox that are open, with their worker; locks nothing.
OPEN_HANDOVERS = """
SELECT m.id, m.handed_at, b.turn_worker FROM outtray.message m JOIN outtray.mailbox b ON b.id = m.mailbox_id
WHERE m.mailbox_id = %(mailbox)s AND m.state = 'handing_over'
"""

# Reads which processes have said that they are alive; locks nothing.
ALIVE = "SELECT p.id FROM outtray.process p"


@dataclass(frozen=True, slots=True)
class BoxNow:
    """One mailbox at one moment. `used` and `allowed` speak of the daily limit that it is nearest to, `measure`."""

    player: Player
    status: str
    queued: int
    handing_over: int
    sent: int
    unknown: int
    failed: int
    others: int
    in_turn: bool
    used: int
    allowed: int
    measure: str
    state: str

    @property
    def total(self) -> int:
        return self.queued + self.handing_over + self.sent + self.unknown + self.failed + self.others

    @property
    def waits_for_good(self) -> bool:
        """What is left waits for hours or for its owner: nothing more happens to it in this demo."""
        at_limit = self.state.startswith("parked") and "daily limit" in self.state
        return self.queued == 0 or self.status == "reconnect" or at_limit


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
    def settled(self) -> bool:
        """Whether nothing more will happen: no handover, no unknown, no lease, and all that waits, waits for good."""
        quiet = not any(box.handing_over or box.unknown or box.in_turn for box in self.boxes)
        return quiet and all(box.waits_for_good for box in self.boxes)


def look(stage: Stage) -> Now:
    """Read how things stand."""
    rows = {row["id"]: row for row in stage.database.execute(LOOK).fetchall()}
    return Now(tuple(_box(stage, player, rows[stage.boxes[player.address].id]) for player in PLAYERS))


def open_handovers(stage: Stage, player: Player) -> list[tuple[UUID, datetime, str | None]]:
    """The open handovers of a mailbox: message, since when, and the process that holds it."""
    found = stage.database.execute(OPEN_HANDOVERS, {"mailbox": stage.boxes[player.address].id}).fetchall()
    return [(row["id"], row["handed_at"], row["turn_worker"]) for row in found]


def alive(stage: Stage) -> bool:
    """Whether every process of the crew has said that it is alive."""
    beaten = {row["id"] for row in stage.database.execute(ALIVE).fetchall()}
    return {member.id for member in stage.crew.members} <= beaten


def _box(stage: Stage, player: Player, row: Mapping[str, Any]) -> BoxNow:
    measure, allowed = _nearest(stage, player, row)
    return BoxNow(
        player=player,
        **{name: row[name] for name in _AS_READ},
        used=int(row[measure]),
        allowed=allowed,
        measure=measure,
        state=_in_words(stage, row, measure, allowed),
    )


_AS_READ = ("status", "queued", "handing_over", "sent", "unknown", "failed", "others", "in_turn")


def _nearest(stage: Stage, player: Player, row: Mapping[str, Any]) -> tuple[str, int]:
    """The daily limit of which most is used."""
    daily = stage.boxes[player.address].limits.daily
    return max(daily.items(), key=lambda limit: int(row[limit[0]]) / limit[1])


def _in_words(stage: Stage, row: Mapping[str, Any], measure: str, allowed: int) -> str:
    if row["status"] != "active":
        return f"{row['status']}: {row['status_reason']}"
    if row["queued"] and row["parked_until"]:
        return _parked(row, measure, allowed)
    if row["unknown"]:
        return f"{row['unknown']} unknown: nobody can tell whether it left; it waits for a decision"
    if row["queued"] + row["handing_over"] == 0:
        return "all sent" if row["sent"] else "nothing to do"
    worker = stage.crew.named(row["turn_worker"])
    if worker:
        return f"{worker} is sending"
    return "its worker is gone; free when the lease ends" if row["in_turn"] else "waits for its turn"


def _parked(row: Mapping[str, Any], measure: str, allowed: int) -> str:
    until: datetime = row["parked_until"]
    reason = str(row["parked_reason"])
    if reason.startswith("quota"):
        return f"parked until {until.astimezone():%H:%M}: daily limit of {allowed:,} {measure} reached"
    if reason == "pace":
        return f"paced: next in {(until - row['now']).total_seconds():.0f} s"
    return f"parked for {(until - row['now']).total_seconds():.0f} s: {reason}"
