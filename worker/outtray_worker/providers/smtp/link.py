"""From a mailbox's settings to a logged-in connection: TCP, TLS, EHLO, one AUTH. And what is known of it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from aiosmtplib import SMTPResponse
from aiosmtplib.esmtp import parse_esmtp_extensions

from outtray_schema.outcome import Evidence, Held, Outcome, Parked
from outtray_schema.settings import Settings
from outtray_worker.deadline import boottime
from outtray_worker.providers import Answered, Logins, NoLoginNow
from outtray_worker.providers.names import Names
from outtray_worker.providers.redact import Redactor
from outtray_worker.providers.smtp.auth import NoLogin, choose, log_in
from outtray_worker.providers.smtp.replies import Phase, classify, enhanced_code
from outtray_worker.providers.smtp.wire import Garbled, Wire

Tls = Literal["implicit", "starttls", "clear"]
Login = tuple[SMTPResponse, dict[str, str]]
"""The server's last word, and what it said beside."""


class Ended(Exception):
    """The attempt ends here with `outcome`: a step's way out, caught where `prepare` returns."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.__class__.__name__)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Server:
    """The mailbox's `server`: where to connect, and how."""

    host: str
    port: int
    tls: Tls
    auth: str

    @classmethod
    def of(cls, server: Mapping[str, Any]) -> Server:
        """From the stored settings. Raises `Ended` with a `Held` that names what is wrong with them."""
        host, tls, port = server.get("host"), server.get("tls", "implicit"), server.get("port")
        if not host or tls not in ("implicit", "starttls", "clear"):
            raise Ended(Held("the mailbox's server needs a host, and tls: implicit or starttls", status="disabled"))
        usual = {"implicit": 465, "starttls": 587, "clear": 25}[tls]
        return cls(str(host), int(port or usual), tls, str(server.get("auth", "auto")))

    @property
    def place(self) -> str:
        return f"{self.host}:{self.port}"


class Link:
    """One connection to one server: what it offers, how far the dialogue is, and whether it can be used again."""

    def __init__(self, server: Server, settings: Settings, redact: Redactor) -> None:
        self.wire = Wire(asyncio.get_running_loop())
        self.server = server
        self.patience = settings.command_timeout.total_seconds()
        self.redact = redact
        self.phase: Phase = "connect"
        self.extensions: dict[str, str] = {}
        self.mechanisms: tuple[str, ...] = ()
        self.mechanism = ""
        self.messages = 0
        self.ready = False
        """Whether it is logged in."""
        self.dirty = False
        """Whether a transaction was begun and not ended, so that RSET comes before the next MAIL."""
        self.in_body = False
        """Between 354 and the reply to the dot: only body and dot may be written, and no error leaves it usable."""
        self.spoke_at = boottime()

    @property
    def size_limit(self) -> int:
        """Octets that the server takes (RFC 1870); 0 where it names no limit."""
        text = self.extensions.get("size", "").strip()
        return int(text) if text.isascii() and text.isdigit() else 0

    @property
    def usable(self) -> bool:
        return self.ready and not self.in_body and self.wire.alive and not self.wire.unread

    async def ask(self, *words: bytes) -> SMTPResponse:
        """Send one command line, and return its reply.

        A server that spoke unasked is heard first: its goodbye (421) is the answer to whatever we wanted.
        Raises `TimeoutError`, `Garbled`, `ConnectionError`.
        """
        self.heed()
        reply = await self.wire.execute_command(*words, timeout=self.patience)
        self.spoke_at = boottime()
        return reply

    def heed(self) -> None:
        """End the attempt if the server has already said something that nobody asked for, or has gone."""
        if reply := self.wire.next_reply():
            if reply.code < 400:
                raise Garbled("a reply that nobody asked for")
            raise self.refused(reply)
        if self.wire.unread:
            raise Garbled("half a reply that nobody asked for")
        self.wire.check()

    def expect(self, reply: SMTPResponse, *codes: int) -> None:
        """Go on if `reply` is one of `codes`. Raises `Ended` for a refusal, `Garbled` for what fits nowhere."""
        if reply.code in codes:
            return
        if reply.code < 400:
            raise Garbled(f"reply {reply.code} is out of place")
        raise self.refused(reply)

    def refused(self, reply: SMTPResponse, **more: str) -> Ended:
        """What a 4xx or 5xx of the present phase means, as the attempt's end."""
        enhanced = enhanced_code(reply.message)
        verdict = classify(self.phase, reply.code, enhanced, reply.message)
        if reply.code == 421:
            self.wire.drop()
        said = " ".join(filter(None, (str(reply.code), enhanced)))
        reason = f"{verdict.reason} ({self.server.place} said {said})"
        return Ended(verdict.outcome(reason, {**self.evidence(reply), "rule": verdict.id, **more}))

    def evidence(self, reply: SMTPResponse) -> dict[str, str | int]:
        """A reply as evidence, redacted."""
        return {
            "phase": self.phase,
            "code": reply.code,
            "enhanced": enhanced_code(reply.message),
            "text": self.redact(" ".join(reply.message.split())),
        }


