"""Windows and gaps through whole turns: nothing leaves outside of them, nobody burns attempts, nobody bursts."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb

from inside import Died, Inside, Scripted, inside
from outtray_schema.times import parse_gap
from outtray_worker import deadline
from world import run

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SOON = timedelta(seconds=2)


async def daily(office: Inside, begins: timedelta, ends: timedelta, **more: Any) -> tuple[Jsonb, datetime, datetime]:
    """Times with a window that opens and closes so long after the database's present minute, and those two moments."""
    minute = (await office.w.now()).replace(second=0, microsecond=0)
    opens, closes = minute + begins, minute + ends
    spans = [{"days": list(range(1, 8)), "from": f"{opens:%H:%M}", "to": f"{closes:%H:%M}"}]
    return Jsonb({"window": {"zone": "UTC", "spans": spans, "blackout": []}} | more), opens, closes


def test_a_closed_mailbox_rests_until_it_opens_and_its_backlog_then_leaves_at_pace(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            times, opens, _ = await daily(office, 2 * HOUR, 4 * HOUR)
            box = await office.mailbox({"per_minute": 6}, times=times)
            office.enqueue(box, 5)
            assert await office.round() == 1 and office.accepted == []
            mailbox = await office.box(box)
            assert (mailbox["parked_reason"], mailbox["parks"]) == ("window", 0)
            assert opens <= mailbox["parked_until"] <= opens + SOON and mailbox["next_at"] == mailbox["parked_until"]
            assert len(await office.events("mailbox.parked")) == 1
            await office.later(2 * HOUR - 2 * MINUTE)
            assert await office.round() == 0
            await office.later(3 * MINUTE)
            await office.until_idle()
            assert len(office.accepted) == 1, "not in a burst, however long it was closed"
            assert (await office.box(box))["parked_reason"] == "pace"
            rows = await office.w.rows("SELECT max(attempt) AS most, count(*) AS n FROM outtray.message")
            assert rows == [{"most": 1, "n": 5}]

    run(scene())


def test_a_message_out_of_its_own_window_moves_on_and_the_others_go_on(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            times, opens, _ = await daily(office, 2 * HOUR, 4 * HOUR)
            box = await office.mailbox()
            early, other = office.enqueue(box, 2)
            await office.w.db.execute("UPDATE outtray.message SET times = %s WHERE id = %s", [times, early])
            await office.until_idle()
            assert office.accepted == [other]
            waits = await office.message(early)
            assert (waits["state"], waits["attempt"], waits["reason"]) == ("queued", 0, "window")
            assert opens <= waits["due_at"] <= opens + SOON
            assert "window" in await office.journal(early)
            box_row = await office.box(box)
            assert box_row["parked_until"] is None and box_row["next_at"] == waits["due_at"]
            await office.later(2 * HOUR + MINUTE)
            await office.until_idle()
            assert office.accepted == [other, early]

    run(scene())


def test_windows_that_never_meet_are_looked_at_again_each_day(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            mine, *_ = await daily(office, 2 * HOUR, 3 * HOUR)
            times, *_ = await daily(office, -HOUR, HOUR)
            box = await office.mailbox(times=times)
            (message,) = office.enqueue(box)
            await office.w.db.execute("UPDATE outtray.message SET times = %s WHERE id = %s", [mine, message])
            await office.until_idle()
            waits = await office.message(message)
            assert office.accepted == [] and waits["attempt"] == 0
            assert waits["due_at"] - await office.w.now() > 23 * HOUR

    run(scene())


@pytest.mark.parametrize("whose", ["mailbox", "message"])
def test_no_handover_begins_once_a_window_has_closed_however_long_its_gate_waited(database, monkeypatch, whose):
    async def scene() -> None:
        async with inside(database.settings, Scripted()) as office:
            times, *_ = await daily(office, -HOUR, 10 * MINUTE)
            box = await office.mailbox(times=times if whose == "mailbox" else None)
            (message,) = office.enqueue(box)
            if whose == "message":
                await office.w.db.execute("UPDATE outtray.message SET times = %s WHERE id = %s", [times, message])

            async def sleeps_past_the_closing(_: UUID) -> None:
                monkeypatch.setattr(deadline, "boottime", lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + 601)

            office.provider.before_prepare = sleeps_past_the_closing
            await office.round()
            assert office.accepted == []
            waits = await office.message(message)
            assert (waits["state"], waits["attempt"]) == ("queued", 0)
            monkeypatch.undo()
            office.provider.before_prepare = None
            await office.later(11 * MINUTE)
            await office.until_idle()
            assert office.accepted == [], "until it opens again"
            await office.later(23 * HOUR)
            await office.until_idle()
            assert office.accepted == [message]

    run(scene())


def test_a_handover_may_begin_until_the_last_moment(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            times, *_ = await daily(office, -HOUR, 2 * MINUTE)
            box = await office.mailbox(times=times)
            office.enqueue(box)
            await office.until_idle()
            assert len(office.accepted) == 1

    run(scene())


def test_mails_keep_their_gap_also_when_the_worker_between_them_died(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            gap = parse_gap("300s-600s")
            box = await office.mailbox(times=Jsonb({"gap": [300, 600]}))
            first, second, third = office.enqueue(box, 3)
            await office.until_idle()
            assert office.accepted == [first]
            parked = await office.box(box)
            row = await office.message(first)
            free = row["handed_at"] + gap.after(first, 1)
            assert parked["parked_reason"] == "pace"
            assert free <= parked["parked_until"] <= free + SOON
            assert await office.events("mailbox.parked") == [], "nobody is told of each mail"
            # The next one's worker dies right after the provider took it: nothing of the gap is written anywhere.
            await office.later(free - await office.w.now() + SOON)
            office.process.crash_point = _dies_once_handed_over
            await office.round()
            assert office.accepted == [first, second]
            office.process.crash_point = lambda *_: None
            await office.later(timedelta(seconds=60))
            await office.until_idle()
            assert office.accepted == [first, second]
            handed = (await office.message(second))["handed_at"]
            parked = await office.box(box)
            assert abs(parked["parked_until"] - (handed + gap.after(second, 1))) < SOON
            await office.later(timedelta(seconds=600))
            await office.until_idle()
            assert office.accepted == [first, second, third]

    run(scene())


def _dies_once_handed_over(point: str, *_: Any) -> None:
    if point == "handed over":
        raise Died


def test_a_short_gap_is_waited_out_within_the_turn(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox(times=Jsonb({"gap": [0.15, 0.2]}))
            office.enqueue(box, 4)
            assert await office.round() == 1
            at = office.accepted_at
            assert len(at) == 4 and all(later - sooner >= 0.15 for sooner, later in pairwise(at))

    run(scene())


def test_times_of_a_later_version_hold_the_mailbox_and_guess_nothing(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox(times=Jsonb({"moon": "full"}))
            office.enqueue(box)
            await office.until_idle()
            assert office.accepted == []
            assert (await office.box(box))["parked_reason"] == "times that this version does not know"

    run(scene())
