"""A whole turn, for each outcome that a provider can answer with: what becomes of the message and of its mailbox."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest

from inside import inside
from outtray_schema.outcome import Failed, Held, Parked, Retry
from outtray_worker.items import MailboxMove
from outtray_worker.providers.memory import Answer
from polling import until
from world import run

HOUR = timedelta(hours=1)


def test_a_turn_sends_what_is_due_and_records_what_the_provider_gave(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            sent, later = office.enqueue(box), office.enqueue(box, send_at=await office.w.now() + HOUR)
            await office.until_idle()
            row = await office.message(sent[0])
            assert (row["state"], row["attempt"], row["handover"]) == ("sent", 1, 1)
            assert row["provider_id"] == f"memory-{sent[0]}" and row["counted_at"] == row["handover_end"]
            assert await office.journal(sent[0]) == ["enqueued", "gate", "sent"]
            mailbox = await office.box(box)
            assert mailbox["turn_until"] is None and mailbox["next_at"] == (await office.message(later[0]))["due_at"]
            await office.later(HOUR)
            await office.until_idle()
            assert office.accepted == sent + later

    run(scene())


def test_messages_leave_by_priority_and_then_by_due_time(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            now = await office.w.now()
            expected = {}
            for name, priority, minutes in (("d", "low", 9), ("c", "normal", 1), ("b", "normal", 5), ("a", "high", 1)):
                due = now - timedelta(minutes=minutes)
                (expected[name],) = office.enqueue(box, priority=priority)
                await office.w.db.execute("UPDATE outtray.message SET due_at = %s WHERE id = %s", [due, expected[name]])
            await office.until_idle()
            assert office.accepted == [expected[name] for name in "abcd"]

    run(scene())


def test_a_messages_own_failures_spend_attempts_back_off_and_give_up_at_the_eighth(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            (ill,) = office.enqueue(box, priority="high")
            office.provider.answer(Answer("hand_over", Retry("451 try again")), times=8)
            for attempt in range(1, 8):
                before = await office.w.now()
                await office.round()
                row = await office.message(ill)
                wait = (row["due_at"] - before).total_seconds()
                assert (row["state"], row["attempt"], row["reason"]) == ("queued", attempt, "451 try again")
                assert 0 <= wait <= min(10 * 2 ** (attempt - 1), 900) + 5, "full jitter under the doubled base"
                assert row["counted_at"] is None, "a definite refusal does not count"
                await office.later(max(timedelta(0), row["due_at"] - await office.w.now()))
            (well,) = office.enqueue(box)
            await office.until_idle()
            row = await office.message(ill)
            assert (row["state"], row["attempt"]) == ("failed", 8)
            assert row["reason"] == "gave up after 8 attempts: 451 try again"
            assert office.accepted == [well], "the others of its mailbox go on"
            assert office.provider.seen["hand_over"] == 9

    run(scene())


def test_a_message_gives_up_a_day_after_its_first_own_failure(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            (usual,), (hasty,) = office.enqueue(box), office.enqueue(box, give_up_after=HOUR)
            office.provider.answer(Answer("hand_over", Retry("451 try again")), times=6)
            await office.round()
            await office.later(HOUR)
            await office.round()
            row = await office.message(hasty)
            assert (row["state"], row["reason"]) == ("failed", "gave up 1 h after its first failure: 451 try again")
            assert (await office.message(usual))["state"] == "queued"
            await office.later(timedelta(hours=23))
            await office.round()
            row = await office.message(usual)
            assert (row["state"], row["reason"]) == ("failed", "gave up 24 h after its first failure: 451 try again")

    run(scene())


def test_a_parked_mailbox_keeps_its_attempts_and_its_order_and_resumes_by_itself(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            messages = office.enqueue(box, 3)
            for parks in range(1, 11):
                office.answers(Parked("451 4.7.1 too many", after=HOUR))
                await office.round()
                row, mailbox = await office.message(messages[0]), await office.box(box)
                assert (row["state"], row["attempt"], row["failing_since"]) == ("queued", 0, None)
                assert mailbox["parks"] == parks and mailbox["parked_reason"] == "451 4.7.1 too many"
                assert mailbox["next_at"] == mailbox["parked_until"] >= await office.w.now() + timedelta(minutes=59)
                assert office.provider.seen["hand_over"] == parks, "nothing else of it is tried meanwhile"
                assert await office.round() == 0
                await office.later(mailbox["parked_until"] - await office.w.now())
            await office.until_idle()
            assert office.accepted == messages
            assert (await office.box(box))["parks"] == 0, "a send ends the row of parks"

    run(scene())


def test_waiting_outlasts_every_patience_of_a_message(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            (message,) = office.enqueue(box, give_up_after=HOUR)
            office.answers(Parked("the server is away", scope="connection", after=timedelta(hours=20)))
            await office.round()
            await office.later(timedelta(days=3))
            office.answers(Retry("451 its own"))
            await office.round()
            assert (await office.message(message))["state"] == "queued", "its patience begins with its own failure"
            await office.later(timedelta(minutes=20))
            await office.until_idle()
            assert office.accepted == [message]

    run(scene())


def test_a_revoked_mailbox_is_held_with_one_event_and_resumes_by_a_new_consent(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            messages = office.enqueue(box, 3)
            office.provider.answer(Answer("prepare", Held("535 5.7.8 password refused")))
            await office.until_idle()
            mailbox = await office.box(box)
            assert (mailbox["status"], mailbox["status_reason"]) == ("reconnect", "535 5.7.8 password refused")
            assert [(await office.message(each))["attempt"] for each in messages] == [0, 0, 0]
            await office.later(timedelta(days=2))
            assert await office.round() == 0 and office.accepted == []
            assert len(await office.events("mailbox.reconnect")) == 1
            await office.w.db.execute(
                "UPDATE outtray.mailbox SET status = 'active', credentials_version = credentials_version + 1,"
                " next_at = outtray.earliest_due(id)"
            )
            await office.until_idle()
            assert office.accepted == messages

    run(scene())


def test_a_verdict_about_old_credentials_does_not_undo_a_new_consent(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            office.enqueue(box)
            claimed = await office.w.claim(box)
            await office.w.db.execute("UPDATE outtray.mailbox SET credentials_version = credentials_version + 1")
            late = MailboxMove(
                box, claimed.fence, ends=True, hold="reconnect", hold_reason="535", credentials_version=1
            )
            await office.process.registrar.move(late)
            assert (await office.box(box))["status"] == "active"
            assert await office.events("mailbox.reconnect") == []

    run(scene())


def test_a_failed_message_ends_and_the_others_go_on(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            bad, good = office.enqueue(box, 2)
            office.answers(Failed("550 5.1.1 no such user", evidence={"code": 550}))
            await office.until_idle()
            row = await office.message(bad)
            assert (row["state"], row["reason"], row["evidence"]) == (
                "failed", "550 5.1.1 no such user", {"code": 550},
            )  # fmt: skip
            assert row["counted_at"] is None and office.accepted == [good]

    run(scene())


@pytest.mark.parametrize("take", [True, False])
def test_a_lost_answer_leaves_the_message_unknown_and_it_is_not_tried_again(database, take):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            message, other = office.enqueue(box, 2)
            office.answers(Answer("hand_over", take=take))
            await office.until_idle()
            row = await office.message(message)
            assert (row["state"], row["reason"]) == ("unknown", "the connection was closed")
            assert row["counted_at"] == row["handover_until"], "it counts from its latest possible end"
            await office.later(timedelta(days=3))
            await office.until_idle()
            assert (await office.message(message))["state"] == "unknown"
            assert office.accepted == ([message, other] if take else [other])

    run(scene())


def test_a_suppressed_message_is_cancelled_at_the_gate_and_says_so(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            (message,), (other,) = office.enqueue(box, to="gone@example.net"), office.enqueue(box)
            index = (await office.w.rows("SELECT address_index FROM outtray.recipient WHERE message_id = %s", message))[
                0
            ]
            # The row alone, as another session's commit would bring it while the turn is already on its way.
            await office.w.db.execute(
                "INSERT INTO outtray.suppression (app_id, address_index, address, reason)"
                " VALUES (%s, %s, '', 'bounced')",
                [office.w.app_id, index["address_index"]],
            )
            await office.until_idle()
            row = await office.message(message)
            assert (row["state"], row["reason"], row["attempt"]) == ("cancelled", "suppressed", 0)
            assert office.accepted == [other] and office.provider.seen["abandon"] == 1
            assert [event["message_id"] for event in await office.events("cancelled")] == [message]

    run(scene())


def test_a_handover_that_comes_too_late_has_not_begun_and_gives_its_attempt_back(database):
    async def scene() -> None:
        async with inside(database.settings, handover_begin=timedelta(seconds=0.05)) as office:
            box = await office.mailbox()
            (message,) = office.enqueue(box)
            process = office.process
            process.crash_point = lambda point, *_: _freeze(0.1) if point == "gated" else None
            await office.round()
            row = await office.message(message)
            assert (row["state"], row["attempt"], row["handover"], row["counted_at"]) == ("queued", 0, 1, None)
            assert await office.journal(message) == ["enqueued", "gate", "not begun"]
            assert office.provider.seen["hand_over"] == 0
            process.crash_point = lambda *_: None
            await office.until_idle()
            row = await office.message(message)
            assert (row["state"], row["attempt"], row["handover"]) == ("sent", 1, 2)

    run(scene())


def _freeze(seconds: float) -> None:
    """Stand still as a frozen process does: nothing of it runs, the deadline's clock runs on."""
    until_then = time.monotonic() + seconds
    while time.monotonic() < until_then:
        pass


