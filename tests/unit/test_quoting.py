"""The body of a forward, and the parts of a stored mail."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outtray_schema.address import Address
from outtray_schema.answering import Original, original_of
from outtray_schema.message import Attachment, Message
from outtray_schema.mime import freeze
from outtray_schema.quoting import date_of, foreign_file, forwarded, parts_of, plain_text

DATE = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)


def forward(**fields: Any) -> Message:
    return Message(**{"reply_to_message": "theirs-1", "answering": "forward", "to": "dora@x.example", **fields})


def original(**fields: Any) -> Original:
    values: dict[str, Any] = {
        "rfc_message_id": "<a@x.example>", "subject": "Offer & more", "sender": ("Ann <b>", "ann@x.example"),
        "to": [("Bob", "bob@x.example")], "cc": [("", "carl@x.example")], "date": DATE, "text": "Is it valid?",
    }  # fmt: skip
    return original_of(**(values | fields))


def test_the_original_follows_the_comment_with_who_wrote_when_to_whom() -> None:
    text = forwarded(forward(text="What do you say?\n"), original())["text"]
    assert text.splitlines() == [
        "What do you say?", "", "---------- Forwarded message ---------", "From: Ann <b> <ann@x.example>",
        "Date: Mon, 02 Nov 2026 09:30:00 +0000", "Subject: Offer & more", "To: Bob <bob@x.example>",
        "Cc: carl@x.example", "", "Is it valid?",
    ]  # fmt: skip


def test_html_is_made_where_either_side_has_it_and_what_is_quoted_about_it_is_no_markup() -> None:
    assert forwarded(forward(text="x"), original())["html"] is None
    both = forwarded(
        forward(text="Look <here>"),
        original(html="<html><head><style>p{}</style></head><body><p>Yes</p></body></html>"),
    )
    assert (
        "Look &lt;here&gt;" in both["html"] and "Ann &lt;b&gt;" in both["html"] and "Offer &amp; more" in both["html"]
    )
    assert "<style>p{}</style><p>Yes</p>" in both["html"] and "<body>" not in both["html"]
    assert "Is it valid?" in both["text"]
    own = forwarded(forward(html="<html><body><p>Mine</p></body></html>"), original(text="1 < 2"))
    assert own["text"] is None and own["html"].endswith("</body></html>") and "1 &lt; 2" in own["html"]


def test_an_original_of_html_alone_is_quoted_in_the_text_by_its_words() -> None:
    quoted = forwarded(forward(text=""), original(text=None, html="<p>Is&nbsp;it<br>valid?</p><script>x()</script>"))
    assert quoted["text"].endswith("Is it\nvalid?") and "x()" not in quoted["text"]


def test_files_of_both_are_carried_and_an_inline_image_stays_one_where_it_is_shown() -> None:
    own = Attachment("logo.png", b"1", inline_id="logo")
    theirs = [Attachment("logo.png", b"2", inline_id="logo"), Attachment("photo.png", b"3", inline_id="photo"),
              Attachment("offer.pdf", b"4")]  # fmt: skip
    files = forwarded(forward(html="<img src='cid:logo'>", attachments=[own]), original(attachments=theirs))[
        "attachments"
    ]
    assert [(each.content, each.inline_id) for each in files] == [
        (b"1", "logo"), (b"2", None), (b"3", "photo"), (b"4", None),
    ]  # fmt: skip
    without = forwarded(forward(text="x"), original(attachments=theirs))["attachments"]
    assert [each.inline_id for each in without] == [None] * 3


@pytest.mark.parametrize(
    ("name", "kind", "expected", "expected_kind"),
    [
        ("offer.pdf", "application/pdf", "offer.pdf", "application/pdf"),
        ("../../etc/passwd", "text/plain", "etc_passwd", "text/plain"),
        ("", "message/rfc822", "message.eml", "application/octet-stream"),
        ("", "no type", "attachment", "application/octet-stream"),
        ("=?utf-8?q?x?=", "a/b", "utf-8?q?x?=", "a/b"),
        ("ä" * 300 + ".pdf", "application/pdf", "ä" * 125 + ".pdf", "application/pdf"),
    ],
)
def test_a_foreign_file_is_mended_and_not_refused(name: str, kind: str, expected: str, expected_kind: str) -> None:
    file = foreign_file(name, b"x", kind, "no id <>")
    assert (file.filename, file.content_type, file.inline_id) == (expected, expected_kind, None)


@given(st.text(max_size=300), st.text(max_size=40), st.text(max_size=40))
def test_every_foreign_file_can_be_attached(name: str, kind: str, inline_id: str) -> None:
    assert foreign_file(name, b"x", kind, inline_id).content == b"x"


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")),
    st.text(st.sampled_from("ab\n =.\u00e4"), max_size=300),
)
def test_a_stored_mail_comes_apart_into_what_it_was_made_of(text: str, html: str) -> None:
    files = [Attachment("a.bin", bytes(range(256)) * 3), Attachment("ä b.txt", b"x\r\ny")]
    message = Message(to="a@x.example", text=text, html=html, attachments=files)
    mime = freeze(message, sender=Address("me@x.example"), rfc_message_id="<o@x.example>", date=DATE)
    whole = b"".join(mime.pieces())
    found_text, found_html, found = parts_of(whole)
    assert (found_text, found_html) == (text.removesuffix("\n"), html.removesuffix("\n"))
    assert [(each.filename, each.content) for each in found] == [(each.filename, each.content) for each in files]
    assert date_of(whole) == DATE


@pytest.mark.parametrize(
    "evil", ["<head ", "<style>", "<!--", "<body ", "<a ", "<!doctype ", "</body ", "<script>", "&#"]
)
def test_no_markup_takes_time_out_of_proportion(evil: str) -> None:
    def seconds(times: int) -> float:
        begun = time.process_time()
        plain_text(evil * times)
        forwarded(forward(text="x"), original(html=evil * times))
        return time.process_time() - begun

    # Ten times as much may take a hundred times as long only where each piece looks at all the others.
    assert seconds(200_000) < 40 * max(seconds(20_000), 0.02)
