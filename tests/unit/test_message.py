"""The door: every wrong field at once, by the path that the caller wrote, and nothing that could break out."""

from __future__ import annotations

import base64
import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outtray_schema.errors import InvalidMessage
from outtray_schema.message import Address, Attachment, Message, parse_message


def refused(**fields: Any) -> dict[str, str]:
    """The problems of a message that must be refused, by field."""
    with pytest.raises(InvalidMessage) as caught:
        Message(**{"to": "ann@example.com", "text": "Hello", **fields})
    return {problem.field: problem.reason for problem in caught.value.problems}


def accepted(**fields: Any) -> Message:
    return Message(**{"to": "ann@example.com", "text": "Hello", **fields})


def test_every_wrong_field_is_reported_at_once_by_its_path(tmp_path: Path) -> None:
    problems = refused(
        to=["ann@example.com", "b@example.com", "nobody"],
        from_="x",
        subject="Hi\r\nBcc: eve@example.com",
        headers={"X-Fine": "a", "Bcc": "eve@example.com", "X-Bad": "a\nb"},
        attachments=[Attachment("a.txt", b""), {"filename": "a/b", "path": str(tmp_path / "none")}],
        tags=["fine", "x" * 65],
        metadata={"x": object()},
        priority="urgent",
        send_at=datetime(2027, 1, 1),  # noqa: DTZ001 - naive is what is refused
        give_up_after="soon",
        on_unknown="guess",
        idempotency_key="",
        mailbox="nobody",
        references=["<fine@example.com>", "not one"],
        subjekt="Hello",
    )
    assert set(problems) == {
        "to[2]", "from", "subject", "headers[Bcc]", "headers[X-Bad]", "attachments[1].filename", "attachments[1].path",
        "tags[1]", "metadata", "priority", "send_at", "give_up_after", "on_unknown", "idempotency_key", "mailbox",
        "references[1]", "subjekt",
    }  # fmt: skip
    assert "subject" in problems["subjekt"]
    assert "tzinfo=UTC" in problems["send_at"]


def test_a_message_needs_a_recipient_and_something_to_say() -> None:
    with pytest.raises(InvalidMessage) as caught:
        Message(subject="Hello")
    assert {problem.field for problem in caught.value.problems} == {"to", "text"}
    for empty in ((), [], None, iter(())):
        assert refused(to=empty).keys() == {"to"}
    assert accepted(to=None, bcc="ann@example.com", text="").text == ""


def test_addresses_come_as_text_as_objects_as_mappings_single_or_in_a_list() -> None:
    ann = Address("ann@example.com", "Ann")
    for to in ("Ann <ann@example.com>", ann, {"email": "ann@example.com", "name": "Ann"}, ["Ann <ann@example.com>"]):
        assert accepted(to=to).to == (ann,)
    assert refused(to=5).keys() == {"to"}
    assert refused(to=[5, {"mail": "x"}]).keys() == {"to[0]", "to[1]"}


def test_an_address_that_stands_more_than_once_receives_one_mail_in_its_first_role() -> None:
    message = accepted(
        to=["Ann@example.com", "ann@EXAMPLE.com"],
        cc=["ann@example.com", "bob@example.com"],
        bcc=["BOB@example.com", "c@x.com"],
    )
    found = [(each.role, each.address.email) for each in message.recipients]
    assert found == [("to", "Ann@example.com"), ("cc", "bob@example.com"), ("bcc", "c@x.com")]


def test_an_address_outside_ascii_is_flagged_and_its_domain_is_not() -> None:
    assert accepted(to="jörg@example.com").needs_smtputf8
    assert accepted(reply_to="jörg@example.com").needs_smtputf8
    plain = accepted(to="ann@bücher.example", from_="Jörg <me@example.com>")
    assert not plain.needs_smtputf8
    assert plain.to[0].domain == "xn--bcher-kva.example"


