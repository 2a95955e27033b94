"""Who looks, and when: picks are fair and bounded, hints are harmless, and a slow host keeps nobody else waiting."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from inside import dies_at, inside
from looks import LOST, SETTLED, TAKEN, Readable, doubted
from outtray_worker.providers import Finding
from outtray_worker.reconcile.pick import pick_looks
from outtray_worker.reconcile.plan import plan_looks
from outtray_worker.reconcile.schedule import DEFAULT
from polling import until
from world import run, world

AGAIN = timedelta(seconds=90)


async def _unknown(w, box: UUID, app: UUID | None = None) -> UUID:
    now = await w.now()
    return await w.message(
        box, app_id=app or w.app_id, state="unknown", handover=1, handed_at=now, handover_until=now, look_handover=1,
        look_at=now,
    )  # fmt: skip


def test_a_picked_look_is_nobody_elses_until_it_is_due_again(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            message = await _unknown(w, await w.mailbox())
            other = await w.connect()
            both = await asyncio.gather(pick_looks(w.db, 10, AGAIN), pick_looks(other, 10, AGAIN))
            assert sorted(map(len, both)) == [0, 1]
            await w.shift(AGAIN + timedelta(seconds=1))
            assert await pick_looks(other, 10, AGAIN) == [message], "nobody carried it out"
            await other.close()

    run(scene())


def test_looks_are_interleaved_between_apps_and_between_mailboxes(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            small_app = uuid4()
            await w.db.execute("INSERT INTO outtray.app (id, name) VALUES (%s, 'small')", [small_app])
            big, small = await w.mailbox(), await w.mailbox()
            crowd = [await _unknown(w, big) for _ in range(20)]
            one = await _unknown(w, small)
            elsewhere = await _unknown(w, await w.mailbox(app_id=small_app), small_app)
            picked = await pick_looks(w.db, 6, AGAIN)
            assert set(picked[:3]) == {crowd[0], one, elsewhere} and picked[3:] == crowd[1:4]

    run(scene())


def test_what_wants_no_look_any_more_is_not_picked_and_its_time_goes(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            for state in ("queued", "sent", "drafted"):
                ended = {"ended_at": await w.now()} if state != "queued" else {}
                await w.message(box, state=state, look_at=await w.now(), look_handover=0, **ended)
            newer = await _unknown(w, box)
            await w.db.execute("UPDATE outtray.message SET handover = 2 WHERE id = %s", [newer])
            assert await pick_looks(w.db, 10, AGAIN) == []
            assert await w.rows("SELECT 1 FROM outtray.message WHERE look_at IS NOT NULL") == []
            assert await plan_looks(w.db, DEFAULT) == 1, "the newer handover gets looks of its own"
            row = await w.row("message", newer)
            assert (row["look_handover"], row["looks"]) == (2, 0)

    run(scene())


def test_looks_are_planned_in_chunks_by_each_providers_schedule(database, monkeypatch):
    monkeypatch.setattr("outtray_worker.reconcile.plan.CHUNK", 3)

    async def scene() -> None:
        async with world(database.settings) as w:
            messages = {}
            for provider in ("gmail", "microsoft", "smtp", "memory"):
                box = await w.mailbox(provider=provider)
                messages[provider] = [await _unknown(w, box) for _ in range(2)]
            await w.db.execute("UPDATE outtray.message SET look_handover = NULL, look_at = NULL")
            before = await w.now()
            assert await plan_looks(w.db, DEFAULT) == 8
            for provider, ids in messages.items():
                for message in ids:
                    wait = (await w.row("message", message))["look_at"] - before
                    assert timedelta(0) <= wait - DEFAULT.of_provider(provider).steps[0] < timedelta(seconds=5)
            assert await plan_looks(w.db, DEFAULT) == 0

    run(scene())


def test_planning_and_picking_read_their_indexes(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            await w.db.execute("SET enable_seqscan = off")
            from outtray_worker.reconcile.pick import PICK
            from outtray_worker.reconcile.plan import PLAN

            parameters = {"providers": [], "waits": [], "others": AGAIN, "chunk": 5, "limit": 5, "again": AGAIN}
            for statement, index in ((PLAN, "message_unlooked"), (PICK, "message_look")):
                lines = await (await w.db.execute("EXPLAIN " + statement, parameters)).fetchall()
                assert any(f"using {index}" in line or f"on {index}" in line for (line,) in lines), lines

    run(scene())


def test_duplicate_late_and_invented_hints_are_harmless(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office, TAKEN)
            (queued,) = office.enqueue(await office.mailbox())
            looks = office.process.looks
            assert await looks.admit([uuid4(), queued]) == 0
            assert await looks.admit([message, message]) == 1 and await looks.admit([message]) == 0, "it is under way"
            await looks.drain()
            assert (await office.message(message))["state"] == "sent" and office.provider.seen["look"] == 1
            assert await looks.admit([message]) == 0, "late"
            assert (await office.message(queued))["version"] == 0

    run(scene())


def test_one_session_looks_for_all_of_a_mailbox_and_a_failure_ends_it(database):
    async def scene() -> None:
        async with inside(database.settings, Readable(), breaker_unanswered=10) as office:
            box = await office.mailbox()
            messages = office.enqueue(box, 5)
            office.answers(*[LOST] * 5)
            await office.until_idle()
            await office.later(timedelta(0))
            opened = office.provider.seen["open"]
            office.provider.findings.extend([Finding("nothing", ""), Finding("nothing", ""), Finding("failed", "")])
            await office.later(timedelta(seconds=10))
            assert await office.look() == 5
            assert (office.provider.seen["open"] - opened, office.provider.seen["close"]) == (1, opened + 1)
            looks = [(await office.message(each))["looks"] for each in messages]
            assert looks == [1, 1, 1, 0, 0], "what fails once is not asked twice more"
            await office.later(AGAIN)
            assert await office.look() == 5, "the others' time came again"

    run(scene())


def test_a_host_that_does_not_answer_keeps_no_other_host_waiting(database):
    async def scene() -> None:
        async with inside(database.settings, Readable(), looks_at_once=4, breaker_mailboxes=10) as office:
            slow = [await doubted(office, TAKEN, mailbox={"host": "slow"}) for _ in range(6)]
            _, quick = await doubted(office, TAKEN, mailbox={"host": "quick"})
            held = asyncio.Event()

            def hold_slow(account, real=office.provider.open):
                session = real(account)
                if account.host == "slow":
                    session._readable = _Held(office.provider, held)
                return session

            office.provider.open = hold_slow
            await office.later(timedelta(seconds=10))
            assert await office.process.looks.pick_for_itself() == 7
            await until(lambda: office.provider.seen["held"] == 2)
            async with asyncio.timeout(10):
                while (await office.message(quick))["state"] != "sent":
                    await asyncio.sleep(0.01)
            assert office.provider.seen["held"] == 2, "half of the looks, and no more"
            held.set()
            await office.process.looks.drain()
            assert {(await office.message(each))["state"] for _, each in slow} == {"sent"}

    run(scene())


class _Held:
    """Stands before a provider's looks until it is let go."""

    def __init__(self, provider: Readable, held: asyncio.Event) -> None:
        self._provider, self.gate = provider, held
        self.findings, self.traces, self.most_at_once = provider.findings, provider.traces, 0
        self.breaks = None
        self._at_once = 0

    @property
    def at_once(self) -> int:
        return self._at_once

    @at_once.setter
    def at_once(self, number: int) -> None:
        self._provider.seen["held"] += max(0, number - self._at_once)
        self._at_once = number


