"""The HTTP sink: takes both arms' posts, answers after a given delay, and keeps the ledger that judges them.

    POST /<ledger>/<milliseconds>    header X-Message: the key → {"id": ...} after that delay; counted when it arrives
    POST /<ledger>/never             counted, and never answered
    GET  /<ledger>                   {key: count};  GET /<ledger>/count → {"count": n}
    …    /<ledger>/gmail/v1/… and /<ledger>/v1.0/…   the two APIs (`apis.py`); GET /<ledger>/requests counts them

HTTP/1.1 by hand on asyncio, because sink and arms share a machine: about 0.02 ms of CPU a request, counted apart.
`python -m tests.bench.sink` prints its port and ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter, defaultdict
from itertools import count
from typing import cast

import uvloop
from tests.bench.apis import Apis, is_api, shown

HEAD_END = b"\r\n\r\n"
LEDGERS: defaultdict[bytes, Counter[bytes]] = defaultdict(Counter)
APIS = Apis(LEDGERS)
REASONS = {200: b"OK", 201: b"Created", 202: b"Accepted", 204: b"No Content", 404: b"Not Found"}
NUMBERS = count(0x18C0_0000_0000_0000)


class Exchange(asyncio.Protocol):
    """One kept connection. Requests on it follow one another; none is answered before the one ahead of it."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._end = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._whole_request():
            head = bytes(self._buffer[: self._head])
            body = bytes(self._buffer[self._head + len(HEAD_END) : self._end])
            del self._buffer[: self._end]
            self._end = 0
            self._answer(head, body)

    def _whole_request(self) -> bool:
        if not self._end:
            self._head = self._buffer.find(HEAD_END)
            if self._head < 0:
                return False
            head = bytes(self._buffer[: self._head])
            self._end = self._head + len(HEAD_END) + int(_header(head, b"content-length") or 0)
        return len(self._buffer) >= self._end

    def _answer(self, head: bytes, given: bytes) -> None:
        method, path, _ = head.split(b" ", 2)
        ledger, _, rest = path[1:].partition(b"/")
        if is_api(rest):
            status, said = APIS[ledger].answer(method, rest, _header(head, b"x-message"), given)
            self._write(said, status)
            return
        if method == b"GET":
            self._write(_shown(ledger, rest))
            return
        LEDGERS[ledger][_header(head, b"x-message")] += 1
        if rest == b"never":
            return
        body = b'{"id":"%x","labelIds":["SENT"]}' % next(NUMBERS)
        if rest == b"0":
            self._write(body)
        else:
            asyncio.get_running_loop().call_later(int(rest) / 1000, self._write, body)

    def _write(self, body: bytes, status: int = 200) -> None:
        if not self._transport.is_closing():
            length = b"" if status == 204 else b"Content-Length: %d\r\n" % len(body)
            head = b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\n%b\r\n" % (status, REASONS[status], length)
            self._transport.write(head + body)


def _header(head: bytes, name: bytes) -> bytes:
    """A header's value, its name in lower case; empty where there is none."""
    _, found, rest = head.lower().partition(b"\r\n" + name + b":")
    return rest.split(b"\r\n", 1)[0].strip() if found else b""


def _shown(name: bytes, rest: bytes) -> bytes:
    if rest == b"requests":
        return shown(APIS[name])
    ledger = LEDGERS[name]
    if rest == b"count":
        return b'{"count":%d}' % ledger.total()
    return json.dumps({key.decode(): times for key, times in ledger.items()}).encode()


async def serve() -> None:
    """Listen on a free loopback port, print it, and serve until SIGTERM."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await loop.create_server(Exchange, "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await stop.wait()


if __name__ == "__main__":
    uvloop.run(serve())
