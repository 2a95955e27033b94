"""Suppression: addresses that this app never writes to again. It binds every gate from its own commit on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from outtray.cancel import CancelCounts, cancel_where
from outtray.door import Door
from outtray.find import MOST, Page
from outtray.noting import note
from outtray.plan import Begin, Commit, Plan, Row, rows
from outtray_schema import bindings
from outtray_schema.address import parse_address
from outtray_schema.errors import Problem, Refused

MOST_REASON = 200
"""Characters of a reason."""

# Takes an address off an app's list.
UNSUPPRESS = (
    "DELETE FROM outtray.suppression s WHERE s.app_id = %(app)s AND s.address_index = %(index)s RETURNING s.reason"
)

# Puts many addresses on an app's list. Those that are on it keep since when, and take the new reason.
SUPPRESS_MANY = """
INSERT INTO outtray.suppression (app_id, address_index, address, reason)
SELECT DISTINCT ON (s.i) %(app)s, s.i, s.address, s.reason
FROM unnest(%(indexes)b::bytea[], %(addresses)b::bytea[], %(reasons)b::text[]) AS s (i, address, reason) ORDER BY s.i
ON CONFLICT (app_id, address_index) DO UPDATE SET reason = excluded.reason
"""

# Which of these addresses something waits for; locks nothing.
AWAITED = """
SELECT DISTINCT r.address_index FROM outtray.recipient r JOIN outtray.message m ON m.id = r.message_id
WHERE r.address_index = ANY(%(indexes)b::bytea[]) AND m.app_id = %(app)b
  AND m.state IN ('queued', 'handing_over', 'unknown')
"""

# Reads a page of an app's list, in the order of the blind indexes; locks nothing.
LIST = """
SELECT s.address_index, s.address, s.reason, s.created_at FROM outtray.suppression s
WHERE s.app_id = %(app)s AND s.address_index > %(after)s ORDER BY s.address_index LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class Suppression:
    """An address that is not written to, and why."""

    address: str = field(repr=False)
    reason: str
    created_at: datetime


def suppress(door: Door, address: str, reason: str) -> Plan[CancelCounts]:
    """Never write to this address again; cancels what waits for it, and answers with how much.

    A message to several is cancelled whole. Those that a worker has just passed through its gate may still leave.
    """
    return (yield from _suppress(door, _checked([(address, reason)], numbered=False)))


def suppress_many(door: Door, entries: Iterable[tuple[str, str]]) -> Plan[CancelCounts]:
    """`suppress` for many pairs of address and reason: all of them in one transaction, or none if one is wrong.

    Then what waits for them is cancelled. Raises `Refused` with every entry that is wrong, by its position from 0.
    """
    return (yield from _suppress(door, _checked(entries)))


def _suppress(door: Door, emails: Sequence[tuple[str, str]]) -> Plan[CancelCounts]:
    app_id = yield from door.app()
    indexes = [door.vault.blind_index(app_id, email) for email, _ in emails]
    sealed = [
        door.vault.addresses.encrypt(email.encode(), bindings.suppression(app_id, index))
        for (email, _), index in zip(emails, indexes, strict=True)
    ]
    yield Begin()
    yield from rows(
        SUPPRESS_MANY, app=app_id, indexes=indexes, addresses=sealed, reasons=[reason for _, reason in emails]
    )
    yield from note(door.actor, "suppressed", app=str(app_id), addresses=len(emails))
    yield Commit()
    awaited = {bytes(row["address_index"]) for row in (yield from rows(AWAITED, app=app_id, indexes=indexes))}
    counts = CancelCounts()
    for email in {email: None for (email, _), index in zip(emails, indexes, strict=True) if index in awaited}:
        counts = counts.and_also((yield from cancel_where(door, to=email, reason="suppressed")))
    return counts


def _checked(entries: Iterable[tuple[str, str]], numbered: bool = True) -> list[tuple[str, str]]:
    found, problems = [], []
    for position, (address, reason) in enumerate(entries):
        place = f"[{position}]." if numbered else ""
        if not 1 <= len(reason) <= MOST_REASON:
            problems.append(Problem(f"{place}reason", "has 1 to 200 characters, like unsubscribed or complaint"))
        try:
            found.append((parse_address(address).email, reason))
        except Refused as error:
            problems += [Problem(f"{place}address", each.reason) for each in error.problems]
    if problems:
        raise Refused(problems)
    return found


def unsuppress(door: Door, address: str) -> Plan[bool]:
    """Allow this address again; what was cancelled stays so. False: it was not on the list."""
    app_id = yield from door.app()
    index = door.vault.blind_index(app_id, parse_address(address).email)
    yield Begin()
    found = bool((yield from rows(UNSUPPRESS, app=app_id, index=index)))
    if found:
        yield from note(door.actor, "unsuppressed", app=str(app_id), addresses=1)
    yield Commit()
    return found


def suppressions(door: Door, limit: int = 100, cursor: str | None = None) -> Plan[Page[Suppression]]:
    """A page of the app's list."""
    if not 1 <= limit <= MOST:
        raise Refused(Problem("limit", f"is from 1 to {MOST}"))
    app_id = yield from door.app()
    found = yield from rows(LIST, app=app_id, after=_after(cursor), limit=limit)
    next_cursor = bytes(found[-1]["address_index"]).hex() if len(found) == limit else None
    return Page([_view(door, app_id, row) for row in found], next_cursor)


def _after(cursor: str | None) -> bytes:
    try:
        return bytes.fromhex(cursor or "")
    except ValueError:
        raise Refused(Problem("cursor", "is not one that a page gave; leave it out for the first page")) from None


def _view(door: Door, app_id: UUID, row: Row) -> Suppression:
    index = bytes(row["address_index"])
    address = door.vault.addresses.decrypt(row["address"], bindings.suppression(app_id, index)).decode()
    return Suppression(address, row["reason"], row["created_at"])
