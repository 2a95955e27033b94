"""The journal is complete: from it alone the history of every message's state can be told, and of every handover."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

from inside import Inside, inside
from looks import LOST, SETTLED, TAKEN, Readable, doubted
from outtray_schema.journal import STATE_AFTER
from outtray_schema.outcome import Failed, Held, NotBegun, Parked, Retry, Unknown
from outtray_worker.items import Record
from outtray_worker.late import record_late
from outtray_worker.providers import Finding
from outtray_worker.providers.memory import Answer
from outtray_worker.prune import prune
from outtray_worker.tend import tend
from polling import until
from world import run

# What really became of each message's state: written down by a trigger, whoever changes it and however.
WATCH = """
CREATE TABLE public.truth (n bigint GENERATED ALWAYS AS IDENTITY, message_id uuid, state text);
CREATE FUNCTION public.watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF TG_OP = 'INSERT' OR OLD.state <> NEW.state THEN
        INSERT INTO public.truth (message_id, state) VALUES (NEW.id, NEW.state);
    END IF;
    RETURN NEW; END $$;
CREATE TRIGGER watch AFTER INSERT OR UPDATE ON outtray.message FOR EACH ROW EXECUTE FUNCTION public.watch();
"""

# The states as the journal tells them, without repetitions, beside what really was; rows where they differ.
DIFFERS = f"""
WITH told AS (
    SELECT message_id, state, lag(state) OVER (PARTITION BY message_id ORDER BY id) AS before, id FROM (
        SELECT j.message_id, j.id, {STATE_AFTER} AS state FROM outtray.journal j WHERE j.message_id IS NOT NULL) AS all_
    WHERE state IS NOT NULL),
journal AS (
    SELECT message_id, array_agg(state ORDER BY id) AS states FROM told
    WHERE state IS DISTINCT FROM before GROUP BY message_id),
truth AS (SELECT message_id, array_agg(state ORDER BY n) AS states FROM public.truth GROUP BY message_id)
SELECT message_id, t.states AS truth, j.states AS journal FROM truth t FULL JOIN journal j USING (message_id)
WHERE t.states IS DISTINCT FROM j.states
"""

# Each handover has one gate, and an entry that says what became of it.
UNTOLD = """
SELECT m.id, n FROM outtray.message m, generate_series(1, m.handover) AS n
WHERE (SELECT count(*) FROM outtray.journal j WHERE j.message_id = m.id AND j.handover = n AND j.kind = 'gate') <> 1
   OR NOT EXISTS (SELECT FROM outtray.journal j WHERE j.message_id = m.id AND j.handover = n AND j.kind <> 'gate')
"""


def test_every_change_of_a_state_and_every_handover_can_be_told_from_the_journal_alone(database):
    async def scene() -> None:
        async with inside(database.settings, Readable()) as office:
            await office.w.db.execute(WATCH)
            await answers(office)
            await wishes(office)
            await without_an_answer(office)
            assert await office.w.rows(DIFFERS) == []
            assert await office.w.rows(UNTOLD) == []
            seen = await office.w.rows("SELECT DISTINCT state FROM public.truth")
            assert len(seen) == 7, "every state but a draft's"
            await deleted(office)
            await office.w.db.execute("DELETE FROM outtray.journal WHERE kind = 'resend'")
            assert await office.w.rows(DIFFERS), "a history with a gap is seen to have one"

    run(scene())


async def answers(office: Inside) -> None:
    """Whatever a provider answers."""
    box = await office.mailbox()
    office.enqueue(box)
    await office.until_idle()
    for outcome in (
        Retry("451"), Failed("550"), Parked("quota", after=timedelta(minutes=1)), NotBegun("too late"), Unknown("500"),
    ):  # fmt: skip
        office.answers(outcome)
        office.enqueue(await office.mailbox())
        await office.round()
    office.answers(Held("535"))
    office.enqueue(await office.mailbox())
    await office.round()
    office.provider.answer(Answer("prepare", Failed("no such file")))
    office.enqueue(await office.mailbox())
    await office.round()


async def wishes(office: Inside) -> None:
    """Cancel, expiry, another time; a cancel that is asked for in the midst of a handover."""
    box = await office.mailbox(status="paused")
    now = await office.w.now()
    waits, moves = office.enqueue(box, count=2)
    office.enqueue(box, expires_at=now + timedelta(minutes=5))
    office.client.cancel(waits)
    office.client.reschedule(moves, now + timedelta(hours=1))
    office.provider.during_handover = asyncio.Event()
    (inside_it,) = office.enqueue(await office.mailbox())
    office.answers(Retry("451"))
    await office.begin()
    await until(lambda: office.client.get(inside_it).state == "handing_over")
    assert (await asyncio.to_thread(office.client.cancel, inside_it)).answer == "handing_over"
    office.provider.during_handover.set()
    await office.process.engine.drain()
    office.provider.during_handover = None
    assert (await office.message(inside_it))["state"] == "cancelled"
    await office.later(timedelta(minutes=6))


async def without_an_answer(office: Inside) -> None:
    """Found by a look, absent and sent again, sent again by policy, decided by a person; an answer that comes late."""
    for answer in (TAKEN, LOST):
        await doubt(office, answer)
        await office.later(SETTLED)
        await office.look()
    office.provider.findings.append(Finding("no_way", "nowhere"))
    _, policy = await doubt(office, on_unknown="resend")
    await office.later(timedelta(seconds=10))
    await office.look()
    await office.later(SETTLED)
    await tend(office.w.db, timedelta(minutes=1))
    assert (await office.message(policy))["may_have_left"]
    for decision in ("sent", "resend", "fail"):
        _, doubtful = await doubt(office)
        office.client.resolve(doubtful, decision, "asked the owner")
    _, frozen = await doubt(office)
    office.client.resolve(frozen, "resend", "the owner did not get it")
    await late(office, frozen)
    _, cancelled = await doubt(office)
    office.client.resolve(cancelled, "resend")
    office.client.cancel(cancelled)
    await late(office, cancelled)
    await office.until_idle()


async def doubt(office: Inside, answer: Answer = LOST, **fields: Any) -> tuple[UUID, UUID]:
    await office.until_idle()  # what is due would take the answer that is meant for this one
    return await doubted(office, answer, **fields)


async def late(office: Inside, message: UUID) -> None:
    row: dict[str, Any] = await office.message(message)
    record = Record(message, row["mailbox_id"], 1, "sent", "sent", True, provider_id="p-1", evidence={"code": 250})
    async with office.w.db.transaction():
        await record_late(office.w.db, record)


async def deleted(office: Inside) -> None:
    settings = office.process.settings.model_copy(update={"keep_messages": timedelta(0)})
    ended = await office.w.rows("SELECT id FROM outtray.message WHERE ended_at IS NOT NULL")
    await prune(office.w.db, settings)
    told = await office.w.rows("SELECT message_id AS id FROM outtray.journal WHERE kind = 'deleted'")
    assert {row["id"] for row in told} == {row["id"] for row in ended} != set()
