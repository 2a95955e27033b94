"""Refusals at the door: remembered for a week without clear text, and told of when somebody asks about an address."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from command_line import CommandLine
from crm import ADDRESS, ask, connect, crm, hello
from outtray import IdempotencyConflict, InvalidMessage
from outtray.many import ManyRefused
from outtray.refusals import CODES, code_of
from outtray_schema.errors import Problem
from outtray_worker.erasing import erase
from world import world

ANN = "ann@elsewhere.example"


@pytest.fixture
def client(database):
    with crm(database.settings) as made:
        yield made


def test_what_was_refused_for_an_address_is_explained_by_field_and_code(client, database):
    with pytest.raises(InvalidMessage):
        client.enqueue(hello(from_="eve@evil.example"))
    with pytest.raises(InvalidMessage):
        client.enqueue(hello(mailbox="nobody@sender.example", cc="bob@elsewhere.example"))
    client.enqueue(hello(idempotency_key="k"))
    with pytest.raises(IdempotencyConflict):
        client.enqueue(hello(idempotency_key="k", subject="Another"))
    found = client.refusals(ANN)
    assert [(each.problems[0].field, each.problems[0].code) for each in found] == [
        ("subject", "key_conflict"), ("mailbox", "unknown_mailbox"), ("from", "not_an_alias"),
    ]  # fmt: skip
    assert len(client.refusals("bob@elsewhere.example")) == 1 and client.refusals("carl@elsewhere.example") == []
    assert [each.problems[0].code for each in client.refusals(mailbox=ADDRESS)] == ["key_conflict", "not_an_alias"]
    told = client.explain_address(ANN)
    assert len(told.refused) == 3 and len(told.messages) == 1 and told.suppressed is None


def test_rows_that_are_no_message_are_remembered_for_the_addresses_that_can_be_read(client):
    rows = [{"to": ["broken", ANN], "text": "x"}, {"to": "dora@elsewhere.example", "text": "x", "send_at": "soon"}]
    with pytest.raises(ManyRefused):
        client.enqueue_many(rows)
    assert client.enqueue_many(rows, keep_going=True).refused
    assert [each.problems[0].field for each in client.refusals(ANN)] == ["to[0]", "to[0]"]
    assert client.refusals("dora@elsewhere.example")[0].problems[0].code == "not_a_time"


def test_nothing_of_it_is_kept_in_clear_and_it_is_forgotten_after_a_week(client, database):
    with pytest.raises(InvalidMessage):
        client.enqueue(hello(from_="secret-canary@evil.example", subject="subject-canary"))
    rows = [{"to": ANN, "text": "x", "headers": {"X-canary": "\r\n"}}, {"to": "canary-broken", "text": "x"}]
    client.enqueue_many(rows, keep_going=True)
    stored = str(ask(database.settings, "SELECT r::text AS row FROM outtray.refusal r"))
    assert stored.count("code") == 3
    for canary in ("canary", "elsewhere", "sender.example"):
        assert canary not in stored
    ask(database.settings, "UPDATE outtray.refusal SET at = at - interval '8 days'")
    prune_now(database)
    assert client.refusals(ANN) == []


def prune_now(database):
    async def scene():
        async with world(database.settings) as w:
            await erase(w.db, database.settings)

    asyncio.run(scene())


def test_in_the_callers_transaction_nothing_of_a_refusal_is_written(client, database):
    with connect(database.settings, autocommit=False) as own, pytest.raises(InvalidMessage):
        client.enqueue(hello(from_="eve@evil.example"), connection=own)
    assert client.refusals(ANN) == []


def test_the_command_tells_all_that_is_known_of_an_address(client, database):
    outtray = CommandLine.on(database.settings)
    assert outtray("explain", "--to", ANN).code == 3
    with pytest.raises(InvalidMessage):
        client.enqueue(hello(from_="eve@evil.example"))
    message = client.enqueue(hello(send_at=datetime.now(UTC) + timedelta(hours=2))).id
    client.enqueue(hello(to=[ANN, "bob@elsewhere.example"]))
    told = outtray.ok("explain", "--to", ANN.upper()).out
    assert "refused at the door" in told and "from, its sender was no address of its mailbox" in told
    assert str(message) in told and "it is scheduled for" in told.replace("\n", " ")
    client.suppress(ANN, "unsubscribed")
    found = outtray.ok("explain", "--to", ANN, "--json").json
    assert found["suppressed"] == "unsubscribed"
    assert {each["explanation"]["state"] for each in found["messages"]} == {"cancelled"}
    assert found["refused"][0]["problems"][0]["code"] == "not_an_alias"
    assert outtray("explain", "--to", ANN, "--mailbox", ADDRESS).code == 2
    assert outtray("explain", "--to", "nonsense").code == 1


REASONS = {
    "unknown_mailbox": "is no mailbox of this app; see `outtray mailbox list`",
    "mailbox_disabled": "is disabled (removed); connect it again or name another one",
    "not_an_alias": "is neither this mailbox's address nor one of its aliases; add it as an alias, or leave it out",
    "too_many_recipients": "600 recipients in to, cc and bcc; this mailbox's plan allows 500 per message",
    "no_recipient": "a message needs at least one recipient in to, cc or bcc",
    "no_content": 'a message needs text, html or attachments; text="" makes an empty one',
    "not_a_zone": "'Berlin' is no time zone; write one like Europe/Berlin",
    "window_never_opens": "never opens before expires_at; let it expire later, or take another window",
    "expires_too_early": "must be later than send_at",
    "no_drafts": "an SMTP mailbox has no drafts; connect it by its provider's API, or send",
    "too_large": "the message has 9999 bytes as MIME; gmail takes at most 99",
    "key_conflict": "differs from the first request with this idempotency key; use another key for another message",
    "not_a_time": "has no time zone; write datetime(..., tzinfo=UTC)",
    "control_character": "contains the control character U+000D; remove it",
    "not_an_address": "'bob' is no address; write it like ann@example.com or Ann Lee <ann@example.com>",
    "unreadable_file": "a file cannot be read: No such file",
    "unknown_field": "Extra inputs are not permitted",
}


def test_each_code_is_that_of_the_reason_it_stands_for():
    assert REASONS.keys() == CODES.keys()
    assert {code: code_of(Problem("x", reason)) for code, reason in REASONS.items()} == {code: code for code in CODES}
    assert code_of(Problem("x", "is quite another thing")) == "refused"
