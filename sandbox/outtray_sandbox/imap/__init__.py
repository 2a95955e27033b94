"""A real-feeling IMAP server joined to the sandbox's SMTP server: what that takes may lie in Sent here, if it is filed.

    with SmtpServer(ledger=…, users={"ann@example.com": "secret"}) as smtp, ImapServer(smtp, files_sent=True) as imap:
        imap.post.lag = 60                                        # copies are there a minute after they were taken
        imap.add_rule(stage="search", reply="NO [UNAVAILABLE] later", times=1)

Our own, because no library has Gmail's extensions, a lag and a script for every answer; pymap 0.36 greets without
SPECIAL-USE too (its page, 2026-11). It speaks as much of IMAP4rev1 (RFC 3501) as a look needs, RFC 6154, and Gmail's
X-GM-RAW; all else it refuses.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import Any

from outtray_sandbox.imap.dialogue import Dialogue
from outtray_sandbox.imap.post import COMMANDS, Folder, Post
from outtray_sandbox.imap.script import Rule
from outtray_sandbox.mail_server import MailServer
from outtray_sandbox.smtp import SmtpServer

__all__ = ["Folder", "ImapServer", "Post", "Rule"]


class ImapServer(MailServer):
    """`host`, `port`, `ca_file` say where it is; `post` is what lies there. Options are those of `Post`.

    Users, passwords, tokens and certificates are those of `smtp`. Port 0 picks a free one, and a restart keeps it.
    """

    commands = COMMANDS

    def __init__(
        self,
        smtp: SmtpServer,
        *,
        port: int = 0,
        tls: str | None = None,
        control: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__("imap", smtp.host, port, control)
        self.smtp = smtp
        self.tls = tls or smtp.house.tls
        self.post = self.office = Post(smtp.house.knows, **options)
        smtp.house.file_copy = self.post.file_copy
        self._context: ssl.SSLContext | None = smtp.server_context() if self.tls != "clear" else None
        self._dialogues: set[asyncio.Task[Any]] = set()

    async def _listen(self) -> asyncio.Server:
        secured = self._context if self.tls == "implicit" else None
        return await asyncio.start_server(self._serve, self.host, self.port, ssl=secured)

    async def _break_all(self) -> None:
        for task in list(self._dialogues):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this in a task of its own
        self._dialogues.add(task)
        try:
            await Dialogue(self.post, reader, writer, self._context if self.tls == "starttls" else None).serve()
        except asyncio.CancelledError:
            return  # asyncio's streams report a cancelled connection as an error (CPython 3.11)
        finally:
            self._dialogues.discard(task)
            writer.transport.abort()

    @property
    def ca_file(self) -> str | None:
        return self.smtp.ca_file

    def where(self, **changes: Any) -> dict[str, Any]:
        """This server as a mailbox's `server.imap`."""
        return {"host": self.host, "port": self.port, "tls": self.tls, **changes}
