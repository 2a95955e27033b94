"""Where both arms deliver: the HTTP sink, plain or as one of the APIs, or the sandbox's SMTP server as a process."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from uuid import UUID

import psutil
from tests.bench.ours import HTML, Boxes
from tests.bench.stand import REPOSITORY, Stand

from outtray_sandbox.accepted import Ledger
from outtray_sandbox.smtp import Control
from outtray_schema.address import Address
from outtray_schema.message import Message
from outtray_schema.mime import freeze

MARK = b"00000000-0000-7000-8000-000000000000"
"""Stands in the baseline's letter where each message's id goes: the SMTP ledger tells mails apart by Message-ID."""


def letter() -> bytes:
    """The bytes that both arms send, built once, by the product's own writer."""
    message = Message(to="reader@example.net", subject="Letter 1", text="A letter.", html=HTML)
    sender = Address("writer@bench.test", "")
    frozen = freeze(message, sender=sender, rfc_message_id=f"<{MARK.decode()}@bench.test>", date=datetime.now(UTC))
    return b"".join(frozen.pieces())


class Sink(Protocol):
    """One run's sink. `key` is the SQL expression of a message row that names it in the sink's ledger."""

    key: str
    their_key: str
    letter: bytes
    baseline: dict[str, str]

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def boxes(self, app: str, number: int) -> Boxes: ...

    def know(self, mailboxes: list[UUID]) -> None: ...

    def count(self) -> int: ...

    def ledger(self) -> dict[str, int]: ...


class HttpSink:
    """A ledger of the stand's HTTP sink. `answer`: milliseconds, or `never`."""

    key = their_key = "id::text"

    def __init__(self, stand: Stand, ledger: str, answer: str) -> None:
        self._stand = stand
        self._ledger = ledger
        self._url = stand.sink_url(ledger, answer)
        self.letter = letter()
        self.baseline = {"BASELINE_SINK": self._url}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The sink is the stand's."""

    def boxes(self, app: str, number: int) -> Boxes:
        # Two hosts, as an app has mailboxes at two providers: one host alone is held to half of a worker's turns.
        return Boxes(app, number, "bench", ("one.bench", "two.bench"), {"url": self._url})

    def know(self, mailboxes: list[UUID]) -> None:
        """It takes everybody's."""

    def count(self) -> int:
        return self._stand.sink_count(self._ledger)

    def ledger(self) -> dict[str, int]:
        return self._stand.sink_ledger(self._ledger)


@dataclass(frozen=True, slots=True)
class Api:
    """One provider's API at the sink: where the product's setting points, and how its mailboxes look."""

    provider: str
    host: str
    setting: str
    path: str
    send: str
    """The one request that a task-per-message worker would make."""


GMAIL = Api("gmail", "gmail.googleapis.com", "OUTTRAY_GMAIL_URL", "", "gmail/v1/users/me/messages/send")
GRAPH = Api("microsoft", "graph.microsoft.com", "OUTTRAY_GRAPH_URL", "v1.0", "v1.0/me/sendMail")


class ApiSink(HttpSink):
    """A ledger of the same sink, which speaks `api` below it. All mailboxes are at one host, as those of one provider
    are: half of a worker's turns is the most that they get."""

    def __init__(self, stand: Stand, ledger: str, api: Api, scopes: Sequence[str]) -> None:
        super().__init__(stand, ledger, api.path)
        self.environment = {api.setting: self._url.rstrip("/")}
        self.baseline = {"BASELINE_SINK": stand.sink_url(ledger, api.send), "BASELINE_RAW": "1"}
        self._api = api
        self._scopes = scopes

    def boxes(self, app: str, number: int) -> Boxes:
        return Boxes(app, number, self._api.provider, (self._api.host,), {}, scopes=self._scopes)

    def requests(self) -> dict[str, int]:
        """Operation → how often it was asked for."""
        return self._stand.sink_requests(self._ledger)


class SmtpSink:
    """The sandbox's SMTP server, in clear on loopback, with a login for each mailbox."""

    key = "rfc_message_id"
    their_key = "'<' || id || '@bench.test>'"

    def __init__(self, stand: Stand, ledger: str) -> None:
        self._stand = stand
        self._path: Path = stand.folder / f"{ledger}.jsonl"
        self._password = secrets.token_urlsafe(12)
        self._process: subprocess.Popen[bytes] | None = None
        self._seen = 0
        self._offset = 0
        self.letter = letter()
        self.baseline: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stand.roles.pop("smtp sink", None)
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def boxes(self, app: str, number: int) -> Boxes:
        port = self._where()["port"]
        server = {"host": "127.0.0.1", "port": port, "tls": "clear"}
        return Boxes(app, number, "smtp", ("127.0.0.1",), server, password=self._password)

    def know(self, mailboxes: list[UUID]) -> None:
        """Let every mailbox log in."""
        for mailbox_id in mailboxes:
            self._control.do("add_user", user=f"{mailbox_id}@bench.test", password=self._password)

    def _where(self) -> dict[str, Any]:
        control = str(self._stand.folder / "smtp.sock")
        command = ["outtray_sandbox.smtp", "--ledger", str(self._path), "--control", control]
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        where: dict[str, Any] = json.loads(self._process.stdout.readline())
        self._control = Control(control)
        self._stand.roles["smtp sink"] = [psutil.Process(self._process.pid)]
        self.baseline = {
            "BASELINE_SMTP_HOST": "127.0.0.1",
            "BASELINE_SMTP_PORT": str(where["port"]),
            "BASELINE_SMTP_PASSWORD": self._password,
        }
        return where

    def count(self) -> int:
        """Lines that were added since the last look, and those before."""
        with self._path.open("rb") as lines:
            lines.seek(self._offset)
            fresh = lines.read()
        self._offset += len(fresh)
        self._seen += fresh.count(b"\n")
        return self._seen

    def ledger(self) -> dict[str, int]:
        taken: dict[str, int] = {}
        for accepted in Ledger(self._path).read():
            taken[accepted.rfc_message_id] = taken.get(accepted.rfc_message_id, 0) + 1
        return taken
