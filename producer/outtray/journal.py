"""Is the journal what it was when it was written? Each chain is hashed anew, each seal counted up anew.

Entries and links are streamed side by side, in the order of their chains, in one snapshot: memory stays small however
long the journal is. Reads only, so that a standby of the database will do. What it proves: docs/journal.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from itertools import count
from typing import Any, Literal
from uuid import UUID

from psycopg import Connection, IsolationLevel
from psycopg.rows import tuple_row

from outtray.find import JOURNAL, JournalEntry
from outtray_schema.journal import NOTHING, Entry, digest_with, next_hash, sealed

_CHAIN = "coalesce(j.message_id, j.mailbox_id, '00000000-0000-0000-0000-000000000000')"

# Entries and links of one chain, or of all since a day, in the order of their chains; lock nothing.
ENTRIES = """
SELECT j.id, (extract(epoch FROM j.at) * 1000000)::bigint, j.message_id, j.mailbox_id, j.kind, j.handover, j.actor,
    j.detail::text
FROM outtray.journal j WHERE {which} ORDER BY {order}
"""
LINKS = "SELECT l.chain, l.id, l.hash, l.carried FROM outtray.journal_link l WHERE {which} ORDER BY l.chain, l.id"

# The links of a seal, in the order of their numbers; locks nothing.
SEALED = "SELECT l.id, l.hash FROM outtray.journal_link l WHERE l.id > %(after)s AND l.id <= %(to)s ORDER BY l.id"

# Every seal, oldest first, and how far it has come since; lock nothing.
SEALS = """
SELECT s.day, s.after_id, s.to_id, s.links, s.previous, s.digest, s.sealed_at, s.dropped_at
FROM outtray.journal_seal s ORDER BY s.day
"""
SEALING = "SELECT s.sealed_to, s.sealed_at, s.links, s.digest FROM outtray.journal_sealing s"

MOST_SHOWN = 100
"""Breaks that are kept of all that are found; the others are counted."""

AT_ONCE = 2000
"""Rows that one fetch brings."""

What = Literal["changed", "missing", "added", "cut", "link", "seal", "export"]
"""What is wrong.

