"""Shared budgets: what several mailboxes may spend together, on a real PostgreSQL (rule 15)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outtray_worker.quotas.budgets import Exceeded, Spend, lock_budgets
from world import World, run, world


async def budget(w: World, measure: str, per_day: int, *mailboxes: Any) -> Any:
    budget_id = uuid4()
    await w.db.execute(
        "INSERT INTO outtray.budget (id, name, measure, per_day) VALUES (%s, %s, %s, %s)",
        [budget_id, budget_id.hex, measure, per_day],
    )
    for mailbox_id in mailboxes:
        await w.db.execute("INSERT INTO outtray.mailbox_budget VALUES (%s, %s)", [mailbox_id, budget_id])
    return budget_id


async def spend(w: World, mailbox_id: Any, amount: Spend) -> Exceeded | None:
    async with w.db.transaction():
        budgets = await lock_budgets(w.db, [mailbox_id])
        exceeded = budgets.spend(mailbox_id, amount)
        await budgets.write(w.db)
    return exceeded


def test_mailboxes_that_share_a_budget_are_together_never_over_it(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            first, second = await w.mailbox(), await w.mailbox()
            shared = await budget(w, "external", 10, first, second)
            assert await spend(w, first, Spend(1, 9, 6)) is None
            exceeded = await spend(w, second, Spend(1, 5, 5))
            assert exceeded is not None and exceeded.budget == shared.hex
            assert await spend(w, second, Spend(1, 5, 4)) is None
            rows = await w.rows("SELECT used FROM outtray.budget_hour")
            assert [row["used"] for row in rows] == [10]

    run(scene())


def test_what_one_budget_refuses_is_spent_from_none(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            roomy, tight = await budget(w, "messages", 10, box), await budget(w, "recipients", 3, box)
            exceeded = await spend(w, box, Spend(1, 4, 0))
            assert exceeded == Exceeded(tight.hex, None), "the message alone is more than a day's"
            assert await spend(w, box, Spend(1, 3, 0)) is None
            rows = await w.rows("SELECT budget_id, used FROM outtray.budget_hour")
            assert {row["budget_id"]: row["used"] for row in rows} == {roomy: 1, tight: 3}

    run(scene())


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 600), st.integers(1, 4)), min_size=1, max_size=25), st.integers(1, 12))
def test_no_24_hours_hold_more_than_a_budget_and_the_stated_wait_is_right(database, steps, per_day):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            await budget(w, "messages", per_day, box)
            spent: list[tuple[Any, int]] = []
            for minutes, messages in steps:
                await w.shift(timedelta(minutes=minutes))
                before = await w.now()
                exceeded = await spend(w, box, Spend(messages, 0, 0))
                if exceeded is not None and exceeded.frees_in is not None:
                    assert exceeded.frees_in <= timedelta(hours=25)
                    await w.shift(exceeded.frees_in + timedelta(seconds=1))
                    before = await w.now()
                    exceeded = await spend(w, box, Spend(messages, 0, 0))
                assert (exceeded is not None) == (messages > per_day)
                if exceeded is None:
                    spent.append((before, messages))
                assert sum(n for at, n in spent if at > before - timedelta(hours=24)) <= per_day

    run(scene())


def test_two_groups_at_the_turn_of_an_hour_cannot_both_spend_the_last_of_a_budget(database):
    """They would write different hours' rows, so only the budget's own lock lets the second see the first (rule 15)."""

    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            await budget(w, "messages", 1, box)
            first, second = await w.connect(), await w.connect()

            async def group() -> Exceeded | None:
                async with second.transaction():
                    budgets = await lock_budgets(second, [box])
                    exceeded = budgets.spend(box, Spend(1, 0, 0))
                    await budgets.write(second)
                return exceeded

            async with first, second:
                async with first.transaction():
                    budgets = await lock_budgets(first, [box])
                    assert budgets.spend(box, Spend(1, 0, 0)) is None
                    await budgets.write(first)
                    await w.shift(timedelta(hours=1))
                    rival = asyncio.create_task(group())
                    await w.waits_for_a_lock(second)
                assert await rival is not None

    run(scene())


def test_a_gate_that_something_else_stopped_spends_nothing(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            await budget(w, "messages", 1, box)
            async with w.db.transaction():
                budgets = await lock_budgets(w.db, [box])
                assert budgets.spend(box, Spend(1, 1, 1)) is None
                assert budgets.spend(box, Spend(1, 1, 1)) is not None
                budgets.give_back(box, Spend(1, 1, 1))
                await budgets.write(w.db)
            assert await w.rows("SELECT * FROM outtray.budget_hour") == []

    run(scene())


def test_a_budget_counts_its_hour_and_the_24_before_and_says_when_it_frees(database):
    """Spent in the last minute of an hour, it still counts in the first minutes of that hour a day later."""

    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            await budget(w, "messages", 1, box)
            now = await w.now()
            hour = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
            await w.shift(hour + timedelta(minutes=59) - now)
            assert await spend(w, box, Spend(1, 1, 1)) is None
            await w.shift(timedelta(hours=23, minutes=2))
            exceeded = await spend(w, box, Spend(1, 1, 1))
            assert exceeded is not None and exceeded.frees_in is not None
            frees_at = await w.now() + exceeded.frees_in
            assert timedelta(0) <= frees_at - (hour + timedelta(hours=25)) < timedelta(seconds=5)
            await w.shift(exceeded.frees_in - timedelta(seconds=10))
            assert await spend(w, box, Spend(1, 1, 1)) is not None
            await w.shift(timedelta(seconds=11))
            assert await spend(w, box, Spend(1, 1, 1)) is None

    run(scene())
