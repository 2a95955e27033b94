"""Quota and pace through whole turns: never over, nobody burns attempts by waiting, and all of it leaves in the end."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from psycopg.types.json import Jsonb

from inside import Inside, dies_at, inside, most_within
from outtray import Message
from outtray_schema.outcome import Failed, NotBegun, Parked
from outtray_worker.providers.memory import Answer
from world import run

DAY = timedelta(hours=24)
HOUR = timedelta(hours=1)


def enqueue_many(office: Inside, box, count: int) -> None:
    office.client.enqueue_many(
        Message(to=f"p{n}@example.net", subject="s", text="t", mailbox=box) for n in range(count)
    )


def test_of_520_due_exactly_500_leave_in_any_24_hours_and_20_wait_with_reason_and_time(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"messages": 500})
            enqueue_many(office, box, 310)
            await office.until_idle()
            await office.later(timedelta(hours=10))
            enqueue_many(office, box, 210)
            await office.until_idle()
            assert await office.states() == {"sent": 500, "queued": 20}
            first = (await office.w.rows("SELECT min(counted_at) AS first FROM outtray.message"))[0]["first"]
            mailbox = await office.box(box)
            assert mailbox["parked_reason"] == "quota: messages" and mailbox["parks"] == 0
            assert abs(mailbox["parked_until"] - (first + DAY)) < timedelta(seconds=1)
            assert mailbox["next_at"] == mailbox["parked_until"], "it comes back by itself"
            await each_waiting_one_is_explained(office, first + DAY)
            await office.later(timedelta(hours=13))
            assert await office.round() == 0
            await office.later(HOUR)
            await office.until_idle()
            assert await office.states() == {"sent": 520}
            assert most_within(office.accepted_at, DAY.total_seconds()) == 500, "all of the allowance, and not one more"
            assert len(set(office.accepted)) == 520
            rows = await office.w.rows(
                "SELECT max(attempt) AS attempts, max(handover) AS handovers FROM outtray.message"
            )
            assert rows == [{"attempts": 1, "handovers": 1}], "waiting spent nothing"

    run(scene())


async def each_waiting_one_is_explained(office: Inside, frees) -> None:
    waiting = await office.w.rows("SELECT id FROM outtray.message WHERE state = 'queued'")
    for row in waiting:
        explanation = office.client.explain(row["id"])
        assert "messages" in f"{explanation.reason} {explanation.limit}"
        assert explanation.earliest is not None and abs(explanation.earliest - frees) < timedelta(seconds=1)


@pytest.mark.parametrize("measure", ["recipients", "external", "unique_external"])
def test_every_daily_limit_stops_the_message_that_would_break_it(database, measure):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({measure: 10})
            for n in range(4):
                office.enqueue(box, to=[f"{name}{n}@example.net" for name in "abc"])
            await office.until_idle()
            assert len(office.accepted) == 3
            assert (await office.box(box))["parked_reason"] == f"quota: {measure}"
            await office.later(DAY)
            await office.until_idle()
            assert len(office.accepted) == 4

    run(scene())


def test_known_recipients_are_no_new_unique_ones(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"unique_external": 3})
            for _ in range(4):
                office.enqueue(box, to=["a@example.net", "b@example.net", "c@example.net"])
            (other,) = office.enqueue(box, to="d@example.net", priority="low")
            await office.until_idle()
            assert len(office.accepted) == 4 and other not in office.accepted

    run(scene())


def test_a_message_that_can_never_fit_fails_clearly_and_the_others_go_on(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            (wide,), (narrow,) = office.enqueue(box, to=[f"a{n}@example.net" for n in range(5)]), office.enqueue(box)
            limits = {"messages": None, "recipients": 4, "recipients_per_message": None}
            await office.w.db.execute("UPDATE outtray.mailbox SET limits = %s", [Jsonb(limits)])
            await office.until_idle()
            row = await office.message(wide)
            assert (row["state"], row["reason"]) == ("failed", "alone more than the mailbox's limit of recipients")
            assert office.accepted == [narrow]

    run(scene())


def test_unknown_and_open_handovers_count_and_definite_refusals_do_not(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"messages": 3})
            office.enqueue(box, 7)
            office.answers(Answer("hand_over"), Failed("550 no"), NotBegun("too late"))
            await office.until_idle()
            assert await office.states() == {"unknown": 1, "failed": 1, "sent": 2, "queued": 3}
            assert office.provider.seen["hand_over"] == 5, "what was refused gave its place to the next"
            await office.later(DAY)
            await office.until_idle()
            assert (await office.states())["sent"] == 4, "the unknown one counts from its deadline, and longest"
            await office.later(timedelta(minutes=11))
            await office.until_idle()
            assert await office.states() == {"unknown": 1, "failed": 1, "sent": 5}

    run(scene())


def test_deaths_after_the_gate_leave_the_count_exact(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"messages": 4})
            office.enqueue(box, 10)
            reach = dies_at("handed over")
            for _ in range(6):  # each turn hands one over and dies before it can say so
                office.process.crash_point = reach
                await office.round()
                await office.later(timedelta(minutes=20))
            office.process.crash_point = lambda *_: None
            await office.until_idle()
            assert len(office.accepted) == 4 == len(set(office.accepted))
            assert await office.states() == {"unknown": 4, "queued": 6}

    run(scene())


def test_a_raised_limit_and_a_lowered_one_hold_from_the_next_turn(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"messages": 2})
            office.enqueue(box, 6)
            await office.until_idle()
            assert len(office.accepted) == 2
            office.client.mailboxes.set(box, limits={"messages": 5})
            await office.until_idle()
            assert len(office.accepted) == 5
            office.client.mailboxes.set(box, limits={"messages": 1})
            await office.until_idle()
            assert len(office.accepted) == 5

    run(scene())


def test_a_park_by_the_provider_is_not_shortened_by_the_quota(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"messages": 5})
            office.enqueue(box, 2)
            office.answers(Parked("421 come tomorrow", after=timedelta(hours=20)))
            await office.round()
            until_then = (await office.box(box))["parked_until"]
            office.enqueue(box)
            assert await office.round() == 0
            assert (await office.box(box))["parked_until"] == until_then

    run(scene())


def test_the_pace_is_kept_at_the_provider(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"per_minute": 600, "burst": 5})
            office.enqueue(box, 30)
            await office.round_until(lambda: len(office.accepted) == 30, within=15)
            moments = office.accepted_at
            for window in (0.2, 0.5, 1.0, 2.0):
                # A token is taken before its preparation: what took long to prepare may close up on the next.
                assert most_within(moments, window) <= 5 + (window + 0.25) * 10, f"within {window} s"
            assert moments[-1] - moments[0] >= 2.4

    run(scene())


def test_a_mailbox_that_waits_for_its_pace_rests_without_an_event_or_an_attempt(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"per_minute": 6})
            office.enqueue(box, 3)
            await office.until_idle()
            mailbox, now = await office.box(box), await office.w.now()
            assert len(office.accepted) == 1 and mailbox["parked_reason"] == "pace" and mailbox["parks"] == 0
            assert timedelta(seconds=7) < mailbox["parked_until"] - now <= timedelta(seconds=10.1)
            assert await office.events("mailbox.parked") == []
            await office.later(timedelta(seconds=11))  # the bucket goes by another clock: it still has no token
            await office.until_idle()
            assert len(office.accepted) == 1 and await office.states() == {"sent": 1, "queued": 2}

    run(scene())


def test_without_redis_the_ledger_keeps_the_pace_and_mail_still_leaves(database, services):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"per_minute": 20, "burst": 20})
            office.enqueue(box, 60)
            services.valkey.stop()
            begun = time.monotonic()
            await office.until_idle()
            elapsed = time.monotonic() - begun
            assert 1 <= len(office.accepted) <= 10 + elapsed, "half of the pace"
            assert (await office.box(box))["parked_reason"] == "pace"
            services.valkey.start()

    run(scene())


def test_mail_of_one_round_is_not_over_the_pace_after_a_flush(database, redis):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"per_minute": 12, "burst": 12})
            office.enqueue(box, 40)
            begun = time.monotonic()
            for _ in range(5):
                await office.round()
                redis.flushall()
                await office.w.db.execute(
                    "UPDATE outtray.mailbox SET parked_until = NULL, next_at = outtray.outtray_now()"
                )
            elapsed = time.monotonic() - begun
            assert 12 <= len(office.accepted) <= 12 + elapsed * 12 / 60 + 1

    run(scene())


def test_mailboxes_of_a_provider_app_share_its_pace(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            await office.w.db.execute("INSERT INTO outtray.provider_app VALUES ('theirs', 'memory', 300)")
            for _ in range(4):
                office.enqueue(await office.mailbox(provider_app="theirs"), 4)
            alone = await office.mailbox()
            office.enqueue(alone, 3)
            begun = time.monotonic()
            await office.round()
            elapsed = time.monotonic() - begun
            shared = [taken for taken in office.provider.accepted if taken.mailbox_id != alone]
            assert len(office.accepted) - len(shared) == 3
            assert 1 <= len(shared) <= 5 + elapsed * 5 + 1

    run(scene())
