"""One rig per provider: the same handles on very different servers, so that one contract runs over all of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar
from uuid import UUID, uuid4

import uvloop

from outtray_sandbox.smtp import SmtpServer
from outtray_schema.outcome import Failed, Outcome
from outtray_schema.settings import Settings, load_settings
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Account, Mail, Provider
from outtray_worker.providers.memory import Answer, MemoryProvider
from outtray_worker.providers.smtp import SmtpProvider

T = TypeVar("T")

USER = "canary-user@sender.example"
PASSWORD = "canary-password-Zx9"
TOKEN = "canary-token-" + "q7" * 60
BCC = "canary-bcc@third.example"
RECIPIENTS = ("canary-to@first.example", "canary-cc@second.example", BCC)
SUBJECT = "canary-subject"
CANARIES = ("canary-", PASSWORD, TOKEN, "q7q7q7")

Fault = Literal[
    "refuses early", "refuses late", "never answers", "takes, never answers", "takes, loses the answer", "breaks"
]
BODY = (
    f"From: {USER}\r\nTo: {RECIPIENTS[0]}\r\nCc: {RECIPIENTS[1]}\r\nSubject: {SUBJECT}\r\n"
    "Message-ID: <{id}@sender.example>\r\n\r\n"
    ".\r\n..\r\n.begins with a dot\r\n\r\nends without a line break\r\n.x"
)


@dataclass(frozen=True)
class Taken:
    """One mail, as the server has it."""

    rfc_message_id: str
    sender: str
    recipients: tuple[str, ...]
    sha256: str
    size: int


def mail_of(body: bytes, recipients: tuple[str, ...] = RECIPIENTS, sender: str = USER, piece: int = 7000) -> Mail:
    """A mail that streams `body` in pieces of `piece` bytes."""

    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(body), piece):
            yield body[start : start + piece]

    head = body.partition(b"\r\n\r\n")[0].decode("utf-8", "replace")
    lines = dict(line.partition(": ")[::2] for line in head.split("\r\n"))
    rfc_message_id = lines.get("Message-ID", "<none@sender.example>")
    bcc = tuple(each for each in recipients if each == BCC)
    return Mail(uuid4(), sender, recipients, rfc_message_id, len(body), stream, bcc)


def new_mail(piece: int = 7000) -> Mail:
    return mail_of(BODY.replace("{id}", uuid4().hex).encode() + b"\r\n", piece=piece)


def large_mail() -> Mail:
    """Far more than the buffers between two sockets hold: the server's word comes while the body is on its way."""
    body = b"Message-ID: <large@sender.example>\r\n\r\n" + b"0123456789abcde\r\n" * 800_000
    return mail_of(body, piece=1 << 20)


async def bytes_of(mail: Mail) -> bytes:
    return b"".join([piece async for piece in mail.body()])


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def soon(seconds: float = 5.0) -> Deadline:
    return Deadline.after(timedelta(seconds=seconds))


async def deliver(rig: Rig, mail: Mail, answer_within: float = 5.0) -> Outcome:
    """One attempt, from open to close."""
    session = rig.provider.open(rig.account)
    try:
        prepared = await session.prepare(mail)
        if not hasattr(prepared, "hand_over"):
            return prepared
        return await prepared.hand_over(soon(), soon(answer_within))
    finally:
        await session.close()


@dataclass(frozen=True)
class Differs:
    """Where a provider truly differs from what it was given: the one table of the contract's exceptions."""

    keeps_message_id: bool = True
    """Delivers under the Message-ID that stands in the frozen bytes."""
    reads_back: bool = True
    """Tells under which Message-ID it delivered, with the scopes of this rig."""
    keeps_bytes: bool = True
    """Delivers the frozen bytes. Else it writes the mail anew, and `Taken` has the digest and size of its text."""


def kept(rig: Rig, data: bytes) -> bytes:
    """What of a mail's bytes arrives unaltered: all of them, or its text."""
    return data if rig.differs.keeps_bytes else data.partition(b"\r\n\r\n")[2].replace(b"\r\n", b"\n")


