"""Sequences: a follower waits for the end of the message before it, whoever ends that one, and never for ever."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from test_composing import mail

from inside import Inside, inside
from outtray import CancelCounts, InvalidMessage, Message, Outtray
from outtray_schema.outcome import Failed, Sent, Unknown
from outtray_worker.items import Record
from outtray_worker.late import record_late
from outtray_worker.providers.memory import Answer
from outtray_worker.prune import prune
from outtray_worker.tend import tend
from world import run

SETTLE = timedelta(seconds=60)
_numbers = itertools.count()
DAY = timedelta(days=1)


def chain(office: Inside, box: UUID, *steps: dict[str, Any]) -> list[UUID]:
    """A sequence in one call: each step follows the one before it, a day after it unless it says otherwise."""
    name = f"sequence-{next(_numbers)}"
    ids: list[UUID] = []
    messages = []
    for n, step in enumerate(steps):
        before = (
            {"follows": f"{name}-{n - 1}", "after": "1d"} if n else {"to": "ann@elsewhere.example", "subject": "Hi"}
        )
        messages.append({"mailbox": str(box), "text": f"step {n}", "idempotency_key": f"{name}-{n}"} | before | step)
    office.client.enqueue_many(messages, on_progress=lambda told: ids.extend(each.id for _, each in told.batch))
    return ids


async def states(office: Inside, ids: list[UUID]) -> list[str]:
    return [(await office.message(each))["state"] for each in ids]


def test_each_step_leaves_its_delay_after_the_one_before_it_and_in_its_thread(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            first, second, third = chain(office, box, {}, {}, {"after": "2d"})
            await office.until_idle()
            assert office.accepted == [first]
            waiting = await office.message(second)
            assert waiting["due_at"] == (await office.message(first))["ended_at"] + DAY
            assert (await office.box(box))["next_at"] == waiting["due_at"], "its mailbox is armed"
            assert (await office.message(third))["due_at"] is None
            await office.later(DAY - timedelta(minutes=1))
            await office.until_idle()
            assert office.accepted == [first]
            await office.later(timedelta(minutes=2))
            await office.until_idle()
            assert office.accepted == [first, second]
            await office.later(2 * DAY)
            await office.until_idle()
            assert office.accepted == [first, second, third]
            sent = [await office.message(each) for each in (first, second, third)]
            written = await mail(office, third)
            assert (written["Subject"], written["To"]) == ("Re: Hi", "ann@elsewhere.example")
            assert written["In-Reply-To"] == sent[1]["rfc_message_id"]
            assert written["References"].split() == [sent[0]["rfc_message_id"], sent[1]["rfc_message_id"]]
            assert office.provider.accepted[2].original.conversation_id == sent[1]["conversation_id"]
            age = sent[2]["ended_at"] - parsedate_to_datetime(written["Date"])
            assert abs(age) < timedelta(minutes=1), "its Date is when it leaves, not when it was accepted"
            assert await office.journal(second) == ["enqueued", "released", "composed", "gate", "sent"]

    run(scene())


# ── every end ───────────────────────────────────────────────────────────────────────────────────────────────────────

End = Callable[[Inside, UUID, UUID], Awaitable[None]]
"""Brings a message, of a mailbox, to its end."""


async def by_its_turn(office: Inside, box: UUID, message: UUID) -> None:
    await office.until_idle()


async def by_refusal(office: Inside, box: UUID, message: UUID) -> None:
    office.answers(Failed("550 no such user"))
    await office.until_idle()


async def in_preparation(office: Inside, box: UUID, message: UUID) -> None:
    office.answers(Answer("prepare", Failed("552 too large")))
    await office.until_idle()


async def by_decision(office: Inside, box: UUID, message: UUID, decision: Any = "sent") -> None:
    office.answers(Unknown("the connection broke"))
    await office.until_idle()
    office.client.resolve(message, decision)


async def by_decision_to_fail(office: Inside, box: UUID, message: UUID) -> None:
    await by_decision(office, box, message, "fail")


async def by_a_late_answer(office: Inside, box: UUID, message: UUID) -> None:
    """The answer of its first handover, which was believed lost and was about to be made again."""
    office.answers(Unknown("the connection broke"))
    await office.until_idle()
    office.client.mailboxes.pause(box)
    office.client.resolve(message, "resend")
    late = Record(message, box, 1, kind="sent", state="sent", spends=True, provider_id="late-1")
    async with office.w.db.transaction():
        assert await record_late(office.w.db, late)
    office.client.mailboxes.resume(box)


async def by_cancel(office: Inside, box: UUID, message: UUID) -> None:
    office.client.cancel(message)


async def by_its_mailbox_gone(office: Inside, box: UUID, message: UUID) -> None:
    office.client.mailboxes.remove(box, force=True)


async def by_expiry(office: Inside, box: UUID, message: UUID) -> None:
    await office.w.db.execute("UPDATE outtray.message SET expires_at = outtray.outtray_now() WHERE id = %s", [message])
    await tend(office.w.db, SETTLE)


async def by_suppression(office: Inside, box: UUID, message: UUID) -> None:
    """Entered by hand, so that its turn finds it."""
    await office.w.db.execute(
        "INSERT INTO outtray.suppression SELECT m.app_id, r.address_index, r.address, 'bounce', outtray.outtray_now()"
        " FROM outtray.message m JOIN outtray.recipient r ON r.message_id = m.id WHERE m.id = %s",
        [message],
    )
    await office.until_idle()
    await office.w.db.execute("DELETE FROM outtray.suppression")


async def by_deletion(office: Inside, box: UUID, message: UUID) -> None:
    await office.w.db.execute("DELETE FROM outtray.message WHERE id = %s", [message])


ENDS: dict[End, str] = {
    by_its_turn: "sent", by_refusal: "failed", in_preparation: "failed", by_decision: "sent",
    by_decision_to_fail: "failed", by_a_late_answer: "sent", by_cancel: "cancelled", by_expiry: "expired",
    by_suppression: "cancelled", by_deletion: "cancelled", by_its_mailbox_gone: "cancelled",
}  # fmt: skip


def test_every_end_lets_followers_go_on_or_cancels_them_as_they_chose(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            for bring, end in ENDS.items():
                box = await office.mailbox()
                other = await office.mailbox()
                first, second, third = chain(office, box, {}, {}, {})
                await office.w.db.execute("UPDATE outtray.mailbox SET next_at = NULL WHERE id = %s", [other])
                anyway = office.enqueue(other, follows=first, on_predecessor="go_on", after="2h")[0]
                await tend(office.w.db, SETTLE)
                await bring(office, box, first)
                name = bring.__name__
                if end == "sent":
                    assert await states(office, [first, second, third]) == ["sent", "queued", "queued"], name
                    told = await office.message(first)
                    assert (await office.message(second))["due_at"] == told["ended_at"] + DAY, name
                    assert (await office.message(third))["due_at"] is None, name
                else:
                    assert await states(office, [second, third]) == ["cancelled", "cancelled"], name
                    reasons = [(await office.message(each))["reason"] for each in (second, third)]
                    if bring is by_its_mailbox_gone:  # which cancels what waits in it, the last first
                        assert reasons == ["mailbox removed"] * 2
                    else:
                        assert reasons[0] == f"message {first}, which it follows, is {end}", name
                        assert reasons[1] == f"message {second}, which it follows, is cancelled", name
                    assert "cancel" in await office.journal(third), name
                going = await office.message(anyway)
                assert going["state"] == "queued" and going["due_at"] is not None, name
                assert (await office.box(other))["next_at"] == going["due_at"], f"{name}: the other mailbox is armed"
                assert [e["message_id"] for e in await office.events("released")].count(anyway) == 1, name

    run(scene())


def test_while_nobody_knows_whether_the_first_left_the_second_waits_and_explain_names_it(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            office.answers(Unknown("the connection broke"))
            at = await office.w.now() + DAY
            first, second, third = chain(office, box, {"send_at": at}, {}, {})
            waiting = office.client.explain(second)
            assert waiting.code == "follows" and f"{first}, which has not left yet" in waiting.reason
            assert waiting.earliest == at + DAY, "the first leaves at its time, and this one a day later"
            await office.later(30 * DAY)
            await office.until_idle()
            await office.later(DAY)
            await office.until_idle()
            assert await states(office, [first, second, third]) == ["unknown", "queued", "queued"]
            told = office.client.explain(second)
            assert told.code == "follows" and f"{first}, which is unknown" in told.reason
            assert any("the connection broke" in line for line in told.details)
            assert f"follows message {second}" in office.client.explain(third).reason
            office.client.resolve(first, "sent")
            await office.later(DAY)
            await office.until_idle()
            assert office.accepted == [second]

    run(scene())


def test_a_waiting_follower_keeps_its_own_times(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            now = await office.w.now()
            first, second, third, fourth = chain(
                office, box, {"send_at": now + DAY}, {"send_at": now + 9 * DAY}, {"expires_at": now + 2 * DAY}, {}
            )
            office.client.reschedule(second, now + 8 * DAY)
            assert (await office.message(second))["due_at"] is None, "another time does not end its waiting"
            await office.later(DAY)
            await office.until_idle()
            assert (await office.message(second))["due_at"] == now + 8 * DAY
            await office.later(2 * DAY)
            assert await states(office, [first, second, third, fourth]) == ["sent", "queued", "expired", "cancelled"]

    run(scene())


def test_a_chain_of_any_length_ends_with_its_first(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            ids = chain(office, box, *({} for _ in range(300)))
            office.client.cancel(ids[0])
            assert set(await states(office, ids)) == {"cancelled"}

    run(scene())


def test_what_follows_one_that_never_left_answers_the_last_that_did(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            go_on = {"after": "0s", "on_predecessor": {"failed": "go_on"}}
            office.answers(Sent("id-1", None, "thread-1"), Failed("550"))
            first, second, third = chain(office, box, {}, {"after": "0s"}, go_on)
            await office.until_idle()
            await office.until_idle()
            assert await states(office, [first, second, third]) == ["sent", "failed", "sent"]
            assert (await mail(office, third))["In-Reply-To"] == (await office.message(first))["rfc_message_id"]
            office.answers(Failed("550"))
            _, alone = chain(office, box, {}, go_on)
            await office.until_idle()
            written = await mail(office, alone)
            assert (written["Subject"], written["In-Reply-To"]) == ("Hi", None), "nobody is answered: no Re:"
            _, apart, named = chain(
                office, box, {}, {"after": "0s", "thread": False, "subject": "New"}, {"after": "0s", "subject": "Own"}
            )
            await office.until_idle()
            assert (await mail(office, apart))["In-Reply-To"] is None
            written = await mail(office, named)
            assert (
                written["Subject"] == "Own"
                and written["In-Reply-To"] == (await office.message(apart))["rfc_message_id"]
            )

    run(scene())


# ── at the door ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_message_that_is_stored_already_can_be_followed_in_any_state(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            before = office.enqueue(box, subject="Hi", idempotency_key="intro")[0]
            after = office.enqueue(box, to=(), subject="", follows="intro", after="1h")[0]
            assert [each.address for each in office.client.get(after).recipients] == ["to@example.net"]
            assert office.client.get(after).follows == before and office.client.get(after).subject == "Re: Hi"
            await tend(office.w.db, SETTLE)
            await office.until_idle()
            assert (await office.message(after))["due_at"] is not None, "it was marked before it ended"
            late = office.enqueue(box, follows=str(before), after="2h")[0]
            assert office.client.explain(late).code == "no_dispatcher", "only it can say when that one is due"
            await tend(office.w.db, SETTLE)
            ended = (await office.message(before))["ended_at"]
            assert (await office.message(late))["due_at"] == ended + timedelta(hours=2)
            office.client.cancel(after)
            never = office.enqueue(box, follows=after)[0]
            await tend(office.w.db, SETTLE)
            assert await states(office, [never]) == ["cancelled"]
            assert await office.w.rows("SELECT FROM outtray.following") == []

    run(scene())


def test_a_producers_long_transaction_holds_up_nobody(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            (first,) = office.enqueue(box)
            with psycopg.connect(str(database.settings.database_url)) as producer:
                follower = Message(mailbox=box, to="a@example.net", text="t", follows=first, after="1h")
                second = office.client.enqueue(follower, connection=producer).id
                async with asyncio.timeout(20):
                    await office.until_idle()
                    await tend(office.w.db, SETTLE)
                assert office.accepted == [first]
                producer.commit()
            await tend(office.w.db, SETTLE)
            assert (await office.message(second))["due_at"] is not None

    run(scene())


def test_a_follower_that_somebody_holds_when_the_first_ends_is_told_soon_after(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            first, second = chain(office, box, {}, {})
            with database.connect(autocommit=False) as holder:
                holder.execute("SELECT FROM outtray.message WHERE id = %s FOR UPDATE", [second])
                holder.execute("SELECT FROM outtray.mailbox WHERE id = %s", [box])
                async with asyncio.timeout(20):
                    await office.until_idle()
                    await tend(office.w.db, SETTLE)
                assert office.accepted == [first], "its turn did not wait"
                holder.rollback()
            assert (await office.message(second))["due_at"] is None
            await tend(office.w.db, SETTLE)
            assert (await office.message(second))["due_at"] is not None

    run(scene())


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"follows": "nothing"}, "follows"),
        ({"follows": "draft", "thread": True}, "thread"),
        ({"follows": "elsewhere", "thread": True}, "thread"),
        ({"after": "1d"}, "after"),
        ({"follows": "draft", "after": "2y"}, "after"),
        ({"follows": "draft", "on_predecessor": {"unknown": "go_on"}}, "on_predecessor"),
        ({"follows": "draft", "thread": True, "in_reply_to": "<a@b.example>"}, "thread"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_its_field(database, fields, field):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box, other = await office.mailbox(), await office.mailbox()
            office.enqueue(box, mode="draft", idempotency_key="draft")
            office.enqueue(other, idempotency_key="elsewhere")
            with pytest.raises(InvalidMessage) as refused:
                office.enqueue(box, **fields)
            assert [each.field for each in refused.value.problems] == [field]

    run(scene())


def test_the_same_sequence_again_is_stored_once_and_grows_by_what_is_new(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            steps = [
                {"mailbox": str(box), "text": "1", "to": "ann@elsewhere.example", "idempotency_key": "a"},
                {"mailbox": str(box), "text": "2", "follows": "a", "idempotency_key": "b"},
                {"mailbox": str(box), "text": "3", "follows": "b", "idempotency_key": "c"},
            ]
            assert office.client.enqueue_many(steps[:2]).created == 2
            again = office.client.enqueue_many(steps)
            assert (again.accepted, again.created) == (3, 1)
            rows = await office.w.rows("SELECT id, follows FROM outtray.message ORDER BY id")
            assert [row["follows"] for row in rows] == [None, rows[0]["id"], rows[1]["id"]]
            for _ in range(3):
                await tend(office.w.db, SETTLE)
                await office.until_idle()
            assert office.accepted == [row["id"] for row in rows]

    run(scene())


def test_a_follower_of_a_refused_message_is_refused_with_it(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            office.enqueue(box, idempotency_key="taken")
            told = office.client.enqueue_many(
                [
                    {"mailbox": str(box), "to": "a@example.net", "text": "other", "idempotency_key": "taken"},
                    {"mailbox": str(box), "text": "2", "follows": "taken", "idempotency_key": "b"},
                    {"mailbox": str(box), "to": "nobody", "text": "1", "idempotency_key": "c"},
                    {"mailbox": str(box), "text": "2", "follows": "c", "idempotency_key": "d"},
                ],
                keep_going=True,
            )
            assert [refusal.index for refusal in told.refused] == [0, 1, 2, 3] and told.accepted == 0
            assert told.refused[1].problems[0].reason == "the message before it was refused"

    run(scene())


# ── a person's sequence ends ────────────────────────────────────────────────────────────────────────────────────────


def test_cancel_where_ends_a_persons_sequence_and_counts_each_of_its_messages(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            office.answers(Sent("id-1"))
            chain(office, box, {"tags": ["spring"]}, {"tags": ["spring"]}, {"tags": ["spring"]})
            await office.until_idle()
            chain(office, box, {"tags": ["spring"]}, {"tags": ["spring"]}, {})
            counts = office.client.cancel_where(tag="spring", to="ann@elsewhere.example")
            assert counts == CancelCounts(cancelled=4, already_sent=1)
            assert await office.states() == {"sent": 1, "cancelled": 5}, "the last went with the one before it"

    run(scene())


def test_cancel_where_is_exact_against_a_worker_that_is_sending(database):
    """What it counts as cancelled never leaves, whatever step of whichever sequence a worker has just come to."""

    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            for _ in range(40):
                chain(office, box, {"tags": ["t"]}, {"tags": ["t"], "after": "0s"}, {"tags": ["t"], "after": "0s"})
            counts: list[CancelCounts] = []

            def cancel() -> None:
                with Outtray(database.settings, app=office.w.app_id.hex) as client:
                    counts.append(client.cancel_where(tag="t", to="ann@elsewhere.example"))

            threads = [threading.Thread(target=cancel) for _ in range(2)]
            await office.begin()
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                await office.round()
            for thread in threads:
                thread.join()
            await office.until_idle()
            found = await office.states()
            assert set(found) <= {"sent", "cancelled"} and found.total() == 120
            assert len(set(office.accepted)) == found["sent"] == len(office.accepted)
            cancelled = await office.w.rows("SELECT id FROM outtray.message WHERE state = 'cancelled'")
            assert not {row["id"] for row in cancelled} & set(office.accepted)
            assert len(counts) == 2, "neither ran into a deadlock"

    run(scene())


def test_what_a_follower_answers_is_kept_until_it_has_left(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            first, second = chain(office, box, {}, {"after": "100d"})
            await office.until_idle()
            await office.later(99 * DAY)
            await prune(office.w.db, office.process.settings)
            assert (await office.message(first))["state"] == "sent"
            await office.later(DAY)
            await office.until_idle()
            assert (await mail(office, second))["Subject"] == "Re: Hi"
            await prune(office.w.db, office.process.settings)
            assert await office.w.rows("SELECT FROM outtray.message WHERE id = %s", first) == []

    run(scene())
