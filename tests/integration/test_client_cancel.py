"""Cancel and reschedule: the answer is true, whatever a worker does at the same moment."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from crm import ask, connect, crm, forget_wakes, hand_over, hello, message_row, published
from outtray import CancelCounts, NotFound, Outtray, Refused, WrongState
from outtray_schema.ids import new_id
from polling import eventually

WAITING = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
def client(database):
    with crm(database.settings) as client:
        yield client


def kinds(database, message_id):
    told = ask(database.settings, "SELECT kind FROM outtray.event WHERE message_id = %s ORDER BY id", message_id)
    return [row["kind"] for row in told]


def test_a_queued_message_is_cancelled_and_says_so_in_journal_and_events(database, client):
    message_id = client.enqueue(hello()).id
    assert client.cancel(message_id).answer == "cancelled"
    view = client.get(message_id)
    assert view.state == "cancelled" and view.ended_at is not None and view.reason == "cancelled by the app"
    assert [entry.kind for entry in client.journal(message_id)] == ["enqueued", "cancel"]
    assert client.journal(message_id)[-1].actor == "crm"
    assert kinds(database, message_id) == ["queued", "cancelled"]


def test_cancelling_again_answers_the_same_and_writes_nothing(database, client):
    message_id = client.enqueue(hello()).id
    assert [client.cancel(message_id).answer for _ in range(2)] == ["cancelled", "cancelled"]
    assert kinds(database, message_id) == ["queued", "cancelled"]


def test_a_message_that_is_being_handed_over_may_leave_and_is_cancelled_if_it_comes_back(database, client):
    message_id = client.enqueue(hello()).id
    hand_over(database.settings, message_id)
    assert client.cancel(message_id).answer == "handing_over"
    row = message_row(database.settings, message_id)
    assert row["state"] == "handing_over" and row["cancel_asked_at"] is not None
    assert kinds(database, message_id)[-1] == "cancel_asked"


def test_an_unknown_message_may_have_left_and_the_wish_is_remembered(database, client):
    message_id = client.enqueue(hello()).id
    hand_over(database.settings, message_id, "unknown")
    assert client.cancel(message_id).answer == "may_have_left"
    row = message_row(database.settings, message_id)
    assert row["state"] == "unknown" and row["cancel_asked_at"] is not None


def test_a_queued_message_whose_earlier_handover_is_open_ends_but_may_have_left(database, client):
    message_id = client.enqueue(hello()).id
    ask(database.settings, "UPDATE outtray.message SET may_have_left = true WHERE id = %s", message_id)
    assert [client.cancel(message_id).answer for _ in range(2)] == ["may_have_left"] * 2
    assert client.get(message_id).state == "cancelled"


@pytest.mark.parametrize("state", ["sent", "failed", "expired"])
def test_what_has_ended_answers_what_it_is(database, client, state):
    message_id = client.enqueue(hello()).id
    ask(
        database.settings,
        "UPDATE outtray.message SET state = %s, ended_at = outtray.outtray_now() WHERE id = %s",
        state,
        message_id,
    )
    assert client.cancel(message_id).answer == state
    assert message_row(database.settings, message_id)["cancel_asked_at"] is None


@pytest.mark.parametrize(
    ("becomes", "answer"), [("handing_over", "handing_over"), ("sent", "sent"), (None, "cancelled")]
)
def test_a_cancel_that_waits_for_a_worker_answers_what_the_worker_made_of_it(database, client, becomes, answer):
    message_id = client.enqueue(hello()).id
    with connect(database.settings, autocommit=False) as worker:
        worker.execute(
            """UPDATE outtray.message SET state = %s, version = version + 1, handover = 1, handed_at = now(),
               handover_until = now(), ended_at = CASE %s WHEN 'sent' THEN now() END WHERE id = %s""",
            [becomes or "queued", becomes, message_id],
        )
        answers = []
        thread = threading.Thread(target=lambda: answers.append(client.cancel(message_id).answer))
        thread.start()
        eventually(lambda: ask(database.settings, WAITING), what="the cancel waits for the worker's row")
        worker.commit()
        thread.join()
    assert answers == [answer]


def test_another_apps_message_is_not_there(database, client):
    message_id = client.enqueue(hello()).id
    with Outtray(database.settings, app="other") as other:
        other.apps.add("other")
        with pytest.raises(NotFound):
            other.cancel(message_id)
        with pytest.raises(NotFound):
            other.reschedule(message_id, datetime.now(UTC))
    with pytest.raises(NotFound):
        client.cancel(new_id())
    assert client.get(message_id).state == "queued"


def test_cancel_where_takes_what_its_filters_name_and_counts_the_answers(database, client):
    other = client.mailboxes.add_smtp("second@sender.example", host="smtp.sender.example", password="x").id
    spring = [client.enqueue(hello(tags=["spring"])).id for _ in range(4)]
    ann = client.enqueue(hello(to="Ann@Elsewhere.example", mailbox=other)).id
    eve = client.enqueue(hello(to="eve@elsewhere.example", mailbox=other)).id
    hand_over(database.settings, spring[0])
    hand_over(database.settings, spring[1], "unknown")
    assert client.cancel_where(tag="spring") == CancelCounts(cancelled=2, handing_over=1, may_have_left=1)
    assert client.cancel_where(mailbox=other, to="ann@elsewhere.example") == CancelCounts(cancelled=1)
    assert client.get(ann).state == "cancelled" and client.get(eve).state == "queued"
    assert client.cancel_where(mailbox="second@sender.example") == CancelCounts(cancelled=1)


def test_cancel_where_without_a_filter_is_refused(client):
    client.enqueue(hello())
    with pytest.raises(Refused):
        client.cancel_where()
    with pytest.raises(NotFound):
        client.cancel_where(mailbox="nobody@sender.example")


def test_cancel_where_goes_through_any_number_in_batches(client):
    client.enqueue_many(hello(tags=["bulk"]) for _ in range(1201))
    assert client.cancel_where(tag="bulk") == CancelCounts(cancelled=1201)
    assert client.list(state="queued").items == []


def test_cancel_where_never_waits_for_a_row_while_it_holds_others(database, client):
    """A worker's group takes messages in its own order; a batch that waited while holding would deadlock with it."""
    first, second = sorted(client.enqueue(hello(tags=["t"])).id for _ in range(2))
    with connect(database.settings, autocommit=False) as worker:
        worker.execute("SELECT 1 FROM outtray.message WHERE id = %s FOR UPDATE", [second])
        answers = []
        thread = threading.Thread(target=lambda: answers.append(client.cancel_where(tag="t")))
        thread.start()
        eventually(lambda: ask(database.settings, WAITING), what="the cancel waits for the second message alone")
        worker.execute("SET LOCAL lock_timeout = '5s'")
        worker.execute("SELECT 1 FROM outtray.message WHERE id = %s FOR UPDATE", [first])
        worker.commit()
        thread.join()
    assert answers == [CancelCounts(cancelled=2)]


def test_a_queued_message_moves_to_another_time_and_its_mailbox_is_woken_for_it(database, client):
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    accepted = client.enqueue(hello(send_at=later))
    forget_wakes(database.settings)
    sooner = later - timedelta(hours=3)
    assert client.reschedule(accepted.id, sooner) == sooner
    row = message_row(database.settings, accepted.id)
    assert row["due_at"] == sooner and row["version"] == 1
    assert published(database.settings) == {row["mailbox_id"]: sooner}
    assert [entry.kind for entry in client.journal(accepted.id)] == ["enqueued", "rescheduled"]


def test_a_time_in_the_past_means_now(client):
    accepted = client.enqueue(hello())
    assert client.reschedule(accepted.id, datetime(2020, 1, 1, tzinfo=UTC)) >= accepted.due_at


def test_only_a_queued_message_can_be_moved_and_only_with_a_time_zone(database, client):
    message_id = client.enqueue(hello()).id
    with pytest.raises(Refused, match="time zone"):
        client.reschedule(message_id, datetime(2030, 1, 1))  # noqa: DTZ001 - that is the point
    hand_over(database.settings, message_id)
    with pytest.raises(WrongState, match="handing_over"):
        client.reschedule(message_id, datetime.now(UTC))
