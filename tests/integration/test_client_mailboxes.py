"""Mailboxes, switches and suppression: who may send, and what resumes when they may again."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta

import pytest

from crm import ADDRESS, ask, connect, count, crm, hello, mailbox_row, message_row
from outtray import (
    CancelCounts,
    InvalidMailbox,
    InvalidMessage,
    MailboxDisconnected,
    NotFound,
    Outtray,
    Refused,
    SettingsError,
    UsageRow,
    WrongState,
)
from outtray_schema import bindings
from outtray_schema.vault import load_vault, without_credentials
from polling import eventually


@pytest.fixture
def client(database):
    with crm(database.settings) as client:
        yield client


def credentials(settings):
    row = mailbox_row(settings)
    bound_to = bindings.credentials(row["id"], row["credentials_version"])
    return json.loads(load_vault(settings).credentials.decrypt(row["credentials"], bound_to))


def set_mailbox(database, **columns):
    for name, value in columns.items():
        ask(database.settings, f"UPDATE outtray.mailbox SET {name} = %s", value)


def in_an_hour():
    return datetime.now(UTC) + timedelta(hours=1)


def test_a_mailbox_is_stored_with_its_secrets_sealed_and_found_by_address(database, client):
    box = client.mailboxes.get("BOB@sender.example")
    assert (box.address, box.name, box.status, box.is_default) == (ADDRESS, "Bob", "active", True)
    assert box.server == {"host": "smtp.sender.example", "port": 587, "tls": "starttls", "auth": "auto"}
    assert credentials(database.settings) == {"username": ADDRESS, "password": "pw-canary"}
    assert b"canary" not in mailbox_row(database.settings)["credentials"]


def test_an_access_token_is_stored_as_one(database, client):
    client.mailboxes.reconnect(ADDRESS, password="token", auth="xoauth2")
    assert credentials(database.settings) == {"username": ADDRESS, "access_token": "token"}
    assert client.mailboxes.get().server["auth"] == "xoauth2"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"plan": "platinum"}, "plan"),
        ({"limits": {"messages": -1}}, "limits.messages"),
        ({"port": 0}, "port"),
        ({"host": ""}, "host"),
        ({"password": ""}, "password"),
    ],
)
def test_what_is_wrong_with_a_mailbox_is_named_and_nothing_is_stored(database, client, fields, field):
    with pytest.raises(InvalidMailbox) as refused:
        client.mailboxes.add_smtp(**({"address": "x@y.example", "host": "h.example", "password": "secret"} | fields))
    assert [problem.field for problem in refused.value.problems] == [field]
    assert "secret" not in str(refused.value)
    assert count(database.settings, "mailbox") == 1


def test_an_address_is_connected_once_per_app(database, client):
    with pytest.raises(InvalidMailbox, match="connected already"):
        client.mailboxes.add_smtp("Bob@Sender.example", host="h.example", password="x")
    assert count(database.settings, "mailbox") == 1


def test_a_producer_without_the_credentials_ring_enqueues_but_connects_and_reads_nothing(database, client, tmp_path):
    keys = tmp_path / "producer.json"
    without_credentials(database.settings.key_file, keys)
    with Outtray(database.settings.model_copy(update={"key_file": keys}), app="default") as producer:
        assert producer.enqueue(hello()).created
        assert producer.mailboxes.get().address == ADDRESS
        for attempt in (
            lambda: producer.mailboxes.add_smtp("x@y.example", host="h.example", password="x"),
            lambda: producer.mailboxes.set_password(ADDRESS, "x"),
        ):
            with pytest.raises(SettingsError, match="credentials ring"):
                attempt()


def test_limits_reserve_and_pace_are_laid_over_the_plan_and_a_wait_for_them_ends(database, client):
    client.enqueue(hello())
    set_mailbox(database, parked_until=in_an_hour(), parked_reason="quota: messages", next_at=in_an_hour())
    box = client.mailboxes.set(ADDRESS, limits={"messages": 50, "recipients": 90}, reserve=5, pace=12)
    assert (box.limits.messages, box.limits.recipients, box.limits.reserve, box.limits.per_minute) == (50, 90, 5, 12)
    assert box.parked_until is None
    row = mailbox_row(database.settings)
    assert row["next_at"] <= datetime.now(UTC)
    assert client.mailboxes.set(ADDRESS, limits={"messages": None}).limits.messages is None
    assert client.mailboxes.set(ADDRESS, plan="gmail").limits.recipients_per_message == 100


def test_a_wait_that_the_provider_asked_for_outlives_new_limits(database, client):
    client.enqueue(hello())
    set_mailbox(database, parked_until=in_an_hour(), parked_reason="421 slow down")
    client.mailboxes.set(ADDRESS, reserve=1)
    row = mailbox_row(database.settings)
    assert row["parked_until"] is not None and row["next_at"] == row["parked_until"]


def test_new_aliases_may_send_at_once(client):
    with pytest.raises(InvalidMessage):
        client.enqueue(hello(from_="sales@brand.example"))
    client.mailboxes.set(ADDRESS, aliases=["sales@brand.example"], name="Robert")
    assert client.enqueue(hello(from_="sales@brand.example")).created
    assert client.mailboxes.get().name == "Robert"


def test_new_credentials_make_a_disconnected_mailbox_send_again_in_the_same_transaction(database, client):
    client.enqueue(hello())
    set_mailbox(
        database, status="reconnect", status_reason="535", parked_until=in_an_hour(), parked_reason="auth", parks=4
    )
    box = client.mailboxes.set_password(ADDRESS, "new")
    row = mailbox_row(database.settings)
    assert (box.status, row["credentials_version"], row["parks"], row["parked_until"]) == ("active", 2, 0, None)
    assert row["next_at"] is not None
    assert credentials(database.settings) == {"username": ADDRESS, "password": "new"}


def test_new_credentials_leave_a_paused_mailbox_paused_and_a_quota_wait_in_place(database, client):
    client.mailboxes.pause(ADDRESS, "holiday")
    set_mailbox(database, parked_until=in_an_hour(), parked_reason="quota: messages")
    box = client.mailboxes.reconnect(ADDRESS, password="new", host="mx.example", port=465, tls="implicit")
    assert (box.status, box.status_reason, box.host) == ("paused", "holiday", "mx.example")
    assert box.parked_until is not None and box.server["tls"] == "implicit"


def test_of_two_new_credentials_at_once_one_is_told_to_look_again(database, client):
    with connect(database.settings, autocommit=False) as rival:
        rival.execute("UPDATE outtray.mailbox SET credentials_version = 2")
        outcome = []

        def reconnect():
            with pytest.raises(WrongState, match="somebody else"):
                client.mailboxes.set_password(ADDRESS, "mine")
            outcome.append("refused")

        thread = threading.Thread(target=reconnect)
        thread.start()
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        eventually(lambda: ask(database.settings, waiting), what="the second one waits for the first")
        rival.commit()
        thread.join()
    assert outcome == ["refused"]


def test_pause_and_resume_keep_the_park_and_arm_the_mailbox(database, client):
    client.enqueue(hello())
    assert client.mailboxes.pause(ADDRESS, "holiday").status_reason == "holiday"
    set_mailbox(database, next_at=None, parked_until=in_an_hour(), parked_reason="421")
    assert client.mailboxes.resume(ADDRESS).status == "active"
    row = mailbox_row(database.settings)
    assert row["next_at"] == row["parked_until"] is not None
    assert client.mailboxes.resume(ADDRESS).status == "active"


def test_resume_never_hides_that_credentials_are_refused_or_the_mailbox_is_gone(database, client):
    set_mailbox(database, status="reconnect")
    with pytest.raises(MailboxDisconnected):
        client.mailboxes.resume(ADDRESS)
    set_mailbox(database, status="disabled", status_reason="account closed")
    for attempt in (client.mailboxes.resume, client.mailboxes.pause):
        with pytest.raises(WrongState, match="account closed"):
            attempt(ADDRESS)


def test_a_mailbox_with_mail_waiting_is_removed_only_by_force_which_cancels_it(database, client):
    message_id = client.enqueue(hello()).id
    with pytest.raises(WrongState, match="1 message"):
        client.mailboxes.remove(ADDRESS)
    assert client.mailboxes.remove(ADDRESS, force=True) == 1
    assert client.get(message_id).reason == "mailbox removed"
    assert client.mailboxes.list() == [] and mailbox_row(database.settings)["credentials"] is None
    with pytest.raises(InvalidMessage):
        client.enqueue(hello(mailbox=ADDRESS))


def test_a_removed_mailbox_that_is_added_again_keeps_what_it_has_used(database, client):
    before = client.mailboxes.get()
    client.mailboxes.remove(ADDRESS)
    with pytest.raises(WrongState, match="add it again"):
        client.mailboxes.reconnect(before.id, password="x")
    again = client.mailboxes.add_smtp(ADDRESS, host="new.example", password="new")
    assert again.id == before.id and again.status == "active" and again.host == "new.example"
    assert credentials(database.settings)["password"] == "new"
    assert client.enqueue(hello()).created


def test_usage_of_another_system_is_imported_whole_or_not_at_all(database, client):
    now = datetime.now(UTC)
    rows = [UsageRow(now, 3, 5, 2, ("ann@elsewhere.example", "ANN@elsewhere.example")), UsageRow(now)]
    assert client.mailboxes.import_usage(ADDRESS, rows) == 2
    stored = ask(database.settings, "SELECT * FROM outtray.usage ORDER BY id")
    assert [(row["messages"], row["recipients"], row["external"]) for row in stored] == [(3, 5, 2), (1, 1, 0)]
    assert len(stored[0]["externals"]) == 1 and stored[0]["source"] == "import"
    with pytest.raises(Refused, match=r"\[1\]\.external"):
        client.mailboxes.import_usage(ADDRESS, [UsageRow(now), UsageRow(now, 1, 1, 2)])
    assert count(database.settings, "usage") == 2


def test_what_is_done_to_a_mailbox_is_journalled_and_told(database, client):
    client.mailboxes.pause(ADDRESS, "holiday")
    client.mailboxes.resume(ADDRESS)
    kinds = ask(database.settings, "SELECT kind, actor FROM outtray.journal WHERE mailbox_id IS NOT NULL ORDER BY id")
    assert [row["kind"] for row in kinds] == ["added", "paused", "resumed"] and {row["actor"] for row in kinds} == {
        "crm"
    }
    told = [event.kind for event in client.events().events]
    assert told == ["mailbox.added", "mailbox.paused", "mailbox.resumed"]


@pytest.mark.parametrize(("kind", "target"), [("all", ""), ("app", "default"), ("provider", "smtp"), ("tag", "spring")])
def test_a_switch_is_kept_with_who_and_why_and_its_end_arms_the_mailboxes(database, client, kind, target):
    client.enqueue(hello(tags=["spring"]))
    switch = client.pause(kind, target, "incident")
    assert (switch.kind, switch.target, switch.actor, switch.why) == (kind, target, "crm", "incident")
    assert client.switches() == [switch]
    assert client.pause(kind, target, "still").since == switch.since
    row = ask(
        database.settings,
        """SELECT outtray.switched_off(app_id, provider) AS off, outtray.tag_paused(app_id, '{spring}') AS tag
           FROM outtray.mailbox""",
    )[0]
    assert row == {"off": kind != "tag", "tag": kind == "tag"}
    assert client.resume(kind, target) is True
    assert client.switches() == [] and client.resume(kind, target) is False
    assert mailbox_row(database.settings)["next_at"] is not None


def test_a_resume_arms_only_what_it_held_and_never_before_its_park(database, client):
    client.enqueue(hello())
    set_mailbox(database, parked_until=in_an_hour(), parked_reason="421")
    client.mailboxes.add_smtp("idle@sender.example", host="smtp.sender.example", password="x")
    client.pause("all")
    client.resume("all")
    rows = ask(database.settings, "SELECT next_at, parked_until FROM outtray.mailbox ORDER BY id")
    assert rows[0]["next_at"] == rows[0]["parked_until"] and rows[1]["next_at"] is None


def test_a_resume_reaches_every_mailbox_however_many_there_are(database, client):
    (app,) = ask(database.settings, "SELECT id FROM outtray.app")
    ask(
        database.settings,
        """WITH box AS (
               INSERT INTO outtray.mailbox (id, app_id, provider, host, address, address_index, plan)
               SELECT gen_random_uuid(), %s, 'memory', 'memory', '', uuid_send(gen_random_uuid()), 'smtp'
               FROM generate_series(1, 2300) RETURNING id, app_id)
           INSERT INTO outtray.message (id, app_id, mailbox_id, request_hash, due_at, recipients, external, size)
           SELECT gen_random_uuid(), app_id, id, '', outtray.outtray_now(), 1, 0, 1 FROM box""",
        app["id"],
    )
    client.pause("provider", "memory")
    assert client.resume("provider", "memory")
    (row,) = ask(database.settings, "SELECT count(next_at) AS n FROM outtray.mailbox WHERE provider = 'memory'")
    assert row["n"] == 2300


def test_a_switch_needs_a_kind_and_a_target_that_exist(client):
    for kind, target in (("planet", ""), ("tag", ""), ("provider", "")):
        with pytest.raises(Refused):
            client.pause(kind, target)
    with pytest.raises(NotFound):
        client.pause("app", "nobody")


def test_suppression_cancels_what_waits_and_stands_for_every_spelling(database, client):
    waiting = client.enqueue(hello(to=["Ann@Elsewhere.example", "eve@elsewhere.example"])).id
    other = client.enqueue(hello(to="eve@elsewhere.example")).id
    assert client.suppress("ann@elsewhere.example", "complaint") == CancelCounts(cancelled=1)
    assert (client.get(waiting).state, client.get(waiting).reason) == ("cancelled", "suppressed")
    assert client.get(other).state == "queued"
    late = client.enqueue(hello(to="ANN@elsewhere.example")).id
    (row,) = ask(
        database.settings, "SELECT outtray.suppressed(app_id, id) AS yes FROM outtray.message WHERE id = %s", late
    )
    assert row["yes"] and message_row(database.settings, late)["state"] == "queued"
    assert [(each.address, each.reason) for each in client.suppressions().items] == [
        ("ann@elsewhere.example", "complaint")
    ]
    assert client.unsuppress("Ann@elsewhere.example") and not client.unsuppress("ann@elsewhere.example")
    assert client.suppressions().items == []


def test_a_long_suppression_list_is_read_page_by_page(client):
    addresses = {f"u{n}@elsewhere.example" for n in range(7)}
    for address in addresses:
        client.suppress(address, "bounce")
    found, cursor = [], None
    while True:
        page = client.suppressions(limit=3, cursor=cursor)
        found += [each.address for each in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(found) == sorted(addresses)
