"""What a message can be beside text and files: a raw mail, an invitation, a list's mail; and what follows by itself."""

from __future__ import annotations

import base64
import json
import os
import re
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any, cast

import pytest

from outtray_schema.address import Address
from outtray_schema.attachment import Attachment
from outtray_schema.content import Head
from outtray_schema.errors import InvalidMessage
from outtray_schema.invitation import method_of, summary_of
from outtray_schema.media_type import media_type
from outtray_schema.message import Message, parse_message
from outtray_schema.mime import freeze
from outtray_schema.plaintext import MOST, text_of_html

DATE = datetime(2027, 1, 31, 9, 30, tzinfo=UTC)
RAW = (
    b"Received: from x by y; Sun, 31 Jan 2027 09:30:00 +0000\r\nFrom: Me <me@example.com>\r\nTo: Ann\r\n"
    b" <ann@example.com>, bob@example.com\r\nCc: =?utf-8?q?J=C3=B6rg?= <joe@example.com>\r\n"
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nDate: Sun, 31 Jan 2027 09:30:00 +0000\r\n"
    b"Message-ID: <own@example.com>\r\n"
    b"X-Odd:\tany  spaces \r\n\r\n.\r\n..dots\r\nGr\xfc\xdfe in Latin-1\r\n"
)
INVITATION = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//crm//EN
METHOD:REQUEST
BEGIN:VTIMEZONE
TZID:Europe/Berlin
END:VTIMEZONE
BEGIN:VEVENT
UID:4711@crm.example
DTSTAMP:20270101T000000Z
DTSTART;TZID=Europe/Berlin:20270131T100000
SUMMARY:Demo\\, at ours
ORGANIZER;CN="Me: Myself":mailto:me@example.com
ATTENDEE;RSVP=TRUE:mailto:ann
 @example.com
