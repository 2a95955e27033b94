"""Events: what is told to others, read without a gap and in order per message (docs/events.md).

Ids of rows are given before their transactions commit, so "everything after id N" misses what commits late. Numbers
of transactions have the same fault, and one more: a transaction with a lower number may write to a message *after* one
with a higher number, so no boundary between numbers keeps a message's events in order.

So a reader goes from snapshot to snapshot. A *batch* is what PostgreSQL's snapshot `until` sees and the snapshot
`since` did not; it is read in the order of ids, page by page, and then `until` becomes the next batch's `since`.

- *Complete, once*: every committed event is unseen by all snapshots before some moment and seen by all after it, so it
  falls into exactly one batch, however late its transaction commits.
- *In order per message*: let T2 write an event of a message after T1 did. Each takes the message's row lock first, so
  T2 got it when T1 had ended; hence T2's event has the higher id, and every snapshot that sees T2 sees T1. Either both
  are in one batch, where ids order them, or T1's batch comes first.

A cursor is `since/until/id`: the two snapshots in PostgreSQL's own text form, and the last id read within the batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from outtray.door import Door
from outtray.plan import Plan, Row, rows
from outtray.sent_ids import HAS_IDS, known_ids, missing_ids
from outtray_schema.errors import Problem, Refused

MOST = 1000
"""Events on a page, at most."""

# Reads a page of one batch in the order of ids; locks nothing. Only ids guide the search: all rows above the first id
# of a batch are its own but for the few that ran beside it, so a page costs what it shows.
PAGE = """
SELECT e.id, e.at, e.kind, e.mailbox_id, e.message_id, e.data, m.provider_id, m.rfc_message_id, m.conversation_id,
    m.state, m.reason, m.evidence, b.provider
FROM outtray.event e
    LEFT JOIN outtray.message m ON m.id = e.message_id AND e.kind IN ('sent', 'drafted')
    LEFT JOIN outtray.mailbox b ON b.id = m.mailbox_id
WHERE e.id > %(after)s AND e.app_id = %(app)s AND pg_visible_in_snapshot(e.xact, %(until)s::pg_snapshot)
  AND NOT pg_visible_in_snapshot(e.xact, %(since)s::pg_snapshot)
ORDER BY e.id LIMIT %(limit)s
"""

# Takes a snapshot as the end of a new batch, and finds where in the order of ids the batch begins; locks nothing.
OPEN_BATCH = """
SELECT pg_current_snapshot()::text AS until, coalesce((
    SELECT min(e.id) - 1 FROM outtray.event e
    WHERE e.xact >= pg_snapshot_xmin(%(since)s::pg_snapshot)
      AND NOT pg_visible_in_snapshot(e.xact, %(since)s::pg_snapshot)), 0) AS after
"""

NOTHING_SEEN = "1:1:"
"""The snapshot before the first transaction of all."""
_SNAPSHOT = r"\d{1,20}:\d{1,20}:(?:\d{1,20}(?:,\d{1,20})*)?"
_CURSOR = re.compile(rf"(?P<since>{_SNAPSHOT})(?:/(?P<until>{_SNAPSHOT})/(?P<after>\d{{1,19}}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: `kind` is a message's new state, or as docs/events.md lists them.

    `data` never holds an address or content. That of `sent` and `drafted` has the three ids, as they are known when it
    is read, and `missing_ids` with the reason for each that cannot be had. `id` says nothing about order between
    messages.
    """

    id: int
    at: datetime
    kind: str
    mailbox_id: UUID | None
    message_id: UUID | None
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events, and the cursor after them. Keep the cursor with what the events changed, in one transaction."""

    events: Sequence[Event]
    cursor: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a reader is: all that `since` sees is read, and of what `until` sees, all up to the id `after`."""

    since: str
    until: str | None = None
    after: int = 0

    def __str__(self) -> str:
        return self.since if self.until is None else f"{self.since}/{self.until}/{self.after}"


def read_events(door: Door, after: str | None = None, limit: int = 100) -> Plan[EventPage]:
    """The events that follow a cursor, from the first one kept if there is none; an empty page if there are none yet.

    Raises `Refused` for what is no cursor.
    """
    if not 1 <= limit <= MOST:
        raise Refused(Problem("limit", f"is from 1 to {MOST}"))
    place = _place(after)
    app_id = yield from door.app()
    found: list[Row] = []
    if place.until is not None:
        found, place = yield from _page(app_id, place, limit)
    if not found and place.until is None:
        found, place = yield from _page(app_id, (yield from _open_batch(place.since)), limit)
    return EventPage([_event(row) for row in found], str(place))


def _event(row: Row) -> Event:
    data = row["data"]
    if row["state"] in HAS_IDS:
        ids = {name: value for name, value in known_ids(_message_of(row)).items() if value is not None}
        data = {**data, **ids, "missing_ids": missing_ids(_message_of(row))}
    return Event(row["id"], row["at"], row["kind"], row["mailbox_id"], row["message_id"], data)


def _message_of(row: Row) -> Row:
    return {**row, "id": row["message_id"]}


def _open_batch(since: str) -> Plan[_Place]:
    (opened,) = yield from rows(OPEN_BATCH, since=since)
    return _Place(since, opened["until"], opened["after"])


def _page(app_id: UUID, place: _Place, limit: int) -> Plan[tuple[list[Row], _Place]]:
    """A page of the open batch, and the place after it: within the batch, or before the next."""
    found = yield from rows(PAGE, app=app_id, since=place.since, until=place.until, after=place.after, limit=limit)
    if len(found) == limit:
        return found, _Place(place.since, place.until, found[-1]["id"])
    return found, _Place(place.until or place.since)


def _place(cursor: str | None) -> _Place:
    if cursor is None:
        return _Place(NOTHING_SEEN)
    match = _CURSOR.fullmatch(cursor)
    if match is None or not all(_is_snapshot(match[name]) for name in ("since", "until") if match[name] is not None):
        raise Refused(
            Problem("after", "is not a cursor that a page of events gave; leave it out to begin at the first")
        )
    return _Place(match["since"], match["until"], int(match["after"] or 0))


def _is_snapshot(text: str) -> bool:
    """Whether PostgreSQL takes it: the oldest running number, the next to come, and the running ones between."""
    oldest, following, running = text.split(":")
    numbers = [int(oldest), *map(int, running.split(",") if running else ()), int(following)]
    return (
        numbers[0] > 0 and numbers == sorted(numbers) and numbers[-1] < 1 << 63 and int(following) not in numbers[1:-1]
    )
