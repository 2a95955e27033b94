"""Consents and OAuth clients by the client: who may send by what was granted, and what goes on with a new one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from crm import ask, hello, mailbox_row
from databases import Database
from outtray import AsyncOuttray, InvalidMailbox, NotFound, Outtray, Refused, SettingsError, Unavailable, WrongState
from outtray_schema import bindings
from outtray_schema.consent import SCOPES
from outtray_schema.vault import load_vault, without_credentials
from token_server import TokenServer

SEND, COMPOSE = SCOPES["google"]["send"], SCOPES["google"]["compose"]
TOKEN, SECRET = "canary-refresh-token", "canary-client-secret"


@pytest.fixture
def client(database: Database) -> Iterator[Outtray]:
    with Outtray(database.settings, actor="tester") as client:
        client.apps.add("default")
        client.provider_apps.add("google", "google", client_id="123-abc.apps.example", secret=SECRET)
        client.provider_apps.add("entra", "microsoft", client_id="app-id", secret=SECRET, tenant="organizations")
        yield client


def ann(client: Outtray, **changes: Any) -> Any:
    fields = {"refresh_token": TOKEN, "scopes": [*COMPOSE, "openid"], "provider_app": "google"} | changes
    return client.mailboxes.add_google("ann@example.org", **fields)


def credentials(database: Database) -> dict[str, Any]:
    row = mailbox_row(database.settings)
    bound_to = bindings.credentials(row["id"], row["credentials_version"])
    found: dict[str, Any] = json.loads(load_vault(database.settings).credentials.decrypt(row["credentials"], bound_to))
    return found


def test_a_gmail_mailbox_of_unknown_plan_is_taken_for_a_small_one(database, client):
    box = ann(client)
    assert (box.provider, box.host, box.plan, box.limits.messages) == ("gmail", "gmail.googleapis.com", "gmail", 500)
    assert box.scopes == COMPOSE and box.provider_app == "google"
    assert credentials(database) == {"kind": "google", "refresh_token": TOKEN}
    assert b"canary" not in mailbox_row(database.settings)["credentials"]
    assert [(each.kind, each.actor, each.provider_app, each.scopes) for each in client.mailboxes.consents(box.id)] == [
        ("connected", "tester", "google", COMPOSE)
    ]


def test_a_microsoft_mailbox_keeps_its_tenant_and_may_be_a_shared_one(database, client):
    box = client.mailboxes.add_microsoft(
        "info@example.org", refresh_token=TOKEN, provider_app="entra", tenant="t-1", shared=True,
        scopes=["https://graph.microsoft.com/Mail.Send", "openid"],
    )  # fmt: skip
    assert (box.provider, box.plan, box.scopes, box.server) == (
        "microsoft",
        "microsoft",
        ("Mail.Send",),
        {"shared": True},
    )
    assert credentials(database) == {"kind": "microsoft", "refresh_token": TOKEN, "tenant": "t-1"}


@pytest.mark.parametrize(
    ("issuer", "server", "limit"),
    [
        ("google", {"host": "smtp.gmail.com", "port": 465, "tls": "implicit", "auth": "xoauth2"}, 100),
        ("microsoft", {"host": "smtp.office365.com", "port": 587, "tls": "starttls", "auth": "xoauth2"}, 500),
    ],
)
def test_the_same_consent_sends_by_smtp(client, issuer, server, limit):
    add = {"google": client.mailboxes.add_google, "microsoft": client.mailboxes.add_microsoft}[issuer]
    app = {"google": "google", "microsoft": "entra"}[issuer]
    box = add("ann@example.org", refresh_token=TOKEN, scopes=SCOPES[issuer]["smtp"], provider_app=app, smtp=True)
    imap = {"google": "imap.gmail.com", "microsoft": "outlook.office365.com"}[issuer]
    server = {**server, "imap": {"host": imap, "port": 993, "tls": "implicit"}}
    assert (box.provider, box.server) == ("smtp", server)
    assert box.limits.recipients_per_message == limit
    with pytest.raises(InvalidMailbox, match=r"scopes: none of those granted lets it send"):
        add("bob@example.org", refresh_token=TOKEN, scopes=SCOPES[issuer]["send"], provider_app=app, smtp=True)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"scopes": ["openid", "email"]}, "scopes"),
        ({"refresh_token": ""}, "refresh_token"),
        ({"provider_app": "entra"}, "provider_app"),
        ({"plan": "platinum"}, "plan"),
    ],
)
def test_what_is_wrong_with_a_consent_is_named_and_nothing_is_stored(database, client, changes, field):
    with pytest.raises(InvalidMailbox) as refused:
        ann(client, **changes)
    assert [problem.field for problem in refused.value.problems] == [field]
    assert "canary" not in str(refused.value)
    assert client.mailboxes.list() == []
    assert ask(database.settings, "SELECT FROM outtray.consent") == []


def test_a_new_consent_lets_the_queue_flow_at_once_and_leaves_no_old_token(database, client):
    box = ann(client)
    client.enqueue(hello(mailbox=box.id))
    ask(
        database.settings,
        "UPDATE outtray.mailbox SET status = 'reconnect', status_reason = 'x', next_at = NULL, parked_until = %s",
        datetime.now(UTC) + timedelta(hours=1),
    )
    ask(
        database.settings,
        "INSERT INTO outtray.token (mailbox_id, access, version, expires_at, refreshing, refreshing_until)"
        " VALUES (%s, 'old', 3, 'infinity', 7, 'infinity')",
        box.id,
    )
    after = client.mailboxes.connect(box.id, refresh_token="another", scopes=SEND)
    assert (after.status, after.parked_until, after.scopes) == ("active", None, SEND)
    assert after.next_at is not None and after.next_at <= datetime.now(UTC)
    (token,) = ask(database.settings, "SELECT * FROM outtray.token")
    assert (token["access"], token["version"], token["refreshing"], token["refreshing_until"]) == (None, 4, 8, None)
    assert credentials(database)["refresh_token"] == "another"
    assert [each.kind for each in client.mailboxes.consents(box.id)] == ["connected", "reconnected"]


def test_a_wait_for_a_limit_outlives_a_new_consent_and_a_pause_too(database, client):
    box = ann(client)
    later = datetime.now(UTC) + timedelta(hours=1)
    ask(database.settings, "UPDATE outtray.mailbox SET parked_until = %s, parked_reason = 'quota: messages'", later)
    client.mailboxes.pause(box.id)
    after = client.mailboxes.connect(box.id, refresh_token="another", scopes=SEND)
    assert (after.status, after.parked_until) == ("paused", later)


def test_a_disconnected_mailbox_holds_no_token_and_keeps_its_queue(database, client):
    box = ann(client)
    message = client.enqueue(hello(mailbox=box.id)).id
    gone = client.mailboxes.disconnect(box.id)
    assert (gone.mailbox.status, gone.others) == ("reconnect", 0)
    assert "myaccount.google.com" in gone.warning
    assert credentials(database) == {"kind": "google"}
    assert client.get(message).state == "queued"
    client.mailboxes.connect(box.id, refresh_token="another", scopes=SEND)
    assert client.mailboxes.get(box.id).status == "active"
    assert [each.kind for each in client.mailboxes.consents(box.id)] == ["connected", "disconnected", "reconnected"]


def test_the_other_connections_of_the_same_person_and_project_are_counted(database, client):
    ann(client)
    client.apps.add("other")
    client.provider_apps.add("google-2", "google", client_id="123-second.apps.example", secret=SECRET)
    client.provider_apps.add("elsewhere", "google", client_id="999-x.apps.example", secret=SECRET)
    with Outtray(database.settings, app="other") as other:
        second = ann(other, provider_app="google-2")
        assert client.mailboxes.disconnect("ann@example.org").others == 1
        assert other.mailboxes.disconnect(second.id).others == 0, "the first holds no token any more"
        other.mailboxes.connect(second.id, refresh_token="x", scopes=SEND, provider_app="elsewhere")
    assert client.mailboxes.connect("ann@example.org", refresh_token="x", scopes=SEND).status == "active"
    assert client.mailboxes.disconnect("ann@example.org").others == 0, "another project is another consent"


def test_revoking_is_refused_but_on_the_last_connection(database, client):
    with TokenServer() as google:
        settings = database.settings.model_copy(update=google.settings)
        client.apps.add("other")
        with Outtray(settings) as mine, Outtray(settings, app="other") as other:
            box, theirs = ann(mine), ann(other)
            with pytest.raises(WrongState, match="1 other connection"):
                mine.mailboxes.revoke(box.id)
            assert google.revocations == [] and mine.mailboxes.get(box.id).status == "active"
            other.mailboxes.disconnect(theirs.id)
            assert mine.mailboxes.revoke(box.id).mailbox.status == "reconnect"
            assert google.revocations == [TOKEN]
            assert mine.mailboxes.consents(box.id)[-1].kind == "revoked"
            with pytest.raises(WrongState, match="no token to revoke"):
                mine.mailboxes.revoke(box.id)


def test_forced_revoking_says_what_ended_with_it(database, client):
    with TokenServer() as google:
        client.apps.add("other")
        settings = database.settings.model_copy(update=google.settings)
        with Outtray(settings) as mine, Outtray(settings, app="other") as other:
            box, _ = ann(mine), ann(other)
            gone = mine.mailboxes.revoke(box.id, force=True)
            assert (gone.others, "have ended with it" in gone.warning) == (1, True)


def test_nothing_is_erased_if_google_does_not_answer(database, client):
    with TokenServer() as google:
        settings = database.settings.model_copy(update=google.settings)
    with Outtray(settings) as mine:
        box = ann(mine)
        with pytest.raises(Unavailable) as said:
            mine.mailboxes.revoke(box.id)
        assert TOKEN not in str(said.value)
    assert credentials(database)["refresh_token"] == TOKEN


def test_microsoft_has_no_revocation_and_says_where_the_person_finds_it(client):
    box = client.mailboxes.add_microsoft(
        "ann@example.org", refresh_token=TOKEN, provider_app="entra", scopes=["Mail.Send"]
    )
    with pytest.raises(WrongState, match=r"myapps\.microsoft\.com"):
        client.mailboxes.revoke(box.id)


def test_a_password_and_a_consent_are_not_mistaken_for_each_other(client):
    box = ann(client)
    with pytest.raises(WrongState, match="by consent"):
        client.mailboxes.reconnect(box.id, password="x", username="ann", host="smtp.example.org")
    smtp = client.mailboxes.add_smtp("bob@example.org", host="smtp.example.org", password="x")
    for attempt in (
        lambda: client.mailboxes.connect(smtp.id, refresh_token="x", scopes=SEND),
        lambda: client.mailboxes.disconnect(smtp.id),
        lambda: client.mailboxes.revoke(smtp.id),
    ):
        with pytest.raises(WrongState, match="by a password"):
            attempt()


def test_a_removed_mailbox_has_no_tokens_left_and_can_be_connected_otherwise(database, client):
    box = ann(client)
    ask(database.settings, "INSERT INTO outtray.token (mailbox_id, access) VALUES (%s, 'old')", box.id)
    client.mailboxes.remove(box.id)
    assert ask(database.settings, "SELECT FROM outtray.token") == []
    again = client.mailboxes.add_smtp("ann@example.org", host="smtp.example.org", password="x")
    assert (again.id, again.provider_app, again.scopes) == (box.id, None, ())


def test_a_mailbox_of_an_organisation_needs_no_consent_of_its_person(database, client):
    client.provider_apps.add("robot", "google", secret=service_account())
    box = client.mailboxes.add_delegated("ann@example.org", provider_app="robot")
    assert (box.provider, box.scopes) == ("gmail", COMPOSE)
    assert credentials(database) == {"kind": "google_service_account", "subject": "ann@example.org"}
    client.provider_apps.add("daemon", "microsoft", client_id="x", secret="y", kind="client_credentials", tenant="t-1")
    other = client.mailboxes.add_delegated("bob@example.org", provider_app="daemon", scopes=["Mail.Send"])
    assert (other.provider, other.server) == ("microsoft", {"shared": True})
    with pytest.raises(InvalidMailbox, match="of the kind oauth"):
        client.mailboxes.add_delegated("cy@example.org", provider_app="google")


def service_account() -> str:
    return json.dumps({"type": "service_account", "client_id": "77", "client_email": "r@p", "private_key": "k"})


# ── OAuth clients ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_client_is_stored_with_its_secret_sealed_and_never_shown(database, client):
    found = client.provider_apps.list()
    assert [(each.name, each.kind, each.has_secret, each.status) for each in found] == [
        ("entra", "oauth", True, "active"),
        ("google", "oauth", True, "active"),
    ]
    assert SECRET not in repr(found)
    for row in ask(database.settings, "SELECT * FROM outtray.provider_app"):
        assert SECRET.encode() not in row["secret"]
        bound_to = bindings.provider_app_secret(row["name"], 1)
        assert load_vault(database.settings).credentials.decrypt(row["secret"], bound_to) == SECRET.encode()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "google"}, "name"),
        ({"name": " "}, "name"),
        ({"client_id": ""}, "client_id"),
        ({"secret": None}, "secret"),
        ({"kind": "service_account"}, "secret"),
        ({"provider": "microsoft", "kind": "client_credentials"}, "tenant"),
        ({"provider": "microsoft", "secret": "-----BEGIN PRIVATE KEY-----"}, "secret"),
    ],
)
def test_what_is_wrong_with_a_client_is_named(client, fields, field):
    with pytest.raises(Refused) as refused:
        client.provider_apps.add(**({"name": "new", "provider": "google", "client_id": "c", "secret": SECRET} | fields))
    assert field in [problem.field for problem in refused.value.problems]
    assert SECRET not in str(refused.value)


def test_googles_own_file_names_client_and_secret(client):
    file = json.dumps({"installed": {"client_id": "1-x.apps", "client_secret": SECRET}})
    made = client.provider_apps.add("desk", "google", secret=file)
    assert (made.client_id, made.kind) == ("1-x.apps", "oauth")


def test_an_app_may_bring_a_client_of_its_own_that_others_do_not_see(database, client):
    client.provider_apps.add("mine", "google", client_id="c", secret=SECRET, own=True)
    client.apps.add("other")
    with Outtray(database.settings, app="other") as other:
        assert "mine" not in [each.name for each in other.provider_apps.list()]
        with pytest.raises(NotFound):
            ann(other, provider_app="mine")
        with pytest.raises(NotFound):
            other.provider_apps.set_secret("mine", "x")
    assert ann(client, provider_app="mine").provider_app == "mine"


def test_a_new_secret_frees_those_who_waited_for_it_and_nobody_else(database, client):
    waiting = ann(client)
    other = client.mailboxes.add_google("bob@example.org", refresh_token=TOKEN, scopes=SEND, provider_app="google")
    for box in (waiting, other):
        client.enqueue(hello(mailbox=box.id))
    ask(database.settings, "UPDATE outtray.provider_app SET status = 'refused', status_reason = 'x'")
    ask(
        database.settings, "UPDATE outtray.mailbox SET next_at = NULL, parked_until = %s, parked_reason = 'slow down'",
        datetime.now(UTC) + timedelta(hours=1),
    )  # fmt: skip
    ask(
        database.settings,
        "UPDATE outtray.mailbox SET parked_reason = 'provider app refused (google): x' WHERE id = %s",
        waiting.id,
    )
    assert client.provider_apps.set_secret("google", "another").status == "active"
    assert client.mailboxes.get(waiting.id).parked_until is None
    assert client.mailboxes.get(waiting.id).next_at is not None
    assert client.mailboxes.get(other.id).parked_reason == "slow down"
    (row,) = ask(database.settings, "SELECT * FROM outtray.provider_app WHERE name = 'google'")
    bound_to = bindings.provider_app_secret("google", 2)
    assert load_vault(database.settings).credentials.decrypt(row["secret"], bound_to) == b"another"


def test_a_client_goes_only_when_no_mailbox_logs_in_by_it(client):
    box = ann(client)
    with pytest.raises(WrongState, match="1 mailbox"):
        client.provider_apps.remove("google")
    client.mailboxes.remove(box.id)
    client.provider_apps.remove("google")
    with pytest.raises(NotFound):
        client.provider_apps.get("google")


def test_a_producer_without_the_credentials_ring_connects_nothing(database, client, tmp_path):
    keys = tmp_path / "producer.json"
    without_credentials(database.settings.key_file, keys)
    with Outtray(database.settings.model_copy(update={"key_file": keys})) as producer:
        for attempt in (
            lambda: ann(producer),
            lambda: producer.provider_apps.add("x", "google", client_id="c", secret=SECRET),
        ):
            with pytest.raises(SettingsError, match="credentials ring"):
                attempt()


def test_the_async_client_has_the_same(database, client):
    import asyncio

    async def test() -> None:
        with TokenServer() as google:
            settings = database.settings.model_copy(update=google.settings)
            async with AsyncOuttray(settings) as mine:
                box = await mine.mailboxes.add_google(
                    "ann@example.org", refresh_token=TOKEN, scopes=SEND, provider_app="google"
                )
                assert [each.kind for each in await mine.mailboxes.consents(box.id)] == ["connected"]
                assert (await mine.mailboxes.revoke(box.id)).mailbox.status == "reconnect"
                assert google.revocations == [TOKEN]
                assert len(await mine.provider_apps.list()) == 2

    asyncio.run(test())
