"""Rules 7 and 10: group commits, lost COMMIT answers, late answers, and an outage of PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg

from outtray_worker.deadline import Deadline
from outtray_worker.group import CALL
from outtray_worker.items import MailboxMove, Passed, Record, Refusal, Stopped
from outtray_worker.lease import Lease, Leases
from outtray_worker.registrar import Registrar
from outtray_worker.spool import Spool
from polling import until
from world import World, gate, run, world

SEND_AGAIN = """
WITH again AS (
    UPDATE outtray.message SET state = 'queued', counted_at = NULL, may_have_left = true, version = version + 1
    WHERE id = %s RETURNING *)
INSERT INTO outtray.usage (mailbox_id, counted_at, recipients, external, message_id, handover, source)
SELECT mailbox_id, outtray.outtray_now(), recipients, external, id, handover, 'resent' FROM again
"""

SOON = timedelta(seconds=20)


class Flaky:
    """A connection whose next group writes go wrong as `troubles` says; everything else is the real session."""

    def __init__(self, real: Any, troubles: list[str]) -> None:
        self._real, self._troubles = real, troubles

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def execute(self, query: str, *parameters: Any, **options: Any) -> Any:
        if query != CALL or not self._troubles:
            return await self._real.execute(query, *parameters, **options)
        trouble = self._troubles.pop(0)
        if trouble == "not written":
            await self._real.close()
            raise psycopg.OperationalError("connection lost before the call arrived")
        if trouble == "written late":  # its locks are held, its COMMIT takes a while
            await self._real.execute("BEGIN")
            await self._real.execute(query, *parameters, **options)
            self._late = asyncio.create_task(self._commit_late())
            raise psycopg.OperationalError("connection lost, the COMMIT is still on its way")
        answer = await self._real.execute(query, *parameters, **options)
        if trouble == "answer lost":
            await self._real.close()
            raise psycopg.OperationalError("connection lost after the COMMIT")
        return answer

    async def _commit_late(self) -> None:
        await asyncio.sleep(0.3)
        await self._real.commit()

    async def close(self) -> None:
        if not hasattr(self, "_late"):
            await self._real.close()


@asynccontextmanager
async def registrar(
    w: World, tmp_path: Any, troubles: list[str] | None = None, reach: Callable[[], bool] = lambda: True
):
    left = troubles if troubles is not None else []

    async def connect() -> Any:
        if not reach():
            raise psycopg.OperationalError("no route to PostgreSQL")
        return Flaky(await w.connect(), left)

    settings = w.settings.model_copy(update={"spool_after": timedelta(0)})
    spool = Spool(tmp_path)
    made = Registrar(settings, connect, spool, Leases(settings.lease))
    task = asyncio.create_task(made.run())
    yield made
    made.close()
    await asyncio.wait_for(task, 10)
    spool.close()


def sent(message: Any, box: Any, handover: int = 1) -> Record:
    return Record(
        message.id, box.id, handover, "sent", "sent", True, provider_id="p-1", rfc_message_id="<r@example.org>"
    )


def test_gates_and_outcomes_that_wait_are_written_together(database, tmp_path):
    async def scene() -> None:
        async with world(database.settings) as w, registrar(w, tmp_path) as r:
            box_id = await w.mailbox()
            for _ in range(20):
                await w.message(box_id)
            box = await w.claim(box_id)
            messages = await w.due(box_id)
            before = await w.rows("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
            assert before
            answers = await asyncio.gather(*(r.gate(gate(box, message), Deadline.after(SOON)) for message in messages))
            assert answers == [Passed(1)] * 20
            stamps = await w.rows("SELECT DISTINCT handed_at FROM outtray.message WHERE mailbox_id = %s", box_id)
            assert len(stamps) <= 2

    run(scene())


def test_a_lost_commit_answer_of_a_gate_is_read_back_by_its_handover_number(database, tmp_path):
    async def scene() -> None:
        for trouble in ("answer lost", "not written", "written late"):
            async with world(database.settings) as w, registrar(w, tmp_path, [trouble]) as r:
                box_id = await w.mailbox()
                await w.message(box_id)
                box = await w.claim(box_id)
                message = (await w.due(box_id))[0]
                assert await r.gate(gate(box, message), Deadline.after(SOON)) == Passed(1), trouble
                row = await w.row("message", message.id)
                assert (row["state"], row["handover"], row["attempt"]) == ("handing_over", 1, 1), trouble

    run(scene())


def test_a_lost_commit_answer_of_an_outcome_is_written_once(database, tmp_path):
    async def scene() -> None:
        for trouble in ("answer lost", "not written", "written late"):
            async with world(database.settings) as w:
                box, message = await w.gate_one(await self_armed(w))
                async with registrar(w, tmp_path, [trouble]) as r:
                    assert await r.record(sent(message, box)), trouble
                row = await w.row("message", message.id)
                assert (row["state"], row["provider_id"]) == ("sent", "p-1"), trouble
                told = await w.rows("SELECT kind FROM outtray.event WHERE message_id = %s", message.id)
                assert [event["kind"] for event in told] == ["sent"], trouble

    run(scene())


async def self_armed(w: World) -> Any:
    box_id = await w.mailbox()
    await w.message(box_id)
    return box_id


def test_a_gate_that_waits_past_its_begin_is_stopped_and_not_written(database, tmp_path):
    async def scene() -> None:
        async with world(database.settings) as w, registrar(w, tmp_path) as r:
            box_id = await self_armed(w)
            box = await w.claim(box_id)
            message = (await w.due(box_id))[0]
            answer = await r.gate(gate(box, message), Deadline.after(timedelta(seconds=-1)))
            assert isinstance(answer, Stopped) and answer.turn_over
            assert (await w.row("message", message.id))["state"] == "queued"

    run(scene())


def test_one_bad_item_does_not_fail_its_group(database, tmp_path):
    async def scene() -> None:
        async with world(database.settings) as w, registrar(w, tmp_path) as r:
            box, message = await w.gate_one(await self_armed(w))
            other, fine = await w.gate_one(await self_armed(w))
            bad = replace(sent(message, box), state="no such state")
            results = await asyncio.gather(r.record(bad), r.record(sent(fine, other)))
            assert results == [False, True]
            assert (await w.row("message", fine.id))["state"] == "sent"
            assert (await w.row("message", message.id))["state"] == "handing_over"
            assert list(tmp_path.glob("*.spool")), "what PostgreSQL will not take is kept for the operator"

    run(scene())


def test_an_outcome_outlives_an_outage_of_postgresql_and_a_crash(database, tmp_path):
    """PostgreSQL is away: the answer goes to the spool; the process dies; another process writes it."""

    async def scene() -> None:
        async with world(database.settings) as w:
            box, message = await w.gate_one(await self_armed(w))
            async with registrar(w, tmp_path, reach=lambda: False) as r:
                r.record(sent(message, box))
                await until(lambda: list(tmp_path.glob("*.spool")))
            kept = [entry.item for file in Spool(tmp_path).orphans() for entry in file.kept]
            assert kept == [sent(message, box)]
            async with registrar(w, tmp_path) as r:
                assert await r.record(kept[0])
            assert (await w.row("message", message.id))["state"] == "sent"

    run(scene())


def test_the_spool_is_emptied_once_postgresql_is_back(database, tmp_path):
    async def scene() -> None:
        async with world(database.settings) as w:
            box, message = await w.gate_one(await self_armed(w))
            away = [True]
            async with registrar(w, tmp_path, reach=lambda: not away[0]) as r:
                written = r.record(sent(message, box))
                await until(lambda: list(tmp_path.glob("*.spool")))
                away[0] = False
                assert await written
            assert not list(tmp_path.glob("*.spool"))

    run(scene())


def test_provider_ids_of_any_handover_make_the_message_sent(database, tmp_path):
    """A frozen worker's answer arrives after its message was sent again by decision, and is being handed over anew."""

    async def scene() -> None:
        async with world(database.settings) as w, registrar(w, tmp_path) as r:
            box_id = await self_armed(w)
            box, message = await w.gate_one(box_id)
            await w.db.execute(SEND_AGAIN, [message.id])
            newer = (await w.due(box_id))[0]
            assert (await w.write(gate(box, newer))).passed == {message.id: 2}
            assert await r.record(sent(message, box, handover=1))
            row = await w.row("message", message.id)
            assert (row["state"], row["provider_id"], row["counted_at"]) == ("sent", "p-1", None)
            usage = await w.rows(
                "SELECT handover, source FROM outtray.usage WHERE message_id = %s ORDER BY handover", message.id
            )
            assert [(use["handover"], use["source"]) for use in usage] == [(1, "resent"), (2, "superseded")]

    run(scene())


