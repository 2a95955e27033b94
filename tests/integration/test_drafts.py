"""Rule 6: a gate binds one draft to a message, for ever; and drafts that are an end of their own."""

from __future__ import annotations

from datetime import timedelta

from inside import dies_at, inside
from outtray_schema.outcome import NotBegun, Retry
from outtray_worker.providers.memory import Answer, MemoryProvider
from world import LEASE, run

LATER = LEASE + timedelta(seconds=1)


def drafting() -> MemoryProvider:
    return MemoryProvider(drafts=True, readable=True)


def test_the_gate_binds_the_draft_and_every_later_attempt_sends_that_very_one(database):
    async def scene() -> None:
        async with inside(database.settings, drafting()) as office:
            box = await office.mailbox()
            (message,) = office.enqueue(box)
            office.answers(Retry("429 not now"), NotBegun("too late"))
            await office.round()
            row = await office.message(message)
            assert (row["state"], row["draft"]["id"]) == ("queued", "draft-1")
            await office.later(timedelta(minutes=1))
            await office.until_idle()
            row = await office.message(message)
            assert (row["state"], row["handover"], row["draft"]["id"]) == ("sent", 3, "draft-1")
            assert office.provider.seen["draft"] == 1 and office.accepted == [message]
            assert office.provider.drafts == {}, "it was consumed by its one send"

    run(scene())


def test_a_draft_that_was_sent_without_an_answer_cannot_be_sent_again_by_a_decision(database):
    async def scene() -> None:
        async with inside(database.settings, drafting()) as office:
            box = await office.mailbox()
            (message,) = office.enqueue(box)
            office.provider.answer(Answer("hand_over", take=True))
            await office.round()
            assert (await office.message(message))["state"] == "unknown"
            office.client.resolve(message, "resend")
            await office.until_idle()
            row = await office.message(message)
            assert (row["state"], row["reason"]) == ("unknown", "the draft is gone")
            assert office.accepted == [message], "once, though somebody decided to send it again"
            assert office.provider.seen["draft"] == 1

    run(scene())


def test_a_draft_that_a_dead_worker_left_is_adopted_and_no_second_one_is_made(database):
    async def scene() -> None:
        async with inside(database.settings, drafting()) as office:
            box = await office.mailbox()
            (message,) = office.enqueue(box)
            office.process.crash_point = dies_at("prepared")
            await office.round()
            assert (
                list(office.provider.drafts or {}) == ["draft-1"] and (await office.message(message))["draft"] is None
            )
            office.process.crash_point = lambda *_: None
            await office.later(LATER)
            await office.until_idle()
            row = await office.message(message)
            assert (row["state"], row["draft"]["id"]) == ("sent", "draft-1")
            assert office.provider.seen["draft"] == 1 and office.provider.drafts == {}

    run(scene())


def test_a_draft_is_deleted_when_its_gate_is_refused_unless_an_earlier_gate_bound_it(database):
    async def scene() -> None:
        async with inside(database.settings, drafting()) as office:
            box = await office.mailbox()
            (never, bound) = office.enqueue(box), office.enqueue(box)

            def cancels(point: str, *_: object) -> None:
                if point == "prepared" and office.client.get(never[0]).state != "cancelled":
                    office.client.cancel(never[0])

            office.answers(Retry("429 not now"))
            office.process.crash_point = cancels
            await office.round()
            assert (await office.message(never[0]))["state"] == "cancelled"
            row = await office.message(bound[0])
            assert list(office.provider.drafts or {}) == [row["draft"]["id"]], "the first one's draft is gone"
            await office.later(timedelta(minutes=1))
            office.process.crash_point = lambda point, *_: office.client.pause("all") if point == "prepared" else None
            await office.round()
            assert list(office.provider.drafts or {}) == [row["draft"]["id"]], "a bound draft stays"
            office.process.crash_point = lambda *_: None
            office.client.resume("all")
            await office.until_idle()
            assert office.accepted == bound

    run(scene())


def test_a_draft_for_its_person_ends_as_drafted_and_no_quota_counts_it(database):
    async def scene() -> None:
        async with inside(database.settings, drafting()) as office:
            box = await office.mailbox({"messages": 1})
            (sent,) = office.enqueue(box)
            await office.until_idle()
            (drafted,) = office.enqueue(box)
            await office.w.db.execute("UPDATE outtray.message SET only_draft = true WHERE id = %s", [drafted])
            await office.until_idle()
            row = await office.message(drafted)
            assert (row["state"], row["provider_id"], row["counted_at"]) == ("drafted", "draft-2", None)
            assert row["ended_at"] is not None and row["conversation_id"]
            assert [event["message_id"] for event in await office.events("drafted")] == [drafted]
            assert office.accepted == [sent], "the day's one message is used; nothing was sent beyond it"
            assert list(office.provider.drafts or {}) == ["draft-2"], "it waits for its person"

    run(scene())
