"""One connection to an IMAP server: made by the event loop, spoken on by threads, cut by the loop if it takes long."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

from outtray_schema.mailbox import FILES_SENT
from outtray_schema.outcome import Held, Parked
from outtray_schema.settings import Settings
from outtray_worker.providers.smtp.imap.client import Client
from outtray_worker.providers.smtp.imap.troubles import Refused, translated
from outtray_worker.providers.smtp.link import Ended
from outtray_worker.providers.smtp.trust import Trust

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """The mailbox's `server.imap`: where to look."""

    host: str
    port: int
    tls: Literal["implicit", "starttls", "clear"]
    trust: Trust
    files_sent: bool | None
    """Whether the provider itself files a copy of what it sends. None: not known, to be seen there."""
    sent_copy: Literal["auto", "append", "never"] = "auto"

    @classmethod
    def of(cls, server: Mapping[str, Any]) -> Place:
        """From the stored settings, which were validated when they were stored."""
        imap = server["imap"]
        host, tls = str(imap["host"]), imap.get("tls", "implicit")
        port = int(imap.get("port") or (993 if tls == "implicit" else 143))
        known = FILES_SENT.get(host.lower())
        files = imap.get("files_sent", known.files if known else None)
        return cls(host, port, tls, Trust.of(server, imap), files, imap.get("sent_copy") or "auto")

    @property
    def wants_copies(self) -> Literal["due", "look"] | None:
        """Whether a copy of what is sent is to be filed: at once, or if none is there after a while. None: never.

        Only where the provider is known to file none it may be at once, or there could be two.
        """
        if self.sent_copy == "never" or (self.sent_copy == "auto" and self.files_sent):
            return None
        return "due" if self.files_sent is False else "look"

    @property
    def text(self) -> str:
        return f"{self.host}:{self.port}"


class Line:
    """Use one step after the other. Once a step has not ended properly the line is dead."""

    def __init__(self, place: Place, threads: ThreadPoolExecutor, settings: Settings) -> None:
        self.place = place
        self.capabilities: frozenset[str] = frozenset()
        self.mechanism = ""
        self.ready = False
        """Whether it is logged in."""
        self.tls = ""
        self._threads = threads
        self._settings = settings
        self._cut: socket.socket | None = None
        """A second handle on the connection's socket: TLS takes the first one for itself."""
        self._client: Client | None = None

    @property
    def usable(self) -> bool:
        return self.ready and self._client is not None

    async def connect(self, addresses: Sequence[str], context: ssl.SSLContext) -> None:
        """TCP, TLS and greeting. Raises `Ended`, `Refused`, `Garbled`, `OSError`, `TimeoutError`."""
        place = self.place
        async with asyncio.timeout(self._settings.connect_timeout.total_seconds()):
            connected = await reach(addresses, place.port)
        self._cut = connected.dup()
        try:
            refuse_clear(place, connected, self._settings)
        except Ended:
            connected.close()
            raise
        connected.settimeout(self._settings.command_timeout.total_seconds())
        implicit = context if place.tls == "implicit" else None
        self._client = client = await self._in_thread(lambda: Client(connected, place.host, place.port, implicit))
        if client.greeted_as_known:
            raise self._unsafe("takes everybody for somebody it knows, before any login")
        if place.tls == "starttls":
            await self._start_tls(client, context)
        self.tls = client.tls

    async def _start_tls(self, client: Client, context: ssl.SSLContext) -> None:
        """STARTTLS, never optional: what the server offered before it is forgotten (RFC 3501 6.2.1)."""
        if "STARTTLS" not in await self.run(Client.offers):
            raise self._unsafe("offers no STARTTLS, and nothing is read in clear")
        await self.run(lambda client: client.starttls(context))

    def _unsafe(self, what: str) -> Ended:
        return Ended(Parked(f"{self.place.text}: {what}", "connection", evidence={"rule": "imap-unsafe"}))

    async def run(self, steps: Callable[[Client], T], patience: timedelta | None = None) -> T:
        """Steps on the client, in a thread. A `Refused` leaves the line usable, all else that is raised does not.

        They may take `patience`, by default that of one command.
        """
        client = self._client
        if client is None:
            raise ConnectionError("the connection is gone")
        return await self._in_thread(lambda: steps(client), patience)

    async def _in_thread(self, steps: Callable[[], T], patience: timedelta | None = None) -> T:
        ended = False
        limit = patience or self._settings.command_timeout
        try:
            async with asyncio.timeout(limit.total_seconds()):
                done = await asyncio.get_running_loop().run_in_executor(self._threads, translated, steps)
            ended = True
        finally:
            if not ended:
                self.drop()
        if isinstance(done, Exception):
            if not isinstance(done, Refused):
                self.drop()
            raise done
        return done

    async def leave(self, patience: float) -> None:
        """LOGOUT, and close."""
        if self._client is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(patience):
                    await self.run(lambda client: client.logout())
        self.drop()

    def drop(self) -> None:
        """Cut the connection: a thread that waits for it ends at once, and another closes what is left."""
        cut, client, self._cut, self._client = self._cut, self._client, None, None
        if cut is not None:
            with contextlib.suppress(OSError):
                cut.shutdown(socket.SHUT_RDWR)
            cut.close()
        if client is not None:
            with contextlib.suppress(RuntimeError):  # at the interpreter's end no thread begins any more
                self._threads.submit(translated, client.shutdown)


async def reach(addresses: Sequence[str], port: int) -> socket.socket:
    """TCP to the first of the host's addresses that answers. Raises the last one's `OSError`."""
    *others, last = addresses
    for address in others:
        with contextlib.suppress(OSError):
            return await _connected(address, port)
    return await _connected(last, port)


async def _connected(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ipaddress.ip_address(address.partition("%")[0]).version == 6 else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(made, (address, port))
    except BaseException:
        made.close()
        raise
    return made


def refuse_clear(place: Place, connected: socket.socket, settings: Settings) -> None:
    """Without TLS only to this very machine, and only where the settings allow it, as with SMTP: for the sandbox."""
    if place.tls != "clear":
        return
    peer = ipaddress.ip_address(connected.getpeername()[0].partition("%")[0])
    if settings.smtp_clear_loopback and peer.is_loopback:
        return
    reason = f"{place.text}: IMAP without TLS is refused; set its tls to implicit or starttls"
    raise Ended(Held(reason, status="disabled", evidence={"rule": "imap-clear-refused"}))
