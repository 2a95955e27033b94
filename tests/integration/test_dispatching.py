"""Rules 1, 2, 9, 12, 13, 14 and 16: wakes, picks, dead turns, what time does, and what the sweep finds."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

from psycopg.types.json import Jsonb

from outtray_schema import wakes
from outtray_worker.celery import celery_app
from outtray_worker.items import MailboxMove, Record, Refusal
from outtray_worker.pick import FEW, arm, pick, pick_few, unpick
from outtray_worker.prune import prune
from outtray_worker.rounds import EXPRESS, QUEUE, Rounds
from outtray_worker.sweep import sweep
from outtray_worker.tend import tend
from world import HANDOVER, LEASE, World, gate, run, world

AGAIN = timedelta(seconds=30)
SETTLE = timedelta(seconds=60)


def test_a_wake_brings_a_mailbox_forward_and_never_back(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            now = await w.now()
            await w.db.execute("UPDATE outtray.mailbox SET next_at = NULL")
            for due, expected in ((3, 3), (5, 3), (1, 1)):
                await arm(w.db, {box: now + timedelta(minutes=due)})
                assert (await w.row("mailbox", box))["next_at"] == now + timedelta(minutes=expected)

    run(scene())


def test_a_wake_does_not_break_a_park(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            now = await w.now()
            box = await w.mailbox(parked_until=now + timedelta(hours=1))
            await w.db.execute("UPDATE outtray.mailbox SET next_at = NULL")
            await arm(w.db, {box: now})
            assert (await w.row("mailbox", box))["next_at"] == now + timedelta(hours=1)

    run(scene())


def test_invented_wakes_and_rounds_are_harmless(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            assert wakes.parse([(b"no uuid", 1.0), (b"\xff", 2.0), (str(uuid4()).encode(), float("inf"))]) == {}
            await arm(w.db, {uuid4(): await w.now()})
            assert await w.claim(uuid4()) is None
            idle = await w.mailbox()
            await w.db.execute("UPDATE outtray.mailbox SET next_at = NULL")
            assert await w.claim(idle) is None

    run(scene())


def test_two_dispatchers_never_pick_the_same_mailbox(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            boxes = [await w.mailbox() for _ in range(40)]
            sessions = [await w.connect() for _ in range(4)]
            picks = await asyncio.gather(*(pick(session, 64, AGAIN) for session in sessions))
            picked = [box for one in picks for box in one]
            assert len(picked) == len(set(picked))
            picked += await pick(w.db, 64, AGAIN)
            assert sorted(picked) == sorted(boxes)
            for session in sessions:
                await session.close()

    run(scene())


def test_an_app_with_many_due_mailboxes_does_not_push_another_back(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            for _ in range(50):
                await w.mailbox()
            small = uuid4()
            await w.db.execute("INSERT INTO outtray.app (id, name) VALUES (%s, 'small')", [small])
            lone = await w.mailbox(app_id=small)
            large = await pick(w.db, 10, AGAIN, spare_small=True)
            assert len(large) == 10 and lone not in large, "it is left to the rounds that overtake"
            assert lone in (await pick(w.db, 10, AGAIN))[:2]

    run(scene())


def test_only_apps_with_few_due_mailboxes_overtake_and_the_longest_due_comes_first(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            now = await w.now()
            for _ in range(FEW + 1):
                await w.mailbox()
            small = uuid4()
            await w.db.execute("INSERT INTO outtray.app (id, name) VALUES (%s, 'small')", [small])
            boxes = [await w.mailbox(app_id=small) for _ in range(3)]
            for minutes, box in enumerate(boxes):
                await w.db.execute(
                    "UPDATE outtray.mailbox SET next_at = %s WHERE id = %s", [now - timedelta(minutes=minutes), box]
                )
            assert await pick_few(w.db, 64, AGAIN) == boxes[::-1]
            assert await pick_few(w.db, 64, AGAIN) == [], "they are on their way"
            for box in (await pick(w.db, 64, AGAIN))[2:]:
                await w.claim(box)
            await w.db.execute("UPDATE outtray.mailbox SET round_at = NULL")
            assert set(await pick_few(w.db, 64, AGAIN)) == set(boxes), "what is in its turn counts as well"

    run(scene())


def test_a_round_of_small_apps_overtakes_all_that_wait_in_the_broker(database):
    app = celery_app(database.settings, "dispatcher")
    rounds = Rounds(app)
    queued = [uuid4() for _ in range(4)]
    for box in queued[:3]:
        rounds.publish([box])
    rounds.publish([queued[3]], EXPRESS)
    assert rounds.waiting() == 4
    with app.connection_for_read() as connection:
        taken = []
        simple = connection.SimpleQueue(app.amqp.queues[QUEUE])
        for _ in queued:
            message = simple.get(timeout=5)
            message.ack()
            taken.append((message.payload[0][0][0], message.payload[1]))
    rounds.close()
    overtaking = (str(queued[3]), {"express": True})
    assert taken == [overtaking, *((str(box), {}) for box in queued[:3])]


def test_a_round_that_never_began_is_published_again(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            assert await pick(w.db, 10, AGAIN) == [box]
            assert await pick(w.db, 10, AGAIN) == []
            await w.shift(AGAIN + timedelta(seconds=1))
            assert await pick(w.db, 10, AGAIN) == [box]
            await unpick(w.db, [box])
            assert await pick(w.db, 10, AGAIN) == [box]

    run(scene())


def test_what_is_switched_off_or_not_active_is_neither_picked_nor_claimed(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            for kind, target in (("all", ""), ("app", str(w.app_id)), ("provider", "memory")):
                await w.db.execute(
                    "INSERT INTO outtray.switch (kind, target, actor) VALUES (%s, %s, 'me')", [kind, target]
                )
                assert await pick(w.db, 10, AGAIN) == [] and await w.claim(box) is None
                await w.db.execute("DELETE FROM outtray.switch")
            for status in ("paused", "reconnect", "disabled"):
                await w.db.execute("UPDATE outtray.mailbox SET status = %s", [status])
                assert await pick(w.db, 10, AGAIN) == [] and await w.claim(box) is None

    run(scene())


def test_a_message_with_a_paused_tag_waits_and_the_others_go_on(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            await w.message(box, tags=["autumn"])
            free = await w.message(box)
            await w.db.execute(
                "INSERT INTO outtray.switch (kind, target, actor) VALUES ('tag', %s, 'me')", [f"{w.app_id}:autumn"]
            )
            held = await w.claim(box)
            assert [message.id for message in await w.due(box)] == [free]
            await w.write(Refusal(free, box, 0, "failed", "failed"), MailboxMove(box, held.fence, ends=True))
            assert (await w.row("mailbox", box))["next_at"] is None, "a held message arms nothing, or it would spin"

    run(scene())


def test_an_expired_lease_frees_the_mailbox_for_its_other_messages(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box_id = await w.mailbox()
            first, second = await w.message(box_id), await w.message(box_id)
            await w.gate_one(box_id)
            await w.shift(LEASE + timedelta(seconds=1))
            assert (await tend(w.db, SETTLE))["dead turns"] == 1
            row = await w.row("mailbox", box_id)
            assert row["turn_until"] is None and row["round_at"] is None and row["dead_turns"] == 1
            again = await w.claim(box_id)
            left = [message.id for message in await w.due(box_id)]
            assert again.dead_turns == 1 and len(left) == 1 and left[0] in (first, second)

    run(scene())


def test_an_overdue_handover_becomes_unknown_and_goes_on_counting(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box_id = await w.mailbox()
            await w.message(box_id)
            _, message = await w.gate_one(box_id)
            await tend(w.db, SETTLE)
            assert (await w.row("message", message.id))["state"] == "handing_over"
            await w.shift(HANDOVER + timedelta(seconds=1))
            assert (await tend(w.db, SETTLE))["unknown"] == 1
            row = await w.row("message", message.id)
            assert row["state"] == "unknown" and row["counted_at"] == row["handover_until"]
            assert (await tend(w.db, SETTLE))["resent"] == 0, "hold is the default"

    run(scene())


def test_an_unknown_whose_policy_is_resend_goes_back_once_absence_may_count(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box_id = await w.mailbox()
            await w.message(box_id, on_unknown="resend")
            box, message = await w.gate_one(box_id)
            await w.write(MailboxMove(box.id, box.fence, ends=True))
            await w.shift(HANDOVER + timedelta(seconds=1))
            assert (await tend(w.db, SETTLE))["resent"] == 0, "not before somebody tried to look"
            await w.db.execute("UPDATE outtray.message SET look_at = NULL, looked = %s", [Jsonb({"finding": "no_way"})])
            assert (await tend(w.db, SETTLE))["resent"] == 0, "not before the settling time"
            await w.shift(SETTLE)
            await tend(w.db, SETTLE)
            row = await w.row("message", message.id)
            assert (row["state"], row["may_have_left"], row["counted_at"]) == ("queued", True, None)
            usage = await w.rows("SELECT handover, source FROM outtray.usage WHERE message_id = %s", message.id)
            assert [(use["handover"], use["source"]) for use in usage] == [(1, "resent")]
            assert (await w.row("mailbox", box_id))["next_at"] <= await w.now(), "whatever sets queued arms the mailbox"

    run(scene())


def test_an_unknown_that_somebody_wants_cancelled_is_not_sent_again_by_policy(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box_id = await w.mailbox()
            await w.message(box_id, on_unknown="resend")
            _, message = await w.gate_one(box_id)
            await w.db.execute("UPDATE outtray.message SET cancel_asked_at = outtray.outtray_now()")
            await w.shift(HANDOVER + SETTLE + timedelta(seconds=1))
            await tend(w.db, SETTLE)
            assert (await w.row("message", message.id))["state"] == "unknown"

    run(scene())


def test_the_dispatcher_expires_messages_of_a_paused_mailbox(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox(status="paused")
            now = await w.now()
            message = await w.message(box, expires_at=now + timedelta(minutes=1))
            assert (await tend(w.db, SETTLE))["expired"] == 0
            await w.shift(timedelta(minutes=2))
            assert (await tend(w.db, SETTLE))["expired"] == 1
            assert (await w.row("message", message))["state"] == "expired"

    run(scene())


def test_the_sweep_finds_a_lost_wake_even_behind_a_far_one(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            now = await w.now()
            lost, behind, parked, idle = [await w.mailbox() for _ in range(4)]
            held = await w.mailbox()
            for box in (lost, behind, parked, held):
                await w.message(box)
            await w.claim(held)
            await w.db.execute("UPDATE outtray.mailbox SET next_at = NULL WHERE id = ANY(%s)", [[lost, parked, idle]])
            await w.db.execute(
                "UPDATE outtray.mailbox SET next_at = %s WHERE id = %s", [now + timedelta(days=3), behind]
            )
            await w.db.execute(
                "UPDATE outtray.mailbox SET parked_until = %s WHERE id = %s", [now + timedelta(hours=1), parked]
            )
            assert await sweep(w.db) == 3
            next_at = {box: (await w.row("mailbox", box))["next_at"] for box in (lost, behind, parked, idle, held)}
            assert next_at[lost] <= await w.now() and next_at[behind] <= await w.now()
            assert next_at[parked] == now + timedelta(hours=1)
            assert next_at[idle] is None and next_at[held] is None
            assert await sweep(w.db) == 0

    run(scene())


def test_the_sweep_reaches_every_mailbox_in_chunks(database, monkeypatch):
    monkeypatch.setattr("outtray_worker.sweep.CHUNK", 7)

    async def scene() -> None:
        async with world(database.settings) as w:
            for _ in range(40):
                await w.message(await w.mailbox())
            await w.db.execute("UPDATE outtray.mailbox SET next_at = NULL")
            assert await sweep(w.db) == 40

    run(scene())


def test_deleting_a_young_message_keeps_what_it_used(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box_id = await w.mailbox()
            await w.message(box_id)
            box, message = await w.gate_one(box_id)
            await _record_sent(w, box, message)
            await w.db.execute("UPDATE outtray.message SET ended_at = outtray.outtray_now() - interval '100 days'")
            counts = await prune(w.db, w.settings)
            assert counts["messages"] == 1
            usage = await w.rows("SELECT source, recipients FROM outtray.usage WHERE mailbox_id = %s", box_id)
            assert [(use["source"], use["recipients"]) for use in usage] == [("deleted", 1)]

    run(scene())


async def _record_sent(w: World, box, message) -> None:
    await w.write(Record(message.id, box.id, 1, "sent", "sent", True))


def test_days_of_events_and_journal_are_made_ahead_and_dropped_when_old(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            await prune(w.db, w.settings)
            made = await w.rows("SELECT relname FROM pg_class WHERE relname ~ '^event_[0-9]{8}$'")
            assert len(made) == 7
            await w.shift(timedelta(days=60))
            counts = await prune(w.db, w.settings)
            assert counts["event days"] == 7 and counts["journal days"] == 0

    run(scene())


def test_gates_of_one_group_that_meet_a_claim_do_not_deadlock(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            boxes = [await w.mailbox() for _ in range(20)]
            for box in boxes:
                await w.message(box)
            claimed = {box: await w.claim(box) for box in boxes}
            gates = [gate(claimed[box], (await w.due(box))[0]) for box in boxes]
            sessions = [await w.connect() for _ in range(3)]
            answers = await asyncio.gather(
                w.write(*gates[::-1]), arm(sessions[0], dict.fromkeys(boxes, await _now_of(sessions[0]))),
                sweep(sessions[1]), tend(sessions[2], SETTLE),
            )  # fmt: skip
            assert len(answers[0].passed) == 20
            for session in sessions:
                await session.close()

    run(scene())


async def _now_of(session):
    return (await (await session.execute("SELECT outtray.outtray_now()")).fetchone())[0]
