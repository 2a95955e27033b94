"""What each provider does to the bytes of a raw mail, and how an invitation travels: docs/mime.md says it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_string
from pathlib import Path
from uuid import uuid4

import pytest
from gmail_rig import GmailRig
from graph_mails import ALIAS, MB, file, frozen
from graph_rig import GraphRig
from provider_rigs import BCC, RECIPIENTS, USER, Rig, SmtpRig, account_of, bytes_of, deliver, digest

from outtray_schema.outcome import Failed, Sent
from outtray_worker.providers import Mail, Trace
from outtray_worker.providers.smtp.imap.look import Copy

HEAD = f"X-Odd:\tkept  as it is \r\nFrom: {USER}\r\nTo: {RECIPIENTS[0]}\r\nDate: Sat, 21 Nov 2026 12:00:00 +0000\r\n"
EVENT = """BEGIN:VCALENDAR
METHOD:REQUEST
BEGIN:VEVENT
UID:1
DTSTAMP:20270101T000000Z
DTSTART:20270101T000000Z
ORGANIZER:mailto:a@b.cc
ATTENDEE:mailto:c@d.ee
END:VEVENT
END:VCALENDAR
"""


def raw(body: bytes = b".\r\n..\r\n.hidden\r\n\r\nGr\xfc\xdfe\r\n", sender: str = USER) -> Mail:
    message_id = uuid4()
    data = HEAD.encode() + f"Message-ID: <{message_id.hex}@own.example>\r\n\r\n".encode() + body

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 3001):
            yield data[start : start + 3001]

    name = f"<{message_id.hex}@own.example>"
    return Mail(message_id, sender, (RECIPIENTS[0], BCC), name, len(data), pieces, (BCC,), as_mime=True, unaltered=True)


def sent(rig: Rig, mail: Mail) -> bytes:
    outcome = rig.run(deliver(rig, mail))
    assert isinstance(outcome, Sent), outcome
    return rig.run(bytes_of(mail))


def test_by_smtp_every_byte_arrives_dots_latin_1_and_all(tmp_path: Path) -> None:
    with SmtpRig(tmp_path) as smtp:
        # With a server to look at, any other mail carries our key.
        smtp.account = account_of(smtp.where(imap={"host": "127.0.0.1", "port": 1}))
        data = sent(smtp, mail := raw())
        assert [(each.sha256, each.size) for each in smtp.taken()] == [(digest(data), len(data))]
        keyed = sent(smtp, replace(mail, unaltered=False))
        assert smtp.taken()[1].size > len(keyed)


def test_by_gmail_our_key_and_the_hidden_recipients_stand_in_front_and_nothing_else_changes(tmp_path: Path) -> None:
    with GmailRig(tmp_path) as gmail:
        data = sent(gmail, mail := raw(b"hello\r\n"))
        (taken,) = gmail.taken()
        # The rig takes off what stands in front: our key and Bcc (`gmail_rig`).
        assert (taken.sha256, set(taken.recipients)) == (digest(data), set(mail.recipients))


@pytest.mark.parametrize("grant", ["drafts", "sendMail"])
def test_by_graph_it_goes_as_mime_whole(tmp_path: Path, grant: str) -> None:
    with GraphRig(tmp_path, *([grant] if grant == "sendMail" else [])) as graph:
        data = sent(graph, raw())
        assert graph.house.ledger.read()[0].sha256 == digest(data)


@pytest.mark.parametrize("grant", ["drafts", "sendMail"])
def test_graph_refuses_what_it_could_only_send_otherwise(tmp_path: Path, grant: str) -> None:
    with GraphRig(tmp_path, *([grant] if grant == "sendMail" else [])) as graph:
        for mail in (raw(b"x" * 70 + b"\r\n" + b"line\r\n" * MB), raw(sender=ALIAS)):
            outcome = graph.run(deliver(graph, mail))
            assert isinstance(outcome, Failed), outcome
        assert graph.taken() == []


def test_an_invitation_goes_to_graph_as_mime_and_large_files_beside_it_as_uploads(tmp_path: Path) -> None:
    with GraphRig(tmp_path) as graph:
        mail = replace(frozen(html="<b>x</b>", invitation=EVENT), as_mime=True)
        data = sent(graph, mail)
        assert b'method="REQUEST"' in data or b"method=REQUEST" in data
        assert graph.house.ledger.read()[0].sha256 == digest(data)
        sent(graph, replace(frozen(invitation=EVENT, attachments=[file(4 * MB)]), as_mime=True))
        assert [each["stage"] for each in graph.requests()].count("upload.put") > 1


def test_an_older_mail_with_the_message_id_that_a_raw_mail_brought_proves_nothing() -> None:
    """Its person may have sent that very mail before: only a copy from the time of the handover counts."""
    now, id = datetime.now(UTC), uuid4()
    headers = message_from_string("Message-ID: <own@own.example>\n\n")
    trace = Trace(id, "<own@own.example>", now, RECIPIENTS)
    assert Copy(headers, now).is_ours(trace, "X-Outtray-Key")
    assert not Copy(headers, now - timedelta(hours=1)).is_ours(trace, "X-Outtray-Key")
    assert not Copy(headers, None).is_ours(trace, "X-Outtray-Key")
    ours = message_from_string(f"Message-ID: <{id}@own.example>\n\n")
    assert Copy(ours, None).is_ours(Trace(id, f"<{id}@own.example>", now, RECIPIENTS), "X-Outtray-Key")
