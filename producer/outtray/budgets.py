"""Budgets: limits of 24 hours that several mailboxes share, such as the external recipients of a Microsoft tenant.

They belong to no app, as a tenant's mailboxes may belong to several. A mailbox joins by name, or by itself where the
OAuth client by which it logs in is of the budget's tenant; what it used in the last 24 hours comes with it. Gates spend
of it, by the hour (`worker/outtray_worker/quotas/budgets.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from outtray.door import Door
from outtray.noting import note
from outtray.plan import Begin, Commit, Plan, Row, rows
from outtray_schema.errors import NotFound, Problem, Refused
from outtray_schema.freeing import CHUNK, FREE
from outtray_schema.ids import new_id
from outtray_schema.plans import TRIAL_TENANT_EXTERNALS, tenant_externals

Measure = Literal["messages", "recipients", "external"]
NOBODY = UUID(int=0)
MOST = 1_000_000_000

# Inserts a budget, once per name.
ADD = """
INSERT INTO outtray.budget (id, name, measure, per_day, tenant)
VALUES (%(id)s, %(name)s, %(measure)s, %(per_day)s, %(tenant)s) ON CONFLICT (name) DO NOTHING RETURNING id
"""

# Reads budgets with what was spent of them in their window, 24 hours and the current one; locks nothing.
LIST = """
WITH t AS MATERIALIZED (SELECT date_trunc('hour', outtray.outtray_now(), 'UTC') AS hour)
SELECT b.id, b.name, b.tenant, b.measure, b.per_day, (
        SELECT coalesce(sum(h.used), 0)::bigint FROM outtray.budget_hour h
        WHERE h.budget_id = b.id AND h.hour > t.hour - interval '25 hours') AS used,
    (SELECT count(*) FROM outtray.mailbox_budget mb WHERE mb.budget_id = b.id) AS mailboxes
FROM outtray.budget b, t WHERE %(name)s::text IS NULL OR b.name = %(name)s ORDER BY b.name
"""

# Locks budgets until the end of the transaction, in the order of their ids; mailboxes are locked before them.
LOCK = "SELECT b.id FROM outtray.budget b WHERE b.name = %(name)s FOR NO KEY UPDATE"
LOCK_OF_TENANT = """
SELECT b.id FROM outtray.budget b
WHERE b.tenant = (
    SELECT p.tenant FROM outtray.mailbox m JOIN outtray.provider_app p ON p.name = m.provider_app
    WHERE m.id = %(mailbox)s)
ORDER BY b.id FOR NO KEY UPDATE
"""

# The following write rows whose mailboxes and budgets are locked already.
# What a newcomer used in the last 24 hours is spent in the hours in which it ended, which is never too early.
JOIN = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
joined AS (
    INSERT INTO outtray.mailbox_budget (mailbox_id, budget_id)
    SELECT m.id, b.id FROM unnest(%(mailboxes)s::uuid[]) AS m (id), unnest(%(budgets)s::uuid[]) AS b (id)
    ON CONFLICT DO NOTHING RETURNING mailbox_id, budget_id)
INSERT INTO outtray.budget_hour (budget_id, hour, used)
SELECT b.id, date_trunc('hour', least(e.counted_at, t.now), 'UTC') AS hour,
    sum(CASE b.measure WHEN 'messages' THEN e.messages WHEN 'recipients' THEN e.recipients ELSE e.external END) AS used
FROM t, joined j JOIN outtray.budget b ON b.id = j.budget_id CROSS JOIN LATERAL (
    SELECT m.counted_at, 1 AS messages, m.recipients, m.external
    FROM outtray.message m WHERE m.mailbox_id = j.mailbox_id AND m.counted_at > t.now - interval '24 hours'
    UNION ALL
    SELECT u.counted_at, u.messages, u.recipients, u.external
    FROM outtray.usage u WHERE u.mailbox_id = j.mailbox_id AND u.counted_at > t.now - interval '24 hours') AS e
GROUP BY 1, 2 ORDER BY 1, 2
ON CONFLICT (budget_id, hour) DO UPDATE SET used = budget_hour.used + excluded.used
"""
LEAVE = """
DELETE FROM outtray.mailbox_budget mb USING outtray.budget b
WHERE b.id = mb.budget_id AND b.name = %(name)s AND mb.mailbox_id = %(mailbox)s RETURNING mb.mailbox_id
"""
SET = "UPDATE outtray.budget b SET measure = %(measure)s, per_day = %(per_day)s WHERE b.name = %(name)s"
REMOVE = "DELETE FROM outtray.budget b WHERE b.name = %(name)s"

