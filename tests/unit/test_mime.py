"""Frozen MIME: what the standard library's parser reads back is what was asked for, and nothing else can get in."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import getaddresses
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outtray_schema.address import Address
from outtray_schema.attachment import Attachment
from outtray_schema.errors import InvalidMessage
from outtray_schema.message import Message
from outtray_schema.mime import FrozenMime, base64_lines, freeze, new_rfc_message_id
from outtray_schema.plaintext import text_of_html

SENDER = Address("me@example.com", "Me Myself")
DATE = datetime(2027, 1, 31, 9, 30, tzinfo=UTC)
RFC_MESSAGE_ID = new_rfc_message_id(UUID(int=7), SENDER.domain)

LINE = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=120)
BODY = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=400)
FILENAME = LINE.map(lambda name: name.replace("/", "").replace("\\", "").replace("=?", "").strip() + ".x")


def frozen(sender: Address = SENDER, **fields: Any) -> FrozenMime:
    message = Message(**{"to": "ann@example.com", "text": "Hello", **fields})
    return freeze(message, sender=sender, rfc_message_id=RFC_MESSAGE_ID, date=DATE)


def written(mime: FrozenMime) -> bytes:
    """All bytes of a frozen message, after the promises that hold for every one."""
    data = b"".join(mime.pieces())
    assert data == b"".join(mime.pieces())
    assert (len(data), hashlib.sha256(data).digest()) == (mime.size, mime.hash)
    assert all(len(piece) <= 1024 * 1024 for piece in mime.pieces())
    lines = data.split(b"\r\n")
    assert max(map(len, lines)) <= 998
    assert not any(b"\r" in line or b"\n" in line for line in lines)
    assert data.endswith(b"\r\n")
    return data


def parsed(mime: FrozenMime) -> EmailMessage:
    message = cast(EmailMessage, message_from_bytes(written(mime), policy=policy.default))
    assert not any(part.defects for part in message.walk())
    return message


def addresses_in(message: EmailMessage, header: str) -> list[tuple[str, str]]:
    """`(name, address)` as RFC 2047 reads them.

    Python's newer parser keeps the space between two encoded words of a display name (until 3.13; section 6.2 drops
    it, and so do mail programs), so the older functions read here.
    """
    raw = message_from_bytes(message.as_bytes(policy=policy.SMTP.clone(refold_source="none")))[header]
    return [(str(make_header(decode_header(name))), email) for name, email in getaddresses([raw])]


def lines_of(text: str) -> str:
    """A body as it arrives: every line ends, the last one too."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.endswith("\n") else text + "\n"


def content_of(part: EmailMessage | None) -> str:
    """A body part's text; `get_content` would break lines at more than line ends."""
    assert part is not None
    return cast(bytes, part.get_payload(decode=True)).decode().replace("\r\n", "\n")


def test_a_plain_message_is_what_a_person_would_write() -> None:
    data = written(frozen(subject="Hello", headers={"X-Campaign": "spring"}))
    assert data.decode().split("\r\n") == [
        "From: Me Myself <me@example.com>",
        "To: ann@example.com",
        "Subject: Hello",
        "Date: Sun, 31 Jan 2027 09:30:00 +0000",
        "Message-ID: <00000000-0000-0000-0000-000000000007@example.com>",
        "X-Campaign: spring",
        "MIME-Version: 1.0",
        'Content-Type: text/plain; charset="utf-8"',
        "Content-Transfer-Encoding: 7bit",
        "",
        "Hello",
        "",
    ]


@settings(max_examples=150, deadline=None)
@given(
    subject=LINE.map(str.strip),
    text=st.none() | BODY,
    html=st.none() | BODY,
    names=st.lists(LINE, min_size=1, max_size=4),
    header=LINE.map(str.strip),
    files=st.lists(st.tuples(FILENAME, st.binary(max_size=300)), max_size=3),
)
def test_what_is_read_back_is_what_was_asked_for(
    subject: str, text: str | None, html: str | None, names: list[str], header: str, files: list[tuple[str, bytes]]
) -> None:
    to = [Address(f"a{n}@example.com", name) for n, name in enumerate(names)]
    attachments = [Attachment(name, data) for name, data in files]
    headers = {"X-Own": header} if header else {}
    text = "" if text is None and html is None else text
    read = text_of_html(html) or None if text is None and html is not None else text
    mime = frozen(to=to, subject=subject, text=text, html=html, attachments=attachments, headers=headers)
    message = parsed(mime)
    assert message.get("Subject", "") == subject
    assert addresses_in(message, "To") == [(each.name, each.email) for each in to]
    assert message.get("X-Own", "") == header
    for kind, body in (("plain", read), ("html", html)):
        part = cast("EmailMessage | None", message.get_body((kind,)))
        assert (content_of(part) if part is not None else None) == (None if body is None else lines_of(body))
    found = [(each.get_filename(), each.get_payload(decode=True)) for each in message.iter_attachments()]
    assert found == [(each.filename, each.content) for each in attachments]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_no_text_adds_a_header_a_recipient_or_a_part(subject: str, name: str, header: str, filename: str) -> None:
    evil = "\r\nBcc: eve@example.com\r\n\r\n--=_outtray_0\r\nContent-Type: text/html\r\n\r\nevil"
    try:
        mime = frozen(
            subject=subject, to=[{"email": "ann@example.com", "name": name}], headers={"X-Own": header}, text=evil,
            html=evil, attachments=[{"filename": filename, "content": evil.encode()}],
        )  # fmt: skip
    except InvalidMessage:
        return
    message = parsed(mime)
    assert {each.lower() for each in message} <= {
        "from", "to", "subject", "date", "message-id", "x-own", "mime-version", "content-type",
    }  # fmt: skip
    assert [email for _, email in addresses_in(message, "To")] == ["ann@example.com"]
    kinds = [part.get_content_type() for part in message.walk()]
    assert kinds[:4] == ["multipart/mixed", "multipart/alternative", "text/plain", "text/html"] and len(kinds) == 5


