"""A provider's quota answer lowers the mailbox's limit to where its ledger stands; clean days raise it again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from inside import Inside, inside
from outtray_schema.learned import FLOOR
from outtray_schema.outcome import Failed, Parked
from outtray_worker.items import MailboxMove, Record
from outtray_worker.providers.memory import Answer, MemoryProvider
from outtray_worker.spool_entry import decode, encode
from world import run

DAY = timedelta(hours=24)
HOUR = timedelta(hours=1)

FULL = Parked("its sending limit is reached", after=2 * HOUR, evidence={"rule": "mail-quota"}, teaches=True)


async def refused_at(office: Inside, sent: int, **mailbox: Any) -> UUID:
    """A mailbox of 100 messages a day that was refused after so many, with more waiting."""
    box = await office.mailbox({"messages": 100} | mailbox)
    office.enqueue(box, sent)
    await office.until_idle()
    assert len(office.accepted) == sent
    office.answers(FULL)
    office.enqueue(box, 150)
    await office.until_idle()
    return box


async def learned(office: Inside, box: UUID) -> dict[str, Any]:
    found: dict[str, Any] = (await office.box(box))["learned"]
    return found


def test_a_refusal_parks_for_the_providers_own_time_and_lowers_the_limit_to_what_was_used(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await refused_at(office, 40)
            row, now = await office.box(box), await office.w.now()
            assert row["parked_reason"] == "its sending limit is reached"
            assert timedelta(0) <= row["parked_until"] - now - 2 * HOUR < HOUR / 2, "and a jitter"
            assert {name: (each["limit"], each["used"]) for name, each in row["learned"].items()} == {
                "messages": (40, 40)
            }
            assert await office.states() == {"sent": 40, "queued": 150}
            waiting = await office.w.rows("SELECT max(attempt) AS most FROM outtray.message WHERE state = 'queued'")
            assert waiting[0]["most"] == 0, "what was refused keeps its attempts"
            noted = await office.w.rows(
                "SELECT kind FROM outtray.journal WHERE mailbox_id = %s AND kind = 'learned'", box
            )
            assert len(noted) == 1

    run(scene())


def test_what_was_refused_is_not_among_what_was_used(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"messages": 100, "recipients": 300})
            office.enqueue(box, 12, to=["a@example.net", "b@example.net"])
            office.answers(Failed("550 no"), Failed("550 no"), Answer("hand_over"))
            await office.until_idle()
            assert await office.states() == {"failed": 2, "unknown": 1, "sent": 9}
            office.answers(FULL)
            office.enqueue(box, 1)
            await office.until_idle()
            lessons = await learned(office, box)
            assert (lessons["messages"]["used"], lessons["recipients"]["used"]) == (10, 20), "the unknown one counts"
            assert (lessons["messages"]["limit"], lessons["recipients"]["limit"]) == (10, 20)

    run(scene())


def test_the_next_days_keep_to_what_was_learned_and_a_tenth_more_each_clean_day_until_the_plan(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await refused_at(office, 80)
            office.enqueue(box, 400)
            await office.later(3 * HOUR)
            await office.until_idle()
            assert len(office.accepted) == 80, "the park is over, but not the day"
            row = await office.box(box)
            assert row["parked_reason"] == "quota: messages" and row["parks"] <= 1
            total = 80
            for allowed in (88, 96, 100, 100):
                await office.later(DAY)
                await office.until_idle()
                total += allowed
                assert len(office.accepted) == total
            assert office.client.mailboxes.get(box).limits.learned == ()

    run(scene())


def test_explain_and_the_mailbox_say_where_the_provider_refused_and_when_it_has_recovered(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await refused_at(office, 80)
            waiting = (await office.w.rows("SELECT id FROM outtray.message WHERE state = 'queued' LIMIT 1"))[0]["id"]
            parked = office.client.explain(waiting)
            assert parked.code == "parked" and any(
                "the provider refused at 80 messages on " in line for line in parked.details
            )
            await office.later(3 * HOUR)
            await office.until_idle()
            full = office.client.explain(waiting)
            assert (full.code, full.limit, full.used, full.allowed) == ("quota", "messages", 80, 80)
            (line,) = [line for line in full.details if line.startswith("the provider refused")]
            assert "refused at 80 messages on 20" in line and "recovers by 10 %" in line and "the plan's 100" in line
            (lesson,) = office.client.mailboxes.get(box).limits.learned
            assert (lesson.limit, lesson.used, lesson.plan) == (80, 80, 100)
            assert lesson.forgotten_at - lesson.at == 3 * DAY

    run(scene())


def test_forgetting_what_was_learned_lets_the_mailbox_go_on_at_once(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await refused_at(office, 40)
            await office.later(3 * HOUR)
            await office.until_idle()
            assert len(office.accepted) == 40
            assert office.client.mailboxes.set(box, forget_learned=True).limits.learned == ()
            await office.until_idle()
            assert len(office.accepted) == 100, "the plan holds again"
            assert await learned(office, box) == {}

    run(scene())


def test_other_changes_of_the_mailbox_keep_what_was_learned(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await refused_at(office, 40)
            assert [
                each.limit for each in office.client.mailboxes.set(box, limits={"messages": 90}).limits.learned
            ] == [40]

    run(scene())


def test_what_has_recovered_does_not_bind_again_under_a_larger_plan(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await refused_at(office, 80)
            await office.later(4 * DAY)
            office.client.mailboxes.set(box, limits={"messages": 1000})
            assert office.client.mailboxes.get(box).limits.allowed("messages") == 1000

    run(scene())


def test_a_locked_mailbox_that_refuses_every_probe_is_not_taught_down_to_nothing(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await refused_at(office, 40)
            for _ in range(12):
                office.answers(FULL)
                await office.later(3 * HOUR)
                await office.until_idle()
                office.provider.next_answer("hand_over")  # left over where our own limit kept it from asking
            assert office.provider.seen["hand_over"] > 42, "it asked again, and was refused again"
            entry = (await learned(office, box))["messages"]
            assert (entry["limit"], entry["used"]) == (44, 40), "36 hours later little of it is in the window"
            await office.later(timedelta(hours=25))
            await office.until_idle()
            assert len(office.accepted) == 40 + 48

    run(scene())


def test_a_mailbox_that_was_refused_before_it_sent_anything_keeps_a_little(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await refused_at(office, 0)
            assert (await learned(office, box))["messages"]["limit"] == FLOOR
            await office.later(3 * HOUR)
            await office.until_idle()
            assert len(office.accepted) == FLOOR

    run(scene())


def test_a_wait_that_is_no_quota_teaches_nothing(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"messages": 100})
            office.enqueue(box, 2)
            office.answers(Parked("429 slow down", after=HOUR, evidence={"rule": "user-rate"}))
            await office.until_idle()
            assert await learned(office, box) == {}

    run(scene())


def test_a_refusal_in_preparation_teaches_as_well(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"messages": 100})
            office.enqueue(box, 20)
            await office.until_idle()
            office.answers(Answer("prepare", FULL))
            office.enqueue(box)
            await office.until_idle()
            assert (await learned(office, box))["messages"]["limit"] == 20

    run(scene())


def test_a_message_wider_than_the_learned_limit_waits_until_it_has_recovered(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"recipients": 100})
            office.enqueue(box, 2, to=[f"a{n}@example.net" for n in range(10)])
            await office.until_idle()
            office.answers(FULL)
            office.enqueue(box, 1, to=[f"a{n}@example.net" for n in range(22)])
            await office.until_idle()
            await office.later(3 * HOUR)
            await office.until_idle()
            assert await office.states() == {"sent": 2, "queued": 1}, "it fits the plan, so it does not fail"
            assert (await office.box(box))["parked_reason"] == "quota: recipients"
            await office.later(DAY)
            await office.until_idle()
            assert await office.states() == {"sent": 3}

    run(scene())


def test_a_lesson_survives_the_spool():
    move = MailboxMove(UUID(int=1), 3, park=HOUR, park_reason="full", counts=True, learns={"messages": 100, "x": None})
    record = Record(UUID(int=2), UUID(int=1), 1, kind="parked", state="queued", spends=False, move=move)
    assert decode(encode(record)).item == record


def test_budgets_and_lessons_are_written_in_one_group(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            office.client.budgets.add("tenant", external=1000)
            box = await office.mailbox({"messages": 100})
            office.client.mailboxes.set(box, budget="tenant")
            office.enqueue(box, 15)
            await office.until_idle()
            office.answers(FULL)
            office.enqueue(box, 1)
            await office.until_idle()
            assert (await learned(office, box))["messages"]["limit"] == 15
            (budget,) = office.client.budgets.list()
            assert budget.used == 16, "what was spent stays spent, also when the provider then refuses"

    run(scene())


# ── a 200 that is no proof ────────────────────────────────────────────────────────────────────────────────────────


class Gmail(MemoryProvider):
    name = "gmail"


async def looked_again(office: Inside) -> list[bool]:
    rows = await office.w.rows("SELECT evidence FROM outtray.message WHERE state = 'sent' ORDER BY counted_at, id")
    return [bool((row["evidence"] or {}).get("look_again")) for row in rows]


def test_near_gmails_limit_a_success_asks_for_another_look(database):
    async def scene() -> None:
        async with inside(database.settings, Gmail()) as office:
            box = await office.mailbox({"messages": 40}, provider="gmail")
            office.enqueue(box, 40)
            await office.until_idle()
            assert await looked_again(office) == [False] * 37 + [True] * 3, "38 of 40 are 95 %"

    run(scene())


def test_near_a_learned_limit_it_does_as_well(database):
    async def scene() -> None:
        async with inside(database.settings, Gmail()) as office:
            entry = {"messages": {"limit": 20, "used": 20, "at": (await office.w.now()).isoformat()}}
            box = await office.mailbox({"messages": 500}, provider="gmail", learned=Jsonb(entry))
            office.enqueue(box, 25)
            await office.until_idle()
            assert await looked_again(office) == [False] * 18 + [True] * 2

    run(scene())


def test_where_the_providers_success_is_proof_nobody_looks_again(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            office.enqueue(await office.mailbox({"messages": 5}), 5)
            await office.until_idle()
            assert await looked_again(office) == [False] * 5

    run(scene())
