"""Which way a mail takes through Graph, by scopes, headers and size; each way commits by exactly one request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from graph_mails import ALIAS, MB, UNSUBSCRIBE, file, frozen
from graph_rig import GraphRig
from provider_rigs import BCC, CANARIES, RECIPIENTS, USER, bytes_of, deliver, digest, soon

from outtray_sandbox.microsoft.mailbox import Item
from outtray_schema.outcome import Failed, Held, NotBegun, Outcome, Parked, Retry, Sent, Unknown
from outtray_worker.deadline import boottime
from outtray_worker.providers import Mail
from outtray_worker.providers.microsoft.letter import KEY
from polling import until


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[GraphRig]:
    with GraphRig(tmp_path) as rig:
        yield rig


@pytest.fixture
def send_only(tmp_path: Path) -> Iterator[GraphRig]:
    with GraphRig(tmp_path, "sendMail") as rig:
        yield rig


def copy_in(graph: GraphRig) -> Item:
    (found,) = [item for item in graph.house.mailboxes[USER].items if item.folder == "sentitems"]
    return found


def stages(graph: GraphRig) -> list[str]:
    return [each["stage"] for each in graph.requests()]


def sent(graph: GraphRig, mail: Mail) -> Sent:
    outcome = graph.run(deliver(graph, mail))
    assert isinstance(outcome, Sent), outcome
    (taken,) = graph.taken()
    assert (taken.rfc_message_id, taken.recipients) == (mail.rfc_message_id, mail.recipients)
    return outcome


# ── ways ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plain_mail_is_one_draft_from_json_with_its_files_in_it(graph: GraphRig) -> None:
    outcome = sent(graph, frozen(html="<b>x</b>", attachments=[file(200_000), file(10, "l.png", inline_id="logo")]))
    copy = copy_in(graph)
    assert stages(graph) == ["messages.create", "messages.send", "messages.get"]
    assert outcome.provider_id == copy.immutable
    assert outcome.conversation_id == copy.properties["conversationId"]
    assert [each.content for each in copy.attachments] == [file(10).content, file(200_000).content]
    assert copy.properties["body"] == {"contentType": "html", "content": "<b>x</b>\n"}
    assert (outcome.evidence["status"], outcome.evidence["rule"]) == (202, "accepted")


def test_every_request_asks_for_immutable_ids_and_names_itself(graph: GraphRig) -> None:
    outcome = sent(graph, frozen(headers=UNSUBSCRIBE, attachments=[file(4 * MB)]))
    asked = [each for each in graph.requests() if not each["stage"].startswith("upload.put")]
    assert len(asked) == 5
    assert {each["prefer"] for each in asked} == {'IdType="ImmutableId"'}
    names = [each["client_request_id"] for each in asked]
    assert len(set(names)) == len(names) and all(len(name) == 36 for name in names)
    assert outcome.evidence["client_request_id"] in names


def test_headers_beyond_json_go_as_mime_and_arrive_unaltered(graph: GraphRig) -> None:
    mail = frozen(headers=UNSUBSCRIBE, in_reply_to="<0@x.example>")
    sent(graph, mail)
    assert stages(graph)[:3] == ["messages.create", "messages.patch", "messages.send"]
    assert graph.house.ledger.read()[0].sha256 == digest(graph.run(bytes_of(mail)))
    key = {"id": KEY, "value": str(mail.message_id)}
    assert copy_in(graph).properties["singleValueExtendedProperties"] == [key]


def test_headers_beyond_json_above_4_mb_leave_the_files_to_uploads(graph: GraphRig) -> None:
    mail = frozen(html="<img src='cid:logo'>", headers=UNSUBSCRIBE,
                  attachments=[file(5 * MB), file(70, "b.bin"), file(9, "l.png", inline_id="logo")])  # fmt: skip
    sent(graph, mail)
    copy = copy_in(graph)
    headers = {each["name"]: each["value"] for each in copy.properties["internetMessageHeaders"]}
    assert headers["List-Unsubscribe"] == UNSUBSCRIBE["List-Unsubscribe"]
    assert [each.content for each in copy.attachments if each.content in (file(5 * MB).content, file(70).content)] == [
        file(5 * MB).content,
        file(70).content,
    ]


def test_another_sender_goes_as_json_with_from_and_without_sender(graph: GraphRig) -> None:
    outcome = graph.run(deliver(graph, frozen(sender=ALIAS)))
    assert isinstance(outcome, Sent)
    assert [each.sender for each in graph.taken()] == [ALIAS]
    assert copy_in(graph).properties["from"]["emailAddress"]["address"] == ALIAS


def test_another_sender_that_exchange_does_not_allow_stops_the_mailbox(graph: GraphRig) -> None:
    outcome = graph.run(deliver(graph, frozen(sender="boss@sender.example")))
    assert isinstance(outcome, Held) and outcome.status == "disabled"
    assert graph.taken() == []


def test_headers_that_no_way_can_carry_for_another_sender_are_named(graph: GraphRig, tmp_path: Path) -> None:
    outcome = graph.run(deliver(graph, frozen(sender=ALIAS, headers=UNSUBSCRIBE)))
    assert isinstance(outcome, Failed)
    assert "List-Unsubscribe" in outcome.reason
    assert stages(graph) == []


def test_mail_send_alone_sends_mime_in_one_request(send_only: GraphRig) -> None:
    mail = frozen(headers=UNSUBSCRIBE)
    outcome = sent(send_only, mail)
    assert stages(send_only) == ["sendMail"]
    assert send_only.taken()[0].sha256 == digest(send_only.run(bytes_of(mail)))
    assert (outcome.provider_id, outcome.conversation_id) == (None, None)
    assert "sendMail" in str(outcome.evidence["provider_id"]) and "sendMail" in str(outcome.evidence["conversation_id"])
    assert outcome.rfc_message_id == mail.rfc_message_id


def test_mail_send_alone_sends_for_another_sender_as_json(send_only: GraphRig) -> None:
    outcome = send_only.run(deliver(send_only, frozen(sender=ALIAS, attachments=[file(100)])))
    assert isinstance(outcome, Sent)
    assert [each.sender for each in send_only.taken()] == [ALIAS]
    assert [each.content for each in copy_in(send_only).attachments] == [file(100).content]


@pytest.mark.parametrize("sender", [USER, ALIAS])
def test_mail_send_alone_cannot_send_what_does_not_fit_and_says_what_would(send_only: GraphRig, sender: str) -> None:
    outcome = send_only.run(deliver(send_only, frozen(sender=sender, attachments=[file(4 * MB)])))
    assert isinstance(outcome, Failed)
    assert "Mail.ReadWrite" in outcome.reason
    assert stages(send_only) == []


def test_with_reading_granted_sendmail_learns_its_ids(tmp_path: Path) -> None:
    with GraphRig(tmp_path, "sendMail, readable") as graph:
        outcome = sent(graph, frozen())
        assert outcome.provider_id == copy_in(graph).immutable
        assert outcome.conversation_id == copy_in(graph).properties["conversationId"]


def test_a_shared_mailbox_is_named_in_every_path(tmp_path: Path) -> None:
    with GraphRig(tmp_path, server_settings={"shared": True}) as graph:
        graph.tokens.scopes = "Mail.Send.Shared Mail.ReadWrite.Shared"
        assert isinstance(graph.run(deliver(graph, frozen())), Sent)
        assert {each["who"] for each in graph.requests()} == {"users/canary-user@sender.example"}


def test_an_application_without_a_user_sends_from_the_mailbox_it_names(tmp_path: Path) -> None:
    with GraphRig(tmp_path, server_settings={"shared": True, "app_only": True}) as graph:
        graph.house.add_client("app", policy={USER})
        graph.tokens.current = graph.house.issue("", "Mail.Send Mail.ReadWrite", client_id="app")
        assert isinstance(graph.run(deliver(graph, frozen())), Sent)
        graph.house.clients["app"].policy = set()
        outcome = graph.run(deliver(graph, frozen()))
        assert isinstance(outcome, Held) and outcome.status == "disabled"


def test_what_a_message_wishes_reaches_graph(graph: GraphRig) -> None:
    sent(graph, frozen(importance="high", request_read_receipt=True))
    told = copy_in(graph).properties
    assert (told["importance"], told["isReadReceiptRequested"]) == ("high", True)


def test_without_any_scope_to_send_the_owner_is_asked(graph: GraphRig) -> None:
    graph.account = graph.account_of("User.Read")
    outcome = graph.run(deliver(graph, frozen()))
    assert isinstance(outcome, Held) and "Mail.Send" in outcome.reason
    assert stages(graph) == []


# ── sizes ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_SIZES = [0, 1, 100_000, 3_143_000, 3_144_191, 3_144_192, 3_145_727, 3_145_728, 4 * MB, 7_864_320, 11 * MB + 7]


@pytest.mark.parametrize("size", _SIZES)
def test_a_file_of_any_size_arrives_and_no_request_is_beyond_4_mb(graph: GraphRig, size: int) -> None:
    sent(graph, frozen(attachments=[file(size)]))
    assert [each.content for each in copy_in(graph).attachments] == [file(size).content]
    assert max(each["size"] for each in graph.requests()) <= 4 * MB
    pieces = graph.requests("upload.put")
    assert bool(pieces) == (size > 3_144_192)
    assert not any(each["token"] for each in pieces)


@pytest.mark.parametrize("size", [2_000_000, 3_100_000, 3_144_000, 3_145_500, 3_146_000, 3_200_000])
def test_a_text_near_the_bound_of_mime_arrives_whole_or_fails_early(graph: GraphRig, size: int) -> None:
    mail = frozen(headers=UNSUBSCRIBE, text=("y" * 76 + "\n") * (size // 78))
    if size < 3_145_000:
        sent(graph, mail)
        assert 3_900_000 * size // 3_000_000 < max(each["size"] for each in graph.requests()) <= 4 * MB
    else:
        outcome = graph.run(deliver(graph, mail))
        assert isinstance(outcome, Failed) and "larger" in outcome.reason
        assert stages(graph) == []


def test_many_files_that_do_not_fit_together_go_one_by_one(graph: GraphRig) -> None:
    files = [file(1_500_000 + n, f"{n}.bin") for n in range(4)]
    sent(graph, frozen(attachments=files))
    assert [each.content for each in copy_in(graph).attachments] == [each.content for each in files]
    assert stages(graph).count("attachments.add") == 4


def test_a_text_beyond_one_request_fails_before_anything_is_asked(graph: GraphRig) -> None:
    outcome = graph.run(deliver(graph, frozen(html="ä" * 3_000_000)))
    assert isinstance(outcome, Failed) and "larger" in outcome.reason
    assert stages(graph) == []


def test_uploads_beyond_five_minutes_of_them_park_the_mailbox_before_the_first_byte(graph: GraphRig) -> None:
    lane = graph.provider.lanes.enter(graph.account.mailbox_id)
    graph.provider.lanes.spend(lane, 149_000_000)
    outcome = graph.run(deliver(graph, frozen(attachments=[file(5 * MB)])))
    assert isinstance(outcome, Parked) and outcome.scope == "mailbox"
    assert outcome.after is not None and 290 < outcome.after.total_seconds() <= 300
    assert stages(graph) == []
    assert isinstance(graph.run(deliver(graph, frozen())), Sent)


# ── uploads that break ──────────────────────────────────────────────────────────────────────────────────────────────

BREAKS: dict[str, dict[str, Any]] = {
    "closes unread": {"drop": "before"},
    "closes in the middle": {"drop": "early", "after_bytes": 300_000, "reset": True},
    "takes it and closes": {"drop": "after"},
    "fails": {"status": 503},
    "forgets where it is": {"status": 416},
}


@pytest.mark.parametrize("fault", BREAKS)
@pytest.mark.parametrize("piece", [0, 1, 4])
def test_an_upload_goes_on_after_a_break_where_graph_says(graph: GraphRig, fault: str, piece: int) -> None:
    graph.server.add_rule(stage="upload.put", skip=piece, times=1, **BREAKS[fault])
    data = file(11 * MB)
    # A last piece that was taken ends its session: a new one would attach the file twice.
    sent(graph, frozen(attachments=[file(70, data.filename), data]))
    assert [each.content for each in copy_in(graph).attachments] == [file(70).content, data.content]


def test_an_upload_session_that_is_lost_begins_anew(graph: GraphRig) -> None:
    gone = {"error": {"code": "ErrorItemNotFound", "message": "gone"}}
    graph.server.add_rule(stage="upload.put", skip=1, times=1, status=404, body=gone)
    graph.server.add_rule(stage="upload.get", times=1, status=404, body=gone)
    sent(graph, frozen(attachments=[file(9 * MB)]))
    assert len(graph.requests("upload.create")) == 2
    assert [each.content for each in copy_in(graph).attachments] == [file(9 * MB).content]


def test_an_upload_that_breaks_again_and_again_ends_the_attempt_and_leaves_no_draft(graph: GraphRig) -> None:
    graph.server.add_rule(stage="upload.put", drop="before")
    outcome = graph.run(deliver(graph, frozen(attachments=[file(5 * MB)])))
    assert isinstance(outcome, Retry)
    assert graph.house.mailboxes[USER].items == []
    assert "upload" not in repr(outcome.evidence.get("said", ""))
    assert [canary for canary in CANARIES if canary in repr(outcome)] == []


# ── one request per attempt ─────────────────────────────────────────────────────────────────────────────────────────

WAYS: dict[str, tuple[str, Callable[[], Mail]]] = {
    "json": ("draft", frozen),
    "json with files": ("draft", lambda: frozen(attachments=[file(1000)])),
    "json, uploads": ("draft", lambda: frozen(attachments=[file(4 * MB)])),
    "mime": ("draft", lambda: frozen(headers=UNSUBSCRIBE)),
    "mime, uploads": ("draft", lambda: frozen(headers=UNSUBSCRIBE, attachments=[file(4 * MB)])),
    "sendMail": ("sendMail", frozen),
    "sendMail, large": ("sendMail", lambda: frozen(attachments=[file(1_500_000)])),
    "sendMail, json": ("sendMail", lambda: frozen(sender=ALIAS)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("drop", ["before", "after", "half", "early"])
def test_a_server_that_closes_without_an_answer_has_seen_one_handover(tmp_path: Path, way: str, drop: str) -> None:
    route, make = WAYS[way]
    with GraphRig(tmp_path, route) as graph:
        graph.server.add_rule(stage="messages.send|sendMail", drop=drop)
        outcome = graph.run(deliver(graph, make()))
        assert isinstance(outcome, Unknown)
        assert graph.handovers() == 1
        assert len(graph.taken()) == (1 if drop in ("after", "half") else 0)


@pytest.mark.parametrize("way", WAYS)
def test_a_connection_that_the_server_let_go_is_never_a_second_handover(tmp_path: Path, way: str) -> None:
    async def with_a_dead_connection() -> Outcome:
        session = graph.provider.open(graph.account)
        prepared = await session.prepare(make())
        graph.server.drop_idle()
        outcome = await prepared.hand_over(soon(), soon())
        await session.close()
        return outcome

    route, make = WAYS[way]
    with GraphRig(tmp_path, route) as graph:
        outcome = graph.run(with_a_dead_connection())
        assert isinstance(outcome, Sent | Unknown | Parked)
        assert len(graph.taken()) == graph.handovers() == (1 if isinstance(outcome, Sent) else 0)


def test_graphs_mime_is_read_back_as_it_was_frozen(graph: GraphRig) -> None:
    mail = frozen(headers=UNSUBSCRIBE, html="<p>ä</p>", attachments=[file(300)])
    sent(graph, mail)
    delivered = message_from_bytes(copy_in(graph).mime or b"", policy=policy.default)
    assert delivered["Bcc"] is None
    assert BCC not in str(delivered)
    assert delivered["To"] == RECIPIENTS[0]


def test_recipients_of_the_envelope_alone_become_bcc(graph: GraphRig) -> None:
    mail = replace(frozen(to=RECIPIENTS[0], cc=(), bcc=()), recipients=RECIPIENTS[:2])
    assert isinstance(graph.run(deliver(graph, mail)), Sent)
    assert graph.taken()[0].recipients == RECIPIENTS[:2]


# ── at once ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_handovers_of_one_mailbox_follow_one_another_and_those_of_others_do_not_wait(graph: GraphRig) -> None:
    async def three() -> tuple[int, int]:
        own = [graph.provider.open(graph.account) for _ in range(2)]
        other = graph.provider.open(replace(graph.account, mailbox_id=UUID(int=2)))
        prepared = [await session.prepare(frozen()) for session in (*own, other)]
        graph.server.add_rule(stage="messages.send", silent=True)
        handing = [asyncio.ensure_future(each.hand_over(soon(0.4), soon(0.8))) for each in prepared]
        await until(lambda: graph.handovers() == 2)
        outcomes = await asyncio.gather(*handing)
        for session in (*own, other):
            await session.close()
        return sum(isinstance(each, Unknown) for each in outcomes), sum(isinstance(each, NotBegun) for each in outcomes)

    assert graph.run(three()) == (2, 1)
    assert graph.handovers() == 2


def test_no_more_than_two_requests_are_made_at_once_for_one_mailbox(graph: GraphRig) -> None:
    async def five() -> list[Any]:
        sessions = [graph.provider.open(graph.account) for _ in range(5)]
        graph.server.add_rule(stage="messages.create", silent=True)
        return await asyncio.gather(*(session.prepare(frozen()) for session in sessions))

    # Each pair is silent for the time-out of one command before the next pair may ask.
    began = boottime()
    assert all(isinstance(outcome, Retry) for outcome in graph.run(five()))
    assert graph.server.seen["silent"] == 5
    assert boottime() - began > 2 * graph.provider.settings.command_timeout.total_seconds()
