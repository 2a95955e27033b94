"""What is stored of a message's content, sealed, and how it is read again.

The head is what the queue needs to send it and people need to recognise it: envelope, subject, metadata, thread. The
body is the frozen MIME: up to 1 MiB in one piece beside the head, above that in chunks of 1 MiB, each sealed by itself,
so that no process ever holds a large message whole. The body's hash is keyed (a plain one would tell who guesses the
content that he is right) and is what shows that a chunk is missing at the end.

A file that many messages carry is stored once, apart from all of them (`outtray.attachment`): base64 in chunks of
1 MiB. Then the body is the MIME around it, and the head says where the file stands and how large it is, so the frozen
bytes are the same at every attempt, whatever later releases do otherwise. The head is sealed, and so is each chunk for
its own place: what is read in the end is what was frozen, or nothing.

A message that answers one which is not known yet is stored as it was asked for (`Head.asked`): its MIME is complete but
for what follows from that other message, and is made final once, before its first gate. Its own headers are then a
chunk by themselves, so that a large body need not be written again for them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Literal
from uuid import UUID

from outtray_schema import bindings
from outtray_schema.address import Address
from outtray_schema.errors import CannotOpen
from outtray_schema.message import Answering, Message, Role
from outtray_schema.mime import Apart, FrozenMime
from outtray_schema.vault import Vault

CHUNK = 1024 * 1024
"""Bytes of MIME in one chunk; a body up to this size is stored inline."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Which message of the mailbox a message answers, by its provider's ids, so that it joins that conversation."""

    answering: Answering
    message_id: str | None
    conversation_id: str | None


Form = Literal["raw", "invitation"]
"""`raw`: the app's own bytes, to which nothing is added. Neither form can be expressed but in MIME."""


@dataclass(frozen=True, slots=True)
class Head:
    """A message's envelope, subject, metadata and thread; none of it in a repr."""

    sender: str = field(repr=False)
    sender_name: str = field(repr=False)
    recipients: tuple[tuple[Role, str], ...] = field(repr=False)
    subject: str = field(repr=False)
    metadata: Mapping[str, Any] = field(repr=False)
    names: tuple[str, ...] = field(default=(), repr=False)
    """The recipients' display names in their order; none at all where nobody has one."""
    reply_to: tuple[Address, ...] = field(default=(), repr=False)
    references: tuple[str, ...] = field(default=(), repr=False)
    """Its References, or its In-Reply-To where it has none."""
    answers: Answers | None = None
    asked: Mapping[str, Any] | None = field(default=None, repr=False)
    """What it was asked to be, while that is not final (`answering.asked_of`). It may not be handed over so."""
    apart: tuple[Apart, ...] = ()
    """The files of it that are stored apart, in their order."""
    form: Form | None = None
    partial: bool = False
    """Whom the server refuses does not keep it from the others (`recipients="accepted"`)."""

    @classmethod
    def of(
        cls,
        message: Message,
        sender: Address,
        answers: Answers | None = None,
        asked: Mapping[str, Any] | None = None,
        apart: tuple[Apart, ...] = (),
    ) -> Head:
        """The head of a message that `sender` sends. Its recipients are numbered as they stand here."""
        recipients = tuple((each.role, each.address.email) for each in message.recipients)
        names = tuple(each.address.name for each in message.recipients)
        return cls(
            sender.email,
            sender.name,
            recipients,
            message.subject,
            message.metadata,
            names if any(names) else (),
            message.reply_to,
            message.references or ((message.in_reply_to,) if message.in_reply_to else ()),
            answers,
            asked,
            apart=apart,
            form="raw" if message.raw is not None else "invitation" if message.invitation is not None else None,
            partial=message.recipient_policy == "accepted",
        )

    def addresses(self, role: Role) -> tuple[Address, ...]:
        """The recipients in one role."""
        names = self.names or ("",) * len(self.recipients)
        named = zip(self.recipients, names, strict=True)
        return tuple(Address(email, name) for (each, email), name in named if each == role)

    @property
    def needs_smtputf8(self) -> bool:
        """Whether only a server with SMTPUTF8 can take it: an address is not ASCII."""
        return not all(address.isascii() for address in (self.sender, *(address for _, address in self.recipients)))

    def to_json(self) -> bytes:
        fields: list[Any] = [self.sender, self.sender_name, self.recipients, self.subject, self.metadata]
        if more := self._more():
            fields.append(more)
        # The release before would send it without its files: this shape it cannot read, and so it tries again later.
        shape = {"apart": fields} if self.apart else fields
        return json.dumps(shape, ensure_ascii=False, separators=(",", ":")).encode()

    def _more(self) -> dict[str, Any]:
        """What most messages have nothing of, by name."""
        more = {
            "names": self.names,
            "reply_to": [(each.email, each.name) for each in self.reply_to],
            "references": self.references,
            "answers": astuple(self.answers) if self.answers else None,
            "asked": self.asked,
            "partial": self.partial,
            "apart": [(each.at, str(each.attachment_id), each.size) for each in self.apart],
            "form": self.form,
        }
        return {name: value for name, value in more.items() if value}

    @classmethod
    def from_json(cls, text: bytes) -> Head:
        # Further fields are appended, so that old and new processes read each other's heads during a deploy.
        read = json.loads(text)
        sender, sender_name, recipients, subject, metadata, *rest = read["apart"] if isinstance(read, dict) else read
        more = rest[0] if rest else {}
        return cls(
            sender,
            sender_name,
            tuple((role, address) for role, address in recipients),
            subject,
            metadata,
            tuple(more.get("names", ())),
            tuple(Address(email, name) for email, name in more.get("reply_to", ())),
            tuple(more.get("references", ())),
            Answers(*more["answers"]) if "answers" in more else None,
            more.get("asked"),
            apart=tuple(Apart(at, UUID(file), size) for at, file, size in more.get("apart", ())),
            form=more.get("form"),
            partial=more.get("partial", False),
        )


