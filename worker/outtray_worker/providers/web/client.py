"""The process's one HTTP client, on aiohttp: it says when the first byte was written, and never sends twice."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import aiohttp.abc
from yarl import URL

from outtray_schema.outcome import NotBegun, Outcome, Parked, Unknown
from outtray_schema.settings import Settings
from outtray_worker.crash import crash_points
from outtray_worker.deadline import Deadline
from outtray_worker.providers.names import Names
from outtray_worker.providers.web.exchange import Answer, ContentLost, NoAnswer, Request, Stream, exactly

KEPT = 30.0
"""Seconds that an idle connection is kept. A server that closes one just as we write costs an `Unknown`: stay short."""
LARGEST = 4 << 20
"""Bytes of an answer that are read unless the caller allows more: what is longer is no answer of these APIs."""
_OURS = {"User-Agent": "outtray", "Accept-Encoding": "identity"}
_GRACE = 3
"""Turns of the loop in which an answer that came while the process was frozen is still heard."""


class _TooLate(Exception):
    pass


class _Attempt:
    """One request's way to the wire. It is aiohttp's middleware, which aiohttp calls anew before it sends again.

    aiohttp re-sends idempotent methods once on a dead kept connection (3.14, `_retry_connection`): a PUT can commit.
    """

    def __init__(self, look: Callable[[], None]) -> None:
        self.begun = False
        self.lost: ContentLost | None = None
        self._look = look
        self._used = False

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if self._used:
            raise NoAnswer("closed", f"{request.url.host}: the connection was closed without an answer", self.begun)
        self._used = True
        if isinstance(request, _Looking):
            request.attempt = self
        return await handler(request)

    def begin(self) -> None:
        """The connection stands; the next thing is the first byte."""
        self._look()
        self.begun = True

    async def body(self, stream: Stream) -> AsyncIterator[bytes]:
        try:
            async for piece in exactly(stream):
                yield piece
        except ContentLost as lost:
            self.lost = lost
            raise


class _Looking(aiohttp.ClientRequest):
    """A request that looks at the clock between the connection and the first byte."""

    attempt: _Attempt | None = None

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        if self.attempt is not None:
            self.attempt.begin()
        return await super().send(conn)


class _Resolver(aiohttp.abc.AbstractResolver):
    """Host names by threads of our own (`providers.names`): a dead resolver holds up nothing else."""

    def __init__(self) -> None:
        self._names = Names()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[aiohttp.abc.ResolveResult]:
        return [
            aiohttp.abc.ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in await self._names.addresses(host, port)
        ]

    async def close(self) -> None:
        return None


class Web:
    """One per process and event loop."""

    def __init__(self, settings: Settings) -> None:
        self._connect = settings.connect_timeout.total_seconds()
        self._limit = settings.engine_turns
        self._resolver = _Resolver()
        self._crash_point = crash_points(settings.crash_at)
        self._kept: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None

    async def ask(self, request: Request, within: float, largest: int = LARGEST, fresh: bool = False) -> Answer:
        """Send once and read the answer, within so many seconds. Raises `NoAnswer` and `ContentLost`."""
        attempt = _Attempt(lambda: None)
        try:
            async with asyncio.timeout(within):
                return await self._exchange(request, attempt, largest, fresh)
        except TimeoutError:
            raise NoAnswer("timeout", f"{place(request)} did not answer in time", attempt.begun) from None

    async def commit(
        self, request: Request, begin_by: Deadline, answer_by: Deadline, fresh: bool = False
    ) -> Answer | Outcome:
        """Send once if `begin_by` lies ahead when the connection stands. `fresh`: on a connection of its own."""

        def look() -> None:
            self._crash_point("last look")
            if begin_by.passed:
                raise _TooLate
            self._crash_point("first byte")

        attempt = _Attempt(look)
        exchange = asyncio.ensure_future(self._exchange(request, attempt, LARGEST, fresh))
        try:
            if not await _ended(exchange, answer_by):
                return _silent(request, attempt)
            answer = exchange.result()
            self._crash_point("answered")
            return answer
        except _TooLate:
            return NotBegun("the time to begin the handover had passed", evidence={"rule": "too-late"})
        except ContentLost:
            return NotBegun("the content could not be read to its end", evidence={"rule": "content-lost"})
        except NoAnswer as none:
            return _unanswered(none)
        finally:
            exchange.cancel()

    async def _exchange(self, request: Request, attempt: _Attempt, largest: int, fresh: bool) -> Answer:
        headers = {**request.headers, **_OURS}
        data: Any = request.body
        if isinstance(data, Stream):
            headers["Content-Length"] = str(data.length)
            data = attempt.body(data)
        try:
            return await self._send(request, headers, data, attempt, largest, fresh)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Never `from error`: aiohttp's errors quote the URL.
            if attempt.lost is not None:
                raise attempt.lost from attempt.lost.__cause__
            raise NoAnswer(*trouble(place(request), error), attempt.begun) from None

    async def _send(
        self, request: Request, headers: dict[str, str], data: Any, attempt: _Attempt, largest: int, fresh: bool
    ) -> Answer:
        async with self._session(fresh).request(
            request.method,
            # aiohttp writes escapes its own way (yarl 1.25: %2F in a query becomes /): a signature may not survive it.
            URL(request.url, encoded=True) if request.exact else request.url,
            headers=headers,
            data=data,
            allow_redirects=False,
            middlewares=(attempt,),
            skip_auto_headers=("Content-Type",),
        ) as response:
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > largest:
                    response.close()
                    raise NoAnswer("garbled", f"{place(request)} answered more than {largest} bytes", attempt.begun)
            return Answer(response.status, _first(response.headers), bytes(body))

    def _session(self, fresh: bool) -> aiohttp.ClientSession:
        if fresh:
            if self._fresh is None:
                self._fresh = self._new_session(force_close=True)
            return self._fresh
        if self._kept is None:
            self._kept = self._new_session(keepalive_timeout=KEPT)
        return self._kept

    def _new_session(self, **options: Any) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._limit, resolver=self._resolver, ttl_dns_cache=60, **options),
            request_class=_Looking,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect, sock_connect=self._connect),
        )

    async def close(self) -> None:
        sessions, self._kept, self._fresh = (self._kept, self._fresh), None, None
        for session in filter(None, sessions):
            await session.close()


async def _ended(exchange: asyncio.Future[Answer], by: Deadline) -> bool:
    """Whether it ended in time, or while the process was frozen beyond it: then the answer is here and counts."""
    try:
        await asyncio.wait({exchange}, timeout=max(by.left(), 0.0))
        for _ in range(_GRACE):
            if not exchange.done():
                await asyncio.sleep(0)
    except BaseException:
        exchange.cancel()
        raise
    return exchange.done()


def _silent(request: Request, attempt: _Attempt) -> Outcome:
    return _unanswered(NoAnswer("timeout", f"{place(request)} did not answer in time", attempt.begun))


def _unanswered(none: NoAnswer) -> Outcome:
    """What a handover without an answer is: definite as long as no byte of it was written."""
    if none.begun:
        return Unknown(none.reason, evidence={"rule": none.rule, "step": "commit"})
    return Parked(none.reason, scope="connection", evidence={"rule": none.rule, "step": "connect"})


def place(request: Request) -> str:
    """The host and port alone: all that may be shown of a URL."""
    return urlsplit(request.url).netloc.rpartition("@")[2]


def _first(headers: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers.items():
        found.setdefault(name.lower(), value)
    return found


_TROUBLES: tuple[tuple[tuple[type[BaseException], ...], str, str], ...] = (
    ((aiohttp.ClientConnectorCertificateError,), "tls-certificate", "the server's certificate is not trusted"),
    ((aiohttp.ClientConnectorSSLError, ssl.SSLError), "tls", "TLS failed"),
    ((aiohttp.ClientConnectorDNSError,), "dns", "the server's name is not found; check the URL or the DNS"),
    ((TimeoutError,), "timeout", "no connection in time"),
    ((aiohttp.ClientConnectorError,), "refused", "no connection; nothing listens there, or nothing gets there"),
    ((aiohttp.InvalidURL,), "url", "the provider's URL is no URL"),
    ((aiohttp.ClientResponseError, aiohttp.ClientPayloadError, ValueError), "garbled", "no proper HTTP answer"),
    ((BaseException,), "closed", "the connection was closed without an answer"),
)
"""The first that fits. Never the error's own text."""


def trouble(where: str, error: BaseException) -> tuple[str, str]:
    """A stable id and words for a person."""
    return next((rule, f"{where}: {words}") for kinds, rule, words in _TROUBLES if isinstance(error, kinds))