class Rig(Protocol):
    name: str
    differs: Differs
    provider: Provider
    account: Account

    def misbehave(self, fault: Fault) -> None: ...

    def taken(self) -> list[Taken]: ...

    def handovers(self) -> int: ...

    def run(self, steps: Coroutine[Any, Any, T]) -> T: ...


def account_of(server: dict[str, Any], **credentials: str) -> Account:
    given = credentials or {"username": USER, "password": PASSWORD}
    return Account(UUID(int=1), server.get("host", "memory"), server, USER, given)


class MemoryRig:
    name = "memory"
    differs = Differs()

    def __init__(self) -> None:
        self.provider = MemoryProvider()
        self.account = account_of({})

    def misbehave(self, fault: Fault) -> None:
        refusal = Failed("scripted refusal")
        self.provider.answer(
            {
                "refuses early": Answer("prepare", refusal),
                "refuses late": Answer("hand_over", refusal),
                "never answers": Answer("hand_over", hang=True),
                "takes, never answers": Answer("hand_over", take=True, hang=True),
                "takes, loses the answer": Answer("hand_over", take=True),
                "breaks": Answer("hand_over"),
            }[fault]
        )

    def taken(self) -> list[Taken]:
        return [
            Taken(mail.rfc_message_id, mail.sender, mail.recipients, mail.sha256, mail.size)
            for mail in self.provider.accepted
        ]

    def handovers(self) -> int:
        return self.provider.seen["hand_over"]

    def run(self, steps: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(steps)


FAULTS: dict[Fault, dict[str, Any]] = {
    "refuses early": {"stage": "mail", "reply": "550 5.7.1 no", "times": 1},
    "refuses late": {"stage": "dot", "reply": "550 5.7.1 no", "times": 1},
    "never answers": {"stage": "dot", "silent": True, "times": 1},
    "takes, never answers": {"stage": "dot", "silent": True, "take": True, "times": 1},
    "takes, loses the answer": {"stage": "dot", "drop": "after", "times": 1},
    "breaks": {"stage": "dot", "drop": "before", "reset": True, "times": 1},
}


def quick_settings(folder: Path, **overrides: Any) -> Settings:
    quick = {"command_timeout": "1s", "connect_timeout": "2s", "prepare_limit": "5s"}
    return load_settings(data_folder=folder, smtp_clear_loopback=True, **{**quick, **overrides})


@dataclass
class SmtpRig:
    """The real provider and a real server on a port of this machine."""

    folder: Path
    tls: str = "clear"
    loop: str = "asyncio"
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.differs = Differs()
        self.name = f"smtp, {self.tls}, {self.loop}"
        self.provider = SmtpProvider(quick_settings(self.folder, **self.settings))
        users = {USER: PASSWORD, "token@sender.example": TOKEN}
        self.server = SmtpServer(
            self.folder / "accepted.jsonl", users=users, tls=self.tls, keep_bodies=1 << 20, **self.options
        )

    def __enter__(self) -> SmtpRig:
        self.server.__enter__()
        self.account = account_of(self.where())
        return self

    def __exit__(self, *error: Any) -> None:
        self.server.__exit__(*error)
        assert self.server.seen.get("errors", 0) == 0, "the sandbox's server failed"

    def where(self, **changes: Any) -> dict[str, Any]:
        server = self.server
        return {"host": server.host, "port": server.port, "tls": self.tls, "ca_file": server.ca_file, **changes}

    def misbehave(self, fault: Fault) -> None:
        self.server.add_rule(**FAULTS[fault])

    def taken(self) -> list[Taken]:
        return [
            Taken(mail.rfc_message_id, mail.sender, mail.recipients, mail.sha256, mail.size)
            for mail in self.server.ledger.read()
        ]

    def handovers(self) -> int:
        return self.server.seen["dot"]

    def run(self, steps: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop if self.loop == "uvloop" else None) as runner:
            return runner.run(steps)
