"""What the queue knows of a provider. No provider knows the queue; the queue knows no provider's words.

    session = provider.open(account)          one per turn; nothing happens yet
    prepared = await session.prepare(mail)    repeatable: connect, log in, upload; or an Outcome that ends the attempt
    outcome = await prepared.hand_over(...)   the one call that can send the mail; nothing in it is ever re-sent
    await prepared.abandon()                  instead of hand_over, when the gate refused
    await session.close()

`prepare` comes before the gate and bounds every await in it; `hand_over` comes after the gate and looks at its
deadline right before the first byte that commits.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from outtray_schema.outcome import Outcome
from outtray_worker.deadline import Deadline


@dataclass(frozen=True, slots=True)
class Account:
    """A mailbox as its provider needs it. `credentials` is decrypted: it never leaves the process nor a repr."""

    mailbox_id: UUID
    host: str
    server: Mapping[str, Any]
    address: str
    credentials: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Mail:
    """One message as its provider needs it: the envelope and the frozen bytes, streamed."""

    message_id: UUID
    sender: str = field(repr=False)
    recipients: tuple[str, ...] = field(repr=False)
    rfc_message_id: str
    size: int
    body: Callable[[], AsyncIterator[bytes]] = field(repr=False)
    """The frozen MIME from its beginning, in pieces of at most 1 MiB; each call starts anew."""


class Prepared(Protocol):
    """A mail that lacks only its handover."""

    async def hand_over(self, begin_by: Deadline, answer_by: Deadline) -> Outcome:
        """Commit. Too late for `begin_by`: `NotBegun`, and not one byte that commits was written.

        After that byte, only a definite answer before `answer_by` is anything but `Unknown`.
        """
        ...

    async def abandon(self) -> None:
        """Give the prepared mail up; nothing of it may ever be sent."""
        ...


class Session(Protocol):
    """One mailbox's connection to its provider, for one turn."""

    async def prepare(self, mail: Mail) -> Prepared | Outcome: ...

    async def close(self) -> None: ...


class Provider(Protocol):
    """A family of accounts: `smtp`, `memory`, later Gmail and Graph."""

    name: str

    def open(self, account: Account) -> Session: ...


@dataclass(frozen=True, slots=True)
class Shut:
    """The session of a mailbox that could not be opened: every mail gets the same outcome, and none is touched."""

    outcome: Outcome

    async def prepare(self, mail: Mail) -> Outcome:
        return self.outcome

    async def close(self) -> None:
        return None