def test_a_text_cannot_close_its_own_part() -> None:
    for text in (
        "--=_outtray_0--",
        "--=_outtray_0\r\nContent-Type: x/y\r\n\r\nz",
        "\x010\x01\n\x011\x01",
        "=_outtray_0",
    ):
        message = parsed(frozen(text=text, html=text))
        assert [part.get_content_type() for part in message.walk()] == [
            "multipart/alternative",
            "text/plain",
            "text/html",
        ]
        assert content_of(cast(EmailMessage, message.get_body(("plain",)))) == lines_of(text)


def test_a_header_that_did_not_come_through_the_door_is_refused_here_too() -> None:
    door = Message(to="ann@example.com", text="x")
    for change in (
        {"subject": "a\r\nBcc: eve@example.com"},
        {"headers": {"X-A": "a\r\n b"}},
        {"in_reply_to": "<a@b.c>\r\nBcc: eve@example.com"},
        {"references": ("<a@b.c>\n",)},
    ):
        with pytest.raises(ValueError, match="control character"):
            freeze(door.model_copy(update=change), sender=SENDER, rfc_message_id=RFC_MESSAGE_ID, date=DATE)
    for wrong in (
        {"rfc_message_id": "<a@b.c>\r\nX: y", "date": DATE},
        {"rfc_message_id": "<a@b.c>", "date": DATE.replace(tzinfo=None)},
    ):
        with pytest.raises(ValueError):
            freeze(door, sender=SENDER, **cast(Any, wrong))


def test_bcc_is_nowhere_in_the_bytes() -> None:
    data = written(frozen(to="ann@example.com", cc="carl@example.com", bcc=["Hidden Name <hidden@example.com>"]))
    assert b"hidden" not in data.lower() and b"bcc" not in data.lower()
    alone = parsed(frozen(to=None, bcc="hidden@example.com"))
    assert alone["To"] == "undisclosed-recipients:;"
    assert b"hidden" not in written(frozen(to=None, bcc="hidden@example.com"))


def test_an_address_that_stands_twice_stands_once_in_the_bytes() -> None:
    message = parsed(frozen(to="ann@example.com", cc=["Ann@Example.com", "carl@example.com"], bcc="carl@example.com"))
    assert (message["To"], message["Cc"]) == ("ann@example.com", "carl@example.com")


def test_long_threading_headers_are_folded_and_never_encoded() -> None:
    references = [f"<{'x' * 180}{n}@mail.example.com>" for n in range(12)]
    data = written(
        frozen(
            in_reply_to=references[-1], references=references, headers={"List-Unsubscribe": f"<https://{'u' * 800}>"}
        )
    )
    head = data.split(b"\r\n\r\n")[0].decode()
    assert "=?" not in head
    message = message_from_bytes(data)
    assert message["References"].split() == references
    assert message["In-Reply-To"] == references[-1]
    assert message["List-Unsubscribe"] == f"<https://{'u' * 800}>"


def test_many_recipients_fold_between_addresses() -> None:
    to = [Address(f"person{n}@example.com", f"Persön, {n}" if n % 2 else f"Person, {n}") for n in range(400)]
    message = parsed(frozen(to=to))
    assert addresses_in(message, "To") == [(each.name, each.email) for each in to]


def test_encoded_words_keep_to_their_seventy_five_columns() -> None:
    data = written(
        frozen(subject="Grüße " * 150, to=Address("ann@example.com", "Jörg " * 50), headers={"X-A": "ü" * 400})
    )
    head = data.split(b"\r\n\r\n")[0].decode()
    words = [word for word in head.split() if word.startswith("=?")]
    assert len(words) > 20
    assert all(len(word) <= 75 and word.endswith("?=") for word in words)


def test_text_that_looks_like_an_encoded_word_arrives_as_it_was_written() -> None:
    look = "=?utf-8?q?evil?="
    message = parsed(frozen(subject=look, to=Address("ann@example.com", look)))
    assert message["Subject"] == look
    assert addresses_in(message, "To") == [(look, "ann@example.com")]


def test_an_address_outside_ascii_stands_in_utf_8() -> None:
    data = written(frozen(to="Jörg <jörg@bücher.example>", sender=Address("ich@müller.example")))
    assert "<jörg@xn--bcher-kva.example>".encode() in data
    assert b"From: ich@xn--mller-kva.example\r\n" in data


