"""What the queue knows of a provider. No provider knows the queue; the queue knows no provider's words.

    session = provider.open(account)          one per turn; nothing happens yet
    prepared = await session.prepare(mail)    repeatable: connect, log in, draft, upload; or an Outcome that ends it
    outcome = await prepared.hand_over(...)   the one call that can send the mail; nothing in it is ever re-sent
    await prepared.abandon()                  instead of hand_over, when the gate refused
    finding = await session.find_evidence(…)  later, about a handover without an outcome: what the provider shows
    await session.close()

`prepare` comes before the gate and bounds every await in it; `hand_over` comes after the gate and looks at its
deadline right before the first byte that commits.

Drafts (protocol, rule 6): where a provider has them, `prepare` makes one and shows it as `prepared.draft`; the gate
binds it. From then on `mail.draft` names it, `prepare` makes no other, and every attempt sends that very draft.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol, runtime_checkable
from uuid import UUID

from outtray_schema.outcome import Outcome, Sent
from outtray_worker.deadline import Deadline


class Tokens(Protocol):
    """Access tokens of one mailbox, refreshed once for all workers. Both raise `NoToken`."""

    async def access(self) -> str:
        """A token that is valid now."""
        ...

    async def renewed(self, refused: str, claims: str | None = None) -> str:
        """A newer token than `refused`, which the provider answered with 401; `claims` is its challenge, if any."""
        ...


class NoToken(Exception):
    """There is no access token now; `outcome` says who must wait or act. Its text holds no secret."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(type(outcome).__name__)
        self.outcome = outcome


Door = Literal["smtp", "imap"]
"""Where a mailbox logs in by its own: each counts its failures apart."""
Answered = Literal["accepted", "refused", "later"]


class Logins(Protocol):
    """Keeps failed logins of one mailbox below what locks its owner out."""

    async def permit(self, door: Door) -> None:
        """Ask right before each login. Raises `NoLoginNow`."""
        ...

    async def told(self, door: Door, answer: Answered) -> None:
        """What became of it; `later` where the server put it off, or broke off. Never raises."""
        ...


class NoLoginNow(Exception):
    """No login may be tried now; `outcome` says until when, or who must act."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(type(outcome).__name__)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Account:
    """A mailbox as its provider needs it. `credentials` is decrypted: it never leaves the process nor a repr.

    `scopes` are what its owner granted, as the provider names them; `tokens` is None where a password logs in.
    """

    mailbox_id: UUID
    host: str
    server: Mapping[str, Any]
    address: str = field(repr=False)
    credentials: Mapping[str, Any] = field(repr=False)
    scopes: frozenset[str] = frozenset()
    tokens: Tokens | None = field(default=None, repr=False)
    logins: Logins | None = field(default=None, repr=False)
    """None: nobody counts, as in a test of the provider alone."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft at its provider. `id` is what a handover sends; the others where the provider names them early."""

    id: str
    message_id: str | None = None
    conversation_id: str | None = None
    rfc_message_id: str | None = None


Answering = Literal["reply", "reply_all", "forward"]


@dataclass(frozen=True, slots=True)
class Original:
    """The message of the mailbox that a mail answers or forwards, by the provider's own ids."""

    answering: Answering
    message_id: str | None
    conversation_id: str | None


Person = tuple[str, str]
"""Display name and address of somebody in a mail, as they stand there: either may be empty, neither is checked."""


@dataclass(frozen=True, slots=True)
class OriginalFile:
    """A file of a mail that was read. `fetch` gives its bytes from the beginning; each call starts anew.

    Where its provider refuses or breaks off, `fetch` raises an exception whose `outcome` says who has to wait.
    """

    filename: str = field(repr=False)
    content_type: str
    size: int
    fetch: Callable[[], AsyncIterator[bytes]] = field(repr=False)
    inline_id: str | None = None
    """Its Content-ID without angle brackets, where the html shows it as `cid:`."""


@dataclass(frozen=True, slots=True)
class OriginalMail:
    """A message of the mailbox as its provider shows it: what answering it takes. Nothing of it is checked yet."""

    message_id: str
    """The provider's id."""
    conversation_id: str | None
    rfc_message_id: str | None = field(repr=False)
    references: tuple[str, ...] = field(repr=False)
    """Its own References, or its In-Reply-To where it has none (RFC 5322 3.6.4)."""
    subject: str = field(repr=False)
    sender: Person | None = field(repr=False)
    reply_to: tuple[Person, ...] = field(repr=False)
    to: tuple[Person, ...] = field(repr=False)
    cc: tuple[Person, ...] = field(repr=False)
    date: datetime | None
    text: str | None = field(repr=False)
    html: str | None = field(repr=False)
    attachments: tuple[OriginalFile, ...] = ()


@runtime_checkable
class Reader(Protocol):
    """A session that can read a message of its mailbox."""

    async def read_original(self, ref: str) -> OriginalMail | Outcome:
        """The message of that provider id, or of that Message-ID where `ref` has its angle brackets.

        An outcome where there is none (`Failed`), or where it cannot be read now or with these scopes. Repeatable.
        """
        ...