def test_a_cancel_that_comes_during_the_handover_ends_a_message_that_comes_back(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            (message,) = office.enqueue(box)
            office.provider.during_handover = asyncio.Event()
            office.answers(Retry("451 try again"))
            await office.begin()
            await until(lambda: office.provider.seen["hand_over"])
            assert office.client.cancel(message).answer == "handing_over"
            office.provider.during_handover.set()
            await office.process.engine.drain()
            assert (await office.message(message))["state"] == "cancelled"
            await office.later(HOUR)
            await office.until_idle()
            assert office.accepted == []

    run(scene())


def test_erased_or_damaged_content_fails_its_message_alone(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            erased, damaged, whole = office.enqueue(box, 3)
            await office.w.db.execute("DELETE FROM outtray.content WHERE message_id = %s", [erased])
            await office.w.db.execute(
                "UPDATE outtray.content SET body = set_byte(body, 40, 255 - get_byte(body, 40)) WHERE message_id = %s",
                [damaged],
            )
            await office.until_idle()
            assert (await office.message(erased))["reason"] == "its content was erased"
            assert (await office.message(damaged))["reason"] == "its stored content is damaged"
            assert office.accepted == [whole]

    run(scene())


def test_content_sealed_with_a_key_that_this_worker_lacks_waits_for_it(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            (message,) = office.enqueue(box)
            foreign = b"\x01\x03kx9" + bytes(40)
            await office.w.db.execute("UPDATE outtray.content SET head = %s", [foreign])
            await office.round()
            row, mailbox = await office.message(message), await office.box(box)
            assert (row["state"], row["attempt"]) == ("queued", 0)
            assert "key" in mailbox["parked_reason"] and office.accepted == []

    run(scene())
