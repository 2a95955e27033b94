"""Composing: a message that answers another one is made final, once, before its first gate.

Where that other message had not left when this one came in, or lies in the mailbox alone, enqueue stored it as it was
asked for. The turn that meets it first finds the original, in our tables or by its provider, puts the message together
and stores it: MIME, head, recipients and counts in one transaction that holds only for the version that was read. So
two workers never freeze different bytes, every attempt finds the same ones, and a gate that still knows the message as
it was before does not pass. Nothing is handed over in the same breath: the message is taken up again, with what it has
become, by the next turn, whose quotas and suppressions then know all its recipients.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from outtray_schema import bindings
from outtray_schema.address import Address
from outtray_schema.answering import Original, compose, follower_asked, message_asked, original_of, original_of_ours
from outtray_schema.attachment import Attachment
from outtray_schema.consent import guarantee
from outtray_schema.content import (
    Answers,
    Head,
    open_body,
    open_chunk,
    open_file_chunk,
    open_head,
    put_together,
)
from outtray_schema.errors import InvalidMessage
from outtray_schema.message import Message
from outtray_schema.mime import PROVIDER_SIZE, Apart, FrozenMime, freeze, header_block
from outtray_schema.outcome import Failed, Outcome
from outtray_schema.quoting import MOST, foreign_file
from outtray_schema.vault import Vault
from outtray_worker.claim import ClaimedMailbox, DueMessage
from outtray_worker.composed import Final, anew, recipient_rows, store, with_new_headers
from outtray_worker.content import Content, ContentMissing
from outtray_worker.providers import OriginalMail, Reader, Session

if TYPE_CHECKING:
    from outtray_worker.process import Process

LOOK_AGAIN: Mapping[str, timedelta] = {
    "queued": timedelta(seconds=30),
    "handing_over": timedelta(seconds=10),
    "unknown": timedelta(minutes=5),
}
"""How long an answer waits before it looks again whether its original, in that state, has left. Both are of the same
mailbox, so what parks the one parks the other, and nothing but a turn is spent on a look."""

_NEVER_LEFT = ("failed", "cancelled", "expired", "drafted")

# Reads one of our messages as an original; locks nothing.
OURS = """
SELECT m.id, m.mailbox_id, m.state, m.size, m.provider_id, m.rfc_message_id, m.conversation_id, m.evidence,
    greatest(m.due_at - outtray.outtray_now(), '0') AS due_in,
    (SELECT c.head FROM outtray.content c WHERE c.message_id = m.id) AS head
FROM outtray.message m WHERE m.id = %(id)s
"""
# The same of the message that one follows.
BEFORE = OURS.replace("%(id)s", "(SELECT f.follows FROM outtray.message f WHERE f.id = %(id)s)")
BODY = "SELECT c.body FROM outtray.content c WHERE c.message_id = %(id)s"
CHUNKS = "SELECT k.n, k.data FROM outtray.content_chunk k WHERE k.message_id = %(id)s ORDER BY k.n"
FILE = "SELECT k.n, k.data FROM outtray.attachment_chunk k WHERE k.attachment_id = %(id)s ORDER BY k.n"

# Lets a message wait for its original, without spending anything of its own; locks its row.
WAIT = """
UPDATE outtray.message m
SET version = m.version + 1, due_at = outtray.outtray_now() + %(again)s, reason = %(reason)s
WHERE m.id = %(id)s AND m.version = %(version)s AND m.state = 'queued'
"""


@dataclass(frozen=True, slots=True)
class Composed:
    """The message is another one now, or waits: the turn goes on without it, and it is taken up as it then stands."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The original, and how its provider knows it."""

    original: Original | None = field(repr=False)
    """None: a follower that begins a thread of its own."""
    answers: Answers | None


async def make_final(
    process: Process, session: Session, box: ClaimedMailbox, message: DueMessage, version: int, content: Content
) -> Composed | Outcome:
    """Find the original, put the message together, and store it. An outcome where that cannot be, or not now.

    Raises what preparation may raise. Whatever fails here can be repeated: until it is stored, nothing has changed.
    """
    return await _Composing(process, session, box, message, version, content).run()


