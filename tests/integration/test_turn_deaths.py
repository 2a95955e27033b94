"""Rules 4, 5, 7, 9 and 13 through whole turns: they die, freeze, come back late, and take nobody along."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from uuid import UUID

import psycopg

from inside import Died, Inside, Scripted, dies_at, inside
from outtray_worker.tend import CHUNK, END_DEAD_TURNS, MARK_UNKNOWN
from polling import until
from world import LEASE, run

LATER = LEASE + timedelta(seconds=1)


def test_a_message_that_kills_its_worker_fails_as_poison_and_the_others_of_its_mailbox_go_on(database):
    async def scene() -> None:
        provider, prepared = Scripted(), Counter[UUID]()
        async with inside(database.settings, provider) as office:
            box = await office.mailbox()
            (innocent,) = office.enqueue(box, priority="high")
            poison, other, last = office.enqueue(box, 3)

            async def before_prepare(message: UUID) -> None:
                prepared[message] += 1
                if message == poison:
                    raise Died

            provider.before_prepare = before_prepare
            for _ in range(4):
                await office.round()
                assert (await office.message(poison))["state"] == "queued"
                await office.later(LATER)
            await office.until_idle()
            row = await office.message(poison)
            assert row["state"] == "failed"
            assert row["reason"] == "poison: its worker died 3 times while preparing it"
            told = [event for event in await office.events("failed") if event["message_id"] == poison]
            assert [event["data"]["reason"] for event in told] == [row["reason"]] and "failed" in await office.journal(
                poison
            )
            assert prepared == {innocent: 1, poison: 4, other: 1, last: 1}, "the first death is not yet counted"
            assert office.accepted == [innocent, other, last]
            assert (await office.box(box))["dead_turns"] == 0

    run(scene())


def test_a_death_beside_it_does_not_make_a_message_poison(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            (message,) = office.enqueue(box)
            for _ in range(8):  # its worker dies each time, but never while it prepares this message
                office.process.crash_point = dies_at("claimed")
                with suppress(Died):
                    await office.begin()
                await office.later(LATER)
            office.process.crash_point = lambda *_: None
            await office.until_idle()
            assert office.accepted == [message] and (await office.message(message))["prepares"] == 0

    run(scene())


def test_a_suspects_preparation_is_counted_durably_before_it_begins(database):
    async def scene() -> None:
        provider = Scripted()
        async with inside(database.settings, provider) as office:
            box = await office.mailbox()
            (message,) = office.enqueue(box)
            office.process.crash_point = dies_at("preparing")
            await office.round()
            await office.later(LATER)
            office.process.crash_point = lambda *_: None
            seen = []

            async def before_prepare(_: UUID) -> None:
                seen.append((await office.message(message))["prepares"])

            provider.before_prepare = before_prepare
            await office.until_idle()
            assert seen == [1] and (await office.message(message))["prepares"] == 0, "the gate clears the suspicion"

    run(scene())


def test_what_a_dead_turn_left_in_its_handover_waits_and_the_mailbox_does_not(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            first, second = office.enqueue(box, 2)
            office.process.crash_point = dies_at("handed over")
            await office.round()
            office.process.crash_point = lambda *_: None
            await office.later(LATER)
            await office.until_idle()
            assert (await office.message(first))["state"] == "handing_over", "it waits for its own deadline"
            assert (await office.message(second))["state"] == "sent", "the lease is enough for the others"
            await office.later(timedelta(minutes=11))
            assert (await office.message(first))["state"] == "unknown"
            await office.until_idle()
            assert Counter(office.accepted) == {first: 1, second: 1}

    run(scene())


def test_a_turn_whose_fence_was_taken_cannot_begin_a_handover_nor_end_the_new_turn(database):
    async def scene() -> None:
        provider, go = Scripted(), asyncio.Event()
        async with inside(database.settings, provider) as office:
            box = await office.mailbox()
            message, _ = office.enqueue(box, 2)

            async def before_prepare(_: UUID) -> None:
                await go.wait()

            provider.before_prepare = before_prepare
            await office.begin()
            await until(lambda: office.process.engine.turns)
            await office.later(LATER)
            newer = await office.w.claim(box)
            assert newer is not None
            go.set()
            await office.process.engine.drain()
            assert provider.seen["hand_over"] == 0 and provider.seen["prepare"] == 1
            assert (await office.message(message))["state"] == "queued"
            mailbox = await office.box(box)
            assert mailbox["turn_fence"] == newer.fence and mailbox["turn_until"] is not None

    run(scene())


def test_a_lease_that_ran_out_passes_no_gate_even_before_somebody_takes_it(database):
    async def scene() -> None:
        provider, go = Scripted(), asyncio.Event()
        async with inside(database.settings, provider) as office:
            box = await office.mailbox()
            office.enqueue(box)

            async def before_prepare(_: UUID) -> None:
                await go.wait()

            provider.before_prepare = before_prepare
            await office.begin()
            await until(lambda: office.process.engine.turns)
            await office.w.shift(LATER)
            go.set()
            await office.process.engine.drain()
            assert provider.seen["hand_over"] == 0

    run(scene())


def test_an_answer_that_comes_after_unknown_still_makes_the_message_sent(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            (message,) = office.enqueue(box)
            office.provider.during_handover = asyncio.Event()
            await office.begin()
            await until(lambda: office.provider.seen["hand_over"])
            await office.later(timedelta(minutes=20))
            assert (await office.message(message))["state"] == "unknown"
            office.provider.during_handover.set()
            await office.process.engine.drain()
            row = await office.message(message)
            assert (row["state"], row["provider_id"]) == ("sent", f"memory-{message}")
            assert row["counted_at"] == row["handover_end"]

    run(scene())


def test_the_end_of_a_turns_time_never_abandons_a_handover(database):
    async def scene() -> None:
        async with inside(
            database.settings, turn_length=timedelta(seconds=0.1), lease=timedelta(seconds=0.6)
        ) as office:
            box = await office.mailbox()
            message, second = office.enqueue(box, 2)
            office.provider.during_handover = asyncio.Event()
            await office.begin()
            await until(lambda: office.provider.seen["hand_over"])
            begun = time.monotonic()
            # Four times the lease: only its renewal by a living process keeps the mailbox this turn's own.
            await until(lambda: time.monotonic() - begun > 2.4)
            assert (await office.w.claim(box)) is None and (await office.box(box))["turn_until"] > await office.w.now()
            office.provider.during_handover.set()
            await office.process.engine.drain()
            assert (await office.message(message))["state"] == "sent"
            assert (await office.message(second))["state"] == "queued", "its time was over"
            await office.until_idle()
            assert office.accepted == [message, second]

    run(scene())


def overtake(settings, message: UUID) -> None:
    """While our process stands still: the clock runs on, the turn is found dead and the handover overdue."""
    with psycopg.connect(str(settings.database_url), autocommit=True) as db:
        db.execute("UPDATE outtray.clock SET shift = shift + interval '20 minutes'")
        db.execute(END_DEAD_TURNS, {"chunk": CHUNK})
        db.execute(MARK_UNKNOWN, {"chunk": CHUNK})
        # Another worker's turn finds nothing due, and ends.
        db.execute("UPDATE outtray.mailbox SET turn_fence = turn_fence + 1, next_at = NULL")
        assert db.execute("SELECT state FROM outtray.message WHERE id = %s", [message]).fetchone() == ("unknown",)


def test_a_handover_found_too_late_comes_back_even_from_unknown_and_arms_its_mailbox(database):
    async def scene() -> None:
        async with inside(database.settings, handover_begin=timedelta(seconds=0.05)) as office:
            box = await office.mailbox()
            (message,) = office.enqueue(box)
            office.process.crash_point = _frozen_after_the_gate(office, message)
            await office.round()
            row = await office.message(message)
            assert (row["state"], row["attempt"], row["counted_at"]) == ("queued", 0, None)
            assert office.provider.seen["hand_over"] == 0
            assert (await office.box(box))["next_at"] is not None, "whatever sets queued arms the mailbox"
            office.process.crash_point = lambda *_: None
            await office.until_idle()
            assert office.accepted == [message]

    run(scene())


def _frozen_after_the_gate(office: Inside, message: UUID):
    def reach(point: str, *_: UUID) -> None:
        if point == "gated":
            begun = time.monotonic()
            overtake(office.w.settings, message)
            while time.monotonic() - begun < 0.1:  # a frozen process runs nothing, and its deadline's clock runs on
                pass

    return reach
