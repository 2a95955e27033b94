"""Drafts at Gmail: made once, bound once, sent once, found again, and given back where nobody bound them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gmail_rig import COMPOSE, METADATA, SEND, GmailRig
from provider_rigs import USER, bytes_of, deliver, mail_of, new_mail, soon

from outtray_schema.outcome import Drafted, Held, NotBegun, Outcome, Parked, Retry, Sent, Unknown
from outtray_worker.providers import Draft, Mail, Original


@pytest.fixture
def gmail(tmp_path: Path) -> Iterator[GmailRig]:
    with GmailRig(tmp_path, (COMPOSE, METADATA)) as rig:
        yield rig


def drafts_of(rig: GmailRig) -> dict[str, str]:
    return rig.house.users[USER].mailbox.drafts


async def prepared_draft(rig: GmailRig, mail: Mail) -> Draft:
    prepared = await rig.provider.open(rig.account).prepare(mail)
    assert prepared.draft is not None, prepared
    return prepared.draft


def test_the_draft_is_made_before_the_handover_and_consumed_by_it(gmail: GmailRig) -> None:
    async def send() -> tuple[Draft, Outcome]:
        prepared = await gmail.provider.open(gmail.account).prepare(new_mail())
        assert list(drafts_of(gmail)) == [prepared.draft.id]
        return prepared.draft, await prepared.hand_over(soon(), soon())

    draft, outcome = gmail.run(send())
    assert isinstance(outcome, Sent)
    assert drafts_of(gmail) == {}
    assert outcome.provider_id not in (draft.id, draft.message_id), "sending gives the message a new id"
    stored = gmail.house.users[USER].mailbox.messages[outcome.provider_id]
    assert outcome.rfc_message_id == stored.rfc_message_id
    assert outcome.conversation_id == stored.thread_id


def test_a_bound_draft_is_sent_and_no_other_is_made(gmail: GmailRig) -> None:
    mail = new_mail()
    bound = gmail.run(prepared_draft(gmail, mail))
    gmail.server.add_rule(stage="drafts.send", status=429, body={"error": {"message": "wait"}}, times=1)
    first = gmail.run(deliver(gmail, replace(mail, draft=bound)))
    second = gmail.run(deliver(gmail, replace(mail, draft=bound)))
    assert isinstance(first, Parked)
    assert isinstance(second, Sent)
    assert gmail.server.seen["drafts.create"] == 1
    assert len(gmail.taken()) == 1


def test_a_bound_draft_that_is_gone_is_unknown_and_no_other_is_made(gmail: GmailRig) -> None:
    mail = new_mail()
    bound = gmail.run(prepared_draft(gmail, mail))
    gmail.house.delete_message(USER, bound.message_id or "")
    outcome = gmail.run(deliver(gmail, replace(mail, draft=bound)))
    assert isinstance(outcome, Unknown)
    assert (gmail.server.seen["drafts.create"], gmail.taken()) == (1, [])


def test_a_draft_is_sent_once_however_often_it_is_handed_over(gmail: GmailRig) -> None:
    mail = new_mail()
    bound = gmail.run(prepared_draft(gmail, mail))
    gmail.server.add_rule(stage="drafts.send", drop="after", times=1)
    outcomes = [gmail.run(deliver(gmail, replace(mail, draft=bound))) for _ in range(3)]
    assert [type(outcome) for outcome in outcomes] == [Unknown, Unknown, Unknown]
    assert len(gmail.taken()) == 1


def test_handing_over_twice_makes_no_second_request(gmail: GmailRig) -> None:
    async def twice() -> list[Outcome]:
        prepared = await gmail.provider.open(gmail.account).prepare(new_mail())
        return [await prepared.hand_over(soon(), soon()) for _ in range(2)]

    first, second = gmail.run(twice())
    assert isinstance(first, Sent) and isinstance(second, NotBegun)
    assert gmail.handovers() == 1


def test_giving_up_deletes_a_draft_that_nobody_bound_and_leaves_a_bound_one(gmail: GmailRig) -> None:
    async def give_up(mail: Mail) -> None:
        await (await gmail.provider.open(gmail.account).prepare(mail)).abandon()

    mail = new_mail()
    gmail.run(give_up(mail))
    assert drafts_of(gmail) == {}
    bound = gmail.run(prepared_draft(gmail, mail))
    gmail.run(give_up(replace(mail, draft=bound)))
    assert list(drafts_of(gmail)) == [bound.id]


def test_a_suspect_mail_adopts_the_draft_that_its_dead_worker_made(gmail: GmailRig) -> None:
    mail, other = new_mail(), new_mail()
    gmail.run(prepared_draft(gmail, other))
    left = gmail.run(prepared_draft(gmail, mail))
    found = gmail.run(prepared_draft(gmail, replace(mail, suspect=True)))
    assert found == left
    assert len(drafts_of(gmail)) == 2


def test_of_several_left_drafts_one_is_adopted_and_the_others_are_deleted(gmail: GmailRig) -> None:
    mail = new_mail()
    for _ in range(3):
        gmail.run(prepared_draft(gmail, mail))
    found = gmail.run(prepared_draft(gmail, replace(mail, suspect=True)))
    assert list(drafts_of(gmail)) == [found.id]


def test_a_suspect_mail_without_a_left_draft_makes_one(gmail: GmailRig) -> None:
    assert isinstance(gmail.run(deliver(gmail, replace(new_mail(), suspect=True))), Sent)


def test_a_draft_whose_creation_was_not_answered_is_adopted_by_the_next_preparation(gmail: GmailRig) -> None:
    gmail.server.add_rule(stage="drafts.create", drop="after", times=1)
    mail = new_mail()
    assert isinstance(gmail.run(deliver(gmail, mail)), Retry)
    assert isinstance(gmail.run(deliver(gmail, mail)), Sent)
    assert gmail.server.seen["drafts.create"] == 1
    assert drafts_of(gmail) == {}


def test_a_refused_creation_is_not_looked_for(gmail: GmailRig) -> None:
    gmail.server.add_rule(stage="drafts.create", status=503, times=1)
    mail = new_mail()
    gmail.run(deliver(gmail, mail))
    gmail.run(deliver(gmail, mail))
    assert gmail.server.seen["drafts.list"] == 0


def test_a_mail_that_is_only_to_be_a_draft_is_left_as_one(gmail: GmailRig) -> None:
    outcome = gmail.run(deliver(gmail, replace(new_mail(), only_draft=True)))
    assert isinstance(outcome, Drafted)
    assert list(drafts_of(gmail)) == [outcome.provider_id]
    assert "sending" in str(outcome.evidence["rfc_message_id"])
    assert (gmail.handovers(), gmail.taken()) == (0, [])


def test_only_a_draft_without_the_permission_for_drafts_is_held(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (SEND,)) as rig:
        outcome = rig.run(deliver(rig, replace(new_mail(), only_draft=True)))
    assert isinstance(outcome, Held)
    assert "gmail.compose" in outcome.reason


def test_a_mailbox_that_may_not_send_is_held_without_a_request(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (METADATA,)) as rig:
        outcome = rig.run(deliver(rig, new_mail()))
        assert isinstance(outcome, Held)
        assert "gmail.send or gmail.compose" in outcome.reason
        assert dict(rig.server.seen) == {}


# ── conversations ───────────────────────────────────────────────────────────────────────────────────────────────────


def reply_to(rig: GmailRig, subject: str = "Re: offer", to_message: str | None = None) -> Mail:
    """An answer to the newest message of the mailbox."""
    original = rig.house.users[USER].mailbox.newest()[0]
    head = (
        f"From: {USER}\r\nTo: canary-to@first.example\r\nSubject: {subject}\r\nMessage-ID: <reply@sender.example>\r\n"
        f"In-Reply-To: {to_message or original.rfc_message_id}\r\nReferences: {original.rfc_message_id}\r\n\r\nYes.\r\n"
    )
    mail = mail_of(head.encode(), recipients=("canary-to@first.example",))
    return replace(mail, bcc=(), original=Original("reply", original.id, original.thread_id))


RECEIVED = (
    b"From: x@y.example\r\nTo: canary-user@sender.example\r\nSubject: offer\r\nMessage-ID: <in@y.example>\r\n\r\n"
    b"Well?\r\n"
)


@pytest.mark.parametrize("scopes", [(COMPOSE, METADATA), (SEND, METADATA)], ids=["draft", "send"])
def test_an_answer_joins_its_conversation(scopes: tuple[str, ...], tmp_path: Path) -> None:
    with GmailRig(tmp_path, scopes) as rig:
        original = rig.house.users[USER].mailbox.add(RECEIVED, ("INBOX",), None)
        outcome = rig.run(deliver(rig, reply_to(rig)))
        assert isinstance(outcome, Sent)
        assert outcome.conversation_id == original.thread_id
        assert "conversation" not in outcome.evidence


def test_a_conversation_that_gmail_did_not_join_is_noted(gmail: GmailRig) -> None:
    original = gmail.house.users[USER].mailbox.add(RECEIVED, ("INBOX",), None)
    outcome = gmail.run(deliver(gmail, reply_to(gmail, subject="Something else")))
    assert isinstance(outcome, Sent)
    assert outcome.conversation_id not in (None, original.thread_id)
    assert "new conversation" in str(outcome.evidence["conversation"])


def test_a_forward_begins_a_conversation_of_its_own(gmail: GmailRig) -> None:
    original = gmail.house.users[USER].mailbox.add(RECEIVED, ("INBOX",), None)
    mail = replace(reply_to(gmail), original=Original("forward", original.id, original.thread_id))
    outcome = gmail.run(deliver(gmail, mail))
    assert isinstance(outcome, Sent)
    assert outcome.conversation_id != original.thread_id
    assert "conversation" not in outcome.evidence


# ── the Message-ID that Gmail assigns ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"status": 500}, "did not let us"),
        ({"drop": "before"}, "did not let us"),
        ({"status": 200, "body": {"id": "x"}}, "showed none"),
        ({"status": 403, "body": {}}, "did not let us"),
    ],
    ids=["fails", "breaks", "shows none", "is forbidden"],
)
def test_a_message_id_that_cannot_be_read_never_costs_the_sending(gmail: GmailRig, fault: dict, why: str) -> None:
    gmail.server.add_rule(stage="messages.get", **fault)
    outcome = gmail.run(deliver(gmail, new_mail()))
    assert isinstance(outcome, Sent)
    assert outcome.provider_id and outcome.rfc_message_id is None
    assert why in str(outcome.evidence["rfc_message_id"])


def test_a_message_id_that_does_not_come_is_not_waited_for(gmail: GmailRig) -> None:
    gmail.server.add_rule(stage="messages.get", silent=True)
    outcome = gmail.run(deliver(gmail, new_mail(), answer_within=0.4))
    assert isinstance(outcome, Sent)
    assert "in time" in str(outcome.evidence["rfc_message_id"])


def test_without_the_scope_the_reason_is_stated_and_nothing_is_asked(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (COMPOSE,)) as rig:
        outcome = rig.run(deliver(rig, new_mail()))
        assert isinstance(outcome, Sent)
        assert outcome.evidence["rfc_message_id"] == "not readable with these scopes"
        assert rig.server.seen["messages.get"] == 0


def test_the_body_of_a_draft_is_what_was_frozen(gmail: GmailRig) -> None:
    mail = new_mail()
    draft = gmail.run(prepared_draft(gmail, mail))
    stored = gmail.house.users[USER].mailbox.draft(draft.id)
    assert stored is not None and stored.raw is not None
    assert stored.raw.endswith(gmail.run(bytes_of(mail)))
