"""Enqueue many: bounded memory, whole batches, and a way to go on after an interruption."""

from __future__ import annotations

import asyncio
import tracemalloc
from itertools import islice

import pytest

from crm import ask, count, crm, hello, published
from outtray import AsyncOuttray, InvalidMessage, ManyRefused
from outtray.many import MOST_MESSAGES


@pytest.fixture
def client(database):
    with crm(database.settings) as client:
        yield client


def numbered(total, bad=()):
    for n in range(total):
        yield {"to": "no address" if n in bad else f"u{n}@elsewhere.example", "text": "x", "idempotency_key": f"k{n}"}


def test_any_iterable_of_messages_or_mappings_is_stored_in_order(database, client):
    batches = []
    result = client.enqueue_many(iter([hello(), {"to": "a@b.example", "text": "x"}]), on_progress=batches.append)
    assert (result.accepted, result.created, result.refused) == (2, 2, [])
    assert [index for index, _ in batches[0].batch] == [0, 1]
    assert client.enqueue_many([]).accepted == 0


def test_each_batch_is_a_transaction_and_progress_says_how_far_it_is(database, client):
    seen = []
    client.enqueue_many(
        numbered(1201), on_progress=lambda p: seen.append((p.accepted, count(database.settings, "message")))
    )
    assert seen == [(500, 500), (1000, 1000), (1201, 1201)]
    assert len(published(database.settings)) == 1


def test_a_refused_message_ends_it_with_nothing_of_its_batch_stored(database, client):
    with pytest.raises(ManyRefused) as ended:
        client.enqueue_many(numbered(1300, bad={7, 702, 703}), keep_going=False)
    assert [problem.field for problem in ended.value.problems] == ["[7].to"]
    assert count(database.settings, "message") == 0
    with pytest.raises(ManyRefused) as ended:
        client.enqueue_many(numbered(1300, bad={702, 703}))
    assert ended.value.result.accepted == 500 == count(database.settings, "message")
    assert [refusal.index for refusal in ended.value.result.refused] == [702, 703]


def test_what_was_interrupted_is_run_again_and_nothing_is_doubled(database, client):
    def breaks():
        yield from islice(numbered(1300), 800)
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        client.enqueue_many(breaks())
    assert count(database.settings, "message") == 500
    result = client.enqueue_many(numbered(1300))
    assert (result.accepted, result.created) == (1300, 800)
    assert count(database.settings, "message") == 1300


def test_keep_going_stores_the_good_ones_and_names_the_refused_by_position(database, client):
    client.enqueue(hello(idempotency_key="k3"))
    result = client.enqueue_many(numbered(600, bad={0, 599}), keep_going=True)
    assert [refusal.index for refusal in result.refused] == [0, 3, 599]
    assert (result.accepted, result.created) == (597, 597)
    assert count(database.settings, "message") == 598


def test_a_conflict_that_only_the_database_can_see_undoes_its_batch_too(database, client):
    client.enqueue(hello(idempotency_key="k3"))
    with pytest.raises(ManyRefused) as ended:
        client.enqueue_many(numbered(10))
    assert [refusal.index for refusal in ended.value.result.refused] == [3]
    assert count(database.settings, "message") == 1


def test_the_same_key_twice_in_one_batch_is_one_message(database, client):
    twice = [hello(idempotency_key="k"), hello(idempotency_key="k"), hello(idempotency_key="k", subject="Other")]
    result = client.enqueue_many(twice, keep_going=True)
    assert (result.accepted, result.created) == (2, 1)
    assert [refusal.index for refusal in result.refused] == [2]


def test_in_one_transaction_it_is_all_or_nothing(database, client):
    with pytest.raises(ManyRefused) as ended:
        client.enqueue_many(numbered(1300, bad={1299}), in_one_transaction=True)
    assert ended.value.result.accepted == 0
    assert count(database.settings, "message") == 0 and published(database.settings) == {}
    seen = []
    result = client.enqueue_many(
        numbered(1300), in_one_transaction=True, on_progress=lambda _: seen.append(count(database.settings, "message"))
    )
    assert result.created == 1300 and seen == [0, 0, 0]
    assert len(published(database.settings)) == 1


def test_an_iterable_that_fails_in_one_transaction_leaves_nothing(database, client):
    def breaks():
        yield from numbered(700)
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        client.enqueue_many(breaks(), in_one_transaction=True)
    assert count(database.settings, "message") == 0 and published(database.settings) == {}
    assert client.enqueue(hello()).created, "the connection is usable again"


def test_memory_follows_the_batch_and_not_the_number_of_messages(client):
    def peak(total):
        messages = ({"to": "a@elsewhere.example", "text": "x" * 4096} for _ in range(total))
        tracemalloc.start()
        client.enqueue_many(messages)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(MOST_MESSAGES)
    assert peak(6 * MOST_MESSAGES) < 1.5 * peak(MOST_MESSAGES)


def test_a_batch_ends_early_when_its_content_is_large(database, client):
    seen = []
    large = ({"to": "a@elsewhere.example", "text": "x" * 3_000_000} for _ in range(7))
    client.enqueue_many(large, on_progress=lambda progress: seen.append(progress.accepted))
    assert seen == [3, 6, 7]
    assert count(database.settings, "content_chunk") > 7


def test_the_async_client_takes_async_iterables_and_sync_ones(database, client):
    async def rows():
        for row in numbered(700):
            yield row

    async def scene():
        async with AsyncOuttray(database.settings, app="default") as outtray:
            first = await outtray.enqueue_many(rows())
            second = await outtray.enqueue_many(numbered(700), in_one_transaction=True)
            with pytest.raises(ManyRefused):
                await outtray.enqueue_many(numbered(900, bad={800}), in_one_transaction=True)
            with pytest.raises(InvalidMessage):
                await outtray.enqueue(hello(mailbox="nobody@sender.example"))
            return first, second

    first, second = asyncio.run(scene())
    assert (first.created, second.created, second.accepted) == (700, 0, 700)
    assert count(database.settings, "message") == 700
    assert len(ask(database.settings, "SELECT DISTINCT mailbox_id FROM outtray.message")) == 1
