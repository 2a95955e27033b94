"""A real-feeling SMTP server for tests and demo: AUTH, TLS, limits, a script for every answer, and its own ledger.

    with SmtpServer(ledger=folder / "accepted.jsonl", users={"ann@example.com": "secret"}) as server:
        server.add_rule(stage="dot", drop="after", times=1)      # takes the next mail, but the reply is lost
        ...
        assert not server.ledger.twice()

It runs on a thread and an event loop of its own. `python -m outtray_sandbox.smtp` is the same as a process, commanded
through `Control`. What it took stands in `Ledger`, which judges us.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from outtray_sandbox.accepted import Accepted, Ledger
from outtray_sandbox.smtp.certificates import TlsFiles, make_certificates
from outtray_sandbox.smtp.control import Control, Refused, serve_control
from outtray_sandbox.smtp.dialogue import Dialogue
from outtray_sandbox.smtp.house import COMMANDS, House
from outtray_sandbox.smtp.script import Rule

__all__ = [
    "Accepted",
    "Control",
    "House",
    "Ledger",
    "Refused",
    "Rule",
    "SmtpServer",
    "TlsFiles",
    "make_certificates",
    "serve_control",
]

T = TypeVar("T")
_BACKLOG = 4096


class SmtpServer:
    """`host`, `port`, `ca_file` say where it is; `house` is what it knows. Options are those of `House`.

    `tls_files` are made beside the ledger unless they are given. Port 0 picks a free one, and a restart keeps it.
    """

    def __init__(
        self,
        ledger: Path | str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        control: str | None = None,
        tls_files: TlsFiles | None = None,
        **options: Any,
    ) -> None:
        self.ledger = Ledger(ledger)
        self.house = House(self.ledger, **options)
        self.host, self.port, self.control = host, port, control
        self._files = tls_files
        if self.house.tls != "clear" and tls_files is None:
            self._files = make_certificates(Path(ledger).parent / "tls")
        self._context = self._files.server_context() if self._files and self.house.tls != "clear" else None
        self._loop = asyncio.new_event_loop()
        self._listener: asyncio.Server | None = None
        self._control: asyncio.Server | None = None
        self._dialogues: set[asyncio.BaseTransport] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sandbox-smtp", daemon=True)

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> SmtpServer:
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
        self.ledger.close()

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
            secured = self._context if self.house.tls == "implicit" else None
            self._listener = await self._loop.create_server(
                self._dialogue, self.host, self.port, ssl=secured, backlog=_BACKLOG
            )
            self.port = self._listener.sockets[0].getsockname()[1]

    async def _down(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for transport in list(self._dialogues):
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()

    def _dialogue(self) -> Dialogue:
        return Dialogue(self.house, self._context, self._loop, self._dialogues)

    # ── commands ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def ca_file(self) -> str | None:
        """What a client must trust; `None` for a server in clear."""
        return str(self._files.ca_file) if self._files else None

    def server_context(self) -> ssl.SSLContext | None:
        """What another server needs that shares this one's certificate; `None` for a server in clear."""
        return self._files.server_context() if self._files else None

    @property
    def seen(self) -> Mapping[str, int]:
        return self.house.seen

    def do(self, command: str, /, **arguments: Any) -> Any:
        """A command of the control socket, from this process. Raises `ValueError` for an unknown one."""
        return self._run(self._obey(command, arguments))

    def add_rule(self, **fields: Any) -> int:
        """Misbehave as `Rule` says; returns the rule's id."""
        return int(self.do("add_rule", **fields))

    def forget(self, rule_id: int | None = None) -> None:
        """End one rule, or all."""
        self.do("forget", rule_id=rule_id)

    async def _obey(self, command: str, arguments: dict[str, Any]) -> Any:
        if command in ("down", "up"):
            steps: Callable[[], Awaitable[None]] = self._down if command == "down" else self._up
            return await steps()
        if command not in COMMANDS:
            raise ValueError(f"no such command: {command}; there are {', '.join((*COMMANDS, 'down', 'up'))}")
        return getattr(self.house, command)(**arguments)

    def _run(self, steps: Any) -> Any:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(steps, self._loop)
        return done.result(30)
