"""Suppression: addresses that this app never writes to again. It binds every gate from its own commit on."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from outtray.cancel import CancelCounts, cancel_where
from outtray.door import Door
from outtray.find import MOST, Page
from outtray.plan import Plan, Row, rows
from outtray_schema import bindings
from outtray_schema.address import parse_address
from outtray_schema.errors import Problem, Refused

# Puts an address on an app's list; a later reason takes the place of the first.
SUPPRESS = """
INSERT INTO outtray.suppression (app_id, address_index, address, reason)
VALUES (%(app)s, %(index)s, %(address)s, %(reason)s)
ON CONFLICT (app_id, address_index) DO UPDATE SET reason = excluded.reason
RETURNING address_index
"""

# Takes an address off an app's list.
UNSUPPRESS = (
    "DELETE FROM outtray.suppression s WHERE s.app_id = %(app)s AND s.address_index = %(index)s RETURNING s.reason"
)

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
    if not 1 <= len(reason) <= 200:
        raise Refused(Problem("reason", "has 1 to 200 characters, like unsubscribed or complaint"))
    app_id = yield from door.app()
    email = parse_address(address).email
    index = door.vault.blind_index(app_id, email)
    sealed = door.vault.addresses.encrypt(email.encode(), bindings.suppression(app_id, index))
    yield from rows(SUPPRESS, app=app_id, index=index, address=sealed, reason=reason)
    return (yield from cancel_where(door, to=email, reason="suppressed"))


def unsuppress(door: Door, address: str) -> Plan[bool]:
    """Allow this address again; what was cancelled stays so. False: it was not on the list."""
    app_id = yield from door.app()
    index = door.vault.blind_index(app_id, parse_address(address).email)
    return bool((yield from rows(UNSUPPRESS, app=app_id, index=index)))


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
