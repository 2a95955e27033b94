"""The ledger against a brute-force account, and rule 14's window, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import AsyncConnection

from inside import inside
from outtray import Message
from outtray_schema import ledger
from outtray_schema.database import conninfo
from outtray_schema.plans import Limits
from outtray_worker.quotas.ledger import Allowance, frees_at, read_externals
from readings import read_allowances
from world import World, gate, run, world

NO_ID = UUID(int=0)
DAY = timedelta(hours=24)
MINUTE = timedelta(minutes=1)
PEOPLE = [bytes([n]) * 16 for n in range(6)]


@dataclass(frozen=True)
class Asked:
    """A message that asks to be sent."""

    recipients: int
    external: int
    id: UUID = NO_ID


@dataclass(frozen=True)
class Entry:
    """One past handover: how many minutes ago it began to count, whom it reached, and how it stands."""

    minutes: int
    state: str
    inner: int
    people: frozenset[bytes]

    @property
    def counts(self) -> bool:
        return self.state != "refused"

    def at(self, now: datetime) -> datetime:
        return now - self.minutes * MINUTE


# Around the window's edge, in the future as open handovers are, and anywhere.
MINUTES = st.integers(-15, 3000) | st.integers(1435, 1445)
STATES = st.sampled_from(["sent", "unknown", "handing_over", "refused", "usage"])
ENTRIES = st.builds(
    Entry, MINUTES, STATES, st.integers(0, 3), st.frozensets(st.sampled_from(PEOPLE), max_size=4)
).filter(lambda entry: entry.inner + len(entry.people) > 0)
LIMITS = st.builds(
    Limits,
    messages=st.none() | st.integers(1, 8),
    recipients=st.none() | st.integers(1, 25),
    external=st.none() | st.integers(0, 15),
    unique_external=st.none() | st.integers(0, 6),
    recipients_per_message=st.none() | st.integers(1, 8),
    reserve=st.integers(0, 2),
)


def used_at(history: list[Entry], now: datetime, moment: datetime) -> dict[str, int]:
    """The account by brute force: everything that counts at `moment`, one by one."""
    live = [entry for entry in history if entry.counts and entry.at(now) + DAY > moment]
    return {
        "messages": len(live),
        "recipients": sum(entry.inner + len(entry.people) for entry in live),
        "external": sum(len(entry.people) for entry in live),
        "unique_external": len({person for entry in live for person in entry.people}),
    }


def binding_at(
    history: list[Entry], limits: Limits, asked: Asked, people: frozenset[bytes], now: datetime, moment: datetime
) -> str | None:
    if limits.recipients_per_message is not None and asked.recipients > limits.recipients_per_message:
        return "recipients_per_message"
    live = [entry for entry in history if entry.counts and entry.at(now) + DAY > moment]
    used = used_at(history, now, moment)
    after = {
        "messages": used["messages"] + 1,
        "recipients": used["recipients"] + asked.recipients,
        "external": used["external"] + asked.external,
        "unique_external": len({person for entry in live for person in entry.people} | people),
    }
    for measure in ("messages", "recipients", "external", "unique_external"):
        limit = getattr(limits, measure)
        if limit is not None and after[measure] > max(0, limit - limits.reserve):
            return measure
    return None


def earliest(
    history: list[Entry], limits: Limits, asked: Asked, people: frozenset[bytes], now: datetime
) -> datetime | None:
    """By brute force: now, or the first end of an entry's 24 hours at which the message fits; None: it never does."""
    moments = sorted({now, *(entry.at(now) + DAY for entry in history if entry.at(now) + DAY > now)})
    for moment in moments:
        if binding_at(history, limits, asked, people, now, moment) is None:
            return moment
    return None


class Books:
    """Mailboxes with a given history as rows, on one loop and one connection for all examples."""

    def __init__(self, w: World) -> None:
        self.w = w

    async def write(self, history: list[Entry], now: datetime) -> UUID:
        mailbox_id = await self.w.mailbox()
        for entry in history:
            await (self._usage if entry.state == "usage" else self._message)(mailbox_id, entry, now)
        return mailbox_id

    async def _usage(self, mailbox_id: UUID, entry: Entry, now: datetime) -> None:
        await self.w.db.execute(
            "INSERT INTO outtray.usage (mailbox_id, counted_at, recipients, external, externals, source)"
            " VALUES (%s, %s, %s, %s, %s, 'test')",
            [mailbox_id, entry.at(now), entry.inner + len(entry.people), len(entry.people), list(entry.people)],
        )

    async def _message(self, mailbox_id: UUID, entry: Entry, now: datetime) -> None:
        state = "queued" if entry.state == "refused" else entry.state
        message_id = await self.w.message(
            mailbox_id,
            state=state,
            recipients=entry.inner + len(entry.people),
            external=len(entry.people),
            handover=1,
            handed_at=entry.at(now) - MINUTE,
            handover_until=entry.at(now),
            counted_at=entry.at(now) if entry.counts else None,
            ended_at=entry.at(now) if state == "sent" else None,
        )
        await self.add_people(message_id, entry.people)

    async def add_people(self, message_id: UUID, people: frozenset[bytes]) -> None:
        for n, person in enumerate(sorted(people)):
            await self.w.db.execute(
                "INSERT INTO outtray.recipient (message_id, n, role, address, address_index, external)"
                " VALUES (%s, %s, 'to', '', %s, true)",
                [message_id, n, person],
            )


