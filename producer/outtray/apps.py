"""Apps: the tenants of an installation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from outtray.door import Door
from outtray.noting import note
from outtray.plan import Begin, Commit, Plan, Row, rows
from outtray_schema.errors import NotFound, Problem, Refused
from outtray_schema.ids import new_id

# Inserts an app, once per name.
ADD = """
INSERT INTO outtray.app (id, name, on_unknown) VALUES (%(id)s, %(name)s, %(on_unknown)s)
ON CONFLICT (name) DO NOTHING
RETURNING id, name, default_mailbox_id, on_unknown, created_at
"""

# Reads every app; locks nothing.
LIST = "SELECT id, name, default_mailbox_id, on_unknown, created_at FROM outtray.app ORDER BY name"

# Sets an app's default mailbox, if it is one of its own; locks the app's row.
SET_DEFAULT = """
UPDATE outtray.app a SET default_mailbox_id = %(mailbox)s
WHERE a.id = %(app)s AND (%(mailbox)s::uuid IS NULL OR EXISTS (
    SELECT FROM outtray.mailbox m WHERE m.id = %(mailbox)s AND m.app_id = a.id))
RETURNING a.id
"""


@dataclass(frozen=True, slots=True)
class App:
    """A tenant. `on_unknown` is what becomes of its messages that nobody can tell left, where they say nothing."""

    id: UUID
    name: str
    default_mailbox_id: UUID | None
    on_unknown: str
    created_at: datetime


def add(door: Door, name: str, on_unknown: Literal["hold", "resend"] = "hold") -> Plan[App]:
    """Add an app. Raises `Refused` if the name is taken or is none."""
    problem = _name_problem(name)
    if problem is not None:
        raise Refused(problem)
    yield Begin()
    added = yield from rows(ADD, id=new_id(), name=name, on_unknown=on_unknown)
    if not added:
        raise Refused(Problem("name", f"there is an app {name!r} already; take another name"))
    yield from note(door.actor, "app added", app=str(added[0]["id"]), on_unknown=on_unknown)
    yield Commit()
    return _app(added[0])


def list_all(_door: Door) -> Plan[list[App]]:
    """Every app, by name."""
    return [_app(row) for row in (yield from rows(LIST))]


def set_default_mailbox(app_id: UUID, mailbox_id: UUID | None) -> Plan[None]:
    """Let messages that name no mailbox leave from this one; `None`: refuse them. Raises `NotFound`."""
    if not (yield from rows(SET_DEFAULT, app=app_id, mailbox=mailbox_id)):
        raise NotFound("there is no such mailbox in this app")


def _name_problem(name: str) -> Problem | None:
    if not 1 <= len(name) <= 64 or not name.isprintable() or name != name.strip():
        return Problem("name", "has 1 to 64 printable characters, like crm or crm-eu")
    return None


def _app(row: Row) -> App:
    return App(**row)
