"""All that a message can be, through Debian's Postfix into its Dovecot: header by header, byte by byte."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email import policy
from email.parser import BytesParser
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from mail.desk import RECIPIENTS, Desk
from mail.mail_servers import USER, MailServers
from outtray import Attachment, Message
from outtray_schema.message import Address
from outtray_schema.mime import freeze
from outtray_schema.outcome import Sent
from outtray_worker.providers import Mail
from polling import eventually

INVITATION = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//example//crm//EN
METHOD:REQUEST
BEGIN:VEVENT
UID:7@crm.example
DTSTAMP:20261121T120000Z
DTSTART:20261201T090000Z
SUMMARY:Grüße aus Köln
ORGANIZER:mailto:ann@sender.example
ATTENDEE;RSVP=TRUE:mailto:bob@receiver.example
END:VEVENT
END:VCALENDAR
"""

RAW = (
    b"From: Ann <" + USER.encode() + b">\r\nTo: bob@receiver.example\r\nSubject:  kept   as it is\r\n"
    b"Date: Sat, 21 Nov 2026 12:00:00 +0000\r\nMessage-ID: <raw-7@sender.example>\r\nx-LOWER: Yes\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n.\r\n..two\r\n\ttab \r\n"
    + b"x" * 998
    + b"\r\n"
)

FORMS = {
    "text alone": {"text": "Grüße\n.\n..\n.x\n"},
    "text, html, image and files": {
        "html": "<p>Grüße <img src='cid:logo'></p>",
        "attachments": [
            Attachment("logo.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), inline_id="logo"),
            Attachment("Übersicht – März.pdf", b"%PDF-1.7\n" + bytes(5000)),
            Attachment('a;b "c".csv', b"a;b\r\n1;2\r\n"),
        ],
    },
    "headers of all kinds": {
        "text": "x",
        "subject": "Ein langer Betreff " * 30 + "✓",
        "headers": {"X-Campaign": "spring", "X-Note": "wörter " * 60},
        "importance": "high",
        "request_read_receipt": True,
        "references": [f"<{n}@sender.example>" for n in range(40)],
        "in_reply_to": "<39@sender.example>",
        "reply_to": "Empfang – Büro <desk@sender.example>",
    },
    "a list's mail": {
        "text": "x",
        "unsubscribe_url": "https://crm.example/u/7?token=abc",
        "unsubscribe_mailto": "unsubscribe@sender.example",
    },
    "an invitation": {"text": "Come", "invitation": INVITATION},
    "a raw mail": {"raw": RAW},
}


def frozen(fields: dict[str, object]) -> tuple[bytes, str]:
    message = Message(**({"to": "bob@receiver.example", "bcc": "hidden@receiver.example"} | fields))  # type: ignore[arg-type]
    rfc_message_id = "<raw-7@sender.example>" if "raw" in fields else f"<{uuid4()}@sender.example>"
    sender = Address(USER, "Ann Müller")
    mime = freeze(message, sender=sender, rfc_message_id=rfc_message_id, date=datetime(2026, 11, 21, 12, tzinfo=UTC))
    return b"".join(mime.pieces()), rfc_message_id


def mail_of(data: bytes, rfc_message_id: str, raw: bool) -> Mail:
    async def body() -> AsyncIterator[bytes]:
        yield data

    return Mail(uuid4(), USER, RECIPIENTS, rfc_message_id, len(data), body, as_mime=raw, unaltered=raw)


def arrived(servers: MailServers, folder: Path, mail: Mail) -> bytes:
    before = set(servers.sent())
    outcome, _ = Desk(servers, folder).hand_over(mail)
    assert isinstance(outcome, Sent), (outcome, servers.log())
    eventually(lambda: len(set(servers.sent()) - before) == 1, 30)
    (file,) = set(servers.sent()) - before
    return file.read_bytes()


def key_of(message_id: UUID) -> bytes:
    return f"X-Outtray-Key: {message_id}\r\n".encode()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_arrives_as_it_was_frozen(filing: MailServers, tmp_path: Path, form: str) -> None:
    """Postfix puts trace fields before ours and changes nothing; Maildir keeps line ends as LF."""
    raw = form == "a raw mail"
    data, rfc_message_id = frozen(FORMS[form])
    assert not raw or data == RAW
    mail = mail_of(data, rfc_message_id, raw)
    kept = arrived(filing, tmp_path, mail)
    ours = data if raw else key_of(mail.message_id) + data
    assert kept.endswith(ours.replace(b"\r\n", b"\n"))
    assert b"hidden@receiver.example" not in data
    assert max(map(len, data.split(b"\r\n"))) <= 998
    read = BytesParser(policy=policy.default).parsebytes(kept)
    sent = BytesParser(policy=policy.default).parsebytes(data)
    for name in sent:
        assert read.get_all(name) == sent.get_all(name), name
    assert {name.lower() for name in read} - {name.lower() for name in sent} <= {
        "return-path", "delivered-to", "received", "x-outtray-key", "x-original-to"
    }  # fmt: skip
    for before, after in zip(sent.walk(), read.walk(), strict=True):
        assert after.get_content_type() == before.get_content_type()
        assert after.get_filename() == before.get_filename()
        if not before.is_multipart():
            theirs, mine = after.get_payload(decode=True), before.get_payload(decode=True)
            assert theirs == mine or theirs == mine.replace(b"\r\n", b"\n")  # type: ignore[union-attr]