@pytest.fixture
def stopped_clock(database) -> Iterator[Any]:
    """A database whose clock stands still, so that an account can be exact to the microsecond."""
    with database.connect() as connection:
        connection.execute(
            "CREATE OR REPLACE FUNCTION outtray.outtray_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS"
            " $$ SELECT timestamptz '2026-11-20 12:00:00+00' + (SELECT shift FROM outtray.clock) $$"
        )
    yield database


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(ENTRIES, max_size=12),
    LIMITS,
    st.integers(0, 3),
    st.frozensets(st.sampled_from(PEOPLE), max_size=4),
    st.integers(-3000, 3000),
)
def test_the_ledger_agrees_with_a_brute_force_account(stopped_clock, history, limits, inner, people, moved):
    asked = Asked(max(1, inner + len(people)), len(people))

    async def scene() -> None:
        async with world(stopped_clock.settings) as w:
            now = await w.now()
            box = await Books(w).write(history, now)
            history_now = [replace(entry, minutes=entry.minutes + moved) for entry in history]
            await w.shift(moved * MINUTE)
            then = now + moved * MINUTE
            allowance = (await read_allowances(w.db, [(box, limits)]))[box]
            for measure, used in used_at(history_now, then, then).items():
                if getattr(limits, measure) is not None:
                    assert allowance.used(measure) == used
            assert allowance.binding(asked, people) == binding_at(history_now, limits, asked, people, then, then)
            free = await frees_at(w.db, box, limits, asked, people)
            assert free.at == earliest(history_now, limits, asked, people, then)
            await w.shift(-moved * MINUTE)

    run(scene())


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.frozensets(st.sampled_from(PEOPLE)), st.booleans()), max_size=15), LIMITS
)
def test_counting_down_in_a_turn_agrees_with_reading_anew(messages, limits):
    """What a turn takes and gives back leaves what a brute-force account of the kept ones leaves."""
    now = datetime.fromisoformat("2026-11-20T12:00:00+00:00")
    allowance = Allowance(limits, {})
    kept: list[Entry] = []
    for inner, people, refused in messages:
        asked = Asked(max(1, inner + len(people)), len(people), uuid4())
        bound = allowance.binding(asked, people)
        assert bound == binding_at(kept, limits, asked, people, now, now)
        if bound is not None:
            continue
        allowance.take(asked)
        if refused:
            allowance.give_back(asked)
        else:
            kept.append(Entry(0, "sent", asked.recipients - len(people), people))


def test_a_handover_counts_for_exactly_24_hours_from_its_recorded_end(stopped_clock):
    async def scene() -> None:
        async with world(stopped_clock.settings) as w:
            limits = Limits(messages=1)
            box = await Books(w).write([Entry(0, "sent", 1, frozenset())], await w.now())
            asked = Asked(1, 0)
            await w.shift(DAY - timedelta(microseconds=1))
            assert (await read_allowances(w.db, [(box, limits)]))[box].binding(asked) == "messages"
            await w.shift(timedelta(microseconds=1))
            assert (await read_allowances(w.db, [(box, limits)]))[box].binding(asked) is None

    run(scene())


