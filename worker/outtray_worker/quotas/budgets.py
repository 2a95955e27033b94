"""Budgets: daily limits that several mailboxes share, such as a tenant's external recipients (protocol, rule 15).

A budget is kept by the hour, and its window is 24 hours plus the current hour: a little early, never over. All of it
happens in the transaction that passes the gates:

    budgets = await lock_budgets(connection, mailboxes)     takes the budgets' rows, in the order of their ids
    exceeded = budgets.spend(mailbox, spend)                for each gate: None, or why it may not pass
    budgets.give_back(mailbox, spend)                       for a gate that something else stopped
    await budgets.write(connection)                         one write per budget, before COMMIT

What was spent stays spent, also when the provider then refuses the message: a budget is never over, and a little early.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

HOUR = timedelta(hours=1)
WINDOW = 25 * HOUR
"""24 hours plus the current one."""

# Takes the rows of these mailboxes' budgets in the order of their ids and holds them to COMMIT. Not the hours' rows: at
# the turn of an hour two groups would write different ones, and neither would see what the other is about to spend.
LOCK = """
SELECT b.id, b.name, b.measure, b.per_day FROM outtray.budget b
WHERE b.id IN (SELECT mb.budget_id FROM outtray.mailbox_budget mb WHERE mb.mailbox_id = ANY(%s))
ORDER BY b.id FOR NO KEY UPDATE
"""

# The following are later statements, hence snapshots in which whatever was spent before the lock is seen.
MEMBERS = """
SELECT mb.mailbox_id, mb.budget_id FROM outtray.mailbox_budget mb
WHERE mb.mailbox_id = ANY(%s) AND mb.budget_id = ANY(%s)
"""
HOURS = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now)
SELECT t.now, date_trunc('hour', t.now, 'UTC'), h.budget_id, h.hour, h.used
FROM t LEFT JOIN outtray.budget_hour h
    ON h.budget_id = ANY(%s) AND h.hour > date_trunc('hour', t.now, 'UTC') - interval '25 hours'
"""

# One row per budget: the current hour's.
WRITE = """
INSERT INTO outtray.budget_hour (budget_id, hour, used)
SELECT s.id, %(hour)s, s.used FROM unnest(%(ids)s::uuid[], %(used)s::int[]) AS s (id, used) ORDER BY s.id
ON CONFLICT (budget_id, hour) DO UPDATE SET used = budget_hour.used + excluded.used
"""


@dataclass(frozen=True, slots=True)
class Spend:
    """What one message uses."""

    messages: int
    recipients: int
    external: int


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A budget has no room for a message; `frees_in` until it has, or None: the message alone is more than a day's."""

    budget: str
    frees_in: timedelta | None


@dataclass(slots=True)
class _Budget:
    id: UUID
    name: str
    measure: str
    per_day: int
    hours: dict[datetime, int] = field(default_factory=dict)
    spent: int = 0

    def fits(self, need: int) -> bool:
        return sum(self.hours.values()) + self.spent + need <= self.per_day

    def free_hour(self, hour: datetime, need: int) -> datetime | None:
        """The first hour to come in whose window the message fits, if nothing more is spent."""
        hours = self.hours | {hour: self.hours.get(hour, 0) + self.spent}
        for ahead in range(1, 26):
            begins = hour + ahead * HOUR
            if sum(used for at, used in hours.items() if at > begins - WINDOW) + need <= self.per_day:
                return begins
        return None


class Budgets:
    """The locked budgets of one group's mailboxes, counted down as its gates pass."""

    def __init__(
        self, now: datetime, hour: datetime, budgets: Iterable[_Budget], members: Mapping[UUID, Collection[UUID]]
    ) -> None:
        self._now = now
        self._hour = hour
        self._budgets = {budget.id: budget for budget in budgets}
        self._members = members

    def spend(self, mailbox_id: UUID, spend: Spend) -> Exceeded | None:
        """Spend from all of a mailbox's budgets, or from none if one of them has no room."""
        mine = self._of(mailbox_id)
        for budget in mine:
            need = getattr(spend, budget.measure)
            if not budget.fits(need):
                free = budget.free_hour(self._hour, need)
                return Exceeded(budget.name, None if free is None else free - self._now)
        for budget in mine:
            budget.spent += getattr(spend, budget.measure)
        return None

    def give_back(self, mailbox_id: UUID, spend: Spend) -> None:
        """The gate that spent this did not pass after all."""
        for budget in self._of(mailbox_id):
            budget.spent -= getattr(spend, budget.measure)

    async def write(self, connection: AsyncConnection[Any]) -> None:
        """Write what was spent, one row per budget."""
        spent = [budget for budget in self._budgets.values() if budget.spent]
        if spent:
            ids, used = [budget.id for budget in spent], [budget.spent for budget in spent]
            await connection.execute(WRITE, {"hour": self._hour, "ids": ids, "used": used})

    def _of(self, mailbox_id: UUID) -> list[_Budget]:
        return [self._budgets[budget_id] for budget_id in self._members.get(mailbox_id, ())]


async def lock_budgets(connection: AsyncConnection[Any], mailbox_ids: Collection[UUID]) -> Budgets:
    """Lock and read the budgets of these mailboxes, inside the transaction that the caller opened and will commit.

    Call it after the mailboxes' own rows are locked: every group takes mailboxes first, then budgets.
    """
    mailboxes = list(mailbox_ids)
    locked = await (await connection.execute(LOCK, [mailboxes])).fetchall()
    budgets = {row[0]: _Budget(*row) for row in locked}
    members: defaultdict[UUID, list[UUID]] = defaultdict(list)
    for mailbox_id, budget_id in await (await connection.execute(MEMBERS, [mailboxes, list(budgets)])).fetchall():
        members[mailbox_id].append(budget_id)
    rows = await (await connection.execute(HOURS, [list(budgets)])).fetchall()
    for _, _, budget_id, hour, used in rows:
        if budget_id is not None:
            budgets[budget_id].hours[hour] = used
    return Budgets(rows[0][0], rows[0][1], budgets.values(), members)
