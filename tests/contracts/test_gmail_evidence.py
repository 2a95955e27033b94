"""What Gmail shows of a handover without an outcome, by the scopes that a mailbox granted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from gmail_rig import COMPOSE, FULL, METADATA, MODIFY, READONLY, SEND, GmailRig
from provider_rigs import CANARIES, RECIPIENTS, USER, deliver, new_mail, soon
from test_gmail_drafts import RECEIVED, reply_to

from outtray_schema.outcome import Held, Parked, Sent, Unknown
from outtray_worker.providers import Draft, Finding, Mail, Prepared, Trace

READING = [(COMPOSE, METADATA), (COMPOSE, READONLY), (MODIFY,), (FULL,)]


@pytest.fixture
def gmail(tmp_path: Path) -> Iterator[GmailRig]:
    with GmailRig(tmp_path, (COMPOSE, METADATA)) as rig:
        yield rig


def trace_of(rig: GmailRig, mail: Mail, draft: Draft | None = None) -> Trace:
    handed_at = datetime.fromtimestamp(rig.house.now(), UTC)
    thread = mail.original.conversation_id if mail.original else None
    return Trace(mail.message_id, mail.rfc_message_id, handed_at, RECIPIENTS, draft, thread)


def look(rig: GmailRig, trace: Trace) -> Finding:
    found = rig.run(rig.provider.open(rig.account).find_evidence(trace))
    assert [canary for canary in CANARIES if canary in repr(found)] == []
    return found


def hand_over(rig: GmailRig, mail: Mail) -> Trace:
    """One attempt whose answer is lost; what is known of it."""

    async def attempt() -> Trace:
        prepared: Prepared = await rig.provider.open(rig.account).prepare(mail)
        trace = trace_of(rig, mail, prepared.draft)
        assert isinstance(await prepared.hand_over(soon(), soon()), Unknown)
        return trace

    return rig.run(attempt())


@pytest.mark.parametrize("scopes", READING, ids=lambda scopes: "+".join(each.rsplit("/")[-1] for each in scopes))
def test_a_sent_draft_is_found_among_what_was_sent(scopes: tuple[str, ...], tmp_path: Path) -> None:
    with GmailRig(tmp_path, scopes) as rig:
        rig.server.add_rule(stage="drafts.send", drop="after", times=1)
        trace = hand_over(rig, new_mail())
        for _ in range(3):
            rig.run(deliver(rig, new_mail()))
        found = look(rig, trace)
        sent = next(each for each in rig.house.users[USER].mailbox.newest(("SENT",))[::-1])
        assert found.kind == "sent"
        assert found.sent == Sent(
            sent.id, sent.rfc_message_id, sent.thread_id, {"found": "among what was sent, by our key"}
        )


def test_a_message_sent_directly_is_found_by_our_key_and_never_by_the_search(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (SEND, METADATA)) as rig:
        rig.server.add_rule(stage="messages.send", drop="after", times=1)
        found = look(rig, hand_over(rig, new_mail()))
        assert found.kind == "sent"
        assert found.sent and found.sent.rfc_message_id


def test_a_sent_answer_is_found_in_its_conversation(gmail: GmailRig) -> None:
    gmail.house.users[USER].mailbox.add(RECEIVED, ("INBOX",), None)
    gmail.server.add_rule(stage="drafts.send", drop="after", times=1)
    found = look(gmail, hand_over(gmail, reply_to(gmail)))
    assert found.kind == "sent"
    assert found.sent and found.sent.evidence == {"found": "in its conversation, by our key"}
    assert gmail.server.seen["messages.list"] == 0


def test_a_draft_that_was_not_sent_is_still_one(gmail: GmailRig) -> None:
    gmail.server.add_rule(stage="drafts.send", drop="before", times=1)
    found = look(gmail, hand_over(gmail, new_mail()))
    assert (found.kind, found.sent) == ("still_draft", None)


def test_a_deleted_draft_proves_nothing(gmail: GmailRig) -> None:
    gmail.server.add_rule(stage="drafts.send", drop="before", times=1)
    trace = hand_over(gmail, new_mail())
    gmail.house.delete_message(USER, trace.draft.message_id if trace.draft and trace.draft.message_id else "")
    found = look(gmail, trace)
    assert found.kind == "nothing"
    assert "gone" in found.looked


def test_a_message_that_was_not_sent_directly_is_absent(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (SEND, METADATA)) as rig:
        for _ in range(2):
            rig.run(deliver(rig, new_mail()))
        rig.server.add_rule(stage="messages.send", drop="before", times=1)
        found = look(rig, hand_over(rig, new_mail()))
        assert found.kind == "absent"
        assert "all 2 of what was sent" in found.looked


def test_the_look_goes_back_to_before_the_handover_and_no_further(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (SEND, METADATA)) as rig:
        for _ in range(3):
            rig.run(deliver(rig, new_mail()))
        rig.house.shift_clock(3600)
        rig.run(deliver(rig, new_mail()))
        rig.server.add_rule(stage="messages.send", drop="before", times=1)
        trace = hand_over(rig, new_mail())
        before = rig.server.seen["messages.get"]
        assert look(rig, trace).kind == "absent"
        assert rig.server.seen["messages.get"] - before == 2


def test_a_look_that_does_not_reach_back_proves_nothing(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (SEND, METADATA)) as rig:
        mailbox = rig.house.users[USER].mailbox
        for _ in range(101):
            mailbox.add(RECEIVED, ("SENT",), None)
        found = look(rig, trace_of(rig, new_mail()))
        assert found.kind == "nothing"
        assert "not back to the handover" in found.looked


def test_another_mail_with_our_header_is_not_ours(gmail: GmailRig) -> None:
    gmail.run(deliver(gmail, new_mail()))
    assert look(gmail, trace_of(gmail, new_mail())).kind == "absent"


def test_a_copy_that_is_a_draft_is_no_sending(gmail: GmailRig) -> None:
    mail = new_mail()
    raw = f"X-Outtray-Key: {mail.message_id}\r\nTo: a@b.example\r\n\r\nx".encode()
    gmail.house.users[USER].mailbox.add(raw, ("DRAFT", "SENT"), None)
    assert look(gmail, trace_of(gmail, mail)).kind == "absent"


def test_with_gmail_send_alone_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (SEND,)) as rig:
        found = look(rig, trace_of(rig, new_mail()))
        assert found.kind == "no_way"
        assert dict(rig.server.seen) == {}


def test_with_gmail_compose_alone_only_the_draft_tells(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (COMPOSE,)) as rig:
        rig.server.add_rule(stage="drafts.send", drop="before", times=1)
        trace = hand_over(rig, new_mail())
        assert look(rig, trace).kind == "still_draft"
        gone = replace(trace, draft=Draft("r-none"))
        assert look(rig, gone).kind == "nothing"
        assert look(rig, replace(trace, draft=None)).kind == "no_way"


@pytest.mark.parametrize("stage", ["drafts.get", "messages.list", "messages.get"])
@pytest.mark.parametrize("fault", [{"status": 503}, {"drop": "before"}, {"status": 200, "body": "x"}])
def test_a_look_that_fails_says_so_and_proves_nothing(gmail: GmailRig, stage: str, fault: dict) -> None:
    gmail.run(deliver(gmail, new_mail()))
    gmail.server.add_rule(stage=stage, **fault)
    found = look(gmail, replace(trace_of(gmail, new_mail()), draft=Draft("r-none") if stage == "drafts.get" else None))
    assert found.kind == "failed"
    assert isinstance(found.outcome, Parked)


def test_a_look_without_a_token_says_who_must_act(gmail: GmailRig) -> None:
    gmail.tokens.refuse = [Held("consent was withdrawn")]
    found = look(gmail, trace_of(gmail, new_mail()))
    assert (found.kind, found.outcome) == ("failed", Held("consent was withdrawn"))


def test_a_conversation_that_is_gone_does_not_end_the_look(gmail: GmailRig) -> None:
    gmail.server.add_rule(stage="drafts.send", drop="after", times=1)
    trace = replace(hand_over(gmail, new_mail()), conversation_id=str(uuid4()))
    assert look(gmail, trace).kind == "sent"


def test_a_look_that_is_very_late_still_finds_it(gmail: GmailRig) -> None:
    gmail.server.add_rule(stage="drafts.send", drop="after", times=1)
    trace = hand_over(gmail, new_mail())
    gmail.house.shift_clock(timedelta(days=3).total_seconds())
    assert look(gmail, trace).kind == "sent"
