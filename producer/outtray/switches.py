"""Switches: pause and resume everything, an app, a provider or a tag. A mailbox's own pause is its status.

No gate that begins after a switch's commit lets a message pass. What was gated before may still leave.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from psycopg.types.json import Jsonb

from outtray.arming import arm_all
from outtray.door import FIND_APP, Door
from outtray.plan import Begin, Commit, Plan, Row, rows
from outtray_schema.errors import NotFound, Problem, Refused

Kind = Literal["all", "app", "provider", "tag"]

# Turns a switch off-line; one that is off already keeps since when, and takes the new reason.
PAUSE = """
INSERT INTO outtray.switch (kind, target, actor, why) VALUES (%(kind)s, %(target)s, %(actor)s, %(why)s)
ON CONFLICT (kind, target) DO UPDATE SET why = excluded.why, actor = excluded.actor
RETURNING kind, target, since, actor, why
"""

# Takes a pause away; locks its row.
RESUME = "DELETE FROM outtray.switch s WHERE s.kind = %(kind)s AND s.target = %(target)s RETURNING s.kind"

# Reads every pause that an app can see: those of all, of providers, its own and its tags'; locks nothing.
LIST = """
SELECT kind, target, since, actor, why FROM outtray.switch
WHERE kind IN ('all', 'provider') OR target = %(app)s OR kind = 'tag' AND target LIKE %(app)s || ':%%'
ORDER BY kind, target
"""

# Tells of a switch; journal lines belong to messages and mailboxes, so this one names neither.
TELL = """
WITH noted AS (
    INSERT INTO outtray.journal (kind, actor, detail) VALUES ('switch.' || %(change)s::text, %(actor)s, %(detail)s))
INSERT INTO outtray.event (app_id, kind, data) VALUES (%(app)s, 'switch.' || %(change)s::text, %(detail)s)
"""


@dataclass(frozen=True, slots=True)
class Switch:
    """Something that is paused. `target` is as the caller names it: an app's name, a provider, a tag; empty for all."""

    kind: str
    target: str
    since: datetime
    actor: str
    why: str


def pause(door: Door, kind: Kind, target: str = "", why: str = "") -> Plan[Switch]:
    """Let nothing of this leave until it is resumed. Raises `Refused`, `NotFound`."""
    app_id = yield from door.app()
    stored = yield from _target(app_id, kind, target, door.app_name)
    yield Begin()
    found = yield from rows(PAUSE, kind=kind, target=stored, actor=door.actor, why=why)
    yield from _tell(door, app_id, "paused", kind, stored)
    yield Commit()
    return _switch(found[0], target)


def resume(door: Door, kind: Kind, target: str = "") -> Plan[bool]:
    """Let it leave again: its mailboxes are armed in the same transaction. False: it was not paused."""
    app_id = yield from door.app()
    stored = yield from _target(app_id, kind, target, door.app_name)
    yield Begin()
    if not (yield from rows(RESUME, kind=kind, target=stored)):
        yield Commit()
        return False
    yield from _tell(door, app_id, "resumed", kind, stored)
    affected = UUID(stored[:36]) if kind in ("app", "tag") else None
    yield from arm_all(affected, provider=stored if kind == "provider" else None)
    yield Commit()
    if kind == "tag":  # a turn that ended meanwhile still saw the switch, and left its mailbox without a time
        yield Begin()
        yield from arm_all(affected)
        yield Commit()
    return True


def list_switches(door: Door) -> Plan[list[Switch]]:
    """What is paused, as far as this app can see it."""
    app_id = yield from door.app()
    found = yield from rows(LIST, app=str(app_id))
    return [_switch(row, _name(row, door.app_name)) for row in found]


def _target(app_id: UUID, kind: str, target: str, own_app: str) -> Plan[str]:
    """The target as it is stored: an app by its id, a tag with its app's."""
    if kind == "all":
        return ""
    if kind == "app":
        return str((yield from _app_id(app_id, target, own_app)))
    if kind not in ("provider", "tag"):
        raise Refused(
            Problem(
                "kind", f"{kind!r} is none; it is all, app, provider or tag; a mailbox is paused by mailboxes.pause"
            )
        )
    if not target:
        raise Refused(Problem("target", f"name the {kind}"))
    return target if kind == "provider" else f"{app_id}:{target}"


def _app_id(app_id: UUID, name: str, own_app: str) -> Plan[UUID]:
    if name in ("", own_app):
        return app_id
    found = yield from rows(FIND_APP, name=name)
    if not found:
        raise NotFound(f"there is no app {name!r}; see `outtray app list`")
    named: UUID = found[0]["id"]
    return named


def _tell(door: Door, app_id: UUID, change: str, kind: str, stored: str) -> Plan[None]:
    detail = Jsonb({"kind": kind, "target": stored})
    yield from rows(TELL, app=app_id, change=change, actor=door.actor, detail=detail)


def _name(row: Row, own_app: str) -> str:
    target: str = row["target"]
    return own_app if row["kind"] == "app" else target.partition(":")[2] if row["kind"] == "tag" else target


def _switch(row: Row, target: str) -> Switch:
    return Switch(row["kind"], target, row["since"], row["actor"], row["why"])
