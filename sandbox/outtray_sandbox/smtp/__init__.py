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
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from outtray_sandbox.accepted import Accepted, Ledger
from outtray_sandbox.mail_server import MailServer
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

_BACKLOG = 4096


class SmtpServer(MailServer):
    """`host`, `port`, `ca_file` say where it is; `house` is what it knows. Options are those of `House`.

    `tls_files` are made beside the ledger unless they are given. Port 0 picks a free one, and a restart keeps it.
    """

    commands = COMMANDS

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
        super().__init__("smtp", host, port, control)
        self.ledger = Ledger(ledger)
        self.house = self.office = House(self.ledger, **options)
        self._files = tls_files
        if self.house.tls != "clear" and tls_files is None:
            self._files = make_certificates(Path(ledger).parent / "tls")
        self._context = self._files.server_context() if self._files and self.house.tls != "clear" else None
        self._dialogues: set[asyncio.BaseTransport] = set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.ledger.close()

    async def _listen(self) -> asyncio.Server:
        secured = self._context if self.house.tls == "implicit" else None
        return await self._loop.create_server(self._dialogue, self.host, self.port, ssl=secured, backlog=_BACKLOG)

    async def _break_all(self) -> None:
        for transport in list(self._dialogues):
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()

    def _dialogue(self) -> Dialogue:
        return Dialogue(self.house, self._context, self._loop, self._dialogues)

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