async def connect(
    link: Link,
    credentials: Mapping[str, Any],
    settings: Settings,
    context: ssl.SSLContext,
    names: Names,
    logins: Logins | None = None,
) -> None:
    """TCP, TLS, greeting and login on a new link, whose `phase` says how far it came.

    Raises `Ended` when the server or the settings refuse it, `OSError`, `TimeoutError` or `Garbled` when it breaks.
    """
    async with asyncio.timeout(settings.connect_timeout.total_seconds()):
        await reach(link, await names.addresses(link.server.host, link.server.port))
        refuse_clear(link, settings)
        if link.server.tls == "implicit":
            await link.wire.secure(context, link.server.host)
    await greet(link)
    if link.server.tls == "starttls":
        await start_tls(link, context, settings)
    await authenticate(link, credentials, logins)
    link.ready = True


async def reach(link: Link, addresses: Sequence[str]) -> None:
    """TCP to the first of the host's addresses that answers. Raises the last one's `OSError`."""
    loop = asyncio.get_running_loop()
    *others, last = addresses
    for address in others:
        with contextlib.suppress(OSError):
            await loop.create_connection(lambda: link.wire, address, link.server.port)
            return
    await loop.create_connection(lambda: link.wire, last, link.server.port)


def refuse_clear(link: Link, settings: Settings) -> None:
    """Without TLS only to this very machine, and only where the settings allow it: for the sandbox."""
    if link.server.tls != "clear":
        return
    link.wire.check()
    peer = link.wire.transport.get_extra_info("peername") if link.wire.transport else None
    if peer is None:  # reset before anybody could ask whose it is
        raise ConnectionResetError("the server closed the connection")
    if settings.smtp_clear_loopback and ipaddress.ip_address(peer[0].partition("%")[0]).is_loopback:
        return
    reason = f"{link.server.place}: SMTP without TLS is refused; set the mailbox's tls to implicit or starttls"
    raise Ended(Held(reason, status="disabled", evidence={"rule": "clear-refused"}))


async def greet(link: Link) -> None:
    """The server's greeting, and EHLO. HELO is no fallback: a server without EHLO offers no login."""
    link.expect(await link.wire.read_response(timeout=link.patience), 220)
    await say_ehlo(link)


async def say_ehlo(link: Link) -> None:
    link.phase = "ehlo"
    reply = await link.ask(b"EHLO", own_name(link.wire))
    link.expect(reply, 250)
    link.extensions, mechanisms = parse_esmtp_extensions(reply.message)
    link.mechanisms = tuple(dict.fromkeys(mechanisms))


def own_name(wire: Wire) -> bytes:
    """Our address as a literal (RFC 5321 4.1.3): true, and it needs no look-up of a host name that may not exist."""
    transport = cast(asyncio.BaseTransport, wire.transport)
    address = ipaddress.ip_address(transport.get_extra_info("sockname")[0].partition("%")[0])
    return f"[IPv6:{address}]".encode() if address.version == 6 else f"[{address}]".encode()


async def start_tls(link: Link, context: ssl.SSLContext, settings: Settings) -> None:
    """STARTTLS, never optional: what the server offered before it is forgotten (RFC 3207 section 4.2)."""
    link.phase = "starttls"
    if "starttls" not in link.extensions:
        reason = f"{link.server.place}: offers no STARTTLS, and nothing is sent in clear"
        raise Ended(Parked(reason, "connection", evidence={"rule": "no-starttls", "phase": "starttls"}))
    link.expect(await link.ask(b"STARTTLS"), 220)
    async with asyncio.timeout(settings.connect_timeout.total_seconds()):
        await link.wire.secure(context, link.server.host)
    await say_ehlo(link)


async def authenticate(link: Link, credentials: Mapping[str, Any], logins: Logins | None) -> None:
    """One AUTH. Without any credentials none: the server then says at MAIL whether it minds."""
    link.phase = "auth"
    if not credentials:
        return
    try:
        mechanism = choose(link.server.auth, credentials, link.mechanisms)
    except NoLogin as error:
        evidence: Evidence = {"rule": "no-login", "phase": "auth"}
        raise Ended(Held(f"{link.server.place}: {error}", evidence=evidence)) from None
    reply, said = await counted(logins, log_in(link.ask, mechanism, credentials, (link.server.host, link.server.port)))
    if reply.code != 235:
        if reply.code < 400:
            raise Garbled(f"reply {reply.code} is out of place")
        raise link.refused(reply, mechanism=mechanism, **{name: link.redact(text) for name, text in said.items()})
    link.mechanism = mechanism


async def counted(logins: Logins | None, login: Coroutine[Any, Any, Login]) -> Login:
    """One login, asked for and told of where somebody counts them. Raises `Ended` where none may be tried now."""
    if logins is None:
        return await login
    try:
        await logins.permit("smtp")
    except NoLoginNow as error:
        login.close()
        raise Ended(error.outcome) from None
    answer: Answered = "later"
    try:
        reply, said = await login
        answer = "accepted" if reply.code == 235 else "refused" if reply.code >= 500 else "later"
        return reply, said
    finally:
        await logins.told("smtp", answer)
