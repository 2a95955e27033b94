"""A mailbox at the real servers, and our provider."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from mail.mail_servers import PASSWORD, USER, MailServers
from outtray_schema.outcome import Outcome
from outtray_schema.settings import load_settings
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Account, Filed, Finding, Mail, RefusedRecipient, SentMail, Trace
from outtray_worker.providers.smtp import SmtpPrepared, SmtpProvider

RECIPIENTS = ("bob@receiver.example", "hidden@receiver.example")


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
        mail = mail_with(text)
        return Trace(mail.message_id, mail.rfc_message_id, datetime.now(UTC), mail.recipients), self.hand_over(mail)[0]

    def hand_over(self, mail: Mail) -> tuple[Outcome, tuple[RefusedRecipient, ...]]:
        """One attempt, and whom the server refused of it."""

        async def steps() -> tuple[Outcome, tuple[RefusedRecipient, ...]]:
            session = self.provider.open(self.account)
            try:
                prepared = await session.prepare(mail)
                if not isinstance(prepared, SmtpPrepared):
                    return prepared, ()
                return await prepared.hand_over(soon(), soon()), prepared.refused
            finally:
                await session.close()

        return asyncio.run(steps())

    def file_copy(self, mail: Mail, bcc: tuple[str, ...] = ()) -> Filed:
        """What follows a sending where the provider files no copy."""

        async def steps() -> Filed:
            session = self.provider.open(self.account)
            try:
                copy = SentMail(mail.message_id, mail.rfc_message_id, datetime.now(UTC), mail.size, mail.body, bcc)
                return await session.file_copy(copy, soon())
            finally:
                await session.close()

        return asyncio.run(steps())

    def look(self, trace: Trace) -> Finding:
        async def steps() -> Finding:
            session = self.provider.open(self.account)
            try:
                return await session.find_evidence(trace)
            finally:
                await session.close()

        return asyncio.run(steps())


def mail_with(text: str, recipients: tuple[str, ...] = RECIPIENTS, sender: str = USER, **fields: Any) -> Mail:
    message_id = uuid4()
    rfc_message_id = f"<{message_id}@sender.example>"
    head = f"From: {USER}\r\nTo: {recipients[0]}\r\nSubject: a test\r\nMessage-ID: {rfc_message_id}\r\n"
    data = f"{head}Date: Sat, 21 Nov 2026 12:00:00 +0000\r\n\r\n{text}\r\n".encode()

    async def body() -> AsyncIterator[bytes]:
        yield data

    return Mail(message_id, sender, recipients, rfc_message_id, len(data), body, **fields)


def soon() -> Deadline:
    return Deadline.after(timedelta(seconds=30))


def lost() -> Trace:
    return Trace(uuid4(), f"<{uuid4()}@sender.example>", datetime.now(UTC), RECIPIENTS)