- `changed`: an entry is not as it was linked, or its link was altered.
- `missing`: a link is there, its entry is not.
- `added`: an entry without a link, among those that are linked.
- `cut`: what a chain continues from an earlier day is not what is there.
- `link`: links that were sealed, or since the last seal, are not those that are there.
- `seal`: a seal does not continue the one before it.
- `export`: a seal is not as it was when it was exported, or is gone.
"""


@dataclass(frozen=True, slots=True)
class Break:
    """One place where the journal is not as it was written."""

    what: What
    told: str
    entry: int | None = None
    chain: UUID | None = None
    message_id: UUID | None = None
    mailbox_id: UUID | None = None
    kind: str | None = None
    day: date | None = None


@dataclass(frozen=True, slots=True)
class Seal:
    """The links from one number (not included) to another, in one digest that continues the seal before it."""

    day: date
    after_id: int
    to_id: int
    links: int
    previous: bytes
    digest: bytes
    sealed_at: datetime
    dropped_at: datetime | None
    """Since when entries of it are gone, because they were older than they are kept."""


@dataclass(slots=True)
class Verified:
    """What was found. `unlinked` entries are too young to be linked: nothing is said of them."""

    entries: int = 0
    chains: int = 0
    unlinked: int = 0
    seals: int = 0
    dropped_seals: int = 0
    linked_until: datetime | None = None
    found: int = 0
    breaks: list[Break] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.found == 0

    def add(self, broken: Break) -> None:
        self.found += 1
        if len(self.breaks) < MOST_SHOWN:
            self.breaks.append(broken)


def verify(
    connection: Connection[Any],
    message_id: UUID | None = None,
    since: date | None = None,
    exported: Mapping[date, str] | None = None,
) -> Verified:
    """Hash everything anew, or one message's chain, or what is of a day and later.

    `exported`: digests in hex by day, as `read_seals` gave them before; each must still stand. One message's links are
    not held against the seals. Takes a snapshot for as long as it runs.
    """
    verified = Verified()
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    with connection.transaction():
        state = connection.cursor(row_factory=tuple_row).execute(SEALING).fetchone()
        sealed_to, sealed_at, links, digest = state or (0, datetime.fromtimestamp(0, UTC), 0, NOTHING)
        verified.linked_until = sealed_at if sealed_at.timestamp() > 0 else None
        _chains(connection, verified, sealed_to, message_id, since)
        if message_id is None:
            seals = read_seals(connection)
            _seals(connection, verified, seals, since)
            _since_last_seal(connection, verified, seals, (sealed_to, links, digest))
            _exported(verified, seals, exported or {})
    return verified


def read_seals(connection: Connection[Any]) -> list[Seal]:
    """Every seal, oldest first: what to keep elsewhere."""
    return [Seal(*row) for row in connection.cursor(row_factory=tuple_row).execute(SEALS)]


def read_journal(connection: Connection[Any], message_id: UUID) -> list[JournalEntry]:
    """What happened to a message, oldest first, whether it is still there or not."""
    found = connection.cursor(row_factory=tuple_row).execute(JOURNAL, {"id": message_id})
    return [JournalEntry(at, kind, handover, actor, detail or {}) for at, kind, handover, actor, detail in found]


# ── chains ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _chains(
    connection: Connection[Any], verified: Verified, sealed_to: int, message_id: UUID | None, since: date | None
) -> None:
    """Walk entries and links side by side; a break does not hide the next one: what is stored is gone on from."""
    chain, before = None, NOTHING
    for entry, link in _side_by_side(*_streams(connection, message_id, since)):
        here = entry.chain if entry is not None else link[0]
        if here != chain:
            chain, first = here, True
            verified.chains += 1
        verified.entries += entry is not None
        if link is None:
            _unlinked(verified, entry, sealed_to)
            continue
        _, link_id, stored, carried = link
        if first:
            before, first = carried or NOTHING, False
        elif carried is not None and carried != before:
            told = "what is linked before it is not what it continues"
            verified.add(_broken("cut", told, entry, here, link_id))
            before = carried
        if entry is None:
            verified.add(Break("missing", "its entry was deleted", link_id, here))
        elif next_hash(before, entry) != stored:
            told = "the entry is not as it was linked, or its link was altered"
            verified.add(_broken("changed", told, entry, here, link_id))
        before = stored


def _unlinked(verified: Verified, entry: Entry, sealed_to: int) -> None:
    if entry.id > sealed_to:
        verified.unlinked += 1
    else:
        verified.add(_broken("added", "it was not there when its neighbours were linked", entry, entry.chain, entry.id))


def _broken(what: What, told: str, entry: Entry | None, chain: UUID, link_id: int) -> Break:
    if entry is None:
        return Break(what, told, link_id, chain)
    return Break(what, told, entry.id, chain, entry.message_id, entry.mailbox_id, entry.kind)


Link = tuple[UUID, int, bytes, bytes | None]


def _streams(
    connection: Connection[Any], message_id: UUID | None, since: date | None
) -> tuple[Iterator[Entry], Iterator[Link]]:
    values = {"message": message_id, "since": datetime.combine(since, time(), UTC) if since else None}
    if message_id is not None:  # by its index, not by the expression that no index knows
        entries = ENTRIES.format(which="j.message_id = %(message)s", order="j.id")
        return _entries(connection, entries, values), _rows(
            connection, LINKS.format(which="l.chain = %(message)s"), values
        )
    entries = ENTRIES.format(which="j.at >= %(since)s" if since else "true", order=f"{_CHAIN}, j.id")
    links = LINKS.format(which="l.at >= %(since)s" if since else "true")
    return _entries(connection, entries, values), _rows(connection, links, values)


def _entries(connection: Connection[Any], statement: str, values: Mapping[str, Any]) -> Iterator[Entry]:
    return (Entry(*row) for row in _rows(connection, statement, values))


_numbers = count()


def _rows(connection: Connection[Any], statement: str, values: Mapping[str, Any]) -> Iterator[Any]:
    with connection.cursor(name=f"journal_{next(_numbers)}", row_factory=tuple_row) as cursor:
        cursor.itersize = AT_ONCE
        cursor.execute(statement, values)
        yield from cursor


def _side_by_side(entries: Iterator[Entry], links: Iterator[Link]) -> Iterator[tuple[Any, Any]]:
    """Pairs of what has the same chain and number; None where the other has no such one. Both are in that order."""
    entry, link = next(entries, None), next(links, None)
    while entry is not None or link is not None:
        left = (entry.chain.int, entry.id) if entry is not None else None
        right = (link[0].int, link[1]) if link is not None else None
        takes_entry = right is None or (left is not None and left <= right)
        takes_link = left is None or (right is not None and right <= left)
        yield entry if takes_entry else None, link if takes_link else None
        entry = next(entries, None) if takes_entry else entry
        link = next(links, None) if takes_link else link


# ── seals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _seals(connection: Connection[Any], verified: Verified, seals: list[Seal], since: date | None) -> None:
    previous, after = NOTHING, 0
    for seal in seals:
        verified.seals += 1
        verified.dropped_seals += seal.dropped_at is not None
        if (seal.previous, seal.after_id) != (previous, after):
            verified.add(Break("seal", "the seal before it was altered, or is gone", day=seal.day))
        previous, after = seal.digest, seal.to_id
        if seal.dropped_at is None and (since is None or seal.day >= since):
            links, digest = _counted_up(connection, seal.previous, seal.after_id, seal.to_id)
            if sealed(digest, seal.day, seal.after_id, seal.to_id, seal.links) != seal.digest:
                told = f"its {seal.links} links, or the seal itself, were altered; {links} links are there"
                verified.add(Break("link", told, day=seal.day))


def _counted_up(connection: Connection[Any], digest: bytes, after: int, to: int) -> tuple[int, bytes]:
    links = 0
    for link_id, link_hash in _rows(connection, SEALED, {"after": after, "to": to}):
        links, digest = links + 1, digest_with(digest, link_id, link_hash)
    return links, digest


def _since_last_seal(
    connection: Connection[Any], verified: Verified, seals: list[Seal], state: tuple[int, int, bytes]
) -> None:
    """The links that no seal holds yet, against the digest that goes on."""
    sealed_to, links, digest = state
    start, after = (seals[-1].digest, seals[-1].to_id) if seals else (NOTHING, 0)
    there, counted = _counted_up(connection, start, after, sealed_to)
    if counted != digest:
        told = (
            f"since the last seal {links} links were made, of which some were altered, or that seal; {there} are there"
        )
        verified.add(Break("link", told))


def _exported(verified: Verified, seals: list[Seal], exported: Mapping[date, str]) -> None:
    known = {seal.day: seal.digest.hex() for seal in seals}
    for day, digest in sorted(exported.items()):
        if known.get(day) != digest:
            told = "it is not as it was exported" if day in known else "it was exported, and is gone"
            verified.add(Break("export", told, day=day))
