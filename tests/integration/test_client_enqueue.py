"""Enqueue: what is accepted is stored whole and once, and what is refused leaves nothing."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from crm import ADDRESS, ask, connect, count, crm, hello, mailbox_row, message_row, published
from outtray import (
    Attachment,
    IdempotencyConflict,
    InvalidMessage,
    NotFound,
    Outtray,
    SettingsError,
    Unavailable,
)
from outtray import enqueue as enqueueing
from outtray_schema.content import BodyCheck, open_body, open_chunk, open_head
from outtray_schema.vault import load_vault

TABLES = ("message", "recipient", "content", "content_chunk", "message_tag", "attachment", "attachment_chunk")


def test_an_accepted_message_is_stored_with_all_that_belongs_to_it(database):
    with crm(database.settings) as client:
        accepted = client.enqueue(
            hello(cc="carl@sender.example", bcc="dora@elsewhere.example", tags=["spring", "vip"], metadata={"deal": 7})
        )
        view = client.get(accepted.id)
    assert accepted.created and accepted.state == "queued"
    assert view.tags == ("spring", "vip") and view.metadata == {"deal": 7} and view.subject == "Hello"
    assert [(each.role, each.address) for each in view.recipients] == [
        ("to", "ann@elsewhere.example"),
        ("cc", "carl@sender.example"),
        ("bcc", "dora@elsewhere.example"),
    ]
    row = message_row(database.settings, accepted.id)
    assert (row["recipients"], row["external"]) == (3, 2)
    external = ask(database.settings, "SELECT n, external FROM outtray.recipient ORDER BY n")
    assert [each["external"] for each in external] == [True, False, True]
    assert count(database.settings, "message_tag") == 2
    kinds = ask(database.settings, "SELECT kind, actor FROM outtray.journal WHERE message_id = %s", accepted.id)
    assert kinds == [{"kind": "enqueued", "actor": "crm"}]
    told = ask(database.settings, "SELECT kind FROM outtray.event WHERE message_id = %s", accepted.id)
    assert told == [{"kind": "queued"}]


def test_the_stored_bytes_are_the_frozen_mime_without_bcc(database):
    with crm(database.settings) as client:
        accepted = client.enqueue(hello(bcc="dora@elsewhere.example", from_=f"Bob Builder <{ADDRESS}>"))
    vault = load_vault(database.settings)
    (content,) = ask(database.settings, "SELECT * FROM outtray.content")
    body = open_body(vault, accepted.id, content["body"])
    row = message_row(database.settings, accepted.id)
    assert len(body) == row["size"]
    assert row["rfc_message_id"].encode() in body and b"Hello Ann" in body
    assert b"Bob Builder" in body and b"dora" not in body.lower()
    assert open_head(vault, accepted.id, content["head"]).sender == ADDRESS


def test_content_above_a_mebibyte_is_stored_in_chunks_that_give_the_same_bytes(database):
    with crm(database.settings) as client:
        accepted = client.enqueue(hello(text=hashlib.shake_256(b"plan").hexdigest(1_500_000)))
    vault = load_vault(database.settings)
    (content,) = ask(database.settings, "SELECT * FROM outtray.content")
    assert content["body"] is None
    check = BodyCheck(vault, accepted.id, content["body_hash"])
    size = 0
    for row in ask(database.settings, "SELECT n, data FROM outtray.content_chunk ORDER BY n"):
        piece = open_chunk(vault, accepted.id, row["n"], row["data"])
        assert len(piece) <= 1024 * 1024
        check.add(piece)
        size += len(piece)
    check.verify()
    assert size == message_row(database.settings, accepted.id)["size"]


def test_a_file_that_shrinks_while_it_is_streamed_leaves_nothing_behind(database, tmp_path, monkeypatch):
    path = tmp_path / "plan.bin"
    path.write_bytes(b"x" * 3_000_000)
    with crm(database.settings) as client:
        message = hello(attachments=[Attachment("plan.bin", path=path)])
        hold = enqueueing.hold_files

        def shrink_first(*given):
            path.write_bytes(b"x")
            return (yield from hold(*given))

        monkeypatch.setattr(enqueueing, "hold_files", shrink_first)
        with pytest.raises(InvalidMessage):
            client.enqueue(message)
    assert [count(database.settings, table) for table in TABLES] == [0] * len(TABLES)


def test_the_same_key_with_the_same_request_answers_with_the_first_message(database):
    with crm(database.settings) as client:
        first = client.enqueue(hello(idempotency_key="order-1"))
        second = client.enqueue(hello(idempotency_key="order-1"))
    assert second.id == first.id and first.created and not second.created
    assert count(database.settings, "message") == count(database.settings, "content") == 1


def test_the_same_key_with_another_request_names_the_fields_that_differ(database):
    with crm(database.settings) as client:
        first = client.enqueue(hello(idempotency_key="order-1"))
        with pytest.raises(IdempotencyConflict) as refused:
            client.enqueue(hello(idempotency_key="order-1", subject="Other", tags=["x"]))
    assert [problem.field for problem in refused.value.problems] == ["subject", "tags"]
    assert refused.value.message_id == str(first.id)
    assert count(database.settings, "message") == 1


def test_a_key_belongs_to_its_app(database):
    with crm(database.settings) as client, Outtray(database.settings, app="other") as other:
        other.apps.add("other")
        other.mailboxes.add_smtp(ADDRESS, host="smtp.sender.example", password="x", default=True)
        first, second = (each.enqueue(hello(idempotency_key="order-1")) for each in (client, other))
        assert first.id != second.id and second.created
        with pytest.raises(NotFound):
            other.get(first.id)


def test_many_threads_with_one_key_store_one_message(database):
    with crm(database.settings) as client:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.enqueue(hello(idempotency_key="once"))))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({answer.id for answer in answers}) == 1
    assert sum(answer.created for answer in answers) == 1
    assert count(database.settings, "message") == 1


def test_a_key_that_is_being_inserted_is_waited_for_and_ours_if_it_is_rolled_back(database):
    with crm(database.settings) as client, connect(database.settings, autocommit=False) as rival:
        client.enqueue(hello(idempotency_key="seen"), connection=None)
        client.enqueue(hello(idempotency_key="late"), connection=rival)
        answers = []
        thread = threading.Thread(target=lambda: answers.append(client.enqueue(hello(idempotency_key="late"))))
        thread.start()
        _until_somebody_waits(database.settings)
        rival.rollback()
        thread.join()
    assert answers[0].created
    assert count(database.settings, "message") == 2


def _until_somebody_waits(settings):
    deadline = time.monotonic() + 10
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    while not ask(settings, waiting):
        assert time.monotonic() < deadline, "nobody came to wait for the lock"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"mailbox": "nobody@sender.example"}, "mailbox"),
        ({"from_": "boss@sender.example"}, "from"),
        ({"to": [f"a{n}@elsewhere.example" for n in range(6)]}, "to"),
    ],
)
def test_what_the_mailbox_does_not_allow_is_refused_by_field_and_leaves_nothing(database, fields, field):
    with (
        crm(database.settings, limits={"recipients_per_message": 5}) as client,
        pytest.raises(InvalidMessage) as refused,
    ):
        client.enqueue(hello(**fields))
    assert [problem.field for problem in refused.value.problems] == [field]
    assert [count(database.settings, table) for table in TABLES] == [0] * len(TABLES)


def test_an_alias_may_send_and_signs_the_message_id(database):
    with crm(database.settings, aliases=["sales@brand.example"]) as client:
        accepted = client.enqueue(hello(from_="Sales <Sales@brand.example>"))
        assert client.get(accepted.id).rfc_message_id.endswith("@brand.example>")


def test_a_message_larger_than_allowed_is_refused_with_both_sizes(database):
    settings = database.settings.model_copy(update={"message_size": 2000})
    with crm(settings) as client, pytest.raises(InvalidMessage, match="2000"):
        client.enqueue(hello(text="x" * 3000))
    assert count(settings, "message") == 0


def test_an_app_without_a_default_mailbox_asks_for_one(database):
    with Outtray(database.settings, app="bare") as client:
        client.apps.add("bare")
        with pytest.raises(InvalidMessage, match="no default mailbox"):
            client.enqueue(hello())


def test_an_unknown_app_says_how_to_add_it(database):
    with Outtray(database.settings, app="nobody") as client, pytest.raises(NotFound, match="outtray app add nobody"):
        client.enqueue(hello())


def test_a_mailbox_that_went_away_while_its_facts_were_remembered_takes_no_message(database):
    with crm(database.settings) as client:
        client.enqueue(hello())
        ask(database.settings, "UPDATE outtray.mailbox SET status = 'disabled', status_reason = 'removed'")
        with pytest.raises(InvalidMessage, match="removed or disabled"):
            client.enqueue(hello())
    assert count(database.settings, "message") == 1


def test_send_at_is_when_it_is_due_and_the_wake_says_so(database):
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(days=2)
    with crm(database.settings) as client:
        accepted = client.enqueue(hello(send_at=at))
    assert accepted.due_at == at
    assert published(database.settings) == {mailbox_row(database.settings)["id"]: at}


def test_an_earlier_wake_wins_over_a_later_one(database):
    late, soon = (datetime.now(UTC).replace(microsecond=0) + timedelta(hours=n) for n in (9, 1))
    with crm(database.settings) as client:
        for at in (late, soon, late):
            client.enqueue(hello(send_at=at))
    assert list(published(database.settings).values()) == [soon]


def test_due_times_follow_the_databases_clock(database):
    database.shift(timedelta(days=10))
    with crm(database.settings) as client:
        accepted = client.enqueue(hello())
    assert timedelta(days=9, hours=23) < accepted.due_at - datetime.now(UTC) < timedelta(days=10, hours=1)


def test_a_producer_never_waits_for_a_mailbox_that_somebody_holds(database):
    with crm(database.settings) as client, connect(database.settings, autocommit=False) as holder:
        holder.execute("SELECT 1 FROM outtray.mailbox FOR UPDATE")
        assert client.enqueue(hello()).created


def test_without_redis_enqueue_succeeds_and_says_so_once(database, caplog):
    settings = database.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    with caplog.at_level(logging.WARNING), crm(settings) as client:
        for _ in range(3):
            assert client.enqueue(hello()).created
    warnings = [record.getMessage() for record in caplog.records if record.name == "outtray.wakes"]
    assert len(warnings) == 1
    assert "ann@" not in warnings[0] and "bob@" not in warnings[0]


def test_without_a_database_the_answer_is_an_error_at_once(database):
    url = "postgresql://nobody:pw-canary@127.0.0.1:1/none"
    with Outtray(database.settings.model_copy(update={"database_url": url}), app="default") as client:
        began = time.monotonic()
        with pytest.raises(Unavailable) as down:
            client.enqueue(hello())
    assert time.monotonic() - began < database.settings.database_timeout.total_seconds()
    assert "pw-canary" not in str(down.value) and "ann@" not in str(down.value)


def test_connections_that_the_server_closed_are_noticed_before_they_are_used(database):
    with crm(database.settings) as client:
        client.enqueue(hello())
        ask(
            database.settings,
            """SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = 'outtray-producer'""",
        )
        assert client.enqueue(hello()).created


def test_a_database_without_tables_names_the_command_that_makes_them(database):
    ask(database.settings, "DROP SCHEMA outtray CASCADE")
    with Outtray(database.settings, app="default") as client, pytest.raises(SettingsError, match="outtray migrate"):
        client.enqueue(hello())


def test_no_content_stands_in_the_database_in_clear(database):
    with crm(database.settings) as client:
        client.enqueue(
            hello(
                to="Ann <ann-canary@elsewhere.example>",
                subject="subject-canary",
                text="body-canary",
                metadata={"k": "metadata-canary"},
                idempotency_key="key-canary",
            )
        )
        client.suppress("suppressed-canary@elsewhere.example", "complaint")
    tables = ask(database.settings, "SELECT tablename FROM pg_tables WHERE schemaname = 'outtray'")
    for table in tables:
        for row in ask(database.settings, f"SELECT * FROM outtray.{table['tablename']}"):
            assert b"canary" not in b"".join(_bytes(value) for value in row.values()), table


def _bytes(value):
    return value if isinstance(value, bytes) else str(value).encode()
