"""The engine: admission, the bound per provider host, hints that are wrong, draining, and a worker without a broker."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from types import SimpleNamespace
from uuid import uuid4

from inside import Scripted, inside
from outtray_schema import bindings
from outtray_schema.keyfile import new_keys
from outtray_schema.vault import vault_of
from outtray_worker.engine import A_FEW, EXPRESS_LATELY, LATE_EXPRESS, LATE_LOOP
from outtray_worker.process import Process
from polling import until
from world import run


def test_a_host_that_never_answers_holds_at_most_its_share_and_the_others_go_on(database):
    async def scene() -> None:
        provider = Scripted()
        provider.silent["dead"] = asyncio.Event()
        async with inside(database.settings, provider, engine_turns=8) as office:
            dead = [await office.mailbox(host="dead") for _ in range(12)]
            alive = [await office.mailbox(host="alive") for _ in range(12)]
            stuck = [office.enqueue(box)[0] for box in dead]
            going = [office.enqueue(box)[0] for box in alive]
            async with asyncio.timeout(10):
                while len(office.accepted) < 12:
                    await office.begin()
                    await asyncio.sleep(0)
            assert sorted(office.accepted) == sorted(going)
            assert provider.most["dead"] == 4, "half of the engine's turns, all of which it may use"
            given_back = await office.w.rows(
                "SELECT turn_fence, round_at, next_at > outtray.outtray_now() AS waits FROM outtray.mailbox"
                " WHERE host = 'dead' AND turn_until IS NULL"
            )
            assert len(given_back) == 8
            assert all(row["turn_fence"] == 0 and row["round_at"] is None for row in given_back), "unclaimed"
            provider.silent["dead"].set()
            while len(office.accepted) < 24 and await office.states() != {"sent": 24}:
                await office.process.engine.drain()
                await office.later(timedelta(seconds=2))
                assert await office.round(), "given back for a moment only"
            assert sorted(office.accepted) == sorted(stuck + going)
            assert provider.most["dead"] <= 4

    run(scene())


def test_a_round_returns_once_its_last_mailbox_is_admitted_and_no_sooner(database):
    async def scene() -> None:
        provider = Scripted()
        provider.silent["slow"] = asyncio.Event()
        async with inside(database.settings, provider, engine_turns=2, host_share=1.0) as office:
            boxes = [await office.mailbox(host="slow") for _ in range(3)]
            for box in boxes:
                office.enqueue(box)
            full = asyncio.ensure_future(office.process.engine.admit(boxes))
            await until(lambda: provider.most["slow"] == 2)
            assert office.process.engine.free == 0 and not full.done(), "a full engine stops fetching"
            provider.silent["slow"].set()
            assert await asyncio.wait_for(full, 10) == 3
            await office.process.engine.drain()
            assert len(office.accepted) == 3 and provider.most["slow"] == 2

    run(scene())


def test_an_express_round_waits_neither_in_the_line_nor_for_a_full_engine(database):
    async def scene() -> None:
        provider = Scripted()
        provider.silent["slow"] = asyncio.Event()
        async with inside(database.settings, provider, engine_turns=2, host_share=1.0) as office:
            boxes = [await office.mailbox(host="slow") for _ in range(4)]
            quick = await office.mailbox(host="quick")
            for box in (*boxes, quick):
                office.enqueue(box)
            rounds = [asyncio.ensure_future(office.process.engine.admit([box])) for box in boxes]
            await until(lambda: provider.most["slow"] == 2)
            assert not office.process.engine.wants_more
            assert await asyncio.wait_for(office.process.engine.admit([quick], express=True), 5) == 1
            await until(lambda: len(office.accepted) == 1)
            assert [taken.mailbox_id for taken in provider.accepted] == [quick]
            provider.silent["slow"].set()
            await asyncio.gather(*rounds)
            await office.process.engine.drain()
            await office.later(timedelta(seconds=2))
            await office.until_idle()
            assert len(office.accepted) == 5

    run(scene())


def test_a_hint_for_a_mailbox_whose_turn_still_runs_is_taken_up_behind_it(database):
    async def scene() -> None:
        provider = Scripted()
        provider.silent["slow"] = asyncio.Event()
        async with inside(database.settings, provider, host_share=1.0) as office:
            engine, box = office.process.engine, await office.mailbox(host="slow")
            for express in (False, True):
                office.enqueue(box)
                await office.take_wakes()
                assert await engine.admit([box]) == 1
                await until(lambda: office.process.handing_over == 1)
                office.enqueue(box)
                await office.take_wakes()
                assert await engine.admit([box], express) == 0
                sent = len(office.accepted)
                provider.silent["slow"].set()
                await until(lambda sent=sent: len(office.accepted) == sent + 2)
                await engine.drain()
                provider.silent["slow"].clear()

    run(scene())


def test_a_late_loop_takes_no_further_rounds_and_less_lag_is_borne_while_a_small_app_hurries(database):
    async def scene() -> None:
        provider = Scripted()
        provider.silent["slow"] = asyncio.Event()
        async with inside(database.settings, provider, host_share=1.0) as office:
            engine, lag = office.process.engine, SimpleNamespace(seconds=0.0)
            office.process.lag = lag
            boxes = [await office.mailbox(host="slow") for _ in range(A_FEW)]
            quick = await office.mailbox(host="quick")
            for box in (*boxes, quick):
                office.enqueue(box)
            lag.seconds = 2 * LATE_LOOP
            assert not engine.saturated, "a few turns are always taken"
            assert await engine.admit(boxes) == A_FEW
            assert engine.saturated
            lag.seconds = (LATE_EXPRESS + LATE_LOOP) / 2
            assert not engine.saturated
            await engine.admit([quick], express=True)
            assert engine.saturated
            await until(lambda: len(office.accepted) == 1)
            await until(lambda: not engine.saturated, 5 * EXPRESS_LATELY)
            provider.silent["slow"].set()
            await engine.drain()

    run(scene())


def test_a_worker_that_is_stopped_as_soon_as_it_was_opened_ends(database):
    """What is cancelled in the midst of a query can outlive it, and the process with it."""

    async def scene() -> None:
        for _ in range(5):
            process = Process(database.settings, {"memory": Scripted()})
            await process.open()
            await asyncio.wait_for(process.close(), 10)

    run(scene())


def test_a_slow_server_holds_no_round(database):
    async def scene() -> None:
        provider = Scripted()
        provider.silent["slow"] = asyncio.Event()
        async with inside(database.settings, provider) as office:
            office.enqueue(await office.mailbox(host="slow"))
            assert await asyncio.wait_for(office.begin(), 5) == 1
            assert office.accepted == []
            provider.silent["slow"].set()
            await office.process.engine.drain()

    run(scene())


def test_duplicate_late_and_invented_hints_begin_one_turn(database):
    async def scene() -> None:
        provider = Scripted()
        provider.silent["memory"] = asyncio.Event()
        async with inside(database.settings, provider) as office:
            box = await office.mailbox()
            office.enqueue(box, 2)
            admit = office.process.engine.admit
            begun = await asyncio.gather(admit([box, box, uuid4()]), admit([box]), admit([uuid4()]))
            assert sum(begun) == 1
            assert await admit([box]) == 0, "while its turn runs here"
            provider.silent["memory"].set()
            await office.process.engine.drain()
            assert await admit([box]) == 0, "nothing is due any more"
            assert (await office.box(box))["turn_fence"] == 1 and len(office.accepted) == 2

    run(scene())


def test_two_processes_that_get_the_same_round_share_no_mailbox(database):
    async def scene() -> None:
        async with inside(database.settings) as one, inside(database.settings) as two:
            boxes = [await one.mailbox() for _ in range(30)]
            for box in boxes:
                one.enqueue(box, 2)
            begun = await asyncio.gather(one.process.engine.admit(boxes), two.process.engine.admit(boxes))
            assert sum(begun) == 30
            await one.process.engine.drain()
            await two.process.engine.drain()
            assert len(one.accepted + two.accepted) == 60 == len(set(one.accepted + two.accepted))

    run(scene())


def test_a_mailbox_that_cannot_be_opened_waits_alone(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            good, damaged, foreign, unknown = [await office.mailbox() for _ in range(4)]
            for box in (good, damaged, foreign, unknown):
                office.enqueue(box)
            other = vault_of(new_keys(), "test").credentials
            sealed = {
                damaged: office.process.vault.credentials.encrypt(b"{}", bindings.credentials(uuid4(), 1)),
                foreign: b"\x01\x03kx9" + other.encrypt(json.dumps({}).encode(), bindings.credentials(foreign, 1))[4:],
            }
            for box, credentials in sealed.items():
                await office.w.db.execute(
                    "UPDATE outtray.mailbox SET credentials = %s WHERE id = %s", [credentials, box]
                )
            await office.w.db.execute("UPDATE outtray.mailbox SET provider = 'pigeon' WHERE id = %s", [unknown])
            await office.until_idle()
            assert [taken.mailbox_id for taken in office.provider.accepted] == [good]
            assert (await office.box(damaged))["status"] == "reconnect"
            assert "key file lacks the key" in (await office.box(foreign))["parked_reason"]
            assert "no provider pigeon" in (await office.box(unknown))["parked_reason"]
            assert all([(await office.box(box))["turn_until"] is None for box in (good, damaged, foreign, unknown)])
            assert await office.states() == {"sent": 1, "queued": 3}

    run(scene())


def test_draining_finishes_what_was_handed_over_and_begins_nothing_new(database):
    async def scene() -> None:
        provider = Scripted()
        provider.silent["memory"] = asyncio.Event()
        async with inside(database.settings, provider) as office:
            boxes = [await office.mailbox() for _ in range(2)]
            for box in boxes:
                office.enqueue(box, 3)
            later = await office.mailbox()
            await office.begin()
            await until(lambda: provider.most["memory"] == 2)
            office.enqueue(later)
            await office.take_wakes()
            office.process.draining = True
            assert await office.process.engine.admit([later]) == 0
            closing = asyncio.ensure_future(office.process.engine.drain())
            provider.silent["memory"].set()
            await asyncio.wait_for(closing, 10)
            assert await office.states() == {"sent": 2, "queued": 5}
            leases = await office.w.rows(
                "SELECT id FROM outtray.mailbox WHERE turn_until IS NOT NULL OR next_at IS NULL"
            )
            assert leases == [], "all are free, and due for others"

    run(scene())


def test_a_worker_without_a_broker_picks_due_mailboxes_itself(database, services):
    async def scene() -> None:
        async with inside(database.settings, broker_patience=timedelta(seconds=0.3), engine_turns=4) as office:
            boxes = [await office.mailbox() for _ in range(10)]
            for box in boxes:
                office.enqueue(box, 2)
            services.valkey.stop()
            try:
                await until(lambda: len(office.accepted) == 20)
            finally:
                services.valkey.start()
            assert len(set(office.accepted)) == 20

    run(scene())