BEGIN:VALARM
UID:another
END:VALARM
END:VEVENT
END:VCALENDAR
"""


def written(**fields: Any) -> bytes:
    message = Message(**({"to": "ann@example.com"} | fields))
    mime = freeze(message, sender=Address("me@example.com"), rfc_message_id="<new@example.com>", date=DATE)
    return b"".join(mime.pieces())


def parsed(**fields: Any) -> EmailMessage:
    return cast(EmailMessage, message_from_bytes(written(**fields), policy=policy.default))


def refused(**fields: Any) -> str:
    with pytest.raises(InvalidMessage) as caught:
        Message(**({"to": "ann@example.com"} | fields))
    return str(caught.value)


# ── raw ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_raw_mail_keeps_each_of_its_bytes_and_says_itself_who_writes_to_whom() -> None:
    message = Message(raw=RAW, bcc="dora@example.com")
    assert written(to=None, raw=RAW) == RAW
    assert (message.from_, message.subject) == (Address("me@example.com", "Me"), "Grüße")
    assert [(each.role, each.address.email) for each in message.recipients] == [
        ("to", "ann@example.com"), ("to", "bob@example.com"), ("cc", "joe@example.com"), ("bcc", "dora@example.com"),
    ]  # fmt: skip
    head = Head.of(message, Address("me@example.com"))
    assert Head.from_json(head.to_json()).form == "raw"
    assert "example.com" not in repr(message)


def test_the_envelope_of_a_raw_mail_may_be_given_instead() -> None:
    assert [each.address.email for each in Message(raw=RAW, to="eve@example.com").recipients] == ["eve@example.com"]
    group = RAW.replace(b"To: Ann\r\n <ann@example.com>, bob@example.com", b"To: undisclosed-recipients:;")
    assert Message(raw=group, to="eve@example.com").raw == group


def test_a_raw_mail_is_base64_in_json() -> None:
    assert parse_message(json.loads(json.dumps({"raw": base64.b64encode(RAW).decode()}))).raw == RAW
    with pytest.raises(InvalidMessage, match="raw: must be base64"):
        parse_message({"raw": "From: me"})


def test_only_a_date_and_a_message_id_that_are_missing_are_put_in_front() -> None:
    bare = b"From: me@example.com\r\nTo: ann@example.com\r\n\r\nHello\r\n"
    front = b"Date: Sun, 31 Jan 2027 09:30:00 +0000\r\nMessage-ID: <new@example.com>\r\n"
    assert written(to=None, raw=bare) == front + bare


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"", b"", "raw: is empty"),
        (b"\r\n", b"\n", r"raw: line 1 does not end in CRLF.*replace\(b"),
        (b"..dots\r\n", b"..dots\n", "line 12 does not end in CRLF.*; end every line"),
        (b"Latin-1\r\n", b"Latin-1", "must end in CRLF"),
        (b"..dots", b"x" * 999, "line 12 has more than 998 bytes"),
        (b"..dots", b"\0", "line 12 holds a NUL"),
        (b"X-Odd:", b"Bcc: eve@example.com\r\nX-Odd:", "has a Bcc header.*name those people in bcc"),
        (b"X-Odd:", b"Resent-To: eve@example.com\r\nX-Odd:", "Resent-"),
        (b"X-Odd:", b"Subject: twice\r\nX-Odd:", "more than one header Subject"),
        (b"X-Odd:", b"no header\r\nX-Odd:", "line 9 is no header"),
        (b"X-Odd:", b"X-Odd: \xfc", "line 9 holds bytes outside ASCII"),
        (b"From: Me <me@example.com>", b"From: a@example.com, b@example.com", "From header with one address"),
        (b"<own@example.com>", b"own", "a Message-ID that is none"),
        (b"Date: Sun", b"Date: yesterday, Sun", "a Date that is none"),
        (b"bob@example.com", b"bob", "its To header holds what is no address"),
    ],
)
def test_a_raw_mail_that_would_have_to_be_changed_is_refused_with_the_cure(old: bytes, new: bytes, said: str) -> None:
    mail = RAW.replace(old, new) if old else b""
    assert re.search(said, refused(raw=mail, to=None)), refused(raw=mail, to=None)


def test_what_would_change_a_raw_mail_is_refused_beside_it() -> None:
    fields = {"text": "x", "html": "x", "headers": {"X-A": "b"}, "subject": "x", "importance": "high",
              "unsubscribe_url": "https://x.example/", "recipients": "accepted", "reply_to": "x@example.com",
              "invitation": INVITATION, "from_": "x@example.com"}  # fmt: skip
    said = refused(raw=RAW, **fields)
    assert all(f"{name.removesuffix('_')}: " in said for name in fields), said
    assert "raw: must be bytes" in refused(raw="From: me")


# ── invitations ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_invitation_is_an_alternative_with_its_method_and_a_file() -> None:
    mail = parsed(text="Come", html="<img src='cid:l'>", invitation=INVITATION,
                  attachments=[Attachment("l.png", b"x", inline_id="l")])  # fmt: skip
    kinds = [part.get_content_type() for part in mail.walk()]
    assert kinds == ["multipart/mixed", "multipart/alternative", "text/plain", "multipart/related", "text/html",
                     "image/png", "text/calendar", "application/ics"]  # fmt: skip
    calendar, file = list(mail.walk())[-2:]
    assert calendar.get_param("method") == "REQUEST" and calendar.get_content_charset() == "utf-8"
    content = INVITATION.replace("\n", "\r\n").encode()
    assert calendar.get_payload(decode=True) == file.get_payload(decode=True) == content
    assert (file.get_filename(), calendar.get_content_disposition()) == ("invite.ics", None)


def test_an_invitation_alone_shows_its_title_as_text() -> None:
    mail = parsed(invitation=INVITATION.encode())
    body = cast(EmailMessage, mail.get_body(("plain",)))
    assert body.get_content().strip() == summary_of(INVITATION) == "Demo, at ours"
    assert method_of(INVITATION.replace("REQUEST", "cancel")) == "CANCEL"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("METHOD:REQUEST\n", "", "needs one METHOD"),
        ("METHOD:REQUEST", "METHOD:INVITE", "needs one METHOD"),
        ("UID:4711@crm.example\n", "", "one same UID"),
        ("ATTENDEE", "X-ATTENDEE", "needs ATTENDEE"),
        ("ORGANIZER", "X-ORGANIZER", "needs ORGANIZER"),
        ("DTSTART", "X-DTSTART", "needs DTSTART"),
        ("BEGIN:VEVENT", "BEGIN:VTODO", "END:VEVENT closes what is not open"),
        ("END:VCALENDAR\n", "", "from BEGIN:VCALENDAR to END:VCALENDAR"),
        ("VERSION:2.0", "VERSION\x07:2.0", "control character"),
        ("VERSION:2.0", "no property", "line 2 .unfolded. is no property"),
    ],
)
def test_a_calendar_that_no_program_would_take_is_refused_with_the_cure(old: str, new: str, said: str) -> None:
    assert re.search(f"invitation: .*{said}", refused(invitation=INVITATION.replace(old, new)))


# ── lists ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_click_has_both_headers_and_one_https_uri() -> None:
    url = "https://crm.example/u?t=" + "x" * 400
    mail = parsed(text="x", unsubscribe_url=url, unsubscribe_mailto="leave+1@crm.example")
    assert mail["List-Unsubscribe"].split(", ") == [f"<{url}>", "<mailto:leave+1@crm.example>"]
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    alone = parsed(text="x", unsubscribe_mailto="mailto:leave@crm.example?subject=4711")
    assert (
        alone["List-Unsubscribe"] == "<mailto:leave@crm.example?subject=4711>" and "List-Unsubscribe-Post" not in alone
    )
    kept = Message(to="a@b.cc", text="x", unsubscribe_mailto="o'neil%x@crm.example").unsubscribe_mailto
    assert Message(to="a@b.cc", text="x", unsubscribe_mailto=kept).unsubscribe_mailto == kept


@pytest.mark.parametrize(
    "fields",
    [
        {"unsubscribe_url": "http://crm.example/u"}, {"unsubscribe_url": "https://crm.example/ü"},
        {"unsubscribe_url": "https://crm.example/a>,<https://evil.example"},
        {"unsubscribe_url": "https://x.example/a b"},
        {"unsubscribe_url": "https://x.example/" + "x" * 900}, {"unsubscribe_mailto": "nobody"},
        {"unsubscribe_mailto": "mailto:a@x.example?subject=a b"},
        {"unsubscribe_mailto": "a@x.example?x=\r\nBcc: e@e.ee"},
        {"unsubscribe_url": "https://x.example/", "headers": {"List-Unsubscribe": "<https://y.example/>"}},
        {"headers": {"List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}},
        {"headers": {"List-Unsubscribe-Post": "List-Unsubscribe=One-Click", "List-Unsubscribe": "<http://x.example/>"}},
    ],
)  # fmt: skip
def test_what_is_no_one_click_is_refused(fields: dict[str, Any]) -> None:
    assert "nsubscribe" in refused(text="x", **fields)


@pytest.mark.parametrize(
    "name",
    ["Bcc", "Received", "DKIM-Signature", "Return-Path", "Message-ID", "Date", "X-Outtray-Key", "MIME-Version",
     "Content-Type", "Resent-To", "ARC-Seal", "Sender", "Authentication-Results", "Delivered-To", "Subject"],
)  # fmt: skip
def test_headers_that_are_not_the_apps_to_write_are_refused(name: str) -> None:
    assert f"headers[{name}]" in refused(text="x", headers={name: "x"})


# ── what follows by itself ──────────────────────────────────────────────────────────────────────────────────────────


def test_html_alone_gets_a_text_whose_links_can_be_read() -> None:
    html = (
        "<style>p{}</style><h1>Hello&nbsp;Ann</h1><p>Our <a href='https://crm.example/o?a=1&amp;b=2'>offer</a>,<br>or "
        "<a href='https://crm.example'>crm.example</a>, <a href='mailto:me@crm.example'>me@crm.example</a></p>"
        "<table><tr><td>Chair</td><td>5 €</td></tr></table><ul><li>one</li></ul><script>evil()</script>"
        "<div style='display:none'>hidden</div>"
    )
    text = text_of_html(html)
    assert "offer (https://crm.example/o?a=1&b=2),\nor https://crm.example, me@crm.example" in text
    assert "Chair" in text and "5 €" in text and "* one" in text
    assert not any(word in text for word in ("evil", "hidden", "p{}", "<"))
    mail = parsed(html=html)
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]
    assert parsed(html="<img src='x'>").get_content_type() == "text/html"
    assert next(part.get_content() for part in parsed(html="<b>x</b>", text="").iter_parts()) == "\r\n"


def test_no_html_keeps_a_message_from_being_enqueued() -> None:
    for html in ("", "<", "<?xml version='1.0' encoding='utf-16'?><p>a", "<p>" * 50_000, "<!--", "\ufffe", "a\u0001b",
                 "<table>" * 3000 + "x", "<a href='javascript:x'>y</a>", "x" * (MOST + 1)):  # fmt: skip
        assert isinstance(text_of_html(html), str)
    assert text_of_html("<p>" + "word " * MOST).startswith("word word")


@pytest.mark.parametrize(
    ("name", "beginning", "media"),
    [
        ("offer", b"%PDF-1.7\n", "application/pdf"), ("offer.pdf", b"", "application/pdf"),
        ("photo.jpg", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png"), ("photo.jpg", b"no picture", "image/jpeg"),
        ("sheet.xlsx", b"PK\x03\x04aaaa", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
        ("notes.txt", b"%PDF-1.7\n", "text/plain"), ("x.unknown", b"\xff\xd8\xff\xe0\0\x10JFIF\0", "image/jpeg"),
        ("x", b"just a text", "application/octet-stream"), ("a.csv", b"a,b\n", "text/csv"),
        ("x", b"", "application/octet-stream"),
        ("day.ics", b"BEGIN:VCALENDAR", "text/calendar"), ("x", b"PK\x03\x04aaaa", "application/zip"),
        ("logo.svg", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/svg+xml"), ("a.tar.gz", b"", "application/gzip"),
    ],
)  # fmt: skip
def test_a_files_type_follows_from_its_name_and_its_bytes(
    tmp_path: Path, name: str, beginning: bytes, media: str
) -> None:
    assert media_type(name, beginning) == media
    file = tmp_path / name
    file.write_bytes(beginning)
    assert Attachment(name, path=file).mime_type == Attachment(name, beginning).mime_type == media
    assert Attachment(name, beginning, content_type="text/x-own").mime_type == "text/x-own"


def test_a_file_is_hashed_once_while_it_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "plan.bin"
    file.write_bytes(b"one")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    fresh = Attachment("plan.bin", path=file).digest()
    file.write_bytes(b"two")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    assert Attachment("plan.bin", path=file).digest() != fresh, "its change time tells"
    monkeypatch.setattr("outtray_schema.attachment._SETTLED", -1.0)
    known = Attachment("plan.bin", path=file).digest()
    monkeypatch.setattr(Attachment, "read", lambda _: iter([b"read again"]))
    assert Attachment("plan.bin", path=file).digest() == known