class _Composing:
    """One message on its way to be final."""

    def __init__(
        self,
        process: Process,
        session: Session,
        box: ClaimedMailbox,
        message: DueMessage,
        version: int,
        content: Content,
    ) -> None:
        self._process = process
        self._vault: Vault = process.vault
        self._session = session
        self._box = box
        self._message = message
        self._version = version
        self._content = content
        self._asked: Mapping[str, Any] = content.head.asked or {}
        self._forwards = self._asked["fields"]["answering"] == "forward"

    async def run(self) -> Composed | Outcome:
        if not self._forwards:
            return await self._run()
        async with self._process.forwarding:  # held whole in memory: few at a time
            return await self._run()

    async def _run(self) -> Composed | Outcome:
        found = await self._find()
        if not isinstance(found, _Found):
            return found
        try:
            final = await (self._forward(found) if self._forwards else self._reply(found))
        except InvalidMessage as error:
            return Failed(f"it cannot be composed: {_reasons(error)}")
        most = min(self._process.settings.message_size, PROVIDER_SIZE.get(self._box.provider, 1 << 62))
        if final.size > most:
            return Failed(f"with what it carries it has {final.size} bytes; {self._box.provider} takes at most {most}")
        await self._store(final)
        return Composed()

    # ── the original ────────────────────────────────────────────────────────────────────────────────────────────

    async def _find(self) -> _Found | Composed | Outcome:
        if "follows" in self._asked:
            return await self._followed()
        return await (self._ours(UUID(self._asked["ours"])) if "ours" in self._asked else self._theirs())

    async def _followed(self) -> _Found | Composed | Outcome:
        """The latest message before it in its sequence that was sent; none, and it begins a thread of its own."""
        before = await self._row(self._message.id, BEFORE) if self._asked["follows"] else None
        while before is not None and before["state"] in _NEVER_LEFT:
            before = await self._row(before["id"], BEFORE)
        if before is None or before["mailbox_id"] != self._box.id or before["head"] is None:
            return _Found(None, None)
        return await self._ours(before["id"])

    async def _ours(self, original_id: UUID) -> _Found | Composed | Outcome:
        """One of ours: known once it was sent. Until then this message waits, at no cost of its own."""
        row = await self._row(original_id)
        if row is None or row["mailbox_id"] != self._box.id or row["head"] is None:
            return Failed("the message that it answers was erased")
        if row["state"] in _NEVER_LEFT:
            return Failed(f"the message that it answers never left: it is {row['state']}")
        if row["state"] != "sent":
            return await self._wait(row)
        if self._forwards and row["size"] > MOST:
            return _too_large(row["size"])
        head = open_head(self._vault, original_id, row["head"])
        mime = await self._stored(original_id, head.apart) if self._forwards else None
        rfc_message_id = await self._delivered_id(row)
        if not isinstance(rfc_message_id, str):
            return rfc_message_id
        original = await asyncio.to_thread(original_of_ours, head, rfc_message_id, mime)
        return _Found(original, Answers(self._answering, row["provider_id"], row["conversation_id"]))

    async def _delivered_id(self, row: Mapping[str, Any]) -> str | Outcome:
        """Its Message-ID as its recipients got it. Where the provider wrote its own, the copy is asked for it."""
        ours: str = row["rfc_message_id"]
        may_read = guarantee(self._box.provider, self._box.scopes).reads or self._box.provider == "memory"
        if "rfc_message_id" not in (row["evidence"] or {}) or row["provider_id"] is None or not may_read:
            return ours
        if not isinstance(self._session, Reader):
            return ours
        read = await self._session.read_original(row["provider_id"])
        if isinstance(read, OriginalMail):
            return read.rfc_message_id or ours
        return ours if isinstance(read, Failed) else read  # its person may have deleted the copy

    async def _theirs(self) -> _Found | Outcome:
        """A message that the mailbox alone has: its provider reads it."""
        if not isinstance(self._session, Reader):
            return Failed("the message that it answers is not one of ours, and this mailbox cannot be read")
        read = await self._session.read_original(self._asked["ref"])
        if not isinstance(read, OriginalMail):
            return read
        if self._forwards and (size := _size(read)) > MOST:
            return _too_large(size)
        try:
            files = await _files(read) if self._forwards else []
        except _Grew:
            return _too_large(MOST + 1)
        except Exception as error:
            outcome = getattr(error, "outcome", None)
            if isinstance(outcome, Outcome):
                return outcome
            raise
        original = await asyncio.to_thread(_cleaned, read, files)
        return _Found(original, Answers(self._answering, read.message_id, read.conversation_id))

    @property
    def _answering(self) -> Any:
        return self._asked["fields"]["answering"]

    # ── the message ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _reply(self, found: _Found) -> Final:
        """Only its own headers change, so a body of any size stays as it is stored."""
        message, headers = await asyncio.to_thread(self._answered, found)
        apart = self._moved(len(headers) - self._asked["headers"])
        files = sum(each.size for each in apart)
        if (stored := self._content.inline) is not None:
            whole = headers + stored[self._asked["headers"] :]
            mime = FrozenMime(
                len(whole) + files, hashlib.sha256(whole).digest(), lambda: iter((whole,)), len(headers), apart
            )
            return await asyncio.to_thread(self._sealed, message, found, mime)
        digest, size = hashlib.sha256(headers), len(headers) + files
        async for piece in _after_headers(self._content.around()):
            digest.update(piece)
            size += len(piece)
        head = self._head(message, found, apart)
        return with_new_headers(self._vault, self._message.id, head, headers, digest, size)

    def _moved(self, by: int) -> tuple[Apart, ...]:
        """Where its files stand behind headers that are so much longer."""
        return tuple(replace(each, at=each.at + by) for each in self._content.head.apart)

    def _answered(self, found: _Found) -> tuple[Message, bytes]:
        """The answer, and its own headers."""
        if found.original is None:
            message = follower_asked(self._asked, self._content.head.subject)
        else:
            message = compose(message_asked(self._asked), found.original, self._own)
        return message, header_block(message, self._sender, self._message.rfc_message_id, self._date)

    async def _forward(self, found: _Found) -> Final:
        """It is written anew around the original. Both are bounded, so they fit in memory."""
        stored = b"".join([piece async for piece in self._content.body()])
        return await asyncio.to_thread(self._forwarded, found, stored)

    def _forwarded(self, found: _Found, stored: bytes) -> Final:
        assert found.original is not None  # noqa: S101 - only a follower may answer nobody
        message = compose(message_asked(self._asked, stored), found.original, self._own)
        mime = freeze(message, sender=self._sender, rfc_message_id=self._message.rfc_message_id, date=self._date)
        return self._sealed(message, found, mime)

    def _sealed(self, message: Message, found: _Found, mime: FrozenMime) -> Final:
        return anew(self._vault, self._message.id, self._head(message, found, mime.apart), mime)

    def _head(self, message: Message, found: _Found, apart: tuple[Apart, ...]) -> Head:
        """What was asked for at the door and is not among what `asked` keeps stays as it is."""
        asked = self._content.head
        head = Head.of(message, self._sender, found.answers, apart=apart)
        return replace(head, metadata=asked.metadata, form=asked.form)

    @property
    def _sender(self) -> Address:
        return Address(self._content.head.sender, self._content.head.sender_name)

    @property
    def _date(self) -> datetime:
        if "follows" in self._asked:
            return self._message.now  # what was accepted days ago must not arrive as that old
        return datetime.fromisoformat(self._asked["date"])

    @property
    def _own(self) -> tuple[str, ...]:
        return tuple(each.email for each in self._own_addresses())

    def _own_addresses(self) -> tuple[Address, ...]:
        """The mailbox's address and its aliases."""
        opened = json.loads(self._vault.addresses.decrypt(self._box.address, bindings.mailbox_address(self._box.id)))
        return tuple(Address(email) for email in (opened["address"], *(opened.get("aliases") or ())))

    # ── the tables ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _wait(self, original: Mapping[str, Any]) -> Composed:
        """Look again later. What it waits for is said where `explain` finds it."""
        again = LOOK_AGAIN[original["state"]]
        if original["state"] == "queued" and original["due_in"] is not None:
            again = max(again, original["due_in"])
        reason = f"waits until message {original['id']} has left"
        async with self._process.pool.connection() as connection:
            await connection.execute(WAIT, {**self._named, "again": again, "reason": reason})
        return Composed()

    async def _store(self, final: Final) -> None:
        """In one transaction, if the message is still what was read; else whoever changed it was quicker."""
        own, message_id, app_id = self._own_addresses()[0], self._message.id, self._box.app_id
        rows = await asyncio.to_thread(recipient_rows, self._vault, app_id, message_id, own, final.head)
        async with self._process.pool.connection() as connection, connection.transaction():
            await store(connection, self._box.id, final, rows, self._named)

    @property
    def _named(self) -> dict[str, Any]:
        return {"id": self._message.id, "version": self._version}

    async def _row(self, message_id: UUID, statement: str = OURS) -> dict[str, Any] | None:
        async with self._process.pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(statement, {"id": message_id})
            return await cursor.fetchone()

    async def _stored(self, message_id: UUID, apart: Sequence[Apart]) -> bytes:
        """The frozen MIME of one of ours."""
        async with self._process.pool.connection() as connection:
            row = await (await connection.execute(BODY, {"id": message_id}, binary=True)).fetchone()
            if row is None:
                raise ContentMissing("the original's content was erased")
            if row[0] is not None:
                around = open_body(self._vault, message_id, row[0])
            else:
                chunks = await (await connection.execute(CHUNKS, {"id": message_id}, binary=True)).fetchall()
                around = b"".join(open_chunk(self._vault, message_id, n, data) for n, data in chunks)
            files = {each.attachment_id: await self._file(connection, each.attachment_id) for each in apart}
        return put_together(around, apart, files)

    async def _file(self, connection: AsyncConnection[Any], attachment_id: UUID) -> bytes:
        rows = await (await connection.execute(FILE, {"id": attachment_id}, binary=True)).fetchall()
        return b"".join(open_file_chunk(self._vault, attachment_id, n, data) for n, data in rows)