def test_inline_images_are_related_to_the_html_that_shows_them() -> None:
    message = parsed(
        frozen(
            html="<img src='cid:logo'>",
            attachments=[Attachment("offer.pdf", b"%PDF"), Attachment("logo.png", b"png", inline_id="logo")],
        )
    )
    assert [part.get_content_type() for part in message.walk()] == [
        "multipart/mixed", "multipart/alternative", "text/plain", "multipart/related", "text/html", "image/png",
        "application/pdf",
    ]  # fmt: skip
    logo = next(part for part in message.walk() if part.get_content_type() == "image/png")
    assert (logo["Content-ID"], logo.get_content_disposition(), logo.get_payload(decode=True)) == (
        "<logo>",
        "inline",
        b"png",
    )


def test_filenames_travel_by_rfc_2231_whatever_their_length_and_script() -> None:
    names = [
        "naïve.pdf",
        "ä" * 127,
        'a "quoted".txt',
        "договор.docx",
        "a;b=c.txt",
        "x" * 255,
        "50%.txt",
    ]
    message = parsed(frozen(attachments=[Attachment(name, b"x") for name in names]))
    assert [each.get_filename() for each in message.iter_attachments()] == names


def test_a_content_type_keeps_its_parameters() -> None:
    invite = Attachment("invite.ics", b"BEGIN", content_type='text/calendar; method=REQUEST; charset="utf-8"')
    part = next(iter(parsed(frozen(attachments=[invite])).iter_attachments()))
    assert (part.get_content_type(), part.get_param("method"), part.get_param("charset")) == (
        "text/calendar",
        "REQUEST",
        "utf-8",
    )


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Hello", "7bit"), ("", "7bit"), ("x" * 79, "quoted-printable"), ("ends in space \nx", "quoted-printable"),
        ("Viele Grüße aus Köln, und alles Gute von uns allen!", "quoted-printable"), ("Привет, как дела?", "base64"),
        ("a bell \x07 rings", "quoted-printable"),
    ],
)  # fmt: skip
def test_a_body_travels_in_the_encoding_that_suits_it(text: str, encoding: str) -> None:
    message = parsed(frozen(text=text))
    assert message["Content-Transfer-Encoding"] == encoding
    assert content_of(message) == lines_of(text)


def test_lines_of_base64_join_and_end_as_mail_lines_do() -> None:
    data = bytes(range(256)) * 3
    cut = 57 * 4
    assert base64_lines(data[:cut]) + base64_lines(data[cut:]) == base64_lines(data)
    assert max(map(len, base64_lines(data).split(b"\r\n"))) == 76


@pytest.mark.parametrize("size", [512 * 1024, 512 * 1024 + 1, 3_000_000])
def test_a_large_attachment_arrives_whole_from_memory_and_from_a_file(tmp_path: Path, size: int) -> None:
    content = hashlib.shake_256(b"seed").digest(size)
    file = tmp_path / "large.bin"
    file.write_bytes(content)
    kept = parsed(frozen(attachments=[Attachment("large.bin", content), Attachment("small.txt", b"s")]))
    read = parsed(frozen(attachments=[Attachment("large.bin", path=file), Attachment("small.txt", b"s")]))
    for message in (kept, read):
        assert [each.get_payload(decode=True) for each in message.iter_attachments()] == [content, b"s"]


@pytest.mark.parametrize("change", ["other bytes", "shorter", "longer", "gone"])
def test_a_file_that_changes_between_two_passes_is_detected(tmp_path: Path, change: str) -> None:
    file = tmp_path / "large.bin"
    content = bytes(700_000)
    file.write_bytes(content)
    mime = frozen(attachments=[Attachment("large.bin", path=file)])
    b"".join(mime.pieces())
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes({"other bytes": b"x" + content[1:], "shorter": content[1:], "longer": content + b"x"}[change])
    with pytest.raises(InvalidMessage, match=r"attachments\[0\]\.path") as caught:
        b"".join(mime.pieces())
    assert str(file) not in str(caught.value)


def test_a_small_file_is_read_once_and_frozen(tmp_path: Path) -> None:
    file = tmp_path / "small.txt"
    file.write_bytes(b"before")
    mime = frozen(attachments=[Attachment("small.txt", path=file)])
    file.write_bytes(b"after!")
    assert [each.get_payload(decode=True) for each in parsed(mime).iter_attachments()] == [b"before"]


def test_forty_megabytes_are_streamed_in_bounded_memory(tmp_path: Path) -> None:
    file = tmp_path / "large.bin"
    with file.open("wb") as sparse:
        sparse.truncate(40 * 1024 * 1024)
    tracemalloc.start()
    try:
        mime = frozen(attachments=[Attachment("large.bin", path=file)])
        assert mime.size > 54 * 1024 * 1024
        assert _drained(mime.pieces()) == mime.size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 1024 * 1024


def _drained(pieces: Iterator[bytes]) -> int:
    return sum(len(piece) for piece in pieces)