@pytest.mark.parametrize(
    "name",
    [
        "Bcc", "from", "SENDER", "To", "Cc", "Date", "Message-ID", "Received", "DKIM-Signature", "Return-Path",
        "Content-Type", "content-transfer-encoding", "MIME-Version", "In-Reply-To", "References", "Subject", "Reply-To",
        "Resent-To", "ARC-Seal", "Authentication-Results", "", "X Y", "X:Y", "X-Ä", "X\r\nBcc", "x" * 77,
    ],
)  # fmt: skip
def test_a_header_that_is_ours_or_no_header_is_refused(name: str) -> None:
    assert refused(headers={name: "x"}).keys() == {f"headers[{name}]"}


def test_a_header_stands_once_and_can_be_folded() -> None:
    assert refused(headers={"X-A": "1", "x-a": "2"}).keys() == {"headers[x-a]"}
    assert refused(headers={"X-A": "x" * 901}).keys() == {"headers[X-A]"}
    assert refused(headers={"X-A": " "}).keys() == {"headers[X-A]"}
    assert refused(headers={f"X-{n}": "1" for n in range(51)}).keys() == {"headers"}
    assert accepted(headers={"List-Unsubscribe": "<https://x.example/" + "a" * 700 + ">"}).headers


@given(st.text(max_size=20), st.sampled_from("\r\n\0\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\ud800"), st.text(max_size=20))
def test_no_control_character_passes_into_any_header(before: str, evil: str, after: str) -> None:
    text = f"a{before}{evil}{after}z"
    fields: list[tuple[str, Any]] = [
        ("subject", text), ("headers", {"X-A": text}), ("to", f"{text} <ann@example.com>"),
        ("to", {"email": "ann@example.com", "name": text}), ("from_", f"{text}@example.com"),
        ("in_reply_to", f"<{text}>"), ("references", [f"<{text}>"]), ("tags", [text]),
        ("attachments", [{"filename": text, "content": b""}]),
        ("attachments", [{"filename": "a", "content": b"", "content_type": f"text/{text}"}]), ("mailbox", text),
        ("attachments", [{"filename": "a", "content": b"", "inline_id": text}]), ("idempotency_key", text),
    ]  # fmt: skip
    for field, value in fields:
        assert refused(**{field: value})


