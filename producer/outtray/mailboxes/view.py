"""A mailbox as it stands, and how it is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from outtray.door import Door, MailboxName, open_address
from outtray.find import mailbox_id_of
from outtray.plan import Plan, Row, rows
from outtray_schema.errors import NotFound
from outtray_schema.plans import Limits, effective_limits, with_learned

REMOVED = "removed"
"""The status reason of a mailbox that its owner took away. Its row stays: what it sent counts for 24 hours more."""

_COLUMNS = """m.id, m.provider, m.host, m.address, m.plan, m.limits, m.server, m.status, m.status_reason, m.status_at,
    m.parked_until, m.parked_reason, m.next_at, m.turn_until, m.created_at, m.provider_app, m.scopes, m.on_unknown,
    m.learned, m.times, outtray.outtray_now() AS now, ARRAY(
        SELECT b.name FROM outtray.mailbox_budget mb JOIN outtray.budget b ON b.id = mb.budget_id
        WHERE mb.mailbox_id = m.id ORDER BY b.name) AS budgets,
    a.default_mailbox_id = m.id AS is_default"""

# Reads one mailbox, or all of an app that are not removed; locks nothing.
GET = f"""
SELECT {_COLUMNS} FROM outtray.mailbox m JOIN outtray.app a ON a.id = m.app_id
WHERE m.app_id = %(app)s AND m.id = %(mailbox)s
"""

LIST = f"""
SELECT {_COLUMNS} FROM outtray.mailbox m JOIN outtray.app a ON a.id = m.app_id
WHERE m.app_id = %(app)s AND m.status_reason IS DISTINCT FROM '{REMOVED}' ORDER BY m.id
"""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A mailbox as it stands. Its address is not in its repr, so that no log shows it."""

    id: UUID
    provider: str
    host: str
    address: str = field(repr=False)
    name: str = field(repr=False)
    aliases: tuple[str, ...] = field(repr=False)
    plan: str
    overrides: Mapping[str, Any]
    limits: Limits
    server: Mapping[str, Any]
    status: str
    status_reason: str | None
    status_at: datetime | None
    parked_until: datetime | None
    parked_reason: str | None
    next_at: datetime | None
    turn_until: datetime | None
    is_default: bool
    created_at: datetime
    provider_app: str | None = None
    """The OAuth client by which it logs in; None where a password does."""
    scopes: tuple[str, ...] = ()
    """What its owner granted, as the provider names it."""
    budgets: tuple[str, ...] = ()
    """The budgets that it shares, by name."""
    on_unknown: str | None = None
    """What becomes of its messages of which nobody can tell whether they left; None: as its app has it."""
    times: Mapping[str, Any] | None = None
    """Its window and the gap between two of its mails, as they are stored (docs/times.md)."""


def get(door: Door, mailbox: MailboxName = None) -> Plan[Mailbox]:
    """One mailbox by id or address, or the app's default. Raises `NotFound`."""
    app_id = yield from door.app()
    mailbox_id = yield from mailbox_id_of(door, app_id, mailbox)
    found = yield from rows(GET, app=app_id, mailbox=mailbox_id)
    if not found:
        raise NotFound("there is no such mailbox in this app; see `outtray mailbox list`")
    return _view(door, found[0])


def list_all(door: Door) -> Plan[list[Mailbox]]:
    """The app's mailboxes, oldest first; removed ones are left out."""
    app_id = yield from door.app()
    return [_view(door, row) for row in (yield from rows(LIST, app=app_id))]


def _view(door: Door, row: Row) -> Mailbox:
    address = open_address(door.vault, row["id"], row["address"])
    return Mailbox(
        **{name: row[name] for name in _AS_STORED},
        address=address["address"],
        name=address.get("name") or "",
        aliases=tuple(address.get("aliases") or ()),
        overrides=row["limits"],
        limits=with_learned(effective_limits(row["plan"], row["limits"], row["provider"]), row["learned"], row["now"]),
        is_default=bool(row["is_default"]),
        scopes=tuple(row["scopes"]),
        budgets=tuple(row["budgets"]),
    )


_AS_STORED = (
    "id", "provider", "host", "plan", "server", "status", "status_reason", "status_at", "parked_until", "parked_reason",
    "next_at", "turn_until", "created_at", "provider_app", "on_unknown", "times",
)  # fmt: skip
