"""The forecast of a real mailbox: what it reads, what it says, and that its turns then keep to it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from psycopg.types.json import Jsonb

from command_line import CommandLine
from crm import ADDRESS, ask, crm, hello
from inside import inside
from world import run

HOUR = timedelta(hours=1)


def test_turns_keep_to_what_was_forecast(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"messages": 3}, times=Jsonb({"gap": [60, 120]}))
            ids = office.enqueue(box, 5)
            office.enqueue(box, expires_at=datetime.now(UTC) + HOUR)
            found = office.client.mailboxes.forecast(box)
            assert (found.waiting, found.leave, found.expire, found.never, found.held) == (6, 5, 1, 0, found.held)
            for _ in range(600):
                if len(office.accepted) == 5:
                    break
                before = (await office.box(box))["next_at"]
                if not await office.round():
                    await office.later(before - await office.w.now() + timedelta(milliseconds=20))
            assert office.accepted == ids
            last = (await office.message(ids[-1]))["handed_at"]
            assert timedelta(seconds=-1) < last - found.done_at < timedelta(seconds=30), "not earlier, and hardly later"

    run(scene())


def test_the_command_says_when_and_what_it_assumes(database):
    with crm(database.settings, limits={"messages": 2}) as client:
        outtray = CommandLine.on(database.settings)
        assert outtray.ok("forecast", "--json").json["done_at"] is None
        for _ in range(3):
            client.enqueue(hello())
        ask(database.settings, "UPDATE outtray.mailbox SET status = 'paused', status_reason = 'holiday'")
        told = outtray.ok("forecast", "--mailbox", ADDRESS)
        for words in ("3 messages", "paused", "reckoned as if that ended now", "assumed: nothing more comes in"):
            assert words in told.out.replace("\n", " "), words
        found = outtray.ok("forecast", "--json").json
        assert found["waiting"] == found["leave"] == 3 and "paused" in found["held"]
        first, done = datetime.fromisoformat(found["first_at"]), datetime.fromisoformat(found["done_at"])
        assert done - first == 24 * HOUR and sum(number for _, number in found["days"]) == 3
        assert outtray("forecast", "--mailbox", "nobody@sender.example").code == 3
