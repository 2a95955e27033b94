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
import threading
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any

from outtray_sandbox.imap.dialogue import Dialogue
from outtray_sandbox.imap.post import COMMANDS, Folder, Post
from outtray_sandbox.imap.script import Rule
from outtray_sandbox.smtp import SmtpServer, serve_control

__all__ = ["Folder", "ImapServer", "Post", "Rule"]


class ImapServer:
    """`host`, `port`, `ca_file` say where it is; `post` is what lies there. Options are those of `Post`.

    Users, passwords, tokens and certificates are those of `smtp`. Port 0 picks a free one, and a restart keeps it.
    """

    def __init__(
        self,
        smtp: SmtpServer,
        *,
        port: int = 0,
        tls: str | None = None,
        control: str | None = None,
        **options: Any,
    ) -> None:
        self.smtp, self.host, self.port, self.control = smtp, smtp.host, port, control
        self.tls = tls or smtp.house.tls
        self.post = Post(smtp.house.knows, **options)
        smtp.house.file_copy = self.post.file_copy
        self._context: ssl.SSLContext | None = smtp.server_context() if self.tls != "clear" else None
        self._loop = asyncio.new_event_loop()
        self._listener: asyncio.Server | None = None
        self._control: asyncio.Server | None = None
        self._dialogues: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sandbox-imap", daemon=True)

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> ImapServer:
        self._thread.start()
        self.up()
        if self.control is not None:
            self._control = self._run(serve_control(self.control, self._obey))
            if self.control.isdigit():
                self.control = str(self._control.sockets[0].getsockname()[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        await self._down()
        if self._control:
            self._control.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    def down(self) -> None:
        """Stop listening and break every connection: from now on connections are refused."""
        self._run(self._down())

    def up(self) -> None:
        """Listen, on the same port as before."""
        self._run(self._up())

    async def _up(self) -> None:
        if self._listener is None:
            secured = self._context if self.tls == "implicit" else None
            self._listener = await asyncio.start_server(self._serve, self.host, self.port, ssl=secured)
            self.port = self._listener.sockets[0].getsockname()[1]

    async def _down(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
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

    # ── commands ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def ca_file(self) -> str | None:
        return self.smtp.ca_file

    def where(self, **changes: Any) -> dict[str, Any]:
        """This server as a mailbox's `server.imap`."""
        return {"host": self.host, "port": self.port, "tls": self.tls, **changes}

    def add_rule(self, **fields: Any) -> int:
        """Misbehave as `Rule` says; returns the rule's id."""
        return self.post.add_rule(**fields)

    async def _obey(self, command: str, arguments: dict[str, Any]) -> Any:
        if command in ("down", "up"):
            return await (self._down() if command == "down" else self._up())
        if command not in COMMANDS:
            raise ValueError(f"no such command: {command}; there are {', '.join((*COMMANDS, 'down', 'up'))}")
        return getattr(self.post, command)(**arguments)

    def _run(self, steps: Any) -> Any:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(steps, self._loop)
        return done.result(30)
