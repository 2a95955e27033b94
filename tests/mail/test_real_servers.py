"""The same looks against Debian's Postfix and Dovecot, twice: filing a copy into Sent as Gmail does, and not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from mail.mail_servers import PASSWORD, USER, MailServers, mail_servers
from outtray_schema.outcome import Held, Outcome, Sent
from outtray_schema.settings import load_settings
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Account, Finding, Mail, Trace
from outtray_worker.providers.smtp import Check, SmtpProvider
from outtray_worker.providers.smtp.imap.look import Check as ImapCheck
from polling import eventually

RECIPIENTS = ("bob@receiver.example", "hidden@receiver.example")


@pytest.fixture(scope="module")
def filing() -> Iterator[MailServers]:
    with mail_servers(files_sent=True) as servers:
        yield servers


@pytest.fixture(scope="module")
def not_filing() -> Iterator[MailServers]:
    with mail_servers(files_sent=False) as servers:
        yield servers


class Desk:
    """A mailbox at those servers, and our provider."""

    def __init__(self, servers: MailServers, folder: Path, password: str = PASSWORD, **imap: Any) -> None:
        self.provider = SmtpProvider(load_settings(data_folder=folder, look_limit="20s"))
        host = {"host": "localhost", "tls": "starttls"}
        self.server = {
            **host, "port": servers.smtp, "ca_file": str(servers.tls.ca_file),
            "imap": {**host, "port": servers.imap, **imap},
        }  # fmt: skip
        self.account = Account(
            UUID(int=1),
            "localhost",
            self.server,
            USER,
            {"username": USER, "password": PASSWORD, "imap_password": password},
        )

    def send(self, text: str = "hello") -> tuple[Trace, Outcome]:
        async def steps() -> Outcome:
            session = self.provider.open(self.account)
            prepared = await session.prepare(mail)
            outcome = await prepared.hand_over(soon(), soon()) if hasattr(prepared, "hand_over") else prepared
            await session.close()
            return outcome

        mail = mail_with(text)
        return Trace(mail.message_id, mail.rfc_message_id, datetime.now(UTC), mail.recipients), asyncio.run(steps())

    def look(self, trace: Trace) -> Finding:
        async def steps() -> Finding:
            session = self.provider.open(self.account)
            try:
                return await session.find_evidence(trace)
            finally:
                await session.close()

        return asyncio.run(steps())


def mail_with(text: str) -> Mail:
    message_id = uuid4()
    rfc_message_id = f"<{message_id}@sender.example>"
    head = f"From: {USER}\r\nTo: {RECIPIENTS[0]}\r\nSubject: a test\r\nMessage-ID: {rfc_message_id}\r\n"
    data = f"{head}Date: Sat, 21 Nov 2026 12:00:00 +0000\r\n\r\n{text}\r\n".encode()

    async def body() -> AsyncIterator[bytes]:
        yield data

    return Mail(message_id, USER, RECIPIENTS, rfc_message_id, len(data), body)


def soon() -> Deadline:
    return Deadline.after(timedelta(seconds=30))


def lost() -> Trace:
    return Trace(uuid4(), f"<{uuid4()}@sender.example>", datetime.now(UTC), RECIPIENTS)


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