def test_a_gate_counts_from_its_latest_possible_end_on(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            limits = Limits(messages=1)
            box = await w.mailbox()
            await w.message(box)
            _, message = await w.gate_one(box)
            free = await frees_at(w.db, box, limits, Asked(1, 0))
            assert (free.limit, free.used, free.allowed) == ("messages", 1, 1)
            assert free.at == (await w.row("message", message.id))["handover_until"] + DAY

    run(scene())


def test_a_message_that_needs_more_than_the_whole_limit_never_fits(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            free = await frees_at(w.db, box, Limits(recipients=10, reserve=3), Asked(8, 0))
            assert (free.at, free.limit, free.used, free.allowed) == (None, "recipients", 0, 7)
            assert (await frees_at(w.db, box, Limits(recipients_per_message=2), Asked(3, 0))).at is None
            assert (await frees_at(w.db, box, Limits(unique_external=1), Asked(2, 2), set(PEOPLE[:2]))).at is None

    run(scene())


def test_one_statement_serves_a_whole_round_and_boxes_without_limits_cost_nothing(database):
    class Refusing:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"the database was asked: {name}")

    async def scene() -> None:
        async with world(database.settings) as w:
            now = await w.now()
            books = Books(w)
            boxes = [await books.write([Entry(5, "sent", n, frozenset())] * n, now) for n in range(1, 5)]
            free = uuid4()
            limits = [(box, Limits(messages=3)) for box in boxes]
            read = await read_allowances(w.db, [*limits, (free, Limits(per_minute=5))])
            assert [read[box].used("messages") for box in boxes] == [1, 2, 3, 4]
            assert [read[box].binding(Asked(1, 1)) for box in boxes] == [None, None, "messages", "messages"]
            assert read[free].binding(Asked(10_000, 10_000)) is None
            unlimited: Any = Refusing()
            assert (await read_allowances(unlimited, [(free, Limits())]))[free].binding(Asked(9, 9)) is None

    run(scene())


def test_the_ledger_reads_an_index_that_is_bounded_by_the_window(database):
    """10,000 old handovers of the mailbox and as many of others' are not touched."""

    async def scene() -> None:
        async with world(database.settings) as w:
            box, other = await w.mailbox(), await w.mailbox()
            await w.db.execute(
                "INSERT INTO outtray.message (id, app_id, mailbox_id, request_hash, recipients, external, size,"
                " rfc_message_id, state, ended_at, counted_at)"
                " SELECT gen_random_uuid(), %(app)s, CASE WHEN n %% 2 = 0 THEN %(box)s::uuid ELSE %(other)s END,"
                " '', 1, 1, 1, 'x', 'sent', outtray.outtray_now(),"
                " outtray.outtray_now() - interval '25 hours' - n * interval '1 s'"
                " FROM generate_series(1, 20000) AS n",
                {"app": w.app_id, "box": box, "other": other},
            )
            await Books(w).write([], await w.now())
            await w.message(box, state="sent", ended_at=await w.now(), counted_at=await w.now())
            await w.db.execute("VACUUM ANALYZE outtray.message")
            plan = await _explained(w.db, box)
            ran = [node for node in _nodes(plan) if node["Actual Loops"]]
            scans = [node for node in ran if node.get("Index Name") == "message_ledger"]
            assert scans and all(node["Node Type"] == "Index Only Scan" for node in scans)
            assert all(node["Actual Rows"] <= 1 for node in scans)
            touched = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
            assert touched < 40, f"{touched} blocks"

    run(scene())


async def _explained(db: AsyncConnection[Any], box: UUID) -> dict[str, Any]:
    parameters = ledger.used_parameters([(box, Limits(messages=10))])
    cursor = await db.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + ledger.USED, parameters)
    row = await cursor.fetchone()
    assert row is not None
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def test_a_claim_that_waited_for_a_gate_reads_it_in_its_ledger(database):
    """The ledger is read in a later snapshot than the claim's: the gate it waited for is counted (rule 3)."""

    async def scene() -> None:
        async with world(database.settings) as w:
            box = await w.mailbox()
            await w.message(box)
            claimed = await w.claim(box)
            message = (await w.due(box))[0]
            session = await AsyncConnection.connect(conninfo(database.settings), autocommit=True)
            async with session:
                await w.write(gate(claimed, message))
                read = await asyncio.wait_for(read_allowances(session, [(box, Limits(messages=1))]), 10)
                assert read[box].binding(Asked(1, 0)) == "messages"

    run(scene())


def test_a_messages_own_externals_are_read_once_each(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            message_id = await w.message(await w.mailbox())
            await Books(w).add_people(message_id, frozenset(PEOPLE[:3]))
            await w.db.execute("UPDATE outtray.recipient SET external = false WHERE address_index = %s", [PEOPLE[0]])
            assert await read_externals(w.db, message_id) == frozenset(PEOPLE[1:3])

    run(scene())


def test_a_mailbox_full_by_its_last_message_is_parked_until_24_hours_after_that_ones_end(database):
    """Its outcome is written before the park is computed: an open handover would count from its deadline instead."""

    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"messages": 1})
            for _ in range(2):
                office.client.enqueue(Message(to="ann@example.net", subject="s", text="t", mailbox=box))
            await office.until_idle()
            (sent,) = await office.w.rows("SELECT counted_at FROM outtray.message WHERE state = 'sent'")
            parked = (await office.box(box))["parked_until"]
            assert timedelta(0) <= parked - (sent["counted_at"] + DAY) < timedelta(seconds=5)

    run(scene())