def test_a_look_has_a_deadline_and_the_message_gets_another(database):
    async def scene() -> None:
        async with inside(database.settings, Readable(), look_limit=timedelta(milliseconds=50)) as office:
            _, message = await doubted(office)
            office.provider.gate = asyncio.Event()
            await office.later(timedelta(seconds=10))
            async with asyncio.timeout(10):
                await office.look()
            row = await office.message(message)
            assert row["looked"]["looked"] == "the provider did not answer in time" and row["look_at"] is not None

    run(scene())


def test_a_bug_in_a_look_leaves_the_message_with_a_next_one(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office)
            office.provider.breaks = RuntimeError("a bug")
            await office.later(timedelta(seconds=10))
            await office.look()
            row = await office.message(message)
            assert "internal error" in row["looked"]["looked"] and row["state"] == "unknown" and row["look_at"]

    run(scene())


def test_a_process_that_ends_leaves_its_looks_to_others(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office)
            office.provider.gate = asyncio.Event()
            await office.later(SETTLED)
            await office.process.looks.pick_for_itself()
            await until(lambda: office.provider.at_once)
            await office.process.looks.close()
            office.process.draining = True
            assert await office.process.looks.admit([message]) == 0
            row = await office.message(message)
            assert (row["state"], row["looks"]) == ("unknown", 0)
            await office.w.shift(AGAIN)
            assert await pick_looks(office.w.db, 10, AGAIN) == [message]

    run(scene())


def test_a_worker_that_dies_between_looking_and_writing_changes_nothing(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office, TAKEN)
            await office.later(timedelta(seconds=10))
            office.process.crash_point = dies_at("looked")
            await office.look()
            assert (await office.message(message))["state"] == "unknown"
            office.process.crash_point = lambda *_: None
            await office.later(AGAIN)
            await office.look()
            assert (await office.message(message))["state"] == "sent"

    run(scene())


def test_recipients_that_cannot_be_read_keep_a_look_from_being_made(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            _, message = await doubted(office)
            await office.w.db.execute("UPDATE outtray.recipient SET address = 'damaged'")
            await office.later(SETTLED)
            await office.look()
            row = await office.message(message)
            assert (row["looked"]["finding"], row["looked"]["looked"]) == (
                "failed", "nowhere: its stored recipients are damaged",
            )  # fmt: skip
            assert office.provider.seen["look"] == 0, "what must not be shown could not be left out"

    run(scene())


@pytest.mark.parametrize("away", [False, True])
def test_a_worker_looks_by_itself_only_while_there_is_no_broker(database, services, away):
    async def scene() -> None:
        patience = timedelta(milliseconds=100)
        async with inside(database.settings, Readable(), broker_patience=patience) as office:
            _, message = await doubted(office, TAKEN)
            await office.later(timedelta(seconds=10))
            if not away:
                await asyncio.gather(*[office.process.redis.ping() for _ in range(3)])
                assert (await office.message(message))["state"] == "unknown"
                return
            services.valkey.stop()
            try:
                async with asyncio.timeout(20):
                    while (await office.message(message))["state"] != "sent":
                        await asyncio.sleep(0.02)
            finally:
                services.valkey.start()

    run(scene())
