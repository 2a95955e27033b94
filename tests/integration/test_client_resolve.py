"""Resolve: only a recorded decision moves an unknown message on, and what it may have used goes on counting."""

from __future__ import annotations

import threading

import pytest

from crm import ask, connect, crm, forget_wakes, hand_over, hello, mailbox_row, message_row, published
from outtray import NotFound, Refused, WrongState
from outtray_schema.ids import new_id
from polling import eventually


@pytest.fixture
def client(database):
    with crm(database.settings) as client:
        yield client


@pytest.fixture
def unknown(database, client):
    message_id = client.enqueue(hello(cc="carl@sender.example")).id
    hand_over(database.settings, message_id, "unknown")
    forget_wakes(database.settings)
    return message_id


def test_sent_ends_it_and_it_goes_on_counting(database, client, unknown):
    before = message_row(database.settings, unknown)
    view = client.resolve(unknown, "sent", "found it in Sent")
    row = message_row(database.settings, unknown)
    assert view.state == "sent" and not view.may_have_left
    assert row["counted_at"] == before["counted_at"] and row["ended_at"] is not None
    entry = client.journal(unknown)[-1]
    assert (entry.kind, entry.actor) == ("resolved", "crm")
    assert entry.detail == {"decision": "sent", "state": "sent", "note": "found it in Sent"}


def test_fail_ends_it_and_it_goes_on_counting_since_it_may_have_left(database, client, unknown):
    view = client.resolve(unknown, "fail")
    assert view.state == "failed" and view.may_have_left
    assert message_row(database.settings, unknown)["counted_at"] is not None


def test_resend_returns_it_to_the_queue_and_leaves_its_handover_in_usage(database, client, unknown):
    before = message_row(database.settings, unknown)
    view = client.resolve(unknown, "resend", "owner asked")
    row = message_row(database.settings, unknown)
    assert view.state == "queued" and view.may_have_left and view.attempt == before["attempt"]
    assert row["counted_at"] is None and row["version"] == before["version"] + 1
    (usage,) = ask(database.settings, "SELECT * FROM outtray.usage")
    assert usage["counted_at"] == before["counted_at"]
    assert (usage["messages"], usage["recipients"], usage["external"]) == (1, 2, 1)
    assert (usage["message_id"], usage["handover"], usage["source"]) == (unknown, before["handover"], "resend")
    indexes = ask(database.settings, "SELECT address_index FROM outtray.recipient WHERE external")
    assert usage["externals"] == [row["address_index"] for row in indexes]


def test_resend_arms_the_mailbox_in_the_same_transaction_and_wakes_it(database, client, unknown):
    assert mailbox_row(database.settings)["next_at"] is None
    client.resolve(unknown, "resend")
    row = message_row(database.settings, unknown)
    assert mailbox_row(database.settings)["next_at"] >= row["due_at"]
    assert published(database.settings) == {row["mailbox_id"]: row["due_at"]}


def test_resend_of_a_parked_mailbox_waits_for_its_park(database, client, unknown):
    ask(database.settings, "UPDATE outtray.mailbox SET parked_until = outtray.outtray_now() + interval '1 hour'")
    client.resolve(unknown, "resend")
    box = mailbox_row(database.settings)
    assert box["next_at"] == box["parked_until"]


def test_a_decision_to_send_again_takes_the_place_of_an_earlier_wish_to_cancel(database, client, unknown):
    assert client.cancel(unknown).answer == "may_have_left"
    client.resolve(unknown, "resend")
    assert message_row(database.settings, unknown)["cancel_asked_at"] is None
    assert client.cancel(unknown).answer == "may_have_left"
    assert client.get(unknown).state == "cancelled"


@pytest.mark.parametrize("state", ["queued", "handing_over"])
def test_only_an_unknown_message_can_be_resolved(database, client, state):
    message_id = client.enqueue(hello()).id
    if state != "queued":
        hand_over(database.settings, message_id, state)
    with pytest.raises(WrongState, match=state):
        client.resolve(message_id, "resend")
    assert message_row(database.settings, message_id)["state"] == state
    assert ask(database.settings, "SELECT * FROM outtray.usage") == []


def test_a_decision_that_evidence_overtakes_changes_nothing(database, client, unknown):
    with connect(database.settings, autocommit=False) as worker:
        worker.execute("SELECT 1 FROM outtray.mailbox FOR NO KEY UPDATE")
        errors = []

        def decide():
            with pytest.raises(WrongState) as refused:
                client.resolve(unknown, "resend")
            errors.append(refused.value)

        thread = threading.Thread(target=decide)
        thread.start()
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        eventually(lambda: ask(database.settings, waiting), what="the decision waits for the mailbox")
        worker.execute("UPDATE outtray.message SET state = 'sent', ended_at = now() WHERE id = %s", [unknown])
        worker.commit()
        thread.join()
    assert len(errors) == 1 and message_row(database.settings, unknown)["state"] == "sent"


def test_what_is_no_decision_and_a_missing_message_are_refused(client, unknown):
    with pytest.raises(Refused):
        client.resolve(unknown, "retry")
    with pytest.raises(Refused):
        client.resolve(unknown, "sent", "x" * 501)
    with pytest.raises(NotFound):
        client.resolve(new_id(), "sent")


def test_with_new_credentials_what_is_unknown_is_looked_for_anew(database, client, unknown):
    ended = client.enqueue(hello()).id
    ask(database.settings, "UPDATE outtray.message SET look_handover = handover, looks = 5")
    client.mailboxes.set_password(None, "another")
    assert message_row(database.settings, unknown)["look_handover"] is None
    assert message_row(database.settings, ended)["look_handover"] == 0, "what waits has nothing to be looked for"


def test_nothing_is_sent_again_from_a_mailbox_that_is_gone(database, client, unknown):
    client.mailboxes.remove(None)
    with pytest.raises(WrongState, match="removed or disabled"):
        client.resolve(unknown, "resend")
    assert message_row(database.settings, unknown)["state"] == "unknown"
    assert client.resolve(unknown, "fail").state == "failed"
