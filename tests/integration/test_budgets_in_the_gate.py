"""Rule 15: limits that several mailboxes share are spent in the gate's own transaction, and never exceeded."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

from outtray_worker.group import write_group
from outtray_worker.quotas.budgets import Spend
from world import World, gate, run, world


async def tenant(w: World, per_day: int, *boxes) -> object:
    budget = uuid4()
    await w.db.execute("INSERT INTO outtray.budget VALUES (%s, %s, 'external', %s)", [budget, budget.hex, per_day])
    for box in boxes:
        await w.db.execute("INSERT INTO outtray.mailbox_budget VALUES (%s, %s)", [box, budget])
    return budget


async def used(w: World, budget) -> int:
    rows = await w.rows("SELECT sum(used)::int AS used FROM outtray.budget_hour WHERE budget_id = %s", budget)
    return rows[0]["used"] or 0


async def gates_of(w: World, box, **changes):
    claimed = await w.claim(box)
    return [gate(claimed, message, spend=Spend(1, 1, 1), **changes) for message in await w.due(box)]


def test_mailboxes_of_one_tenant_share_its_budget_in_one_group(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            boxes = [await w.mailbox() for _ in range(3)]
            budget = await tenant(w, 4, *boxes)
            for box in boxes:
                for _ in range(2):
                    await w.message(box)
            answer = await w.write(*[one for box in boxes for one in await gates_of(w, box)])
            assert len(answer.passed) == 4 and len(answer.exceeded) == 2
            assert await used(w, budget) == 4
            assert all(timedelta(hours=24) < e.frees_in <= timedelta(hours=25) for e in answer.exceeded.values())

    run(scene())


def test_two_workers_cannot_overrun_a_shared_budget(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            first, second = await w.mailbox(), await w.mailbox()
            budget = await tenant(w, 1, first, second)
            for box in (first, second):
                await w.message(box)
            mine, rivals = await gates_of(w, first), await gates_of(w, second)
            session, rival = await w.connect(), await w.connect()
            async with session, rival:

                async def rivals_group():
                    async with rival.transaction():
                        return await write_group(rival, rivals)

                async with session.transaction():
                    assert (await write_group(session, mine)).passed
                    waiting = asyncio.create_task(rivals_group())
                    await w.waits_for_a_lock(rival)
                answer = await waiting
            assert not answer.passed and len(answer.exceeded) == 1
            assert await used(w, budget) == 1

    run(scene())


def test_a_gate_that_does_not_pass_spends_nothing(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            budget = await tenant(w, 5, box)
            await w.message(box)
            stale = await gates_of(w, box, version=99)
            assert not (await w.write(*stale)).passed
            assert await used(w, budget) == 0

    run(scene())


def test_a_budget_frees_after_a_day_and_the_hour(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            await tenant(w, 1, box)
            for _ in range(2):
                await w.message(box)
            first, second = await gates_of(w, box)
            assert (await w.write(first)).passed
            await w.db.execute("UPDATE outtray.mailbox SET turn_until = turn_until + interval '3 days'")
            await w.shift(timedelta(hours=23, minutes=59))
            assert (await w.write(second)).exceeded
            await w.shift(timedelta(hours=1, minutes=1))
            assert (await w.write(second)).passed

    run(scene())
