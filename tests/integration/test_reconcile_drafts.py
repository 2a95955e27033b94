"""Rule 12, its last half: what may have left is never said to be cancelled for good, and its draft is deleted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from inside import dies_at, inside
from looks import LOST, SETTLED, TAKEN, Readable, doubted
from outtray_schema.outcome import Failed, NotBegun, Retry
from outtray_worker.providers import Finding
from outtray_worker.providers.memory import Answer, MemoryProvider
from world import LEASE, run

NOW = timedelta(0)


async def _still_a_draft(office):
    """A message that was sent back into the queue because its draft was a draft yet."""
    box, message = await doubted(office)
    await office.later(SETTLED)
    await office.look()
    row = await office.message(message)
    assert (row["state"], row["may_have_left"], row["draft"]["id"]) == ("queued", True, "draft-1")
    return box, message


async def _tidied(office, message):
    await office.later(NOW)
    await office.look()
    return (await office.message(message))["draft_end"]


def test_a_cancel_of_what_may_have_left_says_so_and_its_draft_is_deleted(database):
    async def scene() -> None:
        async with inside(database.settings, Readable(drafts=True)) as office:
            _, message = await _still_a_draft(office)
            assert office.client.cancel(message).answer == "may_have_left"
            assert await _tidied(office, message) == "deleted"
            row = await office.message(message)
            assert (row["state"], row["may_have_left"]) == ("cancelled", True), "it said so, and it stays true"
            assert office.provider.drafts == {} and office.provider.seen["removed"] == 1
            assert (await office.journal(message))[-2:] == ["cancel", "draft"], "what shows the same is not told twice"
            await office.later(timedelta(days=2))
            assert await office.look() == 0 and (await office.message(message))["look_at"] is None

    run(scene())


@pytest.mark.parametrize("ends", ["cancelled", "expired", "suppressed", "failed", "resolved"])
def test_the_bound_draft_of_every_message_that_ends_unsent_is_deleted(database, ends):
    async def scene() -> None:
        async with inside(database.settings, Readable(drafts=True)) as office:
            box = await office.mailbox()
            (message,) = office.enqueue(box, expires_at=datetime.now(UTC) + timedelta(hours=1))
            office.answers({"failed": Failed("550"), "resolved": LOST}.get(ends, Retry("451", after=timedelta(0))))
            await office.round()
            if ends == "cancelled":
                assert office.client.cancel(message).answer == "cancelled", "a definite refusal: nothing can leave"
            elif ends == "expired":
                await office.later(timedelta(hours=2))
            elif ends == "suppressed":
                office.client.suppress("to@example.net", "bounced")
            elif ends == "resolved":
                office.client.resolve(message, "fail")
            state = {"suppressed": "cancelled", "resolved": "failed"}.get(ends, ends)
            assert (await office.message(message))["state"] == state
            assert list(office.provider.drafts) == ["draft-1"]
            assert await _tidied(office, message) == "deleted"
            assert office.provider.drafts == {} and office.accepted == []

    run(scene())


def test_no_draft_is_deleted_that_its_message_still_needs_or_that_is_its_end(database):
    async def scene() -> None:
        async with inside(database.settings, Readable(drafts=True)) as office:
            box = await office.mailbox()
            (waiting,), (drafted,) = office.enqueue(box), office.enqueue(box, mode="draft")
            office.answers(NotBegun("too late"), Retry("451"))
            await office.until_idle()
            assert (await office.message(waiting))["state"] == "queued"
            assert (await office.message(drafted))["state"] == "drafted"
            await office.later(NOW)
            assert await office.look() == 0 and len(office.provider.drafts) == 2

    run(scene())


def test_what_was_sent_before_it_was_cancelled_is_shown_and_no_draft_is_touched(database):
    async def scene() -> None:
        async with inside(database.settings, Readable(drafts=True)) as office:
            _, message = await doubted(office, TAKEN)
            office.client.resolve(message, "fail")
            await office.later(NOW)
            await office.look()
            row = await office.message(message)
            assert (row["state"], row["provider_id"], row["draft_end"]) == ("sent", f"memory-{message}", "gone")

            office.answers(TAKEN)
            (other,) = office.enqueue(row["mailbox_id"])
            await office.until_idle()
            office.client.cancel(other)
            office.provider.hidden.add(other)
            await office.w.db.execute(
                "UPDATE outtray.message SET state = 'cancelled', ended_at = now(), may_have_left = true WHERE id = %s",
                [other],
            )
            await office.later(NOW)
            await office.look()
            row = await office.message(other)
            assert row["draft_end"] is None and row["look_at"] is not None, "gone: perhaps its copy is found later"
            office.provider.hidden.clear()
            await office.later(timedelta(hours=1))
            await office.look()
            row = await office.message(other)
            assert (row["state"], row["provider_id"]) == ("cancelled", f"memory-{other}") and row["draft_end"] == "gone"
            assert len(await office.events("left_anyway")) == 1 and office.provider.seen["removed"] == 0
            await office.later(timedelta(days=1))
            assert await office.look() == 0

    run(scene())


def test_a_draft_that_cannot_be_deleted_is_tried_again(database):
    async def scene() -> None:
        async with inside(database.settings, Readable(drafts=True)) as office:
            _, message = await _still_a_draft(office)
            office.client.cancel(message)
            office.provider.refuses_removal = True
            assert await _tidied(office, message) is None
            office.provider.refuses_removal = False
            await office.later(timedelta(minutes=2))
            assert await _tidied(office, message) == "deleted"

    run(scene())


def test_an_orphan_that_a_dead_worker_left_of_a_message_that_ended_is_deleted_by_our_key(database):
    async def scene() -> None:
        async with inside(database.settings, Readable(drafts=True)) as office:
            box = await office.mailbox()
            (message,) = office.enqueue(box)
            for _ in range(2):  # the second preparation is counted on the message: its mailbox is a suspect by then
                office.process.crash_point = dies_at("prepared")
                await office.round()
                await office.later(LEASE + timedelta(seconds=1))
            office.process.crash_point = lambda *_: None
            assert office.client.cancel(message).answer == "cancelled"
            row = await office.message(message)
            assert (row["draft"], row["prepares"], len(office.provider.drafts)) == (None, 1, 1)
            assert await _tidied(office, message) == "deleted"
            assert office.provider.drafts == {} and office.provider.seen["look"] == 0

    run(scene())


def test_a_mailbox_without_drafts_has_nothing_to_tidy_up(database):
    async def scene() -> None:
        async with inside(database.settings, MemoryProvider()) as office:
            box = await office.mailbox()
            (message,) = office.enqueue(box)
            await office.w.db.execute("UPDATE outtray.message SET prepares = 3")
            office.client.cancel(message)
            assert await _tidied(office, message) == "gone"

    run(scene())


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_draft_for_its_person_whose_worker_died_is_found_to_be_one(database, by_hand):
    async def scene() -> None:
        async with inside(database.settings, Readable(drafts=True)) as office:
            box = await office.mailbox()
            (message,) = office.enqueue(box, mode="draft")
            office.process.crash_point = dies_at("handed over")
            await office.round()
            office.process.crash_point = lambda *_: None
            await office.later(timedelta(hours=1))
            assert (await office.message(message))["state"] == "unknown"
            if by_hand:
                sent = Finding("sent", "what was sent")
                office.provider.findings.append(sent)
            await office.later(timedelta(seconds=10))
            await office.look()
            row = await office.message(message)
            assert (row["state"], row["provider_id"], row["counted_at"]) == ("drafted", "draft-1", None)
            assert not row["may_have_left"] and len(await office.events("drafted")) == 1
            await office.later(NOW)
            assert await office.look() == 0 and len(office.provider.drafts) == 1, "its person's draft stays"

    run(scene())


def test_a_decision_to_send_again_is_refused_where_the_draft_is_gone(database):
    async def scene() -> None:
        from outtray import WrongState

        async with inside(database.settings, Readable(drafts=True)) as office:
            _, message = await doubted(office, Answer("hand_over", take=True))
            office.provider.hidden.add(message)
            await office.later(timedelta(seconds=10))
            await office.look()
            with pytest.raises(WrongState, match="its draft is gone"):
                office.client.resolve(message, "resend")
            assert office.client.evidence(message).draft_is_gone
            assert office.client.resolve(message, "sent").state == "sent"

    run(scene())
