"""A way to PostgreSQL on which one answer can be lost, kept back, or its request never arrive.

The fleet of a fault run reaches the database through it. A cut is aimed at one statement of one process: the next
packet that names an id, or the COMMIT that follows it on the same connection.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from uuid import UUID

How = Literal["reset", "answer lost", "answer late"]
NAME = ".s.PGSQL.5432"
READY = b"Z\x00\x00\x00\x05"
"""ReadyForQuery: the server has ended what it was asked, its COMMIT included (PostgreSQL 18 docs, 54.7)."""
_CREDENTIALS = struct.Struct("3i")


@dataclass(eq=False)
class Cut:
    """What shall befall one statement, and whether it has."""

    how: How
    pid: int
    id: UUID
    behind: bytes
    """Words of the packet that it befalls: the one that names the id, or one behind it on the same connection."""
    seconds: float
    fell: bool = False

    def names(self, data: bytes) -> bool:
        return any(form in data for form in (self.id.bytes, str(self.id).encode(), self.id.hex.encode()))


@dataclass
class PostgresProxy:
    """`folder` is the `host` of the database's URL as the fleet has it; `target` is the server's own socket."""

    folder: Path
    target: Path
    cuts: list[Cut] = field(default_factory=list)

    def __enter__(self) -> PostgresProxy:
        self.folder.mkdir(exist_ok=True)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="postgres-proxy", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    async def _listen(self) -> None:
        self._server = await self._loop.create_unix_server(lambda: _Client(self), str(self.folder / NAME))

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def cut(self, how: How, pid: int, each: UUID, behind: bytes = b"", seconds: float = 3.0) -> Cut:
        """Let it befall this process's next statement about `each`."""
        new = Cut(how, pid, each, behind, seconds)
        self.cuts.append(new)
        return new


class _Client(asyncio.Protocol):
    """One process's connection, and the one to the server that belongs to it."""

    def __init__(self, proxy: PostgresProxy) -> None:
        self.proxy = proxy
        self.pid = 0
        self.server: asyncio.WriteTransport | None = None
        self.waiting: list[bytes] = []
        self.named: Cut | None = None
        self.answering: Cut | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport
        bare: socket.socket = transport.get_extra_info("socket")
        self.pid = _CREDENTIALS.unpack(bare.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
        self.task = asyncio.ensure_future(self._reach())

    async def _reach(self) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: _Server(self), str(self.proxy.target))
        except OSError:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        cut = self._cut_for(data)
        if cut is not None:
            cut.fell = True
            if cut.how == "reset":
                self.end()
                return
            self.answering = cut
        if self.server is None:
            self.waiting.append(data)
        else:
            self.server.write(data)

    def _cut_for(self, data: bytes) -> Cut | None:
        if self.named is not None:
            return self._take(self.named) if self.named.behind in data else None
        for cut in self.proxy.cuts:
            if not cut.fell and cut.pid == self.pid and cut.names(data):
                if cut.behind in data:
                    return self._take(cut)
                self.named = cut
        return None

    def _take(self, cut: Cut) -> Cut | None:
        self.named = None
        if cut.fell:
            return None
        self.proxy.cuts.remove(cut)
        return cut

    def answered(self, data: bytes) -> None:
        cut = self.answering
        if cut is None:
            self.transport.write(data)
        elif cut.how == "answer lost":
            if READY in data:
                self.end()
        else:
            self.answering = None
            asyncio.get_running_loop().call_later(cut.seconds, self.transport.write, data)

    def end(self) -> None:
        self.transport.abort()
        if self.server is not None:
            self.server.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self.server is not None:
            self.server.close()


class _Server(asyncio.Protocol):
    def __init__(self, client: _Client) -> None:
        self.client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.client.server = transport
        for data in self.client.waiting:
            transport.write(data)
        self.client.waiting.clear()
        if self.client.transport.is_closing():
            transport.close()

    def data_received(self, data: bytes) -> None:
        self.client.answered(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.client.transport.abort()