def test_ids_for_a_message_that_was_cancelled_meanwhile_are_shown(database, tmp_path):
    async def scene() -> None:
        async with world(database.settings) as w, registrar(w, tmp_path) as r:
            box, message = await w.gate_one(await self_armed(w))
            await w.db.execute(
                "UPDATE outtray.message SET state = 'cancelled', ended_at = outtray.outtray_now() WHERE id = %s",
                [message.id],
            )
            assert await r.record(sent(message, box))
            row = await w.row("message", message.id)
            assert (row["state"], row["provider_id"], row["may_have_left"]) == ("cancelled", "p-1", True)
            assert "left before it was cancelled" in row["reason"]

    run(scene())


def test_a_late_refusal_of_an_old_handover_changes_nothing_but_the_journal(database, tmp_path):
    async def scene() -> None:
        async with world(database.settings) as w, registrar(w, tmp_path) as r:
            box_id = await self_armed(w)
            box, message = await w.gate_one(box_id)
            retry = Record(message.id, box_id, 1, "retry", "queued", True, again=timedelta(0), reason="451")
            assert await r.record(retry)
            again = (await w.due(box_id))[0]
            await w.write(gate(box, again))
            assert not await r.record(replace(retry, kind="failed", state="failed"))
            assert (await w.row("message", message.id))["state"] == "handing_over"
            kinds = await w.rows("SELECT kind FROM outtray.journal WHERE message_id = %s ORDER BY id", message.id)
            assert [entry["kind"] for entry in kinds] == ["gate", "retry", "gate", "late failed"]

    run(scene())


