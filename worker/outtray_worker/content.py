"""Reading message content for the turns of one process: in groups, ahead of need, and within a bound on memory.

Turns that need content at the same time share one statement. Content above 1 MiB is streamed in pieces, so that a
worker holds at most `OUTTRAY_CONTENT_MEMORY` of it, however large the messages are.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from outtray_schema.content import CHUNK, BodyCheck, Head, open_body, open_chunk, open_file_chunk, open_head
from outtray_schema.errors import CannotOpen
from outtray_schema.mime import Apart
from outtray_schema.vault import Vault
from outtray_worker.claim import DueMessage

READ = "SELECT message_id, head, body, body_hash FROM outtray.content WHERE message_id = ANY(%s)"
READ_CHUNK = "SELECT data FROM outtray.content_chunk WHERE message_id = %s AND n = %s"
READ_FILE = "SELECT data FROM outtray.attachment_chunk WHERE attachment_id = %s AND n = %s"

STREAMED = 3 * CHUNK
"""Bytes counted for a streamed message: the sealed piece, the opened one, and what the socket still holds."""

FILES = 16 * CHUNK
"""Bytes of files that many messages carry, kept for the next of them: at most this, and a quarter of the memory. A
campaign's file is read once, not once a message."""

GROUP = 64
"""Contents read by one statement at most: a few hundred KB, which come in a few turns of the event loop."""

AHEAD = 8
"""Contents that a turn asks for at once. A statement costs some 0.2 ms of CPU, whatever it reads (measured 2026-11)."""

READERS = 2
"""Statements under way at once. One alone bounded a worker at 600 to 2,000 messages/s (measured 2026-11)."""


class ContentMissing(Exception):
    """The message has no content: it was erased. Nothing can be sent; the message fails."""


@dataclass(slots=True)
class Content:
    """One message's envelope and frozen bytes. Release it once the attempt is over."""

    message_id: UUID
    head: Head
    held: int
    _reader: ContentReader
    _inline: bytes | None
    _hash: bytes

    @property
    def inline(self) -> bytes | None:
        """The frozen MIME less its files that are stored apart, where it is small enough to be held."""
        return self._inline

    async def body(self) -> AsyncIterator[bytes]:
        """The frozen MIME from its beginning, in pieces of at most 1 MiB. Raises `CannotOpen` if one is missing."""
        at, apart = 0, deque(self.head.apart)
        async for piece in self.around():
            rest = piece
            while apart and apart[0].at <= at + len(rest):
                before, rest = rest[: apart[0].at - at], rest[apart[0].at - at :]
                at += len(before)
                if before:
                    yield before
                async for some in self._reader.read_file(apart.popleft()):
                    yield some
            at += len(rest)
            if rest:
                yield rest
        if apart:
            raise CannotOpen("content", "the body is not complete")

    async def around(self) -> AsyncIterator[bytes]:
        """The frozen MIME less its files that are stored apart."""
        if self._inline is not None:
            yield self._inline
            return
        check, number = self._reader.check_of(self.message_id, self._hash), 0
        while (piece := await self._reader.read_chunk(self.message_id, number)) is not None:
            check.add(piece)
            yield piece
            number += 1
        check.verify()

    def release(self) -> None:
        held, self.held = self.held, 0
        self._reader.give_back(held)


async def arrived(content: asyncio.Future[Content]) -> Content:
    """What was asked for. Cancelled between its coming and our waking it is given back, for nobody else has it."""
    try:
        return await content
    except asyncio.CancelledError:
        forget(content)
        raise


def forget(content: asyncio.Future[Content]) -> None:
    """Give back what was read for nothing, or will be."""
    if not content.cancel() and not content.cancelled() and content.exception() is None:
        content.result().release()


_Chunk = tuple[UUID, int]


