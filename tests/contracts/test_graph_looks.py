"""What is looked at in a Microsoft mailbox: evidence of a handover, the ids of the sent copy, a message to answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from graph_mails import UNSUBSCRIBE, file, frozen
from graph_rig import GraphRig
from provider_rigs import CANARIES, USER, deliver, soon

from outtray_sandbox.microsoft.mailbox import Attachment as Carried
from outtray_schema.outcome import Failed, Held, Outcome, Parked, Sent, Unknown
from outtray_worker.providers import Draft, Finding, Mail, OriginalMail, Trace
from outtray_worker.providers.microsoft import MicrosoftCheck
from outtray_worker.providers.microsoft.sending import NOT_YET, MicrosoftPrepared


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[GraphRig]:
    with GraphRig(tmp_path) as rig:
        yield rig


@pytest.fixture
def readable(tmp_path: Path) -> Iterator[GraphRig]:
    with GraphRig(tmp_path, "sendMail, readable") as rig:
        yield rig


def lose(graph: GraphRig, mail: Mail, take: bool = True) -> Trace:
    """A handover whose answer was lost; what is known of it afterwards."""

    async def attempt() -> Draft | None:
        session = graph.provider.open(graph.account)
        prepared = await session.prepare(mail)
        assert isinstance(prepared, MicrosoftPrepared)
        assert isinstance(await prepared.hand_over(soon(), soon(0.5)), Unknown)
        await session.close()
        return prepared.draft

    graph.server.add_rule(stage="messages.send|sendMail", status=504, take=take, times=1)
    draft = graph.run(attempt())
    return Trace(mail.message_id, mail.rfc_message_id, datetime.now(UTC), mail.recipients, draft)


def look(graph: GraphRig, trace: Trace) -> Finding:
    async def once() -> Finding:
        session = graph.provider.open(graph.account)
        finding = await session.find_evidence(trace)
        await session.close()
        return finding

    return graph.run(once())


def copy_of(graph: GraphRig) -> Any:
    return next(item for item in graph.house.mailboxes[USER].items if item.folder == "sentitems")


# ── evidence ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_draft_that_is_none_any_more_was_sent(graph: GraphRig) -> None:
    finding = look(graph, lose(graph, mail := frozen()))
    assert finding.kind == "sent" and finding.sent is not None
    assert finding.looked == "the draft by its id"
    assert finding.sent.provider_id == copy_of(graph).immutable
    assert finding.sent.rfc_message_id == mail.rfc_message_id
    assert finding.sent.conversation_id == copy_of(graph).properties["conversationId"]


@pytest.mark.parametrize("headers", [{}, UNSUBSCRIBE], ids=["json", "mime"])
def test_a_copy_with_another_id_is_found_by_message_id(graph: GraphRig, headers: dict[str, str]) -> None:
    graph.house.ids_change = True
    finding = look(graph, lose(graph, frozen(headers=headers)))
    assert finding.kind == "sent" and finding.sent is not None
    assert finding.sent.provider_id == copy_of(graph).immutable
    assert finding.looked.endswith("Sent Items by Message-ID")


@pytest.mark.parametrize("headers", [{}, UNSUBSCRIBE], ids=["json", "mime"])
def test_a_copy_with_another_id_and_message_id_is_found_by_our_key(graph: GraphRig, headers: dict[str, str]) -> None:
    graph.house.ids_change = graph.house.rewrite_ids = True
    finding = look(graph, lose(graph, frozen(headers=headers)))
    assert finding.kind == "sent" and finding.sent is not None
    assert finding.looked.endswith("Sent Items by our key")
    assert finding.sent.rfc_message_id == copy_of(graph).properties["internetMessageId"]


@pytest.mark.parametrize("rewrite", [False, True])
def test_a_copy_that_was_moved_is_found_anywhere(graph: GraphRig, rewrite: bool) -> None:
    graph.house.ids_change, graph.house.rewrite_ids = True, rewrite
    trace = lose(graph, frozen())
    copy_of(graph).folder = "deleteditems"
    finding = look(graph, trace)
    assert finding.kind == "sent"
    assert finding.looked.endswith("and our key" if rewrite else "the whole mailbox by Message-ID")


def test_another_message_of_the_conversation_proves_nothing(graph: GraphRig) -> None:
    trace = lose(graph, frozen())
    conversation = trace.draft.conversation_id if trace.draft else None
    graph.house.mailboxes[USER].items.clear()
    graph.server.receive(USER, "ann@first.example", "Re", "<p>hi</p>", conversationId=conversation)
    finding = look(graph, trace)
    assert finding.kind == "nothing"
    assert "the conversation" in finding.looked


def test_a_draft_that_is_one_yet_is_still_a_draft(graph: GraphRig) -> None:
    assert look(graph, lose(graph, frozen(), take=False)).kind == "still_draft"


def test_while_transport_is_at_work_a_sent_draft_still_looks_like_one(graph: GraphRig) -> None:
    graph.house.sent_copy_after = 60
    trace = lose(graph, frozen())
    assert look(graph, trace).kind == "still_draft"
    graph.house.shift_clock(61)
    assert look(graph, trace).kind == "sent"


def test_a_draft_that_is_gone_without_a_copy_proves_nothing(graph: GraphRig) -> None:
    graph.house.sent_copy_after, graph.house.vanishing = 60, True
    trace = lose(graph, frozen())
    assert look(graph, trace).kind == "nothing"
    graph.house.shift_clock(61)
    assert look(graph, trace).kind == "sent"


def test_a_mail_sent_at_once_is_found_by_its_message_id_or_is_absent(readable: GraphRig) -> None:
    sent = lose(readable, frozen())
    assert look(readable, sent).kind == "sent"
    absent = look(readable, lose(readable, frozen(), take=False))
    assert absent.kind == "absent"
    assert absent.looked == "Sent Items by Message-ID; the whole mailbox by Message-ID"


def test_mail_send_alone_lets_nobody_look(tmp_path: Path) -> None:
    with GraphRig(tmp_path, "sendMail") as graph:
        trace = lose(graph, frozen())
        before = len(graph.requests())
        finding = look(graph, trace)
        assert finding.kind == "no_way"
        assert len(graph.requests()) == before


@pytest.mark.parametrize(
    ("rule", "outcome"),
    [
        ({"status": 429, "body": {"error": {"code": "TooManyRequests"}}, "headers": {"Retry-After": "9"}}, Parked),
        ({"status": 403, "body": {"error": {"code": "ErrorAccessDenied"}}}, Held),
        ({"status": 503, "body": {"error": {"code": "ErrorServerBusy"}}}, Parked),
        ({"status": 500}, type(None)),
        ({"drop": "before"}, Parked),
        ({"status": 200, "body": "no json"}, type(None)),
    ],
)
@pytest.mark.parametrize("stage", ["messages.get", "folder.messages", "messages.list"])
def test_a_look_that_fails_says_so_and_never_that_nothing_is_there(
    graph: GraphRig, stage: str, rule: dict[str, Any], outcome: type
) -> None:
    graph.house.lose_copies = True
    trace = lose(graph, frozen())
    graph.server.add_rule(stage=stage, **rule)
    finding = look(graph, trace)
    assert finding.kind == "failed"
    assert isinstance(finding.outcome, outcome)
    assert [canary for canary in CANARIES if canary in repr(finding)] == []


# ── the ids after the handover ──────────────────────────────────────────────────────────────────────────────────────


def test_the_final_id_is_learned_once_the_copy_is_there(graph: GraphRig) -> None:
    graph.house.ids_change, graph.house.sent_copy_after = True, 0.02
    outcome = graph.run(deliver(graph, frozen()))
    assert isinstance(outcome, Sent)
    assert outcome.provider_id == copy_of(graph).immutable


@pytest.mark.parametrize("vanishing", [False, True])
def test_a_copy_that_does_not_show_up_leaves_the_drafts_id_and_says_why(graph: GraphRig, vanishing: bool) -> None:
    graph.house.sent_copy_after, graph.house.vanishing = 3600, vanishing
    mail = frozen()
    outcome = graph.run(deliver(graph, mail))
    assert isinstance(outcome, Sent)
    assert outcome.evidence["provider_id"] == NOT_YET
    assert outcome.provider_id == copy_of(graph).immutable
    assert outcome.rfc_message_id == mail.rfc_message_id and outcome.conversation_id is not None


@pytest.mark.parametrize("rule", [{"status": 500}, {"drop": "before"}, {"status": 401}, {"status": 200, "body": "x"}])
def test_a_failing_look_after_the_handover_never_fails_the_mail(graph: GraphRig, rule: dict[str, Any]) -> None:
    graph.server.add_rule(stage="messages.get|folder.messages", **rule)
    outcome = graph.run(deliver(graph, frozen()))
    assert isinstance(outcome, Sent) and outcome.provider_id
    assert "provider_id" in outcome.evidence


def test_a_message_id_that_transport_changed_is_the_one_that_is_told(graph: GraphRig) -> None:
    graph.house.rewrite_ids = True
    outcome = graph.run(deliver(graph, frozen()))
    assert isinstance(outcome, Sent)
    assert outcome.rfc_message_id == copy_of(graph).properties["internetMessageId"] == graph.taken()[0].rfc_message_id


# ── reading an original ─────────────────────────────────────────────────────────────────────────────────────────────


def read(graph: GraphRig, ref: str) -> OriginalMail | Outcome:
    async def once() -> OriginalMail | Outcome:
        session = graph.provider.open(graph.account)
        found = await session.read_original(ref)
        await session.close()
        return found

    return graph.run(once())


def received(graph: GraphRig) -> Any:
    item = graph.server.receive(
        USER, "ann@first.example", "Hello", "<p>hi</p>",
        replyTo=[{"emailAddress": {"name": "Ann", "address": "reply@first.example"}}],
        ccRecipients=[{"emailAddress": {"name": "", "address": "cc@first.example"}}],
        internetMessageHeaders=[{"name": "References", "value": "<a@x.example> <b@x.example>"}],
    )  # fmt: skip
    image = {"name": "l.png", "contentType": "image/png", "isInline": True, "contentId": "logo"}
    item.attachments = [Carried({"name": "a.pdf", "contentType": "application/pdf"}, b"pdf"), Carried(image, b"png")]
    return item


@pytest.mark.parametrize("by", ["id", "Message-ID"])
def test_an_original_is_read_by_its_id_or_its_message_id(graph: GraphRig, by: str) -> None:
    item = received(graph)
    found = read(graph, item.immutable if by == "id" else item.properties["internetMessageId"])
    assert isinstance(found, OriginalMail)
    assert (found.message_id, found.conversation_id) == (item.immutable, item.properties["conversationId"])
    assert found.rfc_message_id == item.properties["internetMessageId"]
    assert found.references == ("<a@x.example>", "<b@x.example>")
    assert (found.subject, found.html, found.text) == ("Hello", "<p>hi</p>", None)
    assert found.sender == ("ann@first.example", "ann@first.example")
    assert found.reply_to == (("Ann", "reply@first.example"),)
    assert [address for _, address in (*found.to, *found.cc)] == [USER, "cc@first.example"]
    assert found.date is not None and found.date.tzinfo is not None
    shown = [(each.filename, each.content_type, each.inline_id) for each in found.attachments]
    assert shown == [("a.pdf", "application/pdf", None), ("l.png", "image/png", "logo")]


def test_the_files_of_an_original_are_fetched_when_they_are_wanted(graph: GraphRig) -> None:
    async def fetched() -> list[bytes]:
        session = graph.provider.open(graph.account)
        found = await session.read_original(item.immutable)
        assert isinstance(found, OriginalMail)
        return [b"".join([piece async for piece in each.fetch()]) for each in found.attachments for _ in range(2)]

    item = received(graph)
    assert graph.run(fetched()) == [b"pdf", b"pdf", b"png", b"png"]


@pytest.mark.parametrize("ref", ["AAkALgnot-there=", "<nobody@x.example>"])
def test_an_original_that_is_not_there_is_refused(graph: GraphRig, ref: str) -> None:
    outcome = read(graph, ref)
    assert isinstance(outcome, Failed) and outcome.evidence["rule"] == "original-gone"


def test_without_the_permission_an_original_is_refused_by_its_name(tmp_path: Path) -> None:
    with GraphRig(tmp_path, "sendMail") as graph:
        outcome = read(graph, "<a@x.example>")
        assert isinstance(outcome, Failed) and "Mail.Read" in outcome.reason
        assert graph.requests() == []


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stage", ["messages.create", "messages.send", "upload.create", "messages.get"])
def test_an_expired_token_is_renewed_once_and_the_request_made_again(graph: GraphRig, stage: str) -> None:
    error = {"error": {"code": "InvalidAuthenticationToken", "message": "expired"}}
    graph.server.add_rule(stage=stage, status=401, body=error, times=1)
    outcome = graph.run(deliver(graph, frozen(attachments=[file(4_500_000)])))
    assert isinstance(outcome, Sent)
    assert graph.tokens.renewals == [None]
    assert len(graph.taken()) == 1


def test_a_claims_challenge_is_handed_to_whoever_renews_the_token(graph: GraphRig) -> None:
    graph.house.challenge(USER)
    assert isinstance(graph.run(deliver(graph, frozen())), Sent)
    (claims,) = graph.tokens.renewals
    assert "access_token" in json.loads(claims or "")


def test_a_token_that_expires_at_the_handover_costs_no_second_mail(graph: GraphRig) -> None:
    async def attempt() -> Outcome:
        prepared = await graph.provider.open(graph.account).prepare(frozen())
        graph.house.expire_tokens()
        return await prepared.hand_over(soon(), soon())

    assert isinstance(graph.run(attempt()), Sent)
    assert (graph.handovers(), len(graph.taken())) == (2, 1)


def test_without_a_token_its_outcome_is_the_mails(graph: GraphRig) -> None:
    graph.tokens.none = Held("the consent was withdrawn")
    assert graph.run(deliver(graph, frozen())) == Held("the consent was withdrawn")
    assert look(graph, Trace(frozen().message_id, "<a@x.example>", datetime.now(UTC), ())).kind == "failed"
    graph.account = replace(graph.account, tokens=None)
    assert isinstance(graph.run(deliver(graph, frozen())), Held)
    assert graph.requests() == []


def test_a_token_that_is_lost_at_the_handover_means_that_it_was_not_begun(graph: GraphRig) -> None:
    async def attempt() -> Outcome:
        prepared = await graph.provider.open(graph.account).prepare(frozen())
        graph.tokens.none = Parked("no token now")
        return await prepared.hand_over(soon(), soon())

    assert graph.run(attempt()) == Parked("no token now")
    assert graph.handovers() == 0


# ── check and identities ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_mailbox_can_be_checked_without_sending(graph: GraphRig) -> None:
    found = graph.run(graph.provider.check(graph.account))
    assert isinstance(found, MicrosoftCheck)
    assert (found.route, found.can_look, found.looked) == ("draft", True, True)
    assert found.addresses == (USER, "canary-alias@sender.example")
    assert graph.handovers() == 0
    assert "canary" not in repr(found)


def test_a_mailbox_that_may_only_send_is_checked_by_its_token(tmp_path: Path) -> None:
    with GraphRig(tmp_path, "sendMail") as graph:
        found = graph.run(graph.provider.check(graph.account))
        assert isinstance(found, MicrosoftCheck)
        assert (found.route, found.can_look, found.looked, found.addresses) == ("sendMail", False, False, (USER,))
        graph.tokens.none = Held("withdrawn")
        assert graph.run(graph.provider.check(graph.account)) == Held("withdrawn")


def test_a_mailbox_that_does_not_exist_is_found_out(graph: GraphRig) -> None:
    graph.house.mailboxes.clear()
    outcome = graph.run(graph.provider.check(graph.account))
    assert isinstance(outcome, Held) and outcome.evidence["rule"] == "no-mailbox"


def test_the_addresses_to_send_from_are_the_own_one_and_its_aliases(graph: GraphRig, tmp_path: Path) -> None:
    found = graph.run(graph.provider.identities(graph.account))
    assert found == [USER, "canary-alias@sender.example"]
    graph.server.add_rule(stage="profile", status=403, body={"error": {"code": "Authorization_RequestDenied"}})
    assert isinstance(graph.run(graph.provider.identities(graph.account)), Held)
