"""The door for answers, drafts and senders, by what a mailbox's owner granted; and the three ids of what left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from crm import ADDRESS, ask, connect, count, crm, hello, message_row
from outtray import InvalidMessage, Message, Outtray, Refused, find, originals
from outtray_schema.content import open_body, open_head
from outtray_schema.settings import Settings
from outtray_schema.vault import load_vault

GMAIL = "https://www.googleapis.com/auth/gmail."
THEIRS = "<theirs@elsewhere.example>"


@contextmanager
def office(settings: Settings, provider: str = "smtp", *scopes: str) -> Iterator[Outtray]:
    """A client whose default mailbox is of this provider, with these scopes; SALES is an alias of it."""
    with crm(settings, aliases=["sales@sender.example"]) as client:
        ask(settings, "UPDATE outtray.mailbox SET provider = %s, scopes = %s", provider, list(scopes))
        client._runner.door.forget()
        yield client


def answers(original: UUID | str, **fields: Any) -> Message:
    return Message(**{"reply_to_message": original, "text": "Yes"} | fields)


def leave(settings: Settings, message_id: UUID, state: str = "sent", **columns: Any) -> None:
    """End a message as its worker would have."""
    columns = {"evidence": Jsonb({}), "provider_id": f"at-{message_id}", "conversation_id": "thread-1"} | columns
    ask(
        settings,
        f"UPDATE outtray.message SET state = %s, ended_at = outtray.outtray_now(), version = version + 1,"
        f" {', '.join(f'{name} = %s' for name in columns)} WHERE id = %s",
        state, *columns.values(), message_id,
    )  # fmt: skip


def refused(client: Outtray, message: Message) -> dict[str, str]:
    before = count(client.settings, "message")
    with pytest.raises(InvalidMessage) as caught:
        client.enqueue(message)
    assert count(client.settings, "message") == before
    return {problem.field: problem.reason for problem in caught.value.problems}


def body(client: Outtray, message_id: UUID) -> bytes:
    (row,) = ask(client.settings, "SELECT body FROM outtray.content WHERE message_id = %s", message_id)
    return open_body(load_vault(client.settings), message_id, row["body"])


# ── what was granted ────────────────────────────────────────────────────────────────────────────────────────────────

READS = [("gmail", f"{GMAIL}modify"), ("gmail", "https://mail.google.com/"), ("microsoft", "Mail.ReadWrite")]
CANNOT = [
    ("smtp",), ("smtp", "https://mail.google.com/"), ("gmail", f"{GMAIL}send"), ("gmail", f"{GMAIL}compose"),
    ("microsoft", "Mail.Send"), ("gmail",),
]  # fmt: skip


@pytest.mark.parametrize("box", CANNOT, ids=str)
@pytest.mark.parametrize("original", [THEIRS, "18c0ffee18c0ffee"])
def test_a_mail_that_the_mailbox_may_not_read_cannot_be_answered(database, box, original):
    with office(database.settings, *box) as client:
        reason = refused(client, answers(original))["reply_to_message"]
        assert "in_reply_to" in reason, "the cure"
        client.enqueue(answers(None, in_reply_to=THEIRS, to="ann@elsewhere.example"))


@pytest.mark.parametrize("box", READS, ids=str)
def test_a_mail_that_it_may_read_is_taken_and_found_later(database, box):
    with office(database.settings, *box) as client:
        accepted = client.enqueue(answers(THEIRS, answering="reply_all", idempotency_key="k"))
        view = client.get(accepted.id)
        assert (view.state, view.recipients, view.subject) == ("queued", (), "")
        assert not client.enqueue(answers(THEIRS, answering="reply_all", idempotency_key="k")).created
        with pytest.raises(Refused, match="answering"):
            client.enqueue(answers(THEIRS, idempotency_key="k"))


@pytest.mark.parametrize(
    ("box", "may"),
    [
        (("smtp",), False), (("smtp", "https://mail.google.com/"), False), (("gmail", f"{GMAIL}send"), False),
        (("gmail", f"{GMAIL}compose"), True), (("gmail", f"{GMAIL}modify"), True), (("microsoft", "Mail.Send"), False),
        (("microsoft", "Mail.Send", "Mail.ReadWrite"), True), (("gmail",), False), (("microsoft",), False),
    ],
    ids=str,
)  # fmt: skip
def test_a_draft_is_taken_only_where_there_are_drafts(database, box, may):
    with office(database.settings, *box) as client:
        if not may:
            assert set(refused(client, hello(mode="draft"))) == {"mode"}
            return
        accepted = client.enqueue(hello(mode="draft"))
        assert message_row(database.settings, accepted.id)["only_draft"] and client.get(accepted.id).mode == "draft"
        assert not message_row(database.settings, client.enqueue(hello()).id)["only_draft"]


@pytest.mark.parametrize(
    "box", [("gmail", f"{GMAIL}modify"), ("microsoft", "Mail.Send", "Mail.ReadWrite"), ("smtp",)], ids=str
)
def test_a_sender_that_is_neither_the_mailbox_nor_an_alias_is_refused_before_anything_is_stored(database, box):
    with office(database.settings, *box) as client:
        assert set(refused(client, hello(from_="boss@sender.example"))) == {"from"}
        assert set(refused(client, answers(THEIRS, from_="boss@sender.example"))) == {"from"}
        for fine in ("sales@sender.example", "SALES@sender.example", ADDRESS):
            client.enqueue(hello(from_=f"Bob <{fine}>"))


# ── one of ours ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_of_ours_can_be_answered_from_a_mailbox_that_cannot_be_read_by_any_of_its_ids(database):
    with office(database.settings, "gmail", f"{GMAIL}send") as client:
        first = client.enqueue(hello(reply_to="Desk <desk@sender.example>", references=["<0@x.example>"])).id
        ours = message_row(database.settings, first)["rfc_message_id"]
        leave(database.settings, first, rfc_message_id="<CAF=x1@mail.gmail.com>")
        for name in (first, str(first), ours, "<CAF=x1@mail.gmail.com>", f"at-{first}"):
            accepted = client.enqueue(answers(name))
            written = body(client, accepted.id)
            assert b"In-Reply-To: <CAF=x1@mail.gmail.com>\r\n" in written
            assert b"References: <0@x.example> <CAF=x1@mail.gmail.com>\r\n" in written
            assert b"Subject: Re: Hello\r\n" in written and b"To: ann@elsewhere.example\r\n" in written
            (row,) = ask(database.settings, "SELECT head FROM outtray.content WHERE message_id = %s", accepted.id)
            head = open_head(load_vault(database.settings), accepted.id, row["head"])
            assert head.asked is None and head.answers is not None
            assert (head.answers.message_id, head.answers.conversation_id) == (f"at-{first}", "thread-1")


def test_what_is_nobodys_anothers_or_never_left_is_refused_with_the_reason(database):
    with office(database.settings) as client:
        assert "no message of this app" in refused(client, answers(uuid4()))["reply_to_message"]
        client.mailboxes.add_smtp("zoe@sender.example", host="smtp.sender.example", password="pw-canary")
        other = client.enqueue(hello(mailbox="zoe@sender.example")).id
        assert "another mailbox" in refused(client, answers(other))["reply_to_message"]
        for state, reason in (("failed", "never left"), ("drafted", "draft")):
            ended = client.enqueue(hello()).id
            leave(database.settings, ended, state)
            assert reason in refused(client, answers(ended))["reply_to_message"]
        erased = client.enqueue(hello()).id
        leave(database.settings, erased)
        ask(database.settings, "DELETE FROM outtray.content WHERE message_id = %s", erased)
        assert "erased" in refused(client, answers(erased))["reply_to_message"]


def test_another_apps_message_cannot_be_answered(database):
    with office(database.settings) as client:
        theirs = client.enqueue(hello()).id
        leave(database.settings, theirs)
        client.apps.add("other")
        with Outtray(database.settings, app="other") as other:
            other.mailboxes.add_smtp("eve@other.example", host="smtp.other.example", password="pw-canary", default=True)
            for name in (theirs, f"at-{theirs}"):
                assert set(refused(other, answers(name))) == {"reply_to_message"}


def test_an_answer_and_its_original_can_come_in_one_transaction(database):
    with office(database.settings) as client, connect(database.settings, autocommit=False) as connection:
        with client.transaction(connection):
            first = client.enqueue(hello(), connection=connection)
            second = client.enqueue(answers(first.id), connection=connection)
        assert client.get(second.id).state == "queued"


def test_composed_recipients_are_judged_by_the_plan_at_the_door(database):
    with office(database.settings, "memory") as client:
        first = client.enqueue(hello(cc=[f"r{n}@elsewhere.example" for n in range(3)])).id
        leave(database.settings, first)
        client.mailboxes.set(ADDRESS, limits={"recipients_per_message": 3})
        assert set(refused(client, answers(first, answering="reply_all"))) == {"to"}
        client.enqueue(answers(first))


# ── the ids ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_left_shows_its_three_ids_everywhere_and_is_found_by_them(database):
    with office(database.settings, "gmail", f"{GMAIL}modify") as client:
        first, second = client.enqueue(hello()).id, client.enqueue(hello()).id
        ours = message_row(database.settings, first)["rfc_message_id"]
        leave(database.settings, first, rfc_message_id="<CAF=x1@mail.gmail.com>")
        _tell(database.settings, first, "sent")
        view = client.get(first)
        ids = (f"at-{first}", "<CAF=x1@mail.gmail.com>", "thread-1")
        assert (view.provider_id, view.rfc_message_id, view.conversation_id) == ids and view.missing_ids == {}
        for found in (
            client.list(provider_id=f"at-{first}"),
            client.list(rfc_message_id="<CAF=x1@mail.gmail.com>"),
            client.list(rfc_message_id=ours),
        ):
            assert [each.id for each in found.items] == [first]
        assert [each.id for each in client.list(rfc_message_id=client.get(second).rfc_message_id).items] == [second]
        assert client.list(provider_id="at-nowhere").items == []
        assert client.list(rfc_message_id=ours, state="queued").items == []
        with pytest.raises(Refused):
            client.list(provider_id="x", rfc_message_id=ours)
        (event,) = [each for each in client.events().events if each.kind == "sent"]
        assert tuple(event.data[name] for name in ("provider_id", "rfc_message_id", "conversation_id")) == ids
        assert event.data["missing_ids"] == {}


def test_an_id_that_cannot_be_had_says_why(database):
    said = "not readable with these scopes"
    with office(database.settings, "gmail", f"{GMAIL}send") as client:
        blind = client.enqueue(hello()).id
        leave(database.settings, blind, evidence=Jsonb({"rfc_message_id": said}))
        _tell(database.settings, blind, "sent")
        view = client.get(blind)
        assert (view.rfc_message_id, view.missing_ids) == (None, {"rfc_message_id": said})
        (event,) = [each for each in client.events().events if each.kind == "sent"]
        assert event.data["missing_ids"] == {"rfc_message_id": said} and "rfc_message_id" not in event.data
    ask(database.settings, "UPDATE outtray.mailbox SET provider = 'smtp'")
    leave(database.settings, blind, provider_id=None, conversation_id=None)
    with Outtray(database.settings) as client:
        missing = client.get(blind).missing_ids
        assert missing == {
            "provider_id": "its server named no queue id", "conversation_id": "SMTP knows no conversations",
        }  # fmt: skip
        assert client.get(client.enqueue(hello()).id).missing_ids == {}, "what has not left misses nothing"


def test_what_gmail_has_not_told_its_id_is_asked_for_it_where_that_is_allowed(database):
    with office(database.settings, "gmail", f"{GMAIL}modify") as client:
        first = client.enqueue(hello()).id
        leave(database.settings, first, evidence=Jsonb({"rfc_message_id": "Gmail did not answer in time"}))
        accepted = client.enqueue(answers(first))
        (row,) = ask(database.settings, "SELECT head FROM outtray.content WHERE message_id = %s", accepted.id)
        head = open_head(load_vault(database.settings), accepted.id, row["head"])
        assert head.asked is not None and head.asked["ours"] == str(first)


def test_a_search_by_an_id_follows_its_index(database):
    with office(database.settings) as client:
        client.enqueue(hello())
        parameters = {
            "app": uuid4(), "state": None, "mailbox": None, "tag": None, "before": uuid4(), "limit": 5,
            "provider_id": "x", "rfc_message_id": "<x@x.example>", "own_id": uuid4(), "ids": [uuid4()], "refs": ["x"],
        }  # fmt: skip
        with connect(database.settings) as connection:
            connection.execute("SET enable_seqscan = off")
            for sql, index in (
                (find._BY_PROVIDER_ID, "message_provider_id"), (find._BY_MESSAGE_ID, "message_delivered_id"),
                (originals.FIND, "message_delivered_id"), (originals.FIND, "message_provider_id"),
            ):  # fmt: skip
                plan = connection.execute(f"EXPLAIN (COSTS OFF) {sql}", parameters).fetchall()
                assert index in str(plan), (sql, plan)


def _tell(settings: Settings, message_id: UUID, kind: str) -> None:
    ask(
        settings,
        "INSERT INTO outtray.event (app_id, mailbox_id, message_id, kind, data)"
        " SELECT app_id, mailbox_id, id, %s, '{}' FROM outtray.message WHERE id = %s",
        kind,
        message_id,
    )


# ── drafted ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_draft_that_was_made_has_ended_and_is_known_wherever_states_are(database):
    with office(database.settings, "gmail", f"{GMAIL}compose") as client:
        draft = client.enqueue(hello(mode="draft")).id
        leave(database.settings, draft, "drafted", evidence=Jsonb({"rfc_message_id": "Gmail assigns it on sending"}))
        view = client.wait(draft, 1)
        assert (view.state, view.is_ended, view.mode) == ("drafted", True, "draft")
        assert view.missing_ids == {"rfc_message_id": "Gmail assigns it on sending"}
        assert [each.id for each in client.list(state="drafted").items] == [draft]
        assert client.explain(draft).code == "drafted"
        assert client.cancel(draft).answer == "drafted"
