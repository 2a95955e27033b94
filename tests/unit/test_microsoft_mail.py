"""Our frozen MIME as Graph wants it: read back whole wherever it was cut, and written as Graph's types allow."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from email import message_from_bytes, policy
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outtray_sandbox.microsoft.properties import check
from outtray_schema.address import Address
from outtray_schema.attachment import Attachment
from outtray_schema.message import Message
from outtray_schema.mime import freeze
from outtray_worker.providers import Mail
from outtray_worker.providers.microsoft.letter import (
    KEY,
    Contents,
    as_base64,
    beyond_json,
    bytes_from,
    hidden,
    message_of,
    take_apart,
    without_files,
)
from outtray_worker.providers.microsoft.parts import NotOurs, headers_of

OWN = "me@example.com"
DATE = datetime(2027, 1, 31, 9, 30, tzinfo=UTC)
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), max_size=300)
HOSTILE = b"\r\n--=_outtray_0--\r\n--=_outtray_1\r\nContent-Type: text/html\r\n\r\nx\r\n"


def mail(sender: str = OWN, pieces: Sequence[int] = (), rng: random.Random | None = None, **fields: Any) -> Mail:
    """A frozen message as a worker gets it, cut at `pieces`."""
    message = Message(**{"to": "ann@example.com", "text": "Hello", **fields})
    mime = freeze(message, sender=Address(sender, "Me Myself"), rfc_message_id="<1@example.com>", date=DATE)
    data = b"".join(mime.pieces())
    marks = sorted({0, len(data), *(place % (len(data) + 1) for place in pieces)})

    async def body() -> AsyncIterator[bytes]:
        for start, end in pairwise(marks):
            yield data[start:end]

    recipients = tuple(each.address.email for each in message.recipients)
    bcc = tuple(each.address.email for each in message.recipients if each.role == "bcc")
    return Mail(UUID(int=7), sender, recipients, "<1@example.com>", len(data), body, bcc)


def apart(given_mail: Mail, keep: bool = True) -> Contents:
    return asyncio.run(take_apart(given_mail, keep))


def message(given_mail: Mail, **options: Any) -> dict[str, Any]:
    told = message_of(given_mail, OWN, apart(given_mail), **options)
    check(told, "message")
    return told


async def whole(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


# ── taking apart ────────────────────────────────────────────────────────────────────────────────────────────────────


@given(TEXT, TEXT, st.binary(max_size=3000), st.lists(st.integers(0, 20_000), max_size=9))
def test_what_was_frozen_is_read_back_wherever_it_was_cut(text: str, html: str, data: bytes, cuts: list[int]) -> None:
    files = [
        Attachment("a b.bin", data),
        Attachment("Übersicht;x.pdf", HOSTILE),
        Attachment("logo.png", data, inline_id="logo"),
    ]
    contents = apart(mail(pieces=cuts, text=text, html=html, attachments=files))
    assert contents.body["contentType"] == "html"
    assert contents.body["content"].removesuffix("\n") == html.removesuffix("\n")
    assert {(file.name, file.data, file.part.content_id) for file in contents.files} == {
        ("a b.bin", data, None),
        ("Übersicht;x.pdf", HOSTILE, None),
        ("logo.png", data, "logo"),
    }
    assert all(file.size == len(file.data or b"") for file in contents.files)


@given(TEXT, st.lists(st.integers(0, 5_000), max_size=9))
def test_a_text_alone_is_the_body(text: str, cuts: list[int]) -> None:
    contents = apart(mail(pieces=cuts, text=text))
    assert contents.body == {"contentType": "text", "content": contents.body["content"]}
    assert contents.body["content"].removesuffix("\n") == text.removesuffix("\n")
    assert contents.files == ()


def test_a_mail_cut_into_single_bytes_is_the_same() -> None:
    one = mail(html="<b>x</b>", attachments=[Attachment("a", b"\0" * 300)])
    tiny = mail(html="<b>x</b>", attachments=[Attachment("a", b"\0" * 300)], pieces=range(one.size))
    assert apart(tiny) == apart(one)


def test_without_keeping_them_files_are_only_measured() -> None:
    contents = apart(mail(attachments=[Attachment("a", b"x" * 100_000)]), keep=False)
    assert [(file.size, file.data) for file in contents.files] == [(100_000, None)]


@given(st.integers(0, 5000), st.lists(st.integers(0, 20_000), max_size=6))
def test_a_file_is_read_again_from_any_byte_on(offset: int, cuts: list[int]) -> None:
    data = random.Random(1).randbytes(5000)
    given_mail = mail(attachments=[Attachment("first", b"1" * 700), Attachment("x", data)], pieces=cuts)
    file = apart(given_mail).files[1]
    assert asyncio.run(whole(bytes_from(given_mail, file, offset))) == data[offset:]


def test_a_text_beyond_one_request_is_refused_while_it_streams() -> None:
    with pytest.raises(NotOurs, match="larger"):
        apart(mail(text="x" * 5_000_000))


def test_what_has_no_header_block_is_not_ours() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 700_000

    with pytest.raises(NotOurs):
        asyncio.run(headers_of(endless()))


# ── the message ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_recipients_stand_in_their_roles_and_bcc_in_none_that_is_shown() -> None:
    told = message(mail(to=["Ann Ünal <ann@example.com>", "b@x.example"], cc="c@x.example", bcc=["d@x.example"]))
    assert told["toRecipients"][0]["emailAddress"] == {"address": "ann@example.com", "name": "Ann Ünal"}
    assert [each["emailAddress"]["address"] for each in told["toRecipients"]] == ["ann@example.com", "b@x.example"]
    assert [each["emailAddress"]["address"] for each in told["ccRecipients"]] == ["c@x.example"]
    assert [each["emailAddress"]["address"] for each in told["bccRecipients"]] == ["d@x.example"]


def test_nobody_who_is_not_in_the_envelope_gets_it() -> None:
    given_mail = mail(to=["ann@example.com", "b@x.example"])
    told = message_of(
        Mail(
            given_mail.message_id,
            OWN,
            ("b@x.example", "new@x.example"),
            "<1@example.com>",
            given_mail.size,
            given_mail.body,
        ),
        OWN,
        apart(given_mail),
    )
    assert [each["emailAddress"]["address"] for each in told["toRecipients"]] == ["b@x.example"]
    assert [each["emailAddress"]["address"] for each in told["bccRecipients"]] == ["new@x.example"]


def test_the_message_carries_our_key_our_id_and_what_was_wished() -> None:
    told = message(
        mail(subject="Grüße =?x?= an alle", importance="high", request_read_receipt=True, reply_to="r@x.example")
    )
    assert told["subject"] == "Grüße =?x?= an alle"
    assert told["importance"] == "high"
    assert told["isReadReceiptRequested"] is True
    assert told["internetMessageId"] == "<1@example.com>"
    assert told["replyTo"] == [{"emailAddress": {"address": "r@x.example"}}]
    assert told["singleValueExtendedProperties"] == [{"id": KEY, "value": str(UUID(int=7))}]
    assert "from" not in told and "internetMessageHeaders" not in told


def test_another_sender_stands_in_from_and_sender_stays_unset() -> None:
    told = message(mail(sender="sales@example.com"))
    assert told["from"] == {"emailAddress": {"address": "sales@example.com", "name": "Me Myself"}}
    assert "sender" not in told


def test_only_custom_headers_go_into_json_and_the_others_are_named() -> None:
    plain = mail(headers={"X-Campaign": "spring", "X-Note": "ä"})
    headers = apart(plain).headers
    assert message(plain)["internetMessageHeaders"] == [
        {"name": "X-Campaign", "value": "spring"},
        {"name": "X-Note", "value": "ä"},
    ]
    assert beyond_json(headers, answers=False) == []
    assert "internetMessageHeaders" not in message(plain, answers=True)
    listed = apart(mail(headers={"List-Unsubscribe": "<https://x.example/u>"}, in_reply_to="<0@x.example>")).headers
    assert beyond_json(listed, answers=False) == ["In-Reply-To", "List-Unsubscribe"]
    assert beyond_json(listed, answers=True) == ["List-Unsubscribe"]
    six = apart(mail(headers={f"X-{n}": "1" for n in range(6)})).headers
    assert len(beyond_json(six, answers=False)) == 6


def test_an_image_is_inline_and_its_id_has_no_brackets() -> None:
    (file,) = apart(mail(html="<img src='cid:logo'>", attachments=[Attachment("l.png", b"x", inline_id="logo")])).files
    told = file.with_bytes(b"x")
    check(told, "fileAttachment")
    assert (told["isInline"], told["contentId"], told["contentType"]) == (True, "logo", "image/png")


# ── MIME ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.integers(0, 20_000), max_size=9), st.booleans())
def test_mime_is_standard_base64_of_the_frozen_bytes_behind_bcc(cuts: list[int], blind: bool) -> None:
    given_mail = mail(pieces=cuts, text="ÿ?>" * 999, **({"bcc": ["d@x.example", "e@x.example"]} if blind else {}))
    bcc = hidden(given_mail, apart(given_mail).headers)
    length, pieces = as_base64(given_mail, bcc)
    encoded = asyncio.run(whole(pieces()))
    assert len(encoded) == length
    head = b"Bcc: d@x.example,\r\n e@x.example\r\n" if blind else b""
    assert base64.b64decode(encoded, validate=True) == head + asyncio.run(whole(given_mail.body()))


def test_slim_mime_has_all_but_the_files() -> None:
    image = Attachment("l.png", b"image", inline_id="logo")
    given_mail = mail(
        html="<img src='cid:logo'>", attachments=[Attachment("big", b"x" * 9_000_000), image],
        headers={"List-Unsubscribe": "<https://x.example/u>"}, pieces=range(0, 12_000_000, 70_001),
    )  # fmt: skip
    slim = message_from_bytes(asyncio.run(without_files(given_mail)), policy=policy.default)
    assert slim["List-Unsubscribe"] == "<https://x.example/u>"
    assert slim["Message-ID"] == "<1@example.com>"
    assert not any(part.defects for part in slim.walk())
    assert slim.get_body(("plain",)).get_content().strip() == "Hello"
    assert [part.get_content() for part in slim.walk() if part.get_content_type() == "image/png"] == [b"image"]
    assert "big" not in [part.get_filename() for part in slim.walk()]
