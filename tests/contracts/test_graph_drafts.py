"""Drafts at Graph: one per message, complete, bound for ever, adopted or deleted, and answers in their conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graph_mails import MB, UNSUBSCRIBE, file, frozen
from graph_rig import GraphRig
from provider_rigs import CANARIES, RECIPIENTS, SUBJECT, USER, Fault, deliver, soon

from outtray_sandbox.microsoft.mailbox import Attachment as Carried
from outtray_sandbox.microsoft.mailbox import Item
from outtray_schema.outcome import Drafted, Failed, NotBegun, Outcome, Parked, Retry, Sent, Unknown
from outtray_worker.deadline import Deadline, boottime
from outtray_worker.providers import Answering, Draft, Mail, Original
from outtray_worker.providers.microsoft.sending import MicrosoftPrepared


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[GraphRig]:
    with GraphRig(tmp_path) as rig:
        yield rig


def items(graph: GraphRig, folder: str) -> list[Item]:
    return [item for item in graph.house.mailboxes[USER].items if item.folder == folder]


def stages(graph: GraphRig) -> list[str]:
    return [each["stage"] for each in graph.requests()]


def drafted(graph: GraphRig, mail: Mail) -> Draft:
    """Prepare and leave it, as a worker that dies does."""

    async def leave() -> Draft:
        prepared = await graph.provider.open(graph.account).prepare(mail)
        assert isinstance(prepared, MicrosoftPrepared) and prepared.draft is not None
        return prepared.draft

    return graph.run(leave())


MAKES: dict[str, Callable[[], Mail]] = {
    "json": lambda: frozen(attachments=[file(1000)]),
    "json, uploads": lambda: frozen(attachments=[file(4 * MB), file(10, "b")]),
    "mime": lambda: frozen(headers=UNSUBSCRIBE),
    "mime, uploads": lambda: frozen(headers=UNSUBSCRIBE, attachments=[file(4 * MB)]),
}


# ── one draft, bound for ever ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", MAKES)
def test_a_draft_names_all_its_ids_before_anything_is_sent(graph: GraphRig, make: str) -> None:
    mail = MAKES[make]()
    draft = drafted(graph, mail)
    (item,) = items(graph, "drafts")
    assert draft.id == draft.message_id == item.immutable
    assert draft.rfc_message_id == mail.rfc_message_id
    assert draft.conversation_id == item.properties["conversationId"]
    assert graph.handovers() == 0


@pytest.mark.parametrize("make", MAKES)
def test_a_bound_draft_is_what_every_attempt_sends_and_no_other_is_made(graph: GraphRig, make: str) -> None:
    mail = MAKES[make]()
    bound = replace(mail, draft=drafted(graph, mail))
    graph.misbehave("refuses late")
    before = stages(graph)
    assert isinstance(graph.run(deliver(graph, bound)), Failed)
    assert stages(graph)[len(before) :] == ["messages.send"] or graph.handovers() == 1
    outcome = graph.run(deliver(graph, bound))
    assert isinstance(outcome, Sent)
    assert stages(graph).count("messages.create") == 1
    assert [mail.rfc_message_id for mail in graph.taken()] == [mail.rfc_message_id]


def test_a_bound_draft_that_is_gone_is_unknown_and_no_other_is_made(graph: GraphRig) -> None:
    mail = frozen()
    bound = replace(mail, draft=drafted(graph, mail))
    graph.house.mailboxes[USER].items.clear()
    outcome = graph.run(deliver(graph, bound))
    assert isinstance(outcome, Unknown)
    assert outcome.evidence["rule"] == "draft-gone"
    assert stages(graph).count("messages.create") == 1


def test_a_draft_is_consumed_once_however_often_it_is_sent(graph: GraphRig) -> None:
    mail = frozen()
    bound = replace(mail, draft=drafted(graph, mail))
    assert isinstance(graph.run(deliver(graph, bound)), Sent)
    assert isinstance(graph.run(deliver(graph, bound)), Unknown)
    assert len(graph.taken()) == 1


@pytest.mark.parametrize("make", MAKES)
def test_an_abandoned_draft_is_deleted_and_a_bound_one_stays(graph: GraphRig, make: str) -> None:
    async def abandon(mail: Mail) -> None:
        session = graph.provider.open(graph.account)
        prepared = await session.prepare(mail)
        assert isinstance(prepared, MicrosoftPrepared)
        await prepared.abandon()
        assert isinstance(await prepared.hand_over(soon(), soon()), NotBegun)

    mail = MAKES[make]()
    graph.run(abandon(mail))
    assert items(graph, "drafts") == []
    bound = replace(mail, draft=drafted(graph, mail))
    graph.run(abandon(bound))
    assert len(items(graph, "drafts")) == 1


# ── a draft for its person ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scopes", ["Mail.Send Mail.ReadWrite", "Mail.ReadWrite"])
def test_what_was_only_to_become_a_draft_is_one_with_its_ids(graph: GraphRig, scopes: str) -> None:
    graph.account = graph.account_of(scopes)
    graph.tokens.scopes = scopes
    mail = replace(frozen(attachments=[file(4 * MB)]), only_draft=True)
    outcome = graph.run(deliver(graph, mail))
    (item,) = items(graph, "drafts")
    assert outcome == Drafted(item.immutable, mail.rfc_message_id, item.properties["conversationId"])
    assert graph.handovers() == 0
    assert [each.content for each in item.attachments] == [file(4 * MB).content]


def test_a_draft_for_its_person_needs_the_permission_to_write(tmp_path: Path) -> None:
    with GraphRig(tmp_path, "sendMail") as graph:
        outcome = graph.run(deliver(graph, replace(frozen(), only_draft=True)))
        assert isinstance(outcome, Failed) and "Mail.ReadWrite" in outcome.reason
        assert graph.handovers() == 0


def test_a_draft_for_its_person_that_comes_too_late_is_not_begun(graph: GraphRig) -> None:
    async def late() -> Outcome:
        prepared = await graph.provider.open(graph.account).prepare(replace(frozen(), only_draft=True))
        assert isinstance(prepared, MicrosoftPrepared)
        return await prepared.hand_over(Deadline(boottime() - 0.001), soon())

    assert isinstance(graph.run(late()), NotBegun)


# ── drafts that nobody bound ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", ["json", "json, uploads", "mime"])
def test_a_complete_draft_that_was_left_is_adopted_and_its_twins_are_deleted(graph: GraphRig, make: str) -> None:
    mail = MAKES[make]()
    drafted(graph, mail)
    drafted(graph, mail)
    left = [item.immutable for item in items(graph, "drafts")]
    other = drafted(graph, frozen())
    outcome = graph.run(deliver(graph, replace(mail, suspect=True)))
    assert isinstance(outcome, Sent)
    assert outcome.provider_id in left
    assert stages(graph).count("messages.create") == 3
    assert [item.immutable for item in items(graph, "drafts")] == [other.id]


def test_a_draft_that_lacks_a_file_is_deleted_and_made_anew(graph: GraphRig) -> None:
    mail = frozen(attachments=[file(4 * MB), file(3_500_000, "b")])
    drafted(graph, mail)
    items(graph, "drafts")[0].attachments.pop()
    assert isinstance(graph.run(deliver(graph, replace(mail, suspect=True))), Sent)
    assert items(graph, "drafts") == []
    (copy,) = items(graph, "sentitems")
    assert [each.content for each in copy.attachments] == [file(4 * MB).content, file(3_500_000).content]


def test_a_mime_draft_without_our_key_is_known_by_its_message_id_and_gets_it(graph: GraphRig) -> None:
    mail = frozen(headers=UNSUBSCRIBE)
    drafted(graph, mail)
    del items(graph, "drafts")[0].properties["singleValueExtendedProperties"]
    outcome = graph.run(deliver(graph, replace(mail, suspect=True)))
    assert isinstance(outcome, Sent)
    assert stages(graph).count("messages.create") == 1
    assert items(graph, "sentitems")[0].properties["singleValueExtendedProperties"]


def test_a_large_mime_draft_that_was_left_is_made_anew(graph: GraphRig) -> None:
    mail = MAKES["mime, uploads"]()
    drafted(graph, mail)
    assert isinstance(graph.run(deliver(graph, replace(mail, suspect=True))), Sent)
    assert items(graph, "drafts") == []


LOST: dict[str, dict[str, Any]] = {
    "closes after making it": {"stage": "messages.create", "drop": "after"},
    "says 504 after making it": {"stage": "messages.create", "status": 504, "take": True},
    "does not answer": {"stage": "messages.create", "silent": True, "take": True},
}


@pytest.mark.parametrize("fault", LOST)
def test_a_draft_whose_making_was_not_answered_is_found_by_the_next_attempt(graph: GraphRig, fault: str) -> None:
    mail = frozen()
    graph.server.add_rule(times=1, **LOST[fault])
    first = graph.run(deliver(graph, mail))
    assert isinstance(first, Retry)
    assert len(items(graph, "drafts")) == 1
    assert isinstance(graph.run(deliver(graph, mail)), Sent)
    assert stages(graph).count("messages.create") == 1
    assert items(graph, "drafts") == []


@pytest.mark.parametrize("stage", ["messages.patch", "attachments.add", "upload.create"])
@pytest.mark.parametrize("status", [400, 429, 500])
def test_a_preparation_that_fails_leaves_no_draft(graph: GraphRig, stage: str, status: int) -> None:
    graph.server.add_rule(stage=stage, status=status, body={"error": {"code": "Odd", "message": SUBJECT}})
    mail = frozen(
        headers={} if stage == "attachments.add" else UNSUBSCRIBE,
        attachments=[file(4 * MB), file(3_000_000, "b")],
    )
    outcome = graph.run(deliver(graph, mail))
    assert isinstance(outcome, Retry | Parked | Failed)
    assert items(graph, "drafts") == []
    assert [canary for canary in CANARIES if canary in repr(outcome)] == []


def test_a_cancelled_preparation_is_looked_for_next_time(graph: GraphRig) -> None:
    async def cancelled() -> None:
        graph.server.add_rule(stage="upload.put", silent=True, times=1)
        task = asyncio.ensure_future(graph.provider.open(graph.account).prepare(mail))
        while not graph.requests("upload.put"):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    mail = frozen(attachments=[file(4 * MB)])
    graph.run(cancelled())
    assert len(items(graph, "drafts")) == 1
    assert isinstance(graph.run(deliver(graph, mail)), Sent)
    assert items(graph, "drafts") == []


def test_a_preparation_beyond_its_limit_ends_and_its_draft_is_taken_away_later(tmp_path: Path) -> None:
    with GraphRig(tmp_path, settings={"prepare_limit": "500ms", "command_timeout": "30s"}) as graph:
        graph.server.add_rule(stage="upload.put", silent=True, times=1)
        mail = frozen(attachments=[file(4 * MB)])
        outcome = graph.run(deliver(graph, mail))
        assert isinstance(outcome, Retry) and outcome.evidence["rule"] == "timeout"
        assert graph.provider.doubtful(mail.message_id)


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def original(graph: GraphRig, *files: Any) -> Item:
    item = graph.server.receive(USER, "ann@first.example", "Hello", "<p>hi</p>")
    item.attachments = list(files)
    return item


@pytest.mark.parametrize(
    ("answering", "action"), [("reply", "RE: Hello"), ("reply_all", "RE: Hello"), ("forward", "FW: Hello")]
)
def test_an_answer_stands_in_its_conversation_with_our_text_and_recipients(
    graph: GraphRig, answering: Answering, action: str
) -> None:
    asked = original(graph)
    mail = frozen(subject="Re: Hello, but ours", html="<b>ours</b>", attachments=[file(100)])
    mail = replace(mail, original=Original(answering, asked.immutable, asked.properties["conversationId"]))
    outcome = graph.run(deliver(graph, mail))
    assert isinstance(outcome, Sent)
    assert stages(graph)[:2] == ["answer", "messages.patch"]
    (copy,) = items(graph, "sentitems")
    assert outcome.conversation_id == asked.properties["conversationId"] == copy.properties["conversationId"]
    assert copy.properties["in-reply-to"] == asked.properties["internetMessageId"]
    assert copy.properties["subject"] == "Re: Hello, but ours"
    assert copy.properties["body"]["content"] == "<b>ours</b>\n"
    assert [each.content for each in copy.attachments] == [file(100).content]
    (taken,) = graph.taken()
    assert (taken.recipients, taken.rfc_message_id) == (RECIPIENTS, mail.rfc_message_id)
    assert outcome.rfc_message_id == mail.rfc_message_id


def test_a_forward_keeps_what_graph_carried_over_and_uploads_only_the_rest(graph: GraphRig) -> None:
    big = file(5 * MB, "big.bin")
    asked = original(graph, Carried({"name": "big.bin"}, big.content or b""), Carried({"name": "unwanted"}, b"x"))
    mail = replace(frozen(attachments=[big, file(50, "new.bin")]), original=Original("forward", asked.immutable, None))
    assert isinstance(graph.run(deliver(graph, mail)), Sent)
    (copy,) = items(graph, "sentitems")
    assert [each.content for each in copy.attachments] == [big.content, file(50).content]
    assert "upload.create" not in stages(graph)
    assert stages(graph).count("attachments.delete") == 1


def test_an_original_that_is_gone_fails_the_answer(graph: GraphRig) -> None:
    mail = replace(frozen(), original=Original("reply", "AAkALgnothing=", None))
    outcome = graph.run(deliver(graph, mail))
    assert isinstance(outcome, Failed) and outcome.evidence["rule"] == "original-gone"


def test_an_answer_with_headers_beyond_json_goes_as_mime_with_its_references(graph: GraphRig) -> None:
    asked = original(graph)
    mail = frozen(headers=UNSUBSCRIBE, in_reply_to="<0@x.example>", references=["<0@x.example>"])
    mail = replace(mail, original=Original("reply", asked.immutable, None))
    assert isinstance(graph.run(deliver(graph, mail)), Sent)
    assert b"In-Reply-To: <0@x.example>" in (items(graph, "sentitems")[0].mime or b"")


def test_without_the_permission_to_write_an_answer_keeps_its_references(tmp_path: Path) -> None:
    with GraphRig(tmp_path, "sendMail") as graph:
        asked = original(graph)
        mail = frozen(in_reply_to="<0@x.example>", references=["<0@x.example>"])
        mail = replace(mail, original=Original("reply", asked.immutable, None))
        assert isinstance(graph.run(deliver(graph, mail)), Sent)
        assert b"In-Reply-To: <0@x.example>" in (items(graph, "sentitems")[0].mime or b"")


def test_an_answer_that_was_left_unbound_is_made_anew(graph: GraphRig) -> None:
    asked = original(graph)
    mail = replace(frozen(), original=Original("reply", asked.immutable, None))
    drafted(graph, mail)
    assert isinstance(graph.run(deliver(graph, replace(mail, suspect=True))), Sent)
    assert items(graph, "drafts") == []


# ── slowing down, and what no error may tell ────────────────────────────────────────────────────────────────────────


def test_202_with_retry_after_is_sent_and_the_next_mail_waits(graph: GraphRig) -> None:
    graph.house.accept_retry_after = 40
    first = graph.run(deliver(graph, frozen()))
    assert isinstance(first, Sent) and first.evidence["slow_down"] == 40
    before = stages(graph)
    second = graph.run(deliver(graph, frozen()))
    assert isinstance(second, Parked) and second.scope == "mailbox"
    assert second.after is not None and 35 < second.after.total_seconds() <= 40
    assert stages(graph) == before


STAGES = ["messages.create", "messages.patch", "attachments.add", "upload.create", "upload.put", "messages.send"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
def test_no_outcome_of_any_step_and_no_log_line_holds_a_secret(
    graph: GraphRig, stage: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    token = graph.run(graph.tokens.access())
    secrets = f"canary-to@first.example {SUBJECT} https://outlook.office.com/x?authtoken=canary-upload-1 {token}"
    body = {"error": {"code": "Odd", "message": secrets, "innerError": {"code": secrets}}}
    headers = {"request-id": secrets, "Location": secrets, "WWW-Authenticate": f'Bearer claims="{secrets}"'}
    graph.server.add_rule(stage=stage, status=status, body=body, headers=headers)
    mail = frozen(headers=UNSUBSCRIBE, attachments=[file(4 * MB), file(3_000_000, "canary-file")])
    outcome = graph.run(deliver(graph, mail))
    assert not isinstance(outcome, Sent)
    said = repr(outcome) + caplog.text + repr(graph.signals.take())
    assert [each for each in (*CANARIES, "authtoken", token, graph.tokens.current) if each in said] == []


def test_the_second_of_two_mails_leaves_after_any_fault(graph: GraphRig) -> None:
    faults: list[Fault] = ["refuses early", "refuses late", "takes, loses the answer", "breaks"]
    for fault in faults:
        graph.misbehave(fault)
        assert not isinstance(graph.run(deliver(graph, frozen())), Sent)
        assert isinstance(graph.run(deliver(graph, frozen())), Sent)