class _Files:
    """Pieces of files that were read last, up to a number of bytes. Turns that want the same one read it once."""

    def __init__(self, most: int, read: Callable[[_Chunk], Awaitable[bytes]]) -> None:
        self._most = most
        self._read = read
        self._kept: OrderedDict[_Chunk, bytes] = OrderedDict()
        self._size = 0
        self._reading: dict[_Chunk, asyncio.Task[bytes]] = {}

    async def get(self, key: _Chunk) -> bytes:
        """b"" where there is none. Raises what reading raises."""
        if (known := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return known
        if (task := self._reading.get(key)) is None:
            task = self._reading[key] = asyncio.ensure_future(self._fetch(key))
        return await asyncio.shield(task)  # others may wait for it too

    async def _fetch(self, key: _Chunk) -> bytes:
        try:
            piece = await self._read(key)
        finally:
            del self._reading[key]
        if piece:
            self._kept[key] = piece
            self._size += len(piece)
        while self._size > self._most:
            self._size -= len(self._kept.popitem(last=False)[1])
        return piece


class ContentReader:
    """Hands content to turns. `run()` is the process's one reading loop."""

    def __init__(self, pool: AsyncConnectionPool[Any], vault: Vault, memory: int) -> None:
        self._pool = pool
        self._vault = vault
        self._memory = memory
        self._held = 0
        self._freed = asyncio.Event()
        self._wanted: deque[tuple[DueMessage, int, asyncio.Future[Content]]] = deque()
        self._more = asyncio.Event()
        self._files = _Files(min(FILES, memory // 4), self._read_file_chunk)

    async def load(self, message: DueMessage) -> Content:
        """Read one message's content; waits for memory first. Raises `ContentMissing`."""
        while self._held and self._held + self._cost(message) > self._memory:
            self._freed.clear()
            await self._freed.wait()
        return await arrived(self._ask(message))

    def ask_ahead(self, messages: Iterable[DueMessage]) -> Iterator[tuple[UUID, asyncio.Future[Content]]]:
        """Ask for these messages' content, as far as there is room without waiting for another turn's."""
        for message in messages:
            if self._held and self._held + self._cost(message) > self._memory:
                return
            yield message.id, self._ask(message)

    def _ask(self, message: DueMessage) -> asyncio.Future[Content]:
        """Take the memory that the content needs, and ask for it. What nobody gets gives its memory back by itself."""
        future: asyncio.Future[Content] = asyncio.get_running_loop().create_future()
        cost = self._cost(message)
        self._held += cost
        self._wanted.append((message, cost, future))
        self._more.set()
        return future

    def give_back(self, held: int) -> None:
        """Return memory that `load` took."""
        if held:
            self._held -= held
            self._freed.set()

    async def run(self) -> None:
        """Serve `load` in groups, for ever: while one group's bytes arrive, the next is asked for."""
        async with asyncio.TaskGroup() as readers:
            for _ in range(READERS):
                readers.create_task(self._serve_wanted())

    async def _serve_wanted(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            while self._wanted:
                group = [self._wanted.popleft() for _ in range(min(len(self._wanted), GROUP))]
                if self._wanted:
                    self._more.set()
                await self._serve(group)

    async def _serve(self, group: list[tuple[DueMessage, int, asyncio.Future[Content]]]) -> None:
        try:
            async with self._pool.connection() as connection:
                ids = [message.id for message, _, _ in group]
                cursor = await connection.execute(READ, [ids], binary=True, prepare=True)
                found = {row[0]: row[1:] for row in await cursor.fetchall()}
        except Exception as error:
            for _, cost, future in group:
                self._refuse(future, cost, error)
            return
        for message, cost, future in group:
            self._answer(message, cost, future, found.get(message.id))

    def _answer(
        self,
        message: DueMessage,
        cost: int,
        future: asyncio.Future[Content],
        row: tuple[bytes, bytes | None, bytes] | None,
    ) -> None:
        if row is None or future.done():
            self._refuse(future, cost, ContentMissing("the content was erased"))
            return
        try:
            head = open_head(self._vault, message.id, row[0])
            body = open_body(self._vault, message.id, row[1]) if row[1] is not None else None
        except Exception as error:
            self._refuse(future, cost, error)
        else:
            future.set_result(Content(message.id, head, cost, self, body, row[2]))

    def _refuse(self, future: asyncio.Future[Content], cost: int, error: Exception) -> None:
        self.give_back(cost)
        if not future.done():  # a turn that ended meanwhile has cancelled it
            future.set_exception(error)

    def check_of(self, message_id: UUID, body_hash: bytes) -> BodyCheck:
        """What shows, at the end of a stream, that nothing of it was missing."""
        return BodyCheck(self._vault, message_id, body_hash)

    async def read_chunk(self, message_id: UUID, number: int) -> bytes | None:
        """One opened piece of a streamed message; None past its end."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(READ_CHUNK, [message_id, number], binary=True)
            row = await cursor.fetchone()
        return open_chunk(self._vault, message_id, number, row[0]) if row else None

    async def read_file(self, file: Apart) -> AsyncIterator[bytes]:
        """A file that is stored apart, as it stands in the MIME. Raises `CannotOpen` if it is not what was frozen."""
        left, number = file.size, 0
        while left > 0 and (piece := await self._files.get((file.attachment_id, number))):
            left -= len(piece)
            number += 1
            if left >= 0:
                yield piece
        if left:
            raise CannotOpen("content", "a file of it is not complete")

    async def _read_file_chunk(self, key: tuple[UUID, int]) -> bytes:
        async with self._pool.connection() as connection:
            row = await (await connection.execute(READ_FILE, key, binary=True)).fetchone()
        return open_file_chunk(self._vault, *key, row[0]) if row else b""

    @staticmethod
    def _cost(message: DueMessage) -> int:
        return 2 * message.size if message.size <= CHUNK else STREAMED