@dataclass(frozen=True, slots=True)
class Mail:
    """One message as its provider needs it: the envelope and the frozen bytes, streamed."""

    message_id: UUID
    sender: str = field(repr=False)
    recipients: tuple[str, ...] = field(repr=False)
    rfc_message_id: str
    size: int
    body: Callable[[], AsyncIterator[bytes]] = field(repr=False)
    """The frozen MIME from its beginning, in pieces of at most 1 MiB; each call starts anew. It has no Bcc."""
    bcc: tuple[str, ...] = field(default=(), repr=False)
    """Those of `recipients` whom nobody else may see."""
    original: Original | None = None
    draft: Draft | None = None
    """The draft that an earlier gate bound: no other may be made."""
    suspect: bool = False
    """An earlier preparation may have left a draft that no gate bound: look for one by our key first."""
    only_draft: bool = False
    """Leave it as a draft for the person: `hand_over` answers `Drafted` and sends nothing."""
    partial: bool = False
    """Whom the server refuses does not keep it from the others. Where a provider takes all or none, it is no matter."""
    as_mime: bool = False
    """Nothing but its MIME can express it: a raw mail or an invitation."""
    unaltered: bool = False
    """A raw mail: where its Message-ID is kept, and so proves a copy, nothing is added to it."""


@dataclass(frozen=True, slots=True)
class RefusedRecipient:
    """Somebody whom the server did not take as a recipient of a partial mail: known before the gate."""

    n: int
    """Which of `Mail.recipients`, from 0."""
    again: bool
    """Refused for now; False: for good."""
    reason: str


class Prepared(Protocol):
    """A mail that lacks only its handover.

    That of a partial mail may also have `refused`, a tuple of `RefusedRecipient`: it goes to the others.
    """

    @property
    def draft(self) -> Draft | None:
        """The draft that the gate shall bind; None where the provider has none."""
        ...

    async def hand_over(self, begin_by: Deadline, answer_by: Deadline) -> Outcome:
        """Commit. Too late for `begin_by`: `NotBegun`, and not one byte that commits was written.

        After that byte, only a definite answer before `answer_by` is anything but `Unknown`.
        """
        ...

    async def abandon(self) -> None:
        """Give the prepared mail up; nothing of it may ever be sent. An unbound draft is deleted, a bound one stays."""
        ...


@dataclass(frozen=True, slots=True)
class Trace:
    """What is known of a handover without an outcome: what to look for, and since when."""

    message_id: UUID
    rfc_message_id: str
    handed_at: datetime
    recipients: tuple[str, ...] = field(repr=False)
    draft: Draft | None = None
    conversation_id: str | None = None
    key_only: bool = False
    """Its Message-ID proves nothing: another message of ours, for which it goes on, has the same."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look showed. Only `sent` proves something at any time; the others count as rule 11 says.

    `sent`: the copy was found, with its ids. `still_draft`: the bound draft is a draft yet. `absent`: neither was
    found where the provider itself files the copy. `nothing`: this look can prove nothing. `failed`: it could not
    look; try again. `no_way`: with these scopes there is nothing to look at, ever.
    """

    kind: Literal["sent", "still_draft", "absent", "nothing", "failed", "no_way"]
    looked: str
    """Where and by what was looked, in plain words without addresses: for the journal and for people."""
    sent: Sent | None = None
    outcome: Outcome | None = None
    """With `failed`: who has to wait or act (`Parked`, `Held`), where the provider said so."""


@dataclass(frozen=True, slots=True)
class SentMail:
    """A mail that was sent and whose copy may lack in its mailbox."""

    message_id: UUID
    rfc_message_id: str
    at: datetime
    """When it was sent."""
    size: int
    body: Callable[[], AsyncIterator[bytes]] = field(repr=False)
    bcc: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Filed:
    """What became of a copy. `found`: one lay there already; `failed`: try again later, or never, as `outcome` has it.

    `said` is in plain words without addresses.
    """

    kind: Literal["filed", "found", "failed"]
    said: str
    outcome: Outcome | None = None


@runtime_checkable
class Filer(Protocol):
    """A session that can put a copy of what was sent into its mailbox."""

    async def file_copy(self, mail: SentMail, begin_by: Deadline) -> Filed:
        """Look for a copy, and file one if there is none, unless `begin_by` has passed by then.

        Never sends, never raises for what a provider answers.
        """
        ...


@dataclass(frozen=True, slots=True)
class Removed:
    """What became of a draft that its message needs no more. `gone`: there was none; `failed`: it may be there yet."""

    kind: Literal["deleted", "gone", "failed"]
    outcome: Outcome | None = None


@runtime_checkable
class Remover(Protocol):
    """A session that can take away a draft of ours."""

    async def remove_draft(self, trace: Trace) -> Removed:
        """Delete the draft of a message that has ended: the one that is named, or else any with our key. Repeatable.

        Never raises for what a provider answers.
        """
        ...


class Session(Protocol):
    """One mailbox's connection to its provider, for one turn."""

    async def prepare(self, mail: Mail) -> Prepared | Outcome: ...

    async def find_evidence(self, trace: Trace) -> Finding:
        """Look whether that handover sent its mail. Never sends, never raises for what a provider answers."""
        ...

    async def close(self) -> None: ...


class Provider(Protocol):
    """A family of accounts: `smtp`, `gmail`, `microsoft`, `memory`."""

    name: str

    def open(self, account: Account) -> Session: ...


@dataclass(frozen=True, slots=True)
class Shut:
    """The session of a mailbox that could not be opened: every mail gets the same outcome, and none is touched."""

    outcome: Outcome

    async def prepare(self, mail: Mail) -> Outcome:
        return self.outcome

    async def find_evidence(self, trace: Trace) -> Finding:
        return Finding("failed", "the mailbox could not be opened", outcome=self.outcome)

    async def read_original(self, ref: str) -> Outcome:
        return self.outcome

    async def remove_draft(self, trace: Trace) -> Removed:
        return Removed("failed", self.outcome)

    async def close(self) -> None:
        return None
