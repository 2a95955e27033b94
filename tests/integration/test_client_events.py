"""Events: complete, once, and in order per message, whatever commits late."""

from __future__ import annotations

import asyncio
import random
import threading
from uuid import UUID

import psycopg
import pytest

from crm import ask, connect, crm, hello
from outtray import AsyncOuttray, Outtray, Refused

# Writes what any writer of events writes: the message's row first, and then the event.
WRITE = """
WITH touched AS (UPDATE outtray.message SET version = version + 1 WHERE id = %s RETURNING id, app_id, version)
INSERT INTO outtray.event (app_id, message_id, kind, data)
SELECT app_id, id, 'step', jsonb_build_object('version', version) FROM touched
"""


@pytest.fixture
def client(database):
    with crm(database.settings) as client:
        yield client


def drain(client, cursor=None, limit=1000):
    """All events after a cursor, by pages of `limit`, and the cursor after them."""
    found = []
    while True:
        page = client.events(after=cursor, limit=limit)
        cursor = page.cursor
        if not page.events:
            return found, cursor
        found += page.events


def steps(found, message_id):
    return [event.data["version"] for event in found if event.message_id == message_id and event.kind == "step"]


def test_a_cursor_goes_on_where_the_page_ended(client):
    ids = [client.enqueue(hello()).id for _ in range(25)]
    found, cursor = drain(client, limit=4)
    assert [event.message_id for event in found if event.kind == "queued"] == ids
    late = client.enqueue(hello()).id
    assert [event.message_id for event in drain(client, cursor)[0]] == [late]


def test_an_event_that_commits_late_is_told_late_and_not_lost(database, client):
    early, other = client.enqueue(hello()).id, client.enqueue(hello()).id
    _, cursor = drain(client)
    with connect(database.settings, autocommit=False) as late:
        late.execute(WRITE, [early])
        ask(database.settings, WRITE, other)
        page, cursor = drain(client, cursor)
        assert [event.message_id for event in page] == [other]
        late.commit()
    page, cursor = drain(client, cursor)
    assert [event.message_id for event in page] == [early]
    assert drain(client, cursor)[0] == []


def test_an_event_that_is_rolled_back_is_never_told(database, client):
    message_id = client.enqueue(hello()).id
    _, cursor = drain(client)
    with connect(database.settings, autocommit=False) as session:
        session.execute(WRITE, [message_id])
        _, cursor = drain(client, cursor)
        session.rollback()
    assert drain(client, cursor)[0] == []


def test_a_lower_transaction_number_that_writes_later_does_not_turn_a_messages_order_round(database, client):
    """The trace that breaks paging by transaction numbers: T2 has its number before T1, and writes after T1 commits,
    while T0, whose number lies between, keeps the oldest running number below T1's."""
    message_id = client.enqueue(hello()).id
    _, cursor = drain(client)
    with (
        connect(database.settings, autocommit=False) as second,
        connect(database.settings, autocommit=False) as between,
        connect(database.settings, autocommit=False) as first,
    ):
        numbers = [
            session.execute("SELECT pg_current_xact_id()::text::bigint AS n").fetchone()["n"]
            for session in (second, between, first)
        ]
        assert numbers == sorted(numbers)
        first.execute(WRITE, [message_id])
        first.commit()
        second.execute(WRITE, [message_id])
        second.commit()
        found, cursor = drain(client, cursor)
        between.commit()
    found += drain(client, cursor)[0]
    versions = steps(found, message_id)
    assert len(versions) == 2 and versions == sorted(versions)


def test_a_page_that_was_opened_before_a_late_commit_is_finished_before_it(database, client):
    ids = [client.enqueue(hello()).id for _ in range(6)]
    page = client.events(limit=2)
    told = [*page.events]
    for message_id in ids:
        ask(database.settings, WRITE, message_id)
    rest, _ = drain(client, page.cursor, limit=2)
    told += rest
    for message_id in ids:
        kinds = [event.kind for event in told if event.message_id == message_id]
        assert kinds == ["queued", "step"]