def test_times_need_a_zone_and_an_order() -> None:
    noon = datetime(2027, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert accepted(send_at=noon).send_at == datetime(2027, 1, 1, 10, tzinfo=UTC)
    assert accepted(send_at="2027-01-01T12:00:00+02:00").send_at == noon
    assert refused(send_at=noon, expires_at=noon).keys() == {"expires_at"}
    for wrong in ("2027-01-01T12:00:00", "tomorrow", 5, datetime(1, 1, 1, tzinfo=UTC)):
        assert refused(expires_at=wrong).keys() == {"expires_at"}


def test_give_up_after_is_a_bounded_duration() -> None:
    assert accepted(give_up_after="2h").give_up_after == timedelta(hours=2)
    assert accepted(give_up_after=timedelta(days=1)).give_up_after == timedelta(days=1)
    for wrong in (0, "-1h", "31d", "nan", "inf", True, [], 1e300):
        assert refused(give_up_after=wrong).keys() == {"give_up_after"}


def test_a_mailbox_is_named_by_id_or_address() -> None:
    mailbox = uuid4()
    assert accepted(mailbox=mailbox).mailbox == accepted(mailbox=str(mailbox)).mailbox == mailbox
    assert isinstance(accepted(mailbox=str(mailbox)).mailbox, UUID)
    assert accepted(mailbox="Me@Example.COM").mailbox == "Me@example.com"


def test_metadata_is_json_of_four_kilobytes_and_no_longer_the_callers() -> None:
    own: dict[str, Any] = {"contact": [4711, {"näme": None}]}
    message = accepted(metadata=own)
    own["contact"].append("changed")
    assert message.metadata == {"contact": [4711, {"näme": None}]}
    assert accepted(metadata={"x": "a" * 4088}).metadata
    for wrong in ({"x": "a" * 4089}, {"x": float("nan")}, {"x": b""}, {"x": "\ud800"}, [], "x"):
        assert refused(metadata=wrong).keys() == {"metadata"}


def test_tags_are_few_short_and_distinct() -> None:
    assert accepted(tags=["b", "a", "b"]).tags == ("b", "a")
    assert refused(tags="spring").keys() == {"tags"}
    assert refused(tags=[str(n) for n in range(21)]).keys() == {"tags"}


def test_an_inline_image_needs_html_and_an_id_of_its_own() -> None:
    logo = Attachment("logo.png", b"x", inline_id="logo")
    assert "cid:logo" in refused(attachments=[logo])["attachments"]
    assert refused(attachments=[logo, logo], html="<img src='cid:logo'>").keys() == {"attachments"}
    assert accepted(attachments=[logo], html="<img src='cid:logo'>").attachments == (logo,)


def test_an_attachment_is_a_named_regular_file_or_bytes(tmp_path: Path) -> None:
    file = tmp_path / "offer.pdf"
    file.write_bytes(b"%PDF")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert Attachment("offer.pdf", path=file).content_type == "application/pdf"
    assert b"".join(Attachment("offer.pdf", path=file).read()) == b"%PDF"
    assert Attachment("mail.eml", b"x").content_type == "application/octet-stream"
    wrong: list[dict[str, Any]] = [
        {"filename": "", "content": b""}, {"filename": "=?utf-8?q?x?=", "content": b""},
        {"filename": "../x", "content": b""}, {"filename": "x" * 256, "content": b""},
        {"filename": "x"}, {"filename": "x", "content": b"", "path": file}, {"filename": "x", "content": "text"},
        {"filename": "x", "path": tmp_path}, {"filename": "x", "path": fifo}, {"filename": "x", "path": "a\0b"},
        {"filename": "x", "content": b"", "content_type": "pdf"}, {"filename": "x", "content": b"", "inline_id": "a b"},
        {"filename": "x", "content": b"", "content_type": "message/rfc822"},
        {"filename": "x", "content": b"", "content_type": "multipart/mixed"},
    ]  # fmt: skip
    for fields in wrong:
        with pytest.raises(InvalidMessage):
            Attachment(**fields)


def test_json_gives_bytes_in_base64_and_paths_only_where_they_are_allowed(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"from a file")
    line = {"to": "a@example.com", "from": "Me <me@example.com>", "text": "x", "attachments": [{"path": str(file)}]}
    with pytest.raises(InvalidMessage, match=r"attachments\[0\]\.path.*not allowed"):
        parse_message(line)
    message = parse_message(line, paths=True)
    assert message.from_ == Address("me@example.com", "Me")
    assert message.attachments[0].filename == "a.txt"
    content = base64.b64encode(b"bytes").decode()
    message = parse_message({**line, "attachments": [{"filename": "b.bin", "content": content}]})
    assert message.attachments[0].content == b"bytes"
    for wrong in ({"filename": "b", "content": "%"}, {"filename": "b", "content": "", "size": 1}, "b", None):
        with pytest.raises(InvalidMessage, match=r"attachments\[0\]"):
            parse_message({**line, "attachments": [wrong]})


@given(
    st.one_of(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda each: st.lists(each, max_size=3)
        ),
        st.dictionaries(
            st.sampled_from([*Message.model_fields, "from", "x"]),
            st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2) | st.just({}),
            max_size=4,
        ),
    )
)
def test_whatever_json_holds_it_becomes_a_message_or_is_refused(value: Any) -> None:
    try:
        parse_message(value)
    except InvalidMessage as error:
        assert error.problems


def test_a_message_cannot_be_changed_and_shows_no_content() -> None:
    message = accepted(subject="secret subject", text="secret text")
    with pytest.raises(Exception, match="frozen"):
        message.subject = "x"  # type: ignore[misc]
    assert "secret" not in f"{message} {message!r}" and "ann@" not in repr(message)
    assert "secret" not in repr(Attachment("a.txt", b"secret"))
