"""Reconciling: what a look shows about a handover without an outcome, and what is made of it (rules 7, 11, 12, 13)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from inside import inside
from looks import LOST, SETTLED, TAKEN, Readable, doubted, looks_of, usage_of
from outtray_schema.outcome import Held, Parked, Sent
from outtray_worker.providers import Finding
from outtray_worker.providers.memory import Answer, MemoryProvider
from outtray_worker.reconcile.read import read_case
from outtray_worker.reconcile.schedule import OTHERS
from outtray_worker.reconcile.write import Look, write_look
from polling import until
from world import run

FIRST = OTHERS.steps[0]
FOUND = Finding(
    "sent", "what was sent, by our key", Sent("id-1", "<found@example.org>", "thread-1", {"found": "there"})
)


def test_what_is_found_in_sent_was_sent_long_before_absence_could_count(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office, TAKEN)
            assert await office.look() == 0, "the first look has its time"
            await office.later(FIRST)
            assert await office.look() == 1
            row = await office.message(message)
            assert (row["state"], row["provider_id"], row["reason"]) == ("sent", f"memory-{message}", "found by a look")
            assert row["evidence"]["looked"] and row["look_at"] is None and not row["may_have_left"]
            assert await usage_of(office, message) == [] and row["counted_at"] is not None
            assert await office.journal(message) == ["enqueued", "gate", "unknown", "look", "found"]
            assert [event["message_id"] for event in await office.events("sent")] == [message]

    run(scene())


@pytest.mark.parametrize("kind", ["absent", "still_draft"])
def test_absence_counts_only_after_the_deadline_and_the_settling_time(database, kind):
    async def scene() -> None:
        drafts = kind == "still_draft"
        async with inside(database.settings, Readable(drafts)) as office:
            box, message = await doubted(office)
            before = await office.message(message)
            await office.later(FIRST)
            assert await office.look() == 1
            row = await office.message(message)
            assert (row["state"], row["looked"]["finding"], row["looks"]) == ("unknown", kind, 1)
            await office.later(SETTLED)
            assert await office.look() == 1
            row = await office.message(message)
            assert (row["state"], row["may_have_left"], row["counted_at"]) == ("queued", True, None)
            assert await usage_of(office, message) == [(1, "evidence")]
            (usage,) = await office.w.rows("SELECT counted_at FROM outtray.usage")
            assert usage["counted_at"] == before["counted_at"], "it goes on counting from where it did"
            assert (await office.box(box))["next_at"] <= await office.w.now(), "what sets queued arms the mailbox"
            await office.until_idle()
            row = await office.message(message)
            assert (row["state"], row["handover"]) == ("sent", 2) and office.accepted == [message]
            assert office.provider.seen["draft"] == int(drafts), "the same draft, or none"
            assert await office.journal(message) == [
                "enqueued", "gate", "unknown", "look", "resend", "gate", "sent",
            ], "what shows the same again is not told twice"  # fmt: skip

    run(scene())


def test_a_look_falls_upon_the_moment_from_which_absence_counts(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office)
            counts_from = (await office.message(message))["handover_until"] + office.process.settings.settle_time
            for _ in range(4):  # 10 s, 60 s, 5 min; the schedule's next would be at 15 min
                row = await office.message(message)
                await office.later(row["look_at"] - await office.w.now())
                await office.look()
            row = await office.message(message)
            assert row["state"] == "queued" and await office.w.now() - counts_from < timedelta(seconds=5)

    run(scene())


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("kind", ["nothing", "failed", "no_way"])
def test_what_shows_nothing_moves_nothing_at_any_time(database, kind, counts):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office)
            office.provider.findings.append(Finding(kind, "somewhere"))
            await office.later(SETTLED if counts else FIRST)
            assert await office.look() == 1
            row = await office.message(message)
            assert (row["state"], row["looked"]["finding"]) == ("unknown", kind)
            assert (row["look_at"] is None) == (kind == "no_way"), "only where there is no way nobody looks again"
            assert await looks_of(office, message) == [kind] and await usage_of(office, message) == []

    run(scene())


def test_a_draft_that_is_missing_is_no_absence(database):
    async def scene() -> None:
        async with inside(database.settings, Readable(drafts=True)) as office:
            _, message = await doubted(office)
            office.provider.drafts.clear()
            for finding in (None, Finding("absent", "a provider that says more than it knows")):
                office.provider.findings.extend([finding] if finding else [])
                await office.later(SETTLED)
                assert await office.look() == 1
                assert (await office.message(message))["state"] == "unknown"
            assert await looks_of(office, message) == ["nothing", "absent"]

    run(scene())


def test_a_look_that_began_early_counts_nothing_although_it_ends_late(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office)
            await office.later(FIRST)
            office.provider.gate = asyncio.Event()
            assert await office.process.looks.pick_for_itself() == 1
            await until(lambda: office.provider.at_once)
            await office.later(SETTLED)
            office.provider.gate.set()
            await office.process.looks.drain()
            row = await office.message(message)
            assert (row["state"], row["looked"]["finding"], row["looks"]) == ("unknown", "absent", 1)
            assert row["look_at"] is not None

    run(scene())


async def _begun(office, message):
    async with office.process.pool.connection() as connection:
        case = await read_case(connection, office.process.vault, message)
    assert case is not None
    return case


async def _write(office, case, finding):
    return type(await write_look(office.w.db, Look(case, finding), office.process.looks.rules(case))).__name__


@pytest.mark.parametrize("finding", ["absent", "still_draft", "nothing", "failed", "no_way"])
def test_an_old_look_writes_nothing_about_a_handover_that_has_moved_on(database, finding):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office)
            await office.later(SETTLED)
            case = await _begun(office, message)
            office.client.resolve(message, "resend")
            office.answers(LOST)
            await office.until_idle()
            await office.later(SETTLED)
            before = await office.message(message)
            assert (before["state"], before["handover"]) == ("unknown", 2)
            assert await _write(office, case, Finding(finding, "before")) == "Ignore"
            assert await office.message(message) == before

    run(scene())


@pytest.mark.parametrize("moved_on", ["queued", "handing_over", "unknown"])
def test_ids_that_an_old_look_found_make_it_sent_whatever_it_is_by_now(database, moved_on):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office)
            await office.later(SETTLED)
            case = await _begun(office, message)
            office.client.resolve(message, "resend")
            if moved_on == "unknown":
                office.answers(LOST)
                await office.until_idle()
            elif moved_on == "handing_over":
                office.provider.during_handover = asyncio.Event()
                await office.begin()
                await until(lambda: office.provider.seen["hand_over"] == 2)
            assert (await office.message(message))["state"] == moved_on
            assert await _write(office, case, FOUND) == "Believe"
            row = await office.message(message)
            assert (row["state"], row["provider_id"], row["reason"]) == ("sent", "id-1", "found by a look")
            first, *newer = await usage_of(office, message)
            assert first == (1, "resend") and newer == ([] if moved_on == "queued" else [(2, "superseded")])
            assert row["counted_at"] is None, "what the row no longer counts stands in usage"
            if office.provider.during_handover:
                office.provider.during_handover.set()
                await office.process.engine.drain()
                assert (await office.message(message))["state"] == "sent"

    run(scene())


@pytest.mark.parametrize(
    ("finding", "verdicts", "state"),
    [("absent", ["SendAgain", "Ignore"], "queued"), ("sent", ["Believe", "Ignore"], "sent"),
     ("nothing", ["LookAgain", "LookAgain"], "unknown")],
)  # fmt: skip
def test_two_looks_at_once_write_once(database, finding, verdicts, state):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office)
            await office.later(SETTLED)
            cases = [await _begun(office, message) for _ in range(2)]
            shown = FOUND if finding == "sent" else Finding(finding, "there")
            other = await office.w.connect()
            rules = office.process.looks.rules(cases[0])
            done = await asyncio.gather(
                write_look(office.w.db, Look(cases[0], shown), rules), write_look(other, Look(cases[1], shown), rules)
            )
            await other.close()
            assert sorted(type(each).__name__ for each in done) == sorted(verdicts)
            row = await office.message(message)
            assert row["state"] == state and await looks_of(office, message) == [finding]
            assert len(await office.events(state)) == (2 if state == "queued" else 1)  # the first: it was enqueued
            assert len(await usage_of(office, message)) == (state == "queued")

    run(scene())


def test_a_look_waits_for_an_answer_that_is_being_written_and_leaves_it(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office)
            await office.later(SETTLED)
            case = await _begun(office, message)
            writer = await office.w.connect()
            async with writer.transaction():
                await writer.execute("UPDATE outtray.message SET state = 'sent', ended_at = now()")
                writing = asyncio.create_task(_write(office, case, Finding("absent", "")))
                await _waits(office)
            assert await writing == "Ignore"
            assert (await office.message(message))["state"] == "sent" and await usage_of(office, message) == []
            await writer.close()

    run(scene())


def test_a_look_takes_the_mailbox_before_its_message_as_a_group_does(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            box, message = await doubted(office)
            await office.later(SETTLED)
            case = await _begun(office, message)
            group = await office.w.connect()
            async with group.transaction():
                await group.execute("SELECT FROM outtray.mailbox WHERE id = %s FOR NO KEY UPDATE", [box])
                writing = asyncio.create_task(_write(office, case, Finding("absent", "")))
                await _waits(office)
                await group.execute("UPDATE outtray.message SET priority = 0 WHERE id = %s", [message])
            assert await writing == "SendAgain"
            await group.close()

    run(scene())


async def _waits(office):
    """Until the look waits for a row; asked by somebody else, since its own session is busy."""
    observer = await office.w.connect()
    query = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
    async with asyncio.timeout(10):
        while not await (await observer.execute(query, [office.w.db.info.backend_pid])).fetchone():
            await asyncio.sleep(0.005)
    await observer.close()


def test_ids_found_for_what_was_cancelled_are_shown_once_and_it_stays_cancelled(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office, TAKEN)
            office.provider.hidden.add(message)
            assert office.client.cancel(message).answer == "may_have_left"
            await office.later(SETTLED)
            cases = [await _begun(office, message) for _ in range(2)]
            await office.look()
            row = await office.message(message)
            assert (row["state"], row["may_have_left"]) == ("cancelled", True)
            assert row["counted_at"] is not None, "what may have left counts"
            assert [await _write(office, case, FOUND) for case in cases] == ["Believe", "Ignore"]
            row = await office.message(message)
            assert (row["state"], row["provider_id"]) == ("cancelled", "id-1")
            assert len(await office.events("left_anyway")) == 1

    run(scene())


def test_a_message_gives_up_when_its_attempts_are_used_up_without_an_answer(database):
    async def scene() -> None:
        async with inside(database.settings, Readable(), attempts=2) as office:
            _, message = await doubted(office)
            office.answers(LOST)
            for _ in range(2):
                await office.later(SETTLED)
                await office.look()
                await office.until_idle()
                await office.later(timedelta(0))
            row = await office.message(message)
            assert row["state"] == "failed" and "gave up after 2 attempts" in row["reason"]
            assert row["may_have_left"] and row["counted_at"] is not None
            assert len(await office.events("failed")) == 1

    run(scene())


def test_a_message_that_expired_meanwhile_is_not_sent_again(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office, expires_at=datetime.now(UTC) + timedelta(minutes=5))
            await office.later(SETTLED)
            await office.look()
            await office.later(timedelta(0))
            row = await office.message(message)
            assert (row["state"], row["may_have_left"]) == ("expired", True) and office.accepted == []

    run(scene())


# ── how long, and by which schedule ───────────────────────────────────────────────────────────────────────────────


def test_an_unknown_goes_on_being_looked_at_daily_for_as_long_as_it_is_unknown(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office)
            office.provider.findings.extend([Finding("nothing", "the newest 5 mails")] * 20)
            office.provider.findings.extend([Finding("nothing", "the newest 17 mails")] * 20)
            waits = []
            for _ in range(35):
                due = (await office.message(message))["look_at"]
                await office.later(due - await office.w.now())
                assert await office.look() == 1
                row = await office.message(message)
                waits.append(row["look_at"] - await office.w.now())
            assert [round(wait / timedelta(hours=1)) for wait in waits[-5:]] == [24] * 5
            assert await looks_of(office, message) == ["nothing"], "figures within a finding do not make it another"
            assert row["looked"]["at"] > row["looked"]["since"]

    run(scene())


def test_a_look_that_failed_is_tried_again_and_not_before_its_provider_wants_it(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office)
            wish = timedelta(hours=2)
            office.provider.findings.append(Finding("failed", "there", outcome=Parked("429", after=wish)))
            await office.later(FIRST)
            await office.look()
            row = await office.message(message)
            assert row["look_at"] - await office.w.now() > wish - timedelta(minutes=1)
            assert row["looked"]["why"] == "429"

    run(scene())


def test_a_handover_that_is_unknown_anew_gets_looks_of_its_own(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office)
            office.provider.findings.extend([Finding("no_way", "no scope")])
            await office.later(FIRST)
            await office.look()
            office.client.resolve(message, "resend")
            office.answers(TAKEN)
            await office.until_idle()
            await office.later(timedelta(0))
            row = await office.message(message)
            assert (row["look_handover"], row["looks"], row["looked"]) == (2, 0, None)
            await office.later(FIRST)
            await office.look()
            assert (await office.message(message))["state"] == "sent"

    run(scene())


def test_a_look_goes_back_to_the_first_handover_that_may_have_left(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office)
            first = (await office.message(message))["handed_at"]
            await office.later(SETTLED)
            office.client.resolve(message, "resend")
            office.answers(LOST)
            await office.until_idle()
            await office.later(timedelta(0))
            await office.later(FIRST)
            await office.look()
            assert office.provider.traces[-1].handed_at == first
            assert office.provider.traces[-1].recipients == ("to@example.net",)

    run(scene())


# ── no way to look: the policy ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("message", "mailbox", "app", "resent"),
    [("resend", "hold", "hold", True), ("hold", "resend", "resend", False), (None, "resend", "hold", True),
     (None, "hold", "resend", False), (None, None, "resend", True), (None, None, "hold", False)],
)  # fmt: skip
def test_where_nobody_can_look_the_policy_of_the_message_then_its_mailbox_then_its_app_decides(
    database, message, mailbox, app, resent
):
    async def scene() -> None:
        async with inside(database.settings, MemoryProvider()) as office:
            await office.w.db.execute("UPDATE outtray.app SET on_unknown = %s", [app])
            _, id_ = await doubted(office, on_unknown=message, mailbox={"on_unknown": mailbox})
            await office.later(SETTLED)
            assert (await office.message(id_))["state"] == "unknown", "nobody has looked yet"
            await office.look()
            await office.later(timedelta(0))
            row = await office.message(id_)
            assert row["looked"]["finding"] == "no_way" and row["state"] == ("queued" if resent else "unknown")
            assert await usage_of(office, id_) == ([(1, "resent")] if resent else [])

    run(scene())


def test_the_policy_stops_where_the_messages_attempts_are_used_up_and_asks_a_person(database):
    async def scene() -> None:
        async with inside(database.settings, MemoryProvider()) as office:
            most = office.process.settings.attempts
            office.provider.answer(TAKEN, most + 1)
            _, message = await doubted(office, TAKEN, on_unknown="resend")
            for _ in range(2 * most + 2):  # some rounds only plan the look, or wait for its time
                await office.later(SETTLED)
                await office.look()
                await office.later(timedelta(0))
                await office.until_idle()
            row = await office.message(message)
            assert (row["state"], row["attempt"], len(office.accepted)) == ("unknown", most, most)
            why = office.client.explain(message)
            assert why.who == "operator" and f"sent {most} times, and its policy stops there" in why.reason

    run(scene())


def test_the_policy_sends_nothing_again_that_a_look_could_still_show(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office, TAKEN, on_unknown="resend")
            office.provider.hidden.add(message)
            office.provider.findings.extend([Finding("nothing", "not back to the handover")] * 2)
            for _ in range(2):
                await office.later(timedelta(days=1))
                await office.look()
                await office.later(timedelta(0))
            assert (await office.message(message))["state"] == "unknown"

    run(scene())


# ── what a provider took, and yet is doubted ──────────────────────────────────────────────────────────────────────

FLAGGED = Answer("hand_over", Sent("id-9", evidence={"look_again": True}), take=True)


async def _flagged(office, answer=FLAGGED):
    box = await office.mailbox()
    (message,) = office.enqueue(box)
    office.provider.answer(answer)
    await office.round()
    await office.later(timedelta(0))
    row = await office.message(message)
    assert (row["state"], row["look_at"] is not None) == ("sent", True)
    return message


def test_an_answer_that_is_no_proof_is_looked_at_again_and_borne_out(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            message = await _flagged(office)
            await office.later(FIRST)
            await office.look()
            row = await office.message(message)
            assert (row["state"], row["evidence"]["proven"], row["reason"], row["look_at"]) == (
                "sent",
                True,
                None,
                None,
            )
            assert await office.events("unproven") == [] and len(await office.events("sent")) == 1
            await office.later(SETTLED)
            assert await office.look() == 0

    run(scene())


def test_an_answer_that_is_no_proof_stays_sent_and_says_that_nothing_was_found(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            message = await _flagged(office, Answer("hand_over", FLAGGED.outcome))
            await office.later(FIRST)
            await office.look()
            assert await office.events("unproven") == [], "too early to tell"
            await office.later(SETTLED)
            await office.look()
            row = await office.message(message)
            assert (row["state"], row["evidence"]["proven"], row["look_at"]) == ("sent", False, None)
            assert "no copy of it was found" in row["reason"] and row["counted_at"] is not None
            assert len(await office.events("unproven")) == 1 and office.accepted == []
            await office.later(SETTLED)
            assert await office.look() == 0

    run(scene())


def test_a_held_mailbox_and_a_removed_one_keep_their_messages_unknown(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            box, message = await doubted(office)
            office.provider.findings.append(Finding("failed", "there", outcome=Held("consent revoked")))
            await office.later(SETTLED)
            await office.look()
            assert (await office.box(box))["status"] == "active", "a look changes no mailbox"
            office.client.mailboxes.remove(box)
            opened = office.provider.seen["look"]
            await office.later(timedelta(days=1))
            await office.look()
            row = await office.message(message)
            assert row["looked"]["why"] == "the mailbox is removed or disabled"
            assert office.provider.seen["look"] == opened, "nobody is asked without credentials"
            assert await looks_of(office, message) == ["failed", "failed"] and row["state"] == "unknown"

    run(scene())