async def _after_headers(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The stored MIME behind its own headers, which are its first chunk."""
    first = True
    async for piece in pieces:
        if not first:
            yield piece
        first = False


def _reasons(error: InvalidMessage) -> str:
    """What is wrong, without a value: only what is said of `to` as a whole is known to quote nobody's address."""
    return "; ".join(str(each) if each.field == "to" else each.field for each in error.problems)


# ── an original from its provider ───────────────────────────────────────────────────────────────────────────────────


def _size(read: OriginalMail) -> int:
    return sum(each.size for each in read.attachments) + len(read.text or "") + len(read.html or "")


def _too_large(size: int) -> Failed:
    return Failed(f"the message that it forwards has {size} bytes; at most {MOST} can be forwarded")


async def _files(read: OriginalMail) -> list[Attachment]:
    """Its files, read one after the other. Raises `_Grew` if they are more than was said before."""
    files, left = [], MOST
    for each in read.attachments:
        content = bytearray()
        async for piece in each.fetch():
            content += piece
            left -= len(piece)
            if left < 0:
                raise _Grew
        files.append(foreign_file(each.filename, bytes(content), each.content_type, each.inline_id))
    return files


class _Grew(Exception):
    """A provider's files are larger than it said."""


def _cleaned(read: OriginalMail, files: list[Attachment]) -> Original:
    return original_of(
        rfc_message_id=read.rfc_message_id,
        references=read.references,
        subject=read.subject,
        sender=read.sender,
        reply_to=read.reply_to,
        to=read.to,
        cc=read.cc,
        date=read.date,
        text=read.text,
        html=read.html,
        attachments=files,
    )