@pytest.mark.parametrize("round_", range(3))
def test_random_interleavings_lose_nothing_double_nothing_and_keep_each_messages_order(database, client, seed, round_):
    rng = random.Random(seed + round_)
    ids = [client.enqueue(hello()).id for _ in range(4)]
    found, cursor = drain(client)
    committed: dict[UUID, int] = dict.fromkeys(ids, 0)
    sessions = [connect(database.settings, autocommit=False) for _ in range(4)]
    held: list[dict[UUID, int]] = [{} for _ in sessions]
    locked: set[UUID] = set()
    try:
        for _ in range(120):
            n = rng.randrange(len(sessions))
            free = [each for each in ids if each not in locked or each in held[n]]
            action = rng.choice(["write", "write", "write", "number", "commit", "rollback", "read"])
            if action == "write" and free:
                message_id = rng.choice(free)
                sessions[n].execute(WRITE, [message_id])
                held[n][message_id] = held[n].get(message_id, 0) + 1
                locked.add(message_id)
            elif action == "number":
                sessions[n].execute("SELECT pg_current_xact_id()")
            elif action in ("commit", "rollback"):
                _end(sessions[n], action, held[n], committed, locked)
            elif action == "read":
                page = client.events(after=cursor, limit=rng.randint(1, 5))
                found, cursor = [*found, *page.events], page.cursor
    finally:
        for session, mine in zip(sessions, held, strict=True):
            _end(session, "commit", mine, committed, locked)
            session.close()
    found += drain(client, cursor, limit=3)[0]
    for message_id in ids:
        versions = steps(found, message_id)
        assert versions == sorted(set(versions)), "out of order, or told twice"
        assert len(versions) == committed[message_id]
    assert len({event.id for event in found}) == len(found)


def _end(session, how, mine, committed, locked):
    getattr(session, how)()
    for message_id, writes in mine.items():
        committed[message_id] += writes if how == "commit" else 0
        locked.discard(message_id)
    mine.clear()


def test_writers_in_threads_and_a_reader_beside_them_agree_at_the_end(database, client):
    ids = [client.enqueue(hello()).id for _ in range(3)]
    _, cursor = drain(client)
    done = threading.Event()

    def write(seed):
        rng = random.Random(seed)
        with connect(database.settings) as session:
            for _ in range(60):
                with session.transaction():
                    for message_id in sorted(rng.sample(ids, 2)):
                        session.execute(WRITE, [message_id])

    writers = [threading.Thread(target=write, args=[n]) for n in range(3)]
    for writer in writers:
        writer.start()
    found = []
    while any(writer.is_alive() for writer in writers):
        page = client.events(after=cursor, limit=7)
        found, cursor = [*found, *page.events], page.cursor
    done.set()
    found += drain(client, cursor)[0]
    assert len(found) == 3 * 60 * 2
    for message_id in ids:
        assert steps(found, message_id) == sorted(steps(found, message_id))


def test_another_apps_events_are_not_told(database, client):
    with Outtray(database.settings, app="other") as other:
        other.apps.add("other")
        client.enqueue(hello())
        assert drain(other)[0] == []


def test_what_is_no_cursor_is_refused(client):
    for cursor in ("", "7", "1:1:/x", "1:1:'; DROP TABLE outtray.event", "1:2:3/4:5:", "9:1:/" + "9" * 40):
        with pytest.raises(Refused):
            client.events(after=cursor)
    with pytest.raises(Refused):
        client.events(limit=0)


def test_a_cursor_in_the_right_form_that_postgresql_did_not_give_is_refused_too(client):
    with pytest.raises(Refused):
        client.events(after="9:1:")


def test_following_gives_old_events_and_then_new_ones_until_it_is_stopped(client):
    first = client.enqueue(hello()).id
    stop = threading.Event()
    seen = []
    for page in client.follow_events(stop=stop):
        seen += [event.message_id for event in page.events if event.kind == "queued"]
        if len(seen) == 1:
            second = client.enqueue(hello()).id
        else:
            stop.set()
    assert seen == [first, second]


def test_the_async_client_reads_and_follows_the_same_events(database, client):
    ids = [client.enqueue(hello()).id for _ in range(3)]

    async def scene():
        async with AsyncOuttray(database.settings, app="default") as outtray:
            page = await outtray.events(limit=2)
            async for rest in outtray.follow_events(page.cursor):
                return [*page.events, *rest.events]

    assert [event.message_id for event in asyncio.run(scene()) if event.kind == "queued"] == ids


def test_reading_a_page_costs_what_it_shows(database, client):
    """A million old events must not be looked through: the page's scan follows ids from where the batch begins."""
    (app,) = ask(database.settings, "SELECT id FROM outtray.app")
    ask(
        database.settings,
        "INSERT INTO outtray.event (app_id, kind) SELECT %s, 'old' FROM generate_series(1, 20000)",
        app["id"],
    )
    ask(database.settings, "ANALYZE outtray.event")
    _, cursor = drain(client)
    message_id = client.enqueue(hello()).id
    before = _rows_read(database)
    page = client.events(after=cursor)
    assert [event.message_id for event in page.events] == [message_id]
    assert _rows_read(database) - before < 1000


def _rows_read(database):
    sql = """SELECT pg_stat_clear_snapshot(), sum(idx_tup_fetch + seq_tup_read)::bigint AS n
             FROM pg_stat_user_tables WHERE relname LIKE 'event%%'"""
    with psycopg.connect(database.settings.database_url, autocommit=True) as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
        connection.execute("SELECT 1")
        return connection.execute(sql).fetchone()[1]
