"""The SMTP rig with the sandbox's IMAP server joined: what was sent may be found there."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from uuid import UUID, uuid4

from provider_rigs import PASSWORD, RECIPIENTS, USER, SmtpRig, deliver, new_mail

from outtray_sandbox.imap import ImapServer
from outtray_schema.outcome import Sent
from outtray_worker.providers import Account, Finding, Mail, Trace

T = TypeVar("T")
NOBODY = "<nobody@sender.example>"


class ImapRig:
    """`imap` are fields of the mailbox's `server.imap`, beside where it is; `options` those of `Post`."""

    def __init__(
        self,
        folder: Path,
        tls: str = "clear",
        loop: str = "asyncio",
        imap: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.smtp = SmtpRig(folder, tls, loop, {"look_limit": "3s", **(settings or {})})
        self.server = ImapServer(self.smtp.server, **{"files_sent": True, **options})
        self.post = self.server.post
        self._fields = imap or {}

    def __enter__(self) -> ImapRig:
        self.smtp.__enter__()
        self.server.__enter__()
        self.account = self.account_with()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.__exit__(kind, error, trace)
        self.smtp.__exit__(kind, error, trace)
        if kind is None:
            assert self.post.seen["errors"] == 0, "the sandbox's IMAP server failed"

    def account_with(self, credentials: dict[str, str] | None = None, **imap: Any) -> Account:
        """The mailbox with some fields of `server.imap` changed."""
        server = self.smtp.where(imap=self.server.where(**{**self._fields, **imap}))
        given = credentials or {"username": USER, "password": PASSWORD}
        return Account(UUID(int=1), server["host"], server, USER, given)

    def run(self, steps: Coroutine[Any, Any, T]) -> T:
        return self.smtp.run(steps)

    def send(self, mail: Mail | None = None) -> Trace:
        """One mail through the SMTP server, taken and answered; what is known of it."""
        mail = mail or new_mail()
        self.smtp.account = self.account
        assert isinstance(self.run(deliver(self.smtp, mail)), Sent)
        return trace_of(mail)

    def look(self, trace: Trace, account: Account | None = None) -> Finding:
        async def steps() -> Finding:
            session = self.smtp.provider.open(account or self.account)
            try:
                return await session.find_evidence(trace)
            finally:
                await session.close()

        return self.run(steps())

    def other(self, user: str = USER, folder: str = "Sent", ago: timedelta = timedelta(), key: bool = True) -> None:
        """The copy of another mail of ours, or of a person's own."""
        lines = f"X-Outtray-Key: {uuid4()}\r\n" if key else ""
        at = self.post.now() - ago.total_seconds()
        self.post.add(user, folder, f"{lines}Message-ID: <{uuid4()}@sender.example>\r\n".encode(), at)


def trace_of(mail: Mail) -> Trace:
    return Trace(mail.message_id, mail.rfc_message_id, datetime.now(UTC), mail.recipients)


def lost() -> Trace:
    """A handover whose mail never arrived."""
    return Trace(uuid4(), NOBODY, datetime.now(UTC), RECIPIENTS)


def renamed(trace: Trace, **changes: Any) -> Trace:
    return replace(trace, **changes)


def all_that_was_said(finding: Finding, log: str) -> str:
    return repr(finding) + log + "".join(repr(each) for each in logging.getLogger("imapclient").handlers)