@dataclass(frozen=True, slots=True)
class SealedContent:
    """The columns of `outtray.content`, and the rows of `outtray.content_chunk` where `body` is None."""

    head: bytes
    body: bytes | None
    body_hash: bytes
    chunks: Callable[[], Iterator[tuple[int, bytes]]] = field(repr=False)
    """`(n, data)` from 0 on, read and sealed as they are asked for; nothing where the body is inline.

    Raises `InvalidMessage` if an attachment's file changed since the message was frozen.
    """


def sealed_content(vault: Vault, message_id: UUID, head: Head, mime: FrozenMime) -> SealedContent:
    """Seal a message's content for its rows, all but the files apart. While it is not final, its own headers are the
    first chunk."""
    sealed_head = vault.content.encrypt(head.to_json(), bindings.head(message_id))
    body_hash = vault.keyed_hash(message_id, "body", mime.hash)
    if mime.around > CHUNK:
        first = mime.headers if head.asked else CHUNK
        return SealedContent(sealed_head, None, body_hash, lambda: _sealed_chunks(vault, message_id, mime, first))
    body = vault.content.encrypt(b"".join(mime.pieces()), bindings.body(message_id))
    return SealedContent(sealed_head, body, body_hash, lambda: iter(()))


def open_head(vault: Vault, message_id: UUID, blob: bytes) -> Head:
    """Raises `CannotOpen`, or `UnknownKey` if this process lacks the key."""
    return Head.from_json(vault.content.decrypt(blob, bindings.head(message_id)))


def open_body(vault: Vault, message_id: UUID, blob: bytes) -> bytes:
    """The frozen MIME of an inline body. Raises `CannotOpen`, or `UnknownKey` if this process lacks the key."""
    return vault.content.decrypt(blob, bindings.body(message_id))


def open_chunk(vault: Vault, message_id: UUID, n: int, blob: bytes) -> bytes:
    """The `n`-th piece of the frozen MIME, 1 MiB at most. Raises `CannotOpen`, or `UnknownKey` if it lacks the key.

    That the last chunk is not missing only `BodyCheck` can tell.
    """
    return vault.content.decrypt(blob, bindings.chunk(message_id, n))


def sealed_file(vault: Vault, attachment_id: UUID, pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """`(n, data)` of a file stored apart, from its base64, sealed as they are asked for."""
    for n, chunk in enumerate(_rechunked(pieces, CHUNK)):
        yield n, vault.content.encrypt(chunk, bindings.attachment(attachment_id, n))


def open_file_chunk(vault: Vault, attachment_id: UUID, n: int, blob: bytes) -> bytes:
    """The `n`-th piece of a file stored apart. Raises `CannotOpen`, or `UnknownKey` if this process lacks the key."""
    return vault.content.decrypt(blob, bindings.attachment(attachment_id, n))


def put_together(around: bytes, apart: Sequence[Apart], files: Mapping[UUID, bytes]) -> bytes:
    """The frozen MIME, whole in memory. Raises `CannotOpen` where a file is not all that was frozen."""
    pieces, done = [], 0
    for each in apart:
        file = files.get(each.attachment_id, b"")
        if len(file) != each.size:
            raise CannotOpen("content", "a file of it is not complete")
        pieces += [around[done : each.at], file]
        done = each.at
    return b"".join([*pieces, around[done:]])


class BodyCheck:
    """Adds up the pieces of a streamed body, less its files apart, and says at the end whether they are all of it."""

    def __init__(self, vault: Vault, message_id: UUID, body_hash: bytes) -> None:
        self._vault = vault
        self._message_id = message_id
        self._expected = body_hash
        self._digest = hashlib.sha256()

    def add(self, piece: bytes) -> None:
        self._digest.update(piece)

    def verify(self) -> None:
        """Call it before the byte that commits. Raises `CannotOpen` if a piece is missing or another's."""
        found = self._vault.keyed_hash(self._message_id, "body", self._digest.digest())
        if not hmac.compare_digest(found, self._expected):
            raise CannotOpen("content", "the body is not complete")


def _sealed_chunks(vault: Vault, message_id: UUID, mime: FrozenMime, first: int) -> Iterator[tuple[int, bytes]]:
    for n, chunk in enumerate(_rechunked(mime.pieces(), first)):
        yield n, vault.content.encrypt(chunk, bindings.chunk(message_id, n))


def _rechunked(pieces: Iterable[bytes], first: int) -> Iterator[bytes]:
    """The same bytes in a chunk of `first` bytes, and then chunks of exactly 1 MiB, but for the last."""
    waiting, size = bytearray(), first
    for piece in pieces:
        waiting += piece
        while len(waiting) >= size:
            yield bytes(waiting[:size])
            del waiting[:size]
            size = CHUNK
    if waiting:
        yield bytes(waiting)
