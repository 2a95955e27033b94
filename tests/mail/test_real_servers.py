"""The same looks against Debian's Postfix and Dovecot, twice: filing a copy into Sent as Gmail does, and not."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mail.desk import Desk, lost
from mail.mail_servers import MailServers
from outtray_schema.outcome import Held, Sent
from outtray_worker.providers import Trace
from outtray_worker.providers.smtp import Check
from outtray_worker.providers.smtp.imap.look import Check as ImapCheck
from polling import eventually


def test_what_was_taken_is_found_in_sent(filing: MailServers, tmp_path: Path) -> None:
    desk = Desk(filing, tmp_path)
    before = len(filing.sent())
    trace, outcome = desk.send("a line\r\n.\r\n.with dots")
    assert isinstance(outcome, Sent), (outcome, filing.log())
    eventually(lambda: desk.look(trace).kind == "sent", 30)
    found = desk.look(trace)
    assert found.sent is not None and found.sent.rfc_message_id == trace.rfc_message_id
    assert "its Message-ID" in found.looked
    assert len(filing.sent()) <= before + 1


def test_what_was_never_taken_is_absent_where_copies_are_seen_to_be_filed(filing: MailServers, tmp_path: Path) -> None:
    desk = Desk(filing, tmp_path)
    trace, _ = desk.send()
    eventually(lambda: desk.look(trace).kind == "sent", 30)
    found = desk.look(lost())
    assert found.kind == "absent", (found, filing.log())
    assert "copies of other mails of ours lie there" in found.looked


def test_our_key_finds_it_where_the_message_id_is_another(filing: MailServers, tmp_path: Path) -> None:
    desk = Desk(filing, tmp_path)
    trace, _ = desk.send()
    other = Trace(trace.message_id, "<unknown@sender.example>", trace.handed_at, trace.recipients)
    eventually(lambda: desk.look(other).kind == "sent", 30)
    assert "our key" in desk.look(other).looked


def test_where_nobody_files_copies_nothing_is_proven(not_filing: MailServers, tmp_path: Path) -> None:
    desk = Desk(not_filing, tmp_path)
    trace, outcome = desk.send()
    assert isinstance(outcome, Sent), (outcome, not_filing.log())
    eventually(lambda: "relay=none" in not_filing.log(), 30)
    assert not_filing.sent() == []
    assert [desk.look(each).kind for each in (trace, lost())] == ["nothing", "nothing"]
    assert Desk(not_filing, tmp_path, files_sent=False).look(trace).kind == "nothing"


def test_what_its_owner_says_of_copies_is_believed(not_filing: MailServers, tmp_path: Path) -> None:
    assert Desk(not_filing, tmp_path, files_sent=True).look(lost()).kind == "absent"


def test_a_wrong_password_for_imap_fails_the_look_and_hinders_no_mail(filing: MailServers, tmp_path: Path) -> None:
    desk = Desk(filing, tmp_path, password="wrong")
    trace, outcome = desk.send()
    assert isinstance(outcome, Sent), (outcome, filing.log())
    found = desk.look(trace)
    assert found.kind == "failed"
    assert isinstance(found.outcome, Held) and "refuses the login" in found.outcome.reason


def test_the_test_of_the_mailbox_says_where_it_would_look(filing: MailServers, tmp_path: Path) -> None:
    desk = Desk(filing, tmp_path)
    found = asyncio.run(desk.provider.check(desk.account))
    assert isinstance(found, Check)
    assert isinstance(found.imap, ImapCheck)
    assert (found.imap.sent, found.imap.mechanism) == ("the folder marked as that of sent mail", "plain")
