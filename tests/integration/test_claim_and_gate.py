"""Rules 3, 4 and 8: what hangs on PostgreSQL's snapshots, with real sessions held at the critical point."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from outtray_worker.claim import claim
from outtray_worker.group import write_group
from outtray_worker.items import MailboxMove
from outtray_worker.pick import arm
from world import LEASE, gate, run, world


def test_two_claims_of_one_mailbox_never_both_succeed(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            first, second = await w.connect(), await w.connect()
            async with first, second:
                async with first.transaction():
                    assert len(await claim(first, [box], LEASE, "first")) == 1
                    rival = asyncio.create_task(claim(second, [box], LEASE, "second"))
                    await w.waits_for_a_lock(second)
                assert await rival == []
            assert (await w.row("mailbox", box))["turn_fence"] == 1

    run(scene())


def test_claims_of_overlapping_rounds_do_not_deadlock(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            boxes = [await w.mailbox() for _ in range(30)]
            sessions = [await w.connect() for _ in range(4)]
            rounds = [boxes, boxes[::-1], boxes[10:] + boxes[:10], boxes[::2] + boxes[1::2]]
            claims = zip(sessions, rounds, strict=True)
            got = await asyncio.gather(*(claim(session, ids, LEASE, "w") for session, ids in claims))
            assert sorted(box.id for claimed in got for box in claimed) == sorted(boxes)
            for session in sessions:
                await session.close()

    run(scene())


def test_a_claim_waits_for_the_gate_and_then_sees_its_handover(database):
    """An expired lease is claimed while the old holder's gate is being committed: the new ledger must contain it."""

    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            await w.message(box)
            old = await w.claim(box)
            message = (await w.due(box))[0]
            await arm(w.db, {box: await w.now()})
            session, rival = await w.connect(), await w.connect()
            async with session, rival:
                async with session.transaction():
                    assert (await write_group(session, [gate(old, message)])).passed
                    await w.shift(LEASE + timedelta(seconds=1))
                    claiming = asyncio.create_task(claim(rival, [box], LEASE, "rival"))
                    await w.waits_for_a_lock(rival)
                claimed = await claiming
                assert claimed[0].fence == old.fence + 1
                assert await w.due(box, rival) == []
                assert await w.rows("SELECT FROM outtray.message WHERE mailbox_id = %s AND counted_at IS NOT NULL", box)

    run(scene())


def test_an_old_fence_passes_no_gate(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            await w.message(box)
            old = await w.claim(box)
            message = (await w.due(box))[0]
            await w.shift(LEASE + timedelta(seconds=1))
            await w.db.execute("UPDATE outtray.mailbox SET next_at = outtray.outtray_now()")
            new = await w.claim(box)
            assert new is not None and new.fence == old.fence + 1
            assert (await w.write(gate(old, message))).closed == {box}
            assert (await w.write(gate(new, message))).passed == {message.id: 1}

    run(scene())


def test_a_lease_that_ran_out_passes_no_gate_though_nobody_claimed(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            await w.message(box)
            old = await w.claim(box)
            message = (await w.due(box))[0]
            await w.shift(LEASE + timedelta(seconds=1))
            assert (await w.write(gate(old, message))).closed == {box}

    run(scene())


def test_a_pause_committed_while_the_gate_waits_stops_it(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            await w.message(box)
            held = await w.claim(box)
            message = (await w.due(box))[0]
            pauser = await w.connect()
            async with pauser:
                async with pauser.transaction():
                    await pauser.execute("UPDATE outtray.mailbox SET status = 'paused' WHERE id = %s", [box])
                    gating = asyncio.create_task(w.write(gate(held, message)))
                    async with await w.connect() as looker:
                        w_looker = type(w)(w.settings, looker, w.app_id)
                        await w_looker.waits_for_a_lock(w.db)
                answer = await gating
            assert answer.closed == {box} and not answer.passed

    run(scene())


def test_a_switch_or_suppression_committed_while_the_gate_waits_is_seen(database):
    """The write is a second statement with a later snapshot: what committed during the lock wait counts."""

    async def scene() -> None:
        async with world(database.settings) as w:
            for change in ("switch", "suppression"):
                box = await w.mailbox()
                message_id = await w.message(box)
                await w.recipient(message_id, b"somebody")
                held = await w.claim(box)
                message = (await w.due(box))[0]
                holder, looker = await w.connect(), await w.connect()
                async with holder, looker:
                    async with holder.transaction():
                        await holder.execute("SELECT FROM outtray.mailbox WHERE id = %s FOR UPDATE", [box])
                        gating = asyncio.create_task(w.write(gate(held, message)))
                        await type(w)(w.settings, looker, w.app_id).waits_for_a_lock(w.db)
                        if change == "switch":
                            await holder.execute(
                                "INSERT INTO outtray.switch (kind, target, actor) VALUES ('all', '', 'me')"
                            )
                        else:
                            await holder.execute(
                                "INSERT INTO outtray.suppression VALUES (%s, 'somebody', '', 'asked')", [w.app_id]
                            )
                    answer = await gating
                assert not answer.passed, change
                await w.db.execute("DELETE FROM outtray.switch")

    run(scene())


def test_a_message_that_changed_since_it_was_read_is_not_gated(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            ids = [await w.message(box) for _ in range(3)]
            held = await w.claim(box)
            messages = {message.id: message for message in await w.due(box)}
            await w.db.execute("UPDATE outtray.message SET version = version + 1 WHERE id = %s", [ids[0]])
            await w.db.execute(
                "UPDATE outtray.message SET state = 'cancelled', ended_at = outtray.outtray_now() WHERE id = %s",
                [ids[1]],
            )
            answer = await w.write(*(gate(held, messages[message_id]) for message_id in ids))
            assert answer.passed == {ids[2]: 1}

    run(scene())


def test_a_wake_written_while_the_turn_ends_stays(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            held = await w.claim(box)
            now = await w.now()
            waker, looker = await w.connect(), await w.connect()
            async with waker, looker:
                async with waker.transaction():
                    await arm(waker, {box: now})
                    ending = asyncio.create_task(w.write(MailboxMove(box, held.fence, ends=True)))
                    await type(w)(w.settings, looker, w.app_id).waits_for_a_lock(w.db)
                await ending
            row = await w.row("mailbox", box)
            assert row["turn_until"] is None and row["next_at"] == now

    run(scene())


def test_a_turn_ends_armed_for_its_earliest_message_and_not_before_its_park(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            now = await w.now()
            await w.message(box, due_at=now + timedelta(minutes=5), priority=0)
            await w.message(box, due_at=now + timedelta(minutes=3), priority=2)
            held = await w.claim(box)
            await w.write(MailboxMove(box, held.fence, ends=True))
            assert (await w.row("mailbox", box))["next_at"] == now + timedelta(minutes=3)
            await w.db.execute("UPDATE outtray.mailbox SET next_at = outtray.outtray_now() WHERE id = %s", [box])
            held = await w.claim(box)
            await w.write(
                MailboxMove(box, held.fence, ends=True, park=timedelta(hours=1), park_reason="quota: messages")
            )
            row = await w.row("mailbox", box)
            assert row["next_at"] == row["parked_until"] > now + timedelta(minutes=59)

    run(scene())


def test_only_the_holder_of_the_fence_ends_a_turn(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            held = await w.claim(box)
            await w.write(MailboxMove(box, held.fence - 1, ends=True))
            assert (await w.row("mailbox", box))["turn_until"] is not None

    run(scene())