def test_a_late_answer_whose_own_commit_got_no_answer_is_told_once(database, tmp_path):
    async def scene() -> None:
        async with world(database.settings) as w, registrar(w, tmp_path) as r:
            box_id = await self_armed(w)
            box, message = await w.gate_one(box_id)
            assert await r.record(Record(message.id, box_id, 1, "retry", "queued", True, again=timedelta(0)))
            await w.db.execute(
                "UPDATE outtray.message SET state = 'cancelled', ended_at = outtray.outtray_now() WHERE id = %s",
                [message.id],
            )
            for _ in range(2):
                await r.record(sent(message, box))
            told = await w.rows("SELECT kind FROM outtray.event WHERE message_id = %s ORDER BY id", message.id)
            assert [event["kind"] for event in told] == ["queued", "left_anyway"]

    run(scene())


def test_a_message_too_late_to_begin_comes_back_from_handing_over_and_from_unknown(database, tmp_path):
    async def scene() -> None:
        for state in ("handing_over", "unknown"):
            async with world(database.settings) as w, registrar(w, tmp_path) as r:
                box, message = await w.gate_one(await self_armed(w))
                await w.db.execute("UPDATE outtray.message SET state = %s WHERE id = %s", [state, message.id])
                not_begun = Record(message.id, box.id, 1, "not begun", "queued", False, reason="too late")
                assert await r.record(not_begun), state
                row = await w.row("message", message.id)
                assert (row["state"], row["attempt"], row["counted_at"]) == ("queued", 0, None), state

    run(scene())


def test_a_cancel_asked_for_during_the_handover_wins_when_the_message_comes_back(database, tmp_path):
    async def scene() -> None:
        async with world(database.settings) as w, registrar(w, tmp_path) as r:
            box, message = await w.gate_one(await self_armed(w))
            await w.db.execute("UPDATE outtray.message SET cancel_asked_at = outtray.outtray_now()")
            await r.record(Record(message.id, box.id, 1, "retry", "queued", True, again=timedelta(0), reason="451"))
            row = await w.row("message", message.id)
            assert row["state"] == "cancelled" and row["ended_at"] is not None

    run(scene())


def test_a_hold_falls_once_and_never_on_new_credentials(database, tmp_path):
    async def scene() -> None:
        async with world(database.settings) as w, registrar(w, tmp_path) as r:
            box_id = await w.mailbox(credentials_version=3)
            held = await w.claim(box_id)
            old = MailboxMove(box_id, held.fence, hold="reconnect", hold_reason="535", credentials_version=2)
            await r.move(old)
            assert (await w.row("mailbox", box_id))["status"] == "active"
            for _ in range(3):
                await r.move(replace(old, credentials_version=3))
            told = await w.rows("SELECT kind FROM outtray.event WHERE mailbox_id = %s", box_id)
            assert [event["kind"] for event in told] == ["mailbox.reconnect"]

    run(scene())


def test_leases_are_renewed_while_the_registrar_writes_and_lost_ones_are_told(database, tmp_path):
    async def scene() -> None:
        async with world(database.settings) as w:
            box_id, other_id = await w.mailbox(), await w.mailbox()
            box, other = await w.claim(box_id), await w.claim(other_id)
            leases = Leases(timedelta(seconds=30))
            mine, stale = (
                Lease(box.id, box.fence, Deadline.after(SOON)),
                Lease(other.id, other.fence - 1, Deadline.after(SOON)),
            )
            past = Lease(other.id, other.fence, Deadline.after(timedelta(seconds=-1)))
            for lease in (mine, stale, past):
                leases.add(lease)
            before = await w.row("mailbox", box_id), await w.row("mailbox", other_id)
            await leases.renew(w.db)
            after = await w.row("mailbox", box_id), await w.row("mailbox", other_id)
            assert after[0]["turn_until"] > before[0]["turn_until"]
            assert after[1]["turn_until"] == before[1]["turn_until"], "nothing renews beyond the longest handover"
            assert (mine.lost, stale.lost) == (False, True)

    run(scene())


def test_an_outcome_in_preparation_is_named_by_the_version_that_was_read(database, tmp_path):
    async def scene() -> None:
        async with world(database.settings) as w, registrar(w, tmp_path) as r:
            box_id = await self_armed(w)
            await w.claim(box_id)
            message = (await w.due(box_id))[0]
            failed = Refusal(message.id, box_id, message.version, "failed", "failed", spends=True, reason="550")
            assert await r.record(failed)
            assert not await r.record(failed)
            row = await w.row("message", message.id)
            assert (row["state"], row["attempt"], row["handover"]) == ("failed", 1, 0)

    run(scene())
