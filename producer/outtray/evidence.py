"""What was looked for about a handover without an outcome, as people and machines read it (docs/evidence.md)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from outtray.plan import Row

COLUMNS = "m.looked, m.looks, m.look_at, m.look_handover, m.handover, m.draft IS NOT NULL AS has_draft"
"""What `sought` needs of the message `m`."""

# With new credentials, scopes or IMAP settings a mailbox may be looked into as it could not be before: the dispatcher
# plans looks anew. Locks the unknown messages of a mailbox whose row is locked already; what somebody else holds is
# being written, and left.
LOOK_ANEW = """
UPDATE outtray.message m SET look_handover = NULL WHERE m.id IN (
    SELECT u.id FROM outtray.message u
    WHERE u.app_id = %(app)s AND u.state = 'unknown' AND u.mailbox_id = %(mailbox)s FOR NO KEY UPDATE SKIP LOCKED)
"""

FINDINGS = {
    "sent": "its copy was found",
    "still_draft": "its draft was a draft yet",
    "absent": "no copy of it was found",
    "nothing": "nothing was found that proves anything",
    "failed": "nobody could look",
    "no_way": "there is no way to look",
}


@dataclass(frozen=True, slots=True)
class Sought:
    """The looks for evidence about a message's present handover.

    `finding` is one of `FINDINGS`, `None` before the first look; `looked` says where and by what, `why` what hindered
    it. It shows the same since `since`. `next_at`: when the next look is due; `None`: nobody looks again by itself.
    """

    looks: int = 0
    finding: str | None = None
    looked: str | None = None
    why: str | None = None
    at: datetime | None = None
    since: datetime | None = None
    next_at: datetime | None = None
    is_planned: bool = False
    """Whether anybody has planned looks for it yet: the dispatcher does, within a second or two."""
    draft_is_gone: bool = False
    """Its bound draft is neither a draft any more nor found as sent. No other one is ever made for it."""


def sought(row: Row) -> Sought:
    """What the row's looks are about; nothing, if they were about an earlier handover."""
    if row["look_handover"] is None or row["look_handover"] != row["handover"]:
        return Sought()
    shown = row["looked"] or {}
    return Sought(
        row["looks"],
        shown.get("finding"),
        shown.get("looked"),
        shown.get("why"),
        _moment(shown.get("at")),
        _moment(shown.get("since")),
        row["look_at"],
        True,
        row["has_draft"] and shown.get("finding") == "nothing",
    )


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def lines(seen: Sought) -> tuple[str, ...]:
    """What was looked for, what it showed, and when the next look is: one sentence each."""
    if seen.finding is None or seen.at is None:
        when = f"; the first look is due at {clock(seen.next_at)}" if seen.next_at else ""
        return (f"it was not looked for yet{when}",)
    times = "once" if seen.looks == 1 else f"{seen.looks} times"
    why = f", because: {seen.why}" if seen.why else ""
    since = f"; it shows the same since {clock(seen.since)}" if seen.since and seen.since != seen.at else ""
    told = f"looked for {times}, last at {clock(seen.at)}: {FINDINGS.get(seen.finding, seen.finding)}{why}"
    following = f"the next look is due at {clock(seen.next_at)}" if seen.next_at else "nobody looks again by itself"
    return f"{told} (looked at: {seen.looked}){since}", following


def clock(at: datetime | None) -> str:
    """A time as `explain` writes it."""
    return at.astimezone(UTC).isoformat(" ", "seconds") if at else ""
