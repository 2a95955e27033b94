"""Get, list, journal, wait: what an app sees of its messages."""

from __future__ import annotations

import asyncio
import logging

import pytest

from crm import ask, crm, hand_over, hello, message_row
from outtray import AsyncOuttray, NotFound, Outtray, Refused
from outtray_schema.ids import new_id


@pytest.fixture
def client(database):
    with crm(database.settings) as client:
        yield client


def pages(client, **filters):
    """The ids of every page of two, newest first."""
    cursor, found = None, []
    while True:
        page = client.list(limit=2, cursor=cursor, **filters)
        found += [view.id for view in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return found


def test_every_filter_gives_its_messages_once_newest_first_page_by_page(database, client):
    other = client.mailboxes.add_smtp("second@sender.example", host="smtp.sender.example", password="x").id
    ids = [
        client.enqueue(
            hello(
                to=["ann@elsewhere.example" if n % 2 else "eve@elsewhere.example", "both@elsewhere.example"],
                tags=["odd"] if n % 2 else ["even", "x"],
                mailbox=other if n > 3 else None,
            )
        ).id
        for n in range(7)
    ]
    for n in (1, 2, 5):
        hand_over(database.settings, ids[n], "unknown")
    newest = ids[::-1]
    assert pages(client) == newest
    assert pages(client, tag="odd") == [ids[n] for n in (5, 3, 1)]
    assert pages(client, recipient="Ann@Elsewhere.EXAMPLE") == [ids[n] for n in (5, 3, 1)]
    assert pages(client, recipient="both@elsewhere.example") == newest
    assert pages(client, state="unknown") == [ids[n] for n in (5, 2, 1)]
    assert pages(client, state="queued") == [ids[n] for n in (6, 4, 3, 0)]
    assert pages(client, mailbox=other) == [ids[n] for n in (6, 5, 4)]
    assert pages(client, mailbox="second@sender.example", state="unknown", tag="odd") == [ids[5]]
    assert pages(client, recipient="eve@elsewhere.example", mailbox=other, state="queued") == [ids[6], ids[4]]


def test_a_cursor_is_not_moved_by_what_arrives_meanwhile(client):
    ids = [client.enqueue(hello()).id for _ in range(4)]
    page = client.list(limit=2)
    client.enqueue(hello())
    rest = client.list(limit=10, cursor=page.next_cursor)
    assert [view.id for view in (*page.items, *rest.items)] == ids[::-1]


def test_wrong_filters_are_refused_by_name(client):
    for filters, field in [({"state": "lost"}, "state"), ({"limit": 0}, "limit"), ({"cursor": "x"}, "cursor")]:
        with pytest.raises(Refused) as refused:
            client.list(**filters)
        assert refused.value.problems[0].field == field
    with pytest.raises(NotFound):
        client.list(mailbox="nobody@sender.example")


def test_an_app_sees_nothing_of_another(database, client):
    message_id = client.enqueue(hello(tags=["t"])).id
    with Outtray(database.settings, app="other") as other:
        other.apps.add("other")
        assert pages(other) == pages(other, tag="t") == pages(other, recipient="ann@elsewhere.example") == []
        for ask_for in (other.get, other.journal):
            with pytest.raises(NotFound):
                ask_for(message_id)


def test_what_is_shown_of_a_message_in_a_log_names_nobody(client):
    view = client.get(client.enqueue(hello(subject="subject-canary", metadata={"k": "metadata-canary"})).id)
    text = f"{view!r} {client.mailboxes.list()!r} {client.suppressions()!r}"
    for secret in ("canary", "ann@", "bob@", "Hello"):
        assert secret not in text
    logging.getLogger("outtray").debug(text)


def test_a_message_whose_content_was_erased_is_still_found(database, client):
    message_id = client.enqueue(hello(metadata={"deal": 7})).id
    ask(database.settings, "DELETE FROM outtray.content")
    view = client.get(message_id)
    assert (view.subject, view.metadata, view.recipients, view.sender) == ("", {}, (), None)


def test_the_journal_tells_a_messages_life_in_order(client):
    message_id = client.enqueue(hello()).id
    client.reschedule(message_id, client.get(message_id).created_at)
    client.cancel(message_id)
    entries = client.journal(message_id)
    assert [entry.kind for entry in entries] == ["enqueued", "rescheduled", "cancel"]
    assert entries == sorted(entries, key=lambda entry: entry.at)
    with pytest.raises(NotFound):
        client.journal(new_id())


def test_wait_answers_as_soon_as_it_is_settled(database, client):
    message_id = client.enqueue(hello()).id
    looks = []

    def meanwhile(_seconds):
        looks.append(message_row(database.settings, message_id)["state"])
        if len(looks) == 3:
            hand_over(database.settings, message_id, "unknown")

    assert client.wait(message_id, timeout=30, sleep=meanwhile).state == "unknown"
    assert looks == ["queued"] * 3


def test_wait_ends_with_timeout_error_that_says_what_it_is_doing(client):
    message_id = client.enqueue(hello()).id
    with pytest.raises(TimeoutError, match="still queued"):
        client.wait(message_id, timeout=0.05)
    with pytest.raises(NotFound):
        client.wait(new_id(), timeout=1)


def test_the_async_client_finds_and_waits_alike(database, client):
    message_id = client.enqueue(hello()).id

    async def scene():
        async with AsyncOuttray(database.settings, app="default") as outtray:
            assert (await outtray.get(message_id)).subject == "Hello"
            assert [view.id for view in (await outtray.list(state="queued")).items] == [message_id]
            with pytest.raises(TimeoutError):
                await outtray.wait(message_id, timeout=0.03)
            waiting = asyncio.create_task(outtray.wait(message_id, timeout=10))
            assert (await outtray.cancel(message_id)).answer == "cancelled"
            return await waiting

    assert asyncio.run(scene()).state == "cancelled"
