"""Erasing: by time what has ended, never what waits, is unknown or is followed; and on request all of a person."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest

from command_line import CommandLine
from crm import ADDRESS, ask, connect, count, crm, hand_over, hello, mailbox_row, message_row
from outtray import Message
from outtray_schema import rotation
from outtray_schema.ledger import USED
from outtray_schema.vault import load_vault
from outtray_worker.prune import prune
from world import world

ANN, BOB = "ann@elsewhere.example", "bob@elsewhere.example"
MONTH = timedelta(days=30, hours=1)
BIG = "x" * (3 * 1024 * 1024)


@pytest.fixture
def client(database):
    with crm(database.settings, limits={"unique_external": 5}) as made:
        yield made


def ends(settings, message: UUID, state: str = "sent", counted: str = "outtray.outtray_now()") -> None:
    ask(settings, f"UPDATE outtray.message SET state = %s, ended_at = outtray.outtray_now(), handover = 1,"
        f" counted_at = {counted} WHERE id = %s", state, message)  # fmt: skip


def prune_now(settings) -> dict[str, int]:
    async def scene() -> dict[str, int]:
        async with world(settings) as w:
            return await prune(w.db, settings)

    return asyncio.run(scene())


def content_of(settings, message: UUID) -> int:
    tables = ("content", "content_chunk")
    return sum(
        ask(settings, f"SELECT count(*) AS n FROM outtray.{table} WHERE message_id = %s", message)[0]["n"]
        for table in tables
    )


def people_of(settings, message: UUID) -> list[tuple[bytes, bytes]]:
    found = ask(settings, "SELECT address, address_index FROM outtray.recipient WHERE message_id = %s", message)
    return [(bytes(row["address"]), bytes(row["address_index"])) for row in found]


def test_content_goes_a_month_after_the_end_and_stays_while_it_is_needed(client, database):
    settings = database.settings
    big, waits, unknown, followed = [client.enqueue(hello(text=BIG if n == 0 else "x")).id for n in range(4)]
    client.enqueue(Message(to=ANN, text="and then", follows=followed, after=timedelta(days=90)))
    ends(settings, big)
    hand_over(settings, unknown, "unknown")
    ends(settings, followed)
    assert prune_now(settings)["contents"] == 0
    database.shift(MONTH)
    assert prune_now(settings)["contents"] == 1
    assert content_of(settings, big) == 0 and people_of(settings, big)[0][0] == b""
    for kept in (waits, unknown, followed):
        assert content_of(settings, kept) > 0 and people_of(settings, kept)[0][0] != b""
    view = client.get(big)
    assert (view.state, view.subject, view.recipients, dict(view.metadata)) == ("sent", "", (), {})
    assert big in [each.id for each in client.list(recipient=ANN).items], "who knows the address still finds it"
    assert [entry.kind for entry in client.journal(big)][-1] == "erased"
    assert prune_now(settings)["contents"] == 0


def test_keys_are_rotated_beside_what_was_erased(client, database):
    message = client.enqueue(hello()).id
    ends(database.settings, message)
    database.shift(MONTH)
    prune_now(database.settings)
    vault = load_vault(database.settings)
    with database.connect() as connection:
        assert sum(rotation.rotate(connection, vault, "addresses")) == 0
        assert rotation.keys_in_use(connection, vault, "addresses")


def test_a_person_is_erased_with_all_that_was_to_go_to_them(client, database):
    settings = database.settings
    waits, left = (client.enqueue(hello(metadata={"crm": "canary"})).id for _ in range(2))
    shared = client.enqueue(hello(to=[ANN, BOB])).id
    other = client.enqueue(hello(to=BOB)).id
    ends(settings, left)
    ends(settings, shared)
    with pytest.raises(Exception, match="alias"):
        client.enqueue(hello(from_="eve@evil.example"))
    client.suppress(ANN, "unsubscribed")
    used = usage(settings)
    erased = client.erase_recipient("ANN@elsewhere.example")
    assert (erased.messages, erased.later, erased.refusals) == (3, 0, 1)
    assert usage(settings) == used, "the ledger is what it was, person by person"
    for message in (waits, left, shared):
        assert content_of(settings, message) == 0
        assert set(people_of(settings, message)) == {(b"", b"")}
        assert [entry.kind for entry in client.journal(message)][-1] == "erased"
    assert message_row(settings, waits)["state"] == "cancelled" and message_row(settings, left)["state"] == "sent"
    assert client.list(recipient=ANN).items == [] and [each.id for each in client.list(recipient=BOB).items] == [other]
    assert [each.address for each in client.suppressions().items] == [ANN], "that promise is kept"
    index = load_vault(settings).blind_index(client.apps.list()[0].id, ANN)
    assert not ask(settings, "SELECT FROM outtray.recipient WHERE address_index = %s", index)
    assert client.erase_recipient(ANN).messages == 0
    database.shift(timedelta(hours=26))
    prune_now(settings)
    assert count(settings, "usage") == 0, "and with the window the last hash of them goes"


def usage(settings) -> tuple[int, set[bytes]]:
    """What counts in the mailbox's ledger now, and for whom."""
    parameters = {"ids": [mailbox_row(settings)["id"]], "unique": [True]}
    with connect(settings) as connection:
        row = connection.execute(USED, parameters).fetchone()
    assert row is not None
    return row["messages"], set(map(bytes, row["externals"] or ()))


def test_what_is_with_the_provider_is_erased_once_it_has_ended(client, database):
    settings = database.settings
    message = client.enqueue(hello()).id
    hand_over(settings, message)
    erased = client.erase_recipient(ANN)
    assert (erased.messages, erased.later) == (0, 1) and content_of(settings, message) == 1
    assert [entry.kind for entry in client.journal(message)][-1] == "erase asked"
    prune_now(settings)
    assert content_of(settings, message) == 1
    ends(settings, message)
    assert prune_now(settings)["contents"] == 1
    assert content_of(settings, message) == 0 and set(people_of(settings, message)) == {(b"", b"")}
    assert usage(settings)[0] == 1


def test_the_command_asks_first_and_says_what_it_did(client, database):
    outtray = CommandLine.on(database.settings)
    message = client.enqueue(hello()).id
    assert outtray("erase", "--recipient", ANN, stdin="n\n").code == 1
    assert message_row(database.settings, message)["state"] == "queued"
    told = outtray.ok("erase", "--recipient", ANN, "--yes").out.replace("\n", " ")
    assert "1 message erased, 1 message of them cancelled first" in told
    again = outtray.ok("erase", "--recipient", ANN, "--json").json
    assert again == {"messages": 0, "cancelled": 0, "later": 0, "refusals": 0}
    assert outtray("erase", "--recipient", "nonsense", "--yes").code == 1
    assert ADDRESS not in told
