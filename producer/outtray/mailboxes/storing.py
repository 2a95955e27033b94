"""How a mailbox is stored: a new row, or that of one that was removed, and what of it is sealed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from outtray import apps, arming, budgets
from outtray.door import Door
from outtray.mailboxes.view import REMOVED, Mailbox, get
from outtray.plan import Begin, Commit, Plan, Statement, rows
from outtray_schema import bindings
from outtray_schema.address import Address, parse_address
from outtray_schema.errors import InvalidMailbox, Problem
from outtray_schema.ids import new_id
from outtray_schema.mailbox import SmtpServer

# Inserts a mailbox, or takes back one that was removed: with its id comes what it has used of its limits.
ADD = f"""
INSERT INTO outtray.mailbox AS m (id, app_id, provider, host, address, address_index, plan, limits, server, credentials,
    provider_app, scopes)
VALUES (%(id)s, %(app)s, %(provider)s, %(host)s, %(address)s, %(index)s, %(plan)s, %(limits)s, %(server)s,
    %(credentials)s, %(provider_app)s, %(scopes)s)
ON CONFLICT (app_id, address_index) DO UPDATE
SET provider = excluded.provider, host = excluded.host, address = excluded.address, plan = excluded.plan,
    limits = excluded.limits, server = excluded.server, credentials = excluded.credentials,
    provider_app = excluded.provider_app, scopes = excluded.scopes,
    credentials_version = %(version)s, status = 'active', status_reason = NULL, status_at = outtray.outtray_now(),
    parks = 0, parked_until = NULL, parked_reason = NULL, logins = NULL
WHERE m.id = %(id)s AND m.status = 'disabled' AND m.status_reason = '{REMOVED}'
  AND m.credentials_version = %(version)s - 1
RETURNING m.id
"""

# Reads who has an address in an app; locks nothing.
OCCUPANT = """
SELECT m.id, m.status, m.status_reason, m.credentials_version FROM outtray.mailbox m
WHERE m.app_id = %(app)s AND m.address_index = %(index)s
"""

ARM = f"UPDATE outtray.mailbox m SET next_at = {arming.NEXT_AT} WHERE m.id = %(mailbox)s"


def add_row(door: Door, row: Mapping[str, Any], default: bool, also: Plan[Any] | None = None) -> Plan[Mailbox]:
    """Insert a mailbox, or take back a removed one; `also` is carried out in the same transaction."""
    app_id, mailbox_id = row["app"], row["id"]
    yield Begin()
    if not (yield Statement(ADD, row)):
        raise _taken()
    yield from budgets.join_by_tenant(mailbox_id)
    yield from rows(ARM, mailbox=mailbox_id)
    yield from arming.note_mailbox(app_id, mailbox_id, "added", door.actor, {"plan": row["plan"]})
    if also is not None:
        yield from also
    if default:
        yield from apps.set_default_mailbox(app_id, mailbox_id)
    yield Commit()
    door.forget()
    return (yield from get(door, mailbox_id))


def place(door: Door, app_id: UUID, sender: Address) -> Plan[tuple[UUID, int]]:
    """The id and credentials version for an address: new ones, or those of a mailbox that was removed."""
    found = yield from rows(OCCUPANT, app=app_id, index=door.vault.blind_index(app_id, sender.email))
    if not found:
        return new_id(), 1
    if found[0]["status_reason"] != REMOVED:
        raise _taken()
    return found[0]["id"], found[0]["credentials_version"] + 1


def _taken() -> InvalidMailbox:
    return InvalidMailbox(Problem("address", "is connected already; use `mailbox set` or `mailbox reconnect`"))


def sender_of(address: str | Address, name: str | None) -> Address:
    """A mailbox's address with the name that recipients see. Raises `Refused`."""
    sender = parse_address(address) if isinstance(address, str) else address
    return sender if name is None else Address(sender.email, name)


def sealed(door: Door, mailbox_id: UUID, version: int, secret: Mapping[str, str]) -> bytes:
    """Credentials as they are stored. Raises `SettingsError` without the credentials ring."""
    return door.vault.credentials.encrypt(json.dumps(secret).encode(), bindings.credentials(mailbox_id, version))


def sealed_address(door: Door, mailbox_id: UUID, sender: Address, aliases: Iterable[str]) -> bytes:
    """A mailbox's address, name and aliases as they are stored."""
    known = {"address": sender.email, "name": sender.name, "aliases": [parse_address(each).email for each in aliases]}
    return door.vault.addresses.encrypt(json.dumps(known).encode(), bindings.mailbox_address(mailbox_id))


def stored(server: SmtpServer) -> dict[str, Any]:
    """A server as it is stored."""
    return server.model_dump(mode="json", exclude_none=True)
