"""How Google's client names our requests, what our scopes allow, and that what we say fits Google's own description."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID

import pytest

from outtray_sandbox.google.schemas import check_body, check_query, decoded, method_of
from outtray_worker.providers import Mail
from outtray_worker.providers.gmail.api import Api
from outtray_worker.providers.gmail.body import Content, as_json, as_multipart, front, metadata
from outtray_worker.providers.gmail.scopes import PREFIX, Grants, grants_of, least_for
from outtray_worker.providers.gmail.upload import GRAIN, last_piece
from outtray_worker.providers.web import Request, Stream

BODY = b"Subject: x\r\n\r\n" + bytes(range(256)) * 5
TOKEN = "token"


async def body() -> AsyncIterator[bytes]:
    for start in range(0, len(BODY), 101):
        yield BODY[start : start + 101]


MAIL = Mail(UUID(int=7), "a@b.example", ("c@d.example",), "<x@b.example>", len(BODY), body)


def whole(stream: Stream) -> bytes:
    async def read() -> bytes:
        return b"".join([piece async for piece in stream.pieces()])

    return asyncio.run(read())


def api(base: str = "https://gmail.googleapis.com") -> Api:
    return Api(base)


# ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────────


def requests(named: Api) -> dict[str, Request]:
    """Every request of ours, by the method that it calls."""
    calls = {
        "drafts.send": named.send_draft("r1"),
        "drafts.get": named.get_draft("r1"),
        "drafts.list": named.list_drafts(20),
        "drafts.delete": named.delete_draft("r1"),
        "messages.get": named.headers_of("m1", "X-Outtray-Key", "Message-ID"),
        "messages.list": named.list_sent(25, "7"),
        "messages.attachments.get": named.attachment("m1", "a1"),
        "threads.get": named.headers_of_thread("t1", "Message-ID"),
        "settings.sendAs.list": named.send_as(),
        "getProfile": named.profile(),
    }
    return {name: named.on_wire(call, TOKEN) for name, call in calls.items()}


def test_every_request_is_one_that_the_discovery_document_describes() -> None:
    for name, request in requests(api()).items():
        described = method_of(name)
        path, _, query = request.url.removeprefix("https://gmail.googleapis.com/").partition("?")
        assert request.method == described["httpMethod"]
        wanted = described["path"].split("/")
        assert [part for part in wanted if "{" not in part] == [
            part for part, name_ in zip(path.split("/"), wanted, strict=True) if "{" not in name_
        ]
        check_query(name, {word.partition("=")[0] for word in query.split("&") if word})
        assert request.headers["authorization"] == "Bearer token"


def test_every_body_fits_its_schema() -> None:
    for about, resource in (
        ("drafts.create", {"threadId": "18"}),
        ("messages.send", {"threadId": "18"}),
        ("messages.send", {}),
    ):
        stream = as_json(Content(MAIL, "X-Outtray-Key"), about, resource)
        text = whole(stream)
        assert len(text) == stream.length
        said = check_body(about, text)
        message = said["message"] if about == "drafts.create" else said
        assert decoded(message["raw"]) == b"X-Outtray-Key: 00000000-0000-0000-0000-000000000007\r\n" + BODY
        assert message.get("threadId") == resource.get("threadId")
        check_body(about, metadata(about, resource))
    sending = requests(api())["drafts.send"].body
    assert isinstance(sending, bytes) and check_body("drafts.send", sending) == {"id": "r1"}


@pytest.mark.parametrize("size", range(60, 70))
def test_base64_needs_no_look_at_the_whole(size: int) -> None:
    async def cut() -> AsyncIterator[bytes]:
        for each in b"y" * size:
            yield bytes([each])

    stream = as_json(Content(replace(MAIL, size=size, body=cut), "X-K"), "messages.send", {})
    assert decoded(json.loads(whole(stream))["raw"]).endswith(b"\r\n" + b"y" * size)
    assert len(whole(stream)) == stream.length


def test_a_multipart_body_is_as_long_as_it_says() -> None:
    content_type, stream = as_multipart(Content(MAIL, "X-Outtray-Key"), "messages.send", {"threadId": "18"})
    text = whole(stream)
    boundary = content_type.partition('"')[2].rstrip('"').encode()
    assert len(text) == stream.length
    assert text.count(b"--" + boundary) == 3 and text.endswith(b"--" + boundary + b"--\r\n")
    assert BODY in text and b'{"threadId": "18"}' in text


def test_two_multipart_bodies_never_share_their_boundary() -> None:
    content = Content(MAIL, "X-Outtray-Key")
    assert as_multipart(content, "messages.send", {})[0] != as_multipart(content, "messages.send", {})[0]


@pytest.mark.parametrize(
    ("base", "start"),
    [
        ("https://gmail.googleapis.com", "https://gmail.googleapis.com/"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/"),
        ("https://gateway.example/google/", "https://gateway.example/google/"),
    ],
)
def test_the_base_url_moves_everything_uploads_and_their_sessions_included(base: str, start: str) -> None:
    moved = api(base)
    assert all(request.url.startswith(f"{start}gmail/v1/users/me/") for request in requests(moved).values())
    for resumable in (False, True):
        request = moved.upload("messages.send", resumable, TOKEN, b"")
        assert request.url.startswith(f"{start}upload/gmail/v1/users/me/messages/send?")
        assert f"uploadType={'resumable' if resumable else 'multipart'}" in request.url
    session = "https://gmail.googleapis.com/upload/gmail/v1/users/me/messages/send?upload_id=x"
    assert moved.rebased(session) == f"{start}upload/gmail/v1/users/me/messages/send?upload_id=x"
    assert moved.rebased(moved.rebased(session)) == moved.rebased(session)


def test_what_a_request_holds_is_never_shown() -> None:
    request = api().upload("messages.send", True, "canary-token", b"canary-body", X_Upload="canary-header")
    assert "canary" not in repr(request) and "upload" not in repr(request)


def test_the_last_piece_of_an_upload_is_never_empty() -> None:
    assert [last_piece(length) for length in (1, GRAIN - 1, GRAIN, GRAIN + 1, 2 * GRAIN)] == [0, 0, 0, GRAIN, GRAIN]


@pytest.mark.parametrize("address", ["a@b.example\r\nSubject: x", "a@b.example\n", "a\x00@b.example"])
def test_a_hidden_recipient_cannot_add_a_header(address: str) -> None:
    with pytest.raises(ValueError, match="control"):
        front(replace(MAIL, bcc=(address,)), "X-Outtray-Key")


# ── scopes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def grants(*names: str) -> Grants:
    return grants_of(frozenset(f"{PREFIX}gmail.{name}" for name in names))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), Grants(False, False, False, False, False, False, False)),
        (("send",), Grants(True, False, False, False, False, False, False)),
        (("compose",), Grants(True, True, True, False, False, False, True)),
        (("send", "metadata"), Grants(True, False, False, True, False, False, True)),
        (("compose", "metadata"), Grants(True, True, True, True, False, False, True)),
        (("send", "readonly"), Grants(True, False, True, True, True, True, True)),
        (("modify",), Grants(True, True, True, True, True, True, True)),
        (("settings.basic", "send"), Grants(True, False, False, False, False, True, False)),
    ],
)
def test_scopes_allow_what_google_says(names: tuple[str, ...], expected: Grants) -> None:
    assert grants(*names) == expected


def test_the_whole_mailbox_allows_everything() -> None:
    assert grants_of(frozenset({"https://mail.google.com/"})) == grants("modify")


def test_a_missing_scope_is_named_by_the_least_that_would_do() -> None:
    assert least_for("messages.send") == "gmail.send or gmail.compose"
    assert least_for("drafts.send") == "gmail.compose or gmail.modify"
    assert least_for("messages.get") == "gmail.metadata or gmail.readonly"
    assert least_for("settings.sendAs.list") == "gmail.readonly or gmail.settings.basic"