# Locks a chunk of the mailboxes that log in by an OAuth client of this tenant.
LOCK_TENANT = """
SELECT m.id FROM outtray.mailbox m JOIN outtray.provider_app p ON p.name = m.provider_app
WHERE p.tenant = %(tenant)s AND m.id > %(after)s AND m.status_reason IS DISTINCT FROM 'removed'
ORDER BY m.id LIMIT %(chunk)s FOR NO KEY UPDATE OF m
"""
# Locks a chunk of the mailboxes that wait for a budget.
LOCK_WAITING = """
SELECT m.id FROM outtray.mailbox m WHERE m.parked_reason = %(reason)s AND m.id > %(after)s
ORDER BY m.id LIMIT %(chunk)s FOR NO KEY UPDATE
"""


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget as it stands. `used` is what was spent in 24 hours and the current one; `mailboxes` share it."""

    name: str
    tenant: str | None
    measure: str
    per_day: int
    used: int
    mailboxes: int


def add(
    door: Door,
    name: str | None = None,
    *,
    tenant: str | None = None,
    external: int | None = None,
    recipients: int | None = None,
    messages: int | None = None,
    licences: int | None = None,
    trial: bool = False,
) -> Plan[Budget]:
    """Make a budget; its name is the tenant's where none is given.

    With `tenant`, as its OAuth clients name it, the mailboxes that log in by those join by themselves, now and later.
    Exactly one of the limits: `licences` (or `trial`) is Microsoft's formula for a tenant's external recipients.
    Raises `Refused` with every field that is wrong.
    """
    name = name or tenant or ""
    measure, per_day = _limit(external, recipients, messages, licences, trial)
    if not 1 <= len(name) <= 64 or not name.isprintable() or name != name.strip():
        raise Refused(Problem("name", "has 1 to 64 printable characters, like contoso"))
    if tenant in ("common", "organizations", "consumers"):
        raise Refused(
            Problem("tenant", "must be an organisation's own: its id, or its domain as its OAuth client has it")
        )
    yield Begin()
    if not (yield from rows(ADD, id=new_id(), name=name, measure=measure, per_day=per_day, tenant=tenant)):
        raise Refused(Problem("name", f"there is a budget {name!r} already; change it with `outtray budget set`"))
    yield from note(door.actor, "budget added", budget=name, measure=measure, per_day=per_day)
    yield Commit()
    if tenant is not None:
        yield from _join_tenant(name, tenant)
    return (yield from _get(name))


def list_all(_door: Door) -> Plan[list[Budget]]:
    """Every budget of the installation."""
    return [_view(row) for row in (yield from rows(LIST, name=None))]


def change(
    door: Door,
    name: str,
    *,
    external: int | None = None,
    recipients: int | None = None,
    messages: int | None = None,
    licences: int | None = None,
    trial: bool = False,
) -> Plan[Budget]:
    """Change a budget's limit; mailboxes that wait for it look again at once. Raises `NotFound`, `Refused`.

    It must count what it counted: what was spent is kept in that measure.
    """
    measure, per_day = _limit(external, recipients, messages, licences, trial)
    before = yield from _get(name)
    if measure != before.measure:
        raise Refused(Problem("measure", f"this budget counts {before.measure}; make another one for {measure}"))
    yield Begin()
    yield from rows(SET, name=name, measure=measure, per_day=per_day)
    yield from note(door.actor, "budget changed", budget=name, measure=measure, per_day=per_day)
    yield Commit()
    yield from _free(name)
    return (yield from _get(name))


def remove(door: Door, name: str) -> Plan[None]:
    """Take a budget away; the mailboxes that shared it go on without. Raises `NotFound`."""
    yield from _get(name)
    yield Begin()
    yield from rows(REMOVE, name=name)
    yield from note(door.actor, "budget removed", budget=name)
    yield Commit()
    yield from _free(name)


def join(mailbox_id: UUID, name: str) -> Plan[None]:
    """Let a mailbox, whose row is locked, share a budget. Raises `NotFound`."""
    locked = yield from rows(LOCK, name=name)
    if not locked:
        raise _unknown(name)
    yield from rows(JOIN, mailboxes=[mailbox_id], budgets=[locked[0]["id"]])


def join_by_tenant(mailbox_id: UUID) -> Plan[None]:
    """Let a mailbox, whose row is locked, share the budgets of the tenant that its OAuth client is of."""
    locked = yield from rows(LOCK_OF_TENANT, mailbox=mailbox_id)
    if locked:
        yield from rows(JOIN, mailboxes=[mailbox_id], budgets=[row["id"] for row in locked])


def leave(mailbox_id: UUID, name: str) -> Plan[None]:
    """Take a mailbox, whose row is locked, out of a budget. What it spent stays spent. Raises `NotFound`."""
    if not (yield from rows(LEAVE, mailbox=mailbox_id, name=name)):
        raise NotFound(f"the mailbox does not share a budget {name!r}; see `outtray mailbox show`")


def _get(name: str) -> Plan[Budget]:
    found = yield from rows(LIST, name=name)
    if not found:
        raise _unknown(name)
    return _view(found[0])


def _unknown(name: str) -> NotFound:
    return NotFound(f"there is no budget {name!r}; see `outtray budget list`")


def _join_tenant(name: str, tenant: str) -> Plan[None]:
    after = NOBODY
    while True:
        yield Begin()
        ids = [row["id"] for row in (yield from rows(LOCK_TENANT, tenant=tenant, after=after, chunk=CHUNK))]
        locked = yield from rows(LOCK, name=name)
        if ids and locked:
            yield from rows(JOIN, mailboxes=ids, budgets=[locked[0]["id"]])
        yield Commit()
        if len(ids) < CHUNK:
            return
        after = ids[-1]


def _free(name: str) -> Plan[None]:
    """The mailboxes that waited for this budget judge anew (rule 13)."""
    after = NOBODY
    while True:
        yield Begin()
        waiting = yield from rows(LOCK_WAITING, reason=f"budget: {name}", after=after, chunk=CHUNK)
        ids = [row["id"] for row in waiting]
        if ids:
            yield from rows(FREE, ids=ids)
        yield Commit()
        if len(ids) < CHUNK:
            return
        after = ids[-1]


def _limit(
    external: int | None, recipients: int | None, messages: int | None, licences: int | None, trial: bool
) -> tuple[Measure, int]:
    """What a budget counts, and how much a day. Raises `Refused` unless exactly one limit is given, and a right one."""
    given: dict[str, tuple[Measure, int | None]] = {
        "external": ("external", external),
        "recipients": ("recipients", recipients),
        "messages": ("messages", messages),
        "licences": ("external", licences),
        "trial": ("external", TRIAL_TENANT_EXTERNALS if trial else None),
    }
    limits = [(name, measure, number) for name, (measure, number) in given.items() if number is not None]
    if len(limits) != 1:
        raise Refused(Problem("limit", f"give exactly one of {', '.join(given)}"))
    ((name, measure, number),) = limits
    if not (1 if name == "licences" else 0) <= number <= MOST:
        raise Refused(Problem(name, f"must be a whole number from {1 if name == 'licences' else 0}"))
    return measure, tenant_externals(number) if name == "licences" else number


def _view(row: Row) -> Budget:
    values: dict[str, Any] = {name: value for name, value in row.items() if name != "id"}
    return Budget(**values)
