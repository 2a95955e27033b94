"""A provider host that fails for most mailboxes is only probed, by all workers together; others do not notice."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

from inside import Inside, inside
from outtray_schema.outcome import Failed, Held, NotBegun, Outcome, Parked, Retry, Sent, Unknown
from outtray_worker.breaker import NO_ANSWERS, served
from outtray_worker.process import Process
from outtray_worker.providers import Account, Finding, Mail, Prepared, Session, Trace
from outtray_worker.providers.memory import MemoryProvider
from world import run

BASE, CAP = timedelta(seconds=5), timedelta(seconds=40)
BUSY = Parked("the server answered 503", scope="connection", evidence={"status": 503})
LOST = Unknown("the server answered 503", evidence={"status": 503})


class Failing(MemoryProvider):
    """Hosts in `down` fail whatever they are asked: early, or at the handover if `late`. Counts what they are asked."""

    def __init__(self) -> None:
        super().__init__()
        self.down: set[str] = set()
        self.late = False
        self.asked: Counter[str] = Counter()
        self.looked = 0

    def open(self, account: Account) -> Session:
        return _FailingSession(self, account.host, super().open(account))  # type: ignore[return-value]


class _FailingSession:
    def __init__(self, provider: Failing, host: str, real: Session) -> None:
        self.provider, self.host, self.real = provider, host, real

    async def prepare(self, mail: Mail) -> Prepared | Outcome:
        self.provider.asked[self.host] += 1
        if self.host in self.provider.down and not self.provider.late:
            return BUSY
        prepared = await self.real.prepare(mail)
        return prepared if isinstance(prepared, Outcome) else _FailingPrepared(self, prepared)

    async def find_evidence(self, trace: Trace) -> Finding:
        self.provider.looked += 1
        return await self.real.find_evidence(trace)

    async def close(self) -> None:
        await self.real.close()


class _FailingPrepared:
    draft = None

    def __init__(self, session: _FailingSession, real: Prepared) -> None:
        self.session, self.real = session, real

    async def hand_over(self, begin_by, answer_by) -> Outcome:
        if self.session.host in self.session.provider.down:
            return LOST
        return await self.real.hand_over(begin_by, answer_by)

    async def abandon(self) -> None:
        await self.real.abandon()


@asynccontextmanager
async def office_of(settings, **changes):
    scaled = {"breaker_probe": BASE, "breaker_probe_cap": CAP, "backoff_base": timedelta(milliseconds=1)}
    async with inside(settings, Failing(), **scaled | changes) as office:
        office.process.breakers._clock = lambda: 0.0  # only what the database's clock says moves its probes
        yield office


async def boxes_at(office: Inside, host: str, count: int, **columns) -> list[UUID]:
    return [await office.mailbox(host=host, **columns) for _ in range(count)]


async def pass_by(office: Inside, by: timedelta) -> None:
    """Time passes for the mailboxes and for the breakers."""
    await office.later(by)
    await office.process.breakers.look()


async def state(office: Inside) -> list[dict]:
    return await office.w.rows("SELECT provider_app, host, closed_at IS NULL AS open, probes FROM outtray.breaker")


def test_a_host_that_fails_for_all_is_probed_at_growing_intervals_and_others_go_on(database):
    async def scene() -> None:
        async with office_of(database.settings) as office:
            dead, alive = await boxes_at(office, "dead", 12), await boxes_at(office, "alive", 12)
            stuck = [office.enqueue(box, 3) for box in dead]
            for box in alive:
                office.enqueue(box)
            office.provider.down.add("dead")
            await office.round()
            await office.process.breakers.settle()
            assert len(office.accepted) == 12, "the other host's have left"
            assert await state(office) == [{"provider_app": "", "host": "dead", "open": True, "probes": 0}]
            asked_before = office.provider.asked["dead"]
            assert asked_before <= 12, "one each at most, then none"
            probes = []
            for _ in range(36):  # three minutes, in steps of five seconds
                before = office.provider.asked["dead"]
                await pass_by(office, BASE)
                await office.until_idle()
                await office.process.breakers.settle()
                probes.append(office.provider.asked["dead"] - before)
            assert set(probes) <= {0, 1}, "one mailbox at a time"
            assert sum(probes[:12]) <= 4 and 4 <= sum(probes) <= 8, "after 5, 10, 20 s, then each 40 to 60 s"
            messages = [await office.message(each) for box in stuck for each in box]
            assert {message["attempt"] for message in messages} == {0} and {m["state"] for m in messages} == {"queued"}
            told = await office.w.rows("SELECT data FROM outtray.event WHERE kind = 'breaker.opened'")
            assert [event["data"] for event in told] == [{"host": "dead", "reason": "the server answered 503"}]
            await recovers_within_one_probe(office, dead)

    run(scene())


async def two_looks(process: Process) -> None:
    """Two seconds pass: who wrote its rest just when it was closed is freed as well."""
    await process.breakers.look()
    await process.breakers.look()


async def recovers_within_one_probe(office: Inside, dead: list[UUID]) -> None:
    office.provider.down.clear()
    row = (await office.w.rows("SELECT probe_at - outtray.outtray_now() AS wait FROM outtray.breaker"))[0]
    assert row["wait"] <= CAP
    await pass_by(office, CAP + CAP / 2)  # the interval, and how far its mailboxes are spread
    await office.round()
    await office.process.breakers.settle()
    assert [each["open"] for each in await state(office)] == [False]
    await two_looks(office.process)
    await office.until_idle()
    assert await office.states() == {"sent": 12 + 36}, "all of it, without another wait"
    assert len(await office.events("breaker.closed")) == 1
    parked = await office.w.rows("SELECT id FROM outtray.mailbox WHERE parked_reason IS NOT NULL")
    assert parked == [] and set(dead) <= {taken.mailbox_id for taken in office.provider.accepted}


def test_handovers_that_get_no_answer_open_it_and_cost_one_unknown_each_at_most(database):
    async def scene() -> None:
        async with office_of(database.settings) as office:
            for box in await boxes_at(office, "dead", 10):
                office.enqueue(box, 10)
            office.provider.down.add("dead")
            office.provider.late = True
            await office.round()
            await office.process.breakers.settle()
            states = await office.states()
            assert states["unknown"] <= 20 and states["queued"] >= 80, "not a hundred"
            assert [each["open"] for each in await state(office)] == [True]

    run(scene())


def test_it_is_kept_by_provider_app_and_host(database):
    async def scene() -> None:
        async with office_of(database.settings) as office:
            for name in ("poor", "rich"):
                await office.w.db.execute(
                    "INSERT INTO outtray.provider_app (name, provider) VALUES (%s, 'memory')", [name]
                )
            quota = Parked("the project's day is used up", scope="app", evidence={"rule": "project-day"})
            poor = await boxes_at(office, "api", 6, provider_app="poor")
            for box in poor:
                office.enqueue(box)
                office.provider.answer(answer_of(quota))
            await office.round()
            await office.process.breakers.settle()
            assert [(each["provider_app"], each["host"]) for each in await state(office)] == [("poor", "api")]
            for box in await boxes_at(office, "api", 6, provider_app="rich"):
                office.enqueue(box)
            await office.round()
            assert len(office.accepted) == 6

    run(scene())


def answer_of(outcome: Outcome):
    from outtray_worker.providers.memory import Answer

    return Answer("prepare", outcome)


def test_what_fails_for_few_mailboxes_is_their_own(database):
    async def scene() -> None:
        async with office_of(database.settings) as office:
            well, ill = await boxes_at(office, "shared", 8), await boxes_at(office, "shared", 4)
            for box in (*well, *ill):
                office.enqueue(box)
            for box in ill:  # below five mailboxes, and below half of them
                office.process.breakers.note(office_box(box, "shared"), BUSY)
            await office.process.breakers.settle()
            assert await state(office) == []
            await office.round()
            assert len(office.accepted) == 12
            for box in ill:
                office.process.breakers.note(office_box(box, "shared"), BUSY)
            await office.process.breakers.settle()
            assert await state(office) == [], "four of twelve"

    run(scene())


def office_box(box: UUID, host: str):
    from types import SimpleNamespace

    return SimpleNamespace(id=box, host=host, provider_app=None)


def test_two_workers_share_it_and_redis_has_no_part_in_it(database, services):
    async def scene() -> None:
        async with office_of(database.settings) as office:
            scaled = {"breaker_probe": BASE, "breaker_probe_cap": CAP, "drain_limit": timedelta(seconds=5)}
            other = Process(database.settings.model_copy(update=scaled), {"memory": office.provider})
            await other.open()
            try:
                services.valkey.stop()
                for box in await boxes_at(office, "dead", 10):
                    office.enqueue(box)
                office.provider.down.add("dead")
                await office.round()
                await office.process.breakers.settle()
                await other.breakers.look()
                asked = office.provider.asked["dead"]
                for _ in range(3):
                    await pass_by(office, timedelta(seconds=4))
                    await other.breakers.look()
                    ids = [row["id"] for row in await office.w.rows("SELECT id FROM outtray.mailbox")]
                    await other.engine.admit(ids[:5])
                    await office.process.engine.admit(ids[5:])
                    await other.engine.drain()
                    await office.process.engine.drain()
                assert office.provider.asked["dead"] - asked <= 2, "one probe per interval, whoever takes it"
                office.provider.down.clear()
                await pass_by(office, CAP)
                await other.breakers.look()
                await other.engine.admit(ids)
                await other.engine.drain()
                await other.breakers.settle()
                assert [each["open"] for each in await state(office)] == [False]
                await office.process.breakers.look()
                assert not office.process.breakers.holds("dead"), "what another one closed is closed here"
                await two_looks(other)
                await office.until_idle()
                assert await office.states() == {"sent": 10}
            finally:
                services.valkey.start()
                await other.close()

    run(scene())


def test_a_mailbox_whose_handovers_get_no_answer_rests(database):
    """Its breaker: each further handover would be another message of which nobody can tell whether it left."""

    async def scene() -> None:
        async with office_of(database.settings) as office:
            box = await office.mailbox(host="alone")
            office.enqueue(box, 20)
            office.provider.down.add("alone")
            office.provider.late = True
            await office.round()
            assert await office.states() == {"unknown": 3, "queued": 17}
            assert (await office.box(box))["parked_reason"] == NO_ANSWERS
            assert await state(office) == [], "a host of one mailbox has no breaker"
            office.provider.down.clear()
            await office.later(timedelta(minutes=1))
            await office.until_idle()
            assert (await office.states())["sent"] == 17

    run(scene())


def test_looks_leave_a_failing_host_in_peace(database):
    async def scene() -> None:
        async with office_of(database.settings, look_scale=0.01) as office:
            boxes = await boxes_at(office, "dead", 8)
            for box in boxes:
                office.enqueue(box)
            office.provider.down.add("dead")
            office.provider.late = True
            await office.round()
            await office.process.breakers.settle()
            await office.later(timedelta(minutes=30))
            await office.later(timedelta(seconds=1))
            assert await office.look() == 0 and office.provider.looked == 0
            await office.w.db.execute("UPDATE outtray.breaker SET closed_at = outtray.outtray_now()")
            await pass_by(office, timedelta(minutes=5))
            assert await office.look() > 0 and office.provider.looked > 0

    run(scene())


def test_what_an_outcome_says_of_its_host():
    well = [Sent(), Failed("refused", evidence={"code": 550}), Retry("greylisted", evidence={"code": 451}),
            Held("login refused", evidence={"code": 535}), Parked("slow down", evidence={"code": 429}),
            Unknown("the draft is gone", evidence={"status": 404})]  # fmt: skip
    nothing = [NotBegun("too late"), Parked("PostgreSQL did not answer", scope="app"), Retry("internal error"),
               Parked("refused", scope="app", evidence={"rule": "app-refused"})]  # fmt: skip
    failing = [LOST, BUSY, Unknown("no answer"), Parked("x", scope="app", evidence={"rule": "api-disabled"})]
    assert [served(each) for each in well] == [True] * len(well)
    assert [served(each) for each in nothing] == [None] * len(nothing)
    assert [served(each) for each in failing] == [False] * len(failing)
