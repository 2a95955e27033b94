"""The answer to a producer's COMMIT is lost: it is told so, and asking again with the same key answers with the first.

Gates and outcomes are in `test_registrar.py`, the saving of a token in `test_tokens.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crm import ask, count, crm, hello, published
from databases import Database
from losing import LosingWay, losing_way
from outtray import Attachment, IdempotencyConflict, Outtray, Unavailable, many

INSERT = b"INSERT INTO outtray.message "


@pytest.fixture
def way(database: Database) -> Iterator[LosingWay]:
    with losing_way(database.settings) as made:
        yield made


@pytest.fixture
def client(way: LosingWay) -> Iterator[Outtray]:
    with crm(way.settings) as made:
        yield made


@pytest.mark.parametrize(
    ("fields", "marker"),
    [
        ({}, INSERT),
        ({"attachments": [Attachment("a.bin", content=bytes(2_000_000))]}, b"COMMIT"),
    ],
    ids=["one statement", "a transaction of many"],
)
def test_after_a_lost_commit_the_same_key_answers_with_the_first_message(database, way, client, fields, marker):
    message = hello(idempotency_key="deal 7", **fields)
    way.lose(marker)
    with pytest.raises(Unavailable, match="try again"):
        client.enqueue(message)
    assert way.lost == 1 and count(database.settings, "message") == 1, "it was stored, and nobody was told"
    assert not published(database.settings), "its wake was lost with the answer"
    again = client.enqueue(message)
    assert published(database.settings), "whoever repeats it waits for it"
    (row,) = ask(database.settings, "SELECT id FROM outtray.message")
    assert (again.created, again.id, again.state) == (False, row["id"], "queued")
    assert ask(database.settings, "SELECT kind FROM outtray.journal WHERE message_id IS NOT NULL") == [
        {"kind": "enqueued"}
    ]
    with pytest.raises(IdempotencyConflict):
        client.enqueue(hello(idempotency_key="deal 7", text="something else"))


def test_many_that_lost_a_commit_can_be_run_again_from_the_start(database, way, client, monkeypatch):
    monkeypatch.setattr(many, "MOST_MESSAGES", 3)
    messages = [hello(idempotency_key=f"row {n}") for n in range(8)]
    way.lose(b"COMMIT", after=1)
    with pytest.raises(Unavailable):
        client.enqueue_many(messages)
    assert way.lost == 1 and count(database.settings, "message") == 6, "two batches of three, of which one was answered"
    result = client.enqueue_many(messages)
    assert (result.accepted, result.created, count(database.settings, "message")) == (8, 2, 8)


def test_many_in_one_transaction_that_lost_its_commit_are_all_there(database, way, client):
    messages = [hello(idempotency_key=f"row {n}") for n in range(4)]
    way.lose(b"COMMIT")
    with pytest.raises(Unavailable):
        client.enqueue_many(messages, in_one_transaction=True)
    assert way.lost == 1
    result = client.enqueue_many(messages, in_one_transaction=True)
    assert (result.accepted, result.created, count(database.settings, "message")) == (4, 0, 4)
