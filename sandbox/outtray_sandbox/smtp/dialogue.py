"""The server's side of one connection, on aiosmtpd: its command loop and STARTTLS, with every answer scriptable.

DATA is our own: aiosmtpd 1.4.6 holds a mail in memory line by line (its source, 2026-11), while here it is hashed as it
comes, so that mails of 100 MB cost no memory.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import re
import socket
import ssl
import struct
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from aiosmtpd.smtp import MISSING, SMTP, TLSSetupException

from outtray_sandbox.accepted import Accepted
from outtray_sandbox.smtp.bearer import bearer_of
from outtray_sandbox.smtp.house import BY_TOKEN, House
from outtray_sandbox.smtp.incoming import LINE_END, Incoming
from outtray_sandbox.smtp.script import Rule, Stage

# aiosmtpd logs addresses at INFO; whoever runs the sandbox beside us may log at that level.
logging.getLogger("mail.log").setLevel(logging.WARNING)

_END = b"\r\n.\r\n"
_PATH = re.compile(r"(FROM|TO):\s*<([^<>]*)>\s*(.*)", re.IGNORECASE)
_RESET = struct.pack("ii", 1, 0)

Work = Callable[[], Awaitable[None]]


class Dialogue(SMTP):
    """One connection."""

    # aiosmtpd types these as optional; within a command they are there.
    session: Any
    envelope: Any
    transport: Any
    _reader: Any
    line_length_limit = 128 * 1024
    command_size_limit = 64 * 1024

    def __init__(
        self,
        house: House,
        context: ssl.SSLContext | None,
        loop: asyncio.AbstractEventLoop,
        open_transports: set[asyncio.BaseTransport],
    ) -> None:
        super().__init__(
            object(),
            data_size_limit=house.size_limit,
            enable_SMTPUTF8=True,
            hostname="sandbox.invalid",
            ident="ESMTP Outtray sandbox",
            tls_context=context if house.tls == "starttls" else None,
            auth_require_tls=False,
            timeout=3600,
            loop=loop,
        )
        # aiosmtpd keeps these on the class, shared by all connections.
        self.command_size_limits: dict[str, int] = defaultdict(lambda: self.command_size_limit)
        self.house = house
        self._open = open_transports
        self._socket: asyncio.BaseTransport | None = None
        self.user = ""
        self.session_id = uuid4().hex
        self._greeted = self._muted = self._receiving = False

    # ── connection ──────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._original_transport is None:
            self.house.seen["connections"] += 1
            self.house.seen["open"] += 1
            self._socket = transport
            self._open.add(transport)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.house.seen["open"] -= 1
        if self._socket:
            self._open.discard(self._socket)
        self._log_out()
        super().connection_lost(error)

    def _log_out(self) -> None:
        if self.user:
            self.house.sessions[self.user] -= 1
            self.user = ""

    @property
    def secure(self) -> bool:
        return self.house.tls != "starttls" or self._tls_protocol is not None

    async def push(self, status: Any) -> None:
        if self._muted:
            return
        if not self._greeted:
            self._greeted = True
            await self._stage("connect", lambda: self.push(status))
            return
        await super().push(status)

    async def say(self, *lines: str) -> None:
        """A reply with its enhanced code, or several lines of one."""
        for line in lines:
            await self.push(line)

    # ── the script ──────────────────────────────────────────────────────────────────────────────────────────────

    def _rule(self, stage: Stage, recipient: str = "", user: str = "") -> Rule | None:
        self.house.seen[stage] += 1
        sender = self.envelope.mail_from or ""
        return self.house.script.find(stage, user or self.user, sender, recipient)

    async def _stage(self, stage: Stage, work: Work, recipient: str = "", user: str = "") -> None:
        """Do a stage's work, as the script will have it."""
        rule = self._rule(stage, recipient, user)
        if rule is None:
            await work()
        else:
            await self._play(rule, work)

    async def _play(self, rule: Rule, work: Work) -> None:
        await asyncio.sleep(rule.late)
        silent_work = rule.reply is not None or rule.silent or rule.drop in ("before", "after")
        if rule.does_work:
            await self._quietly(work) if silent_work else await work()
        if rule.silent:
            await self._hang()
        if rule.drop in ("before", "after"):
            self._cut(rule)
        if rule.reply is not None:
            await self._give(rule)
        if rule.drop == "reply":
            self._cut(rule)
        if rule.drop == "half":
            self._writer.write_eof()
            await self._hang()

    async def _quietly(self, work: Work) -> None:
        self._muted = True
        try:
            await work()
        finally:
            self._muted = False

    async def _give(self, rule: Rule) -> None:
        text = (rule.reply or "").encode("latin-1")
        wire = text if rule.raw else text.replace(b"\n", b"\r\n") + b"\r\n"
        pieces = [wire] if rule.pieces is None else [wire[n : n + 1] for n in range(len(wire))]
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(rule.pieces or 0)

    async def _hang(self) -> None:
        """Until the client goes: nothing more is read or said."""
        await asyncio.get_running_loop().create_future()

    def _cut(self, rule: Rule) -> None:
        if rule.reset:
            bare = self.transport.get_extra_info("socket")
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()
        else:
            self.transport.close()
        raise asyncio.CancelledError

    # ── before a mail ───────────────────────────────────────────────────────────────────────────────────────────

    async def smtp_EHLO(self, hostname: str) -> None:
        await self._stage("ehlo", lambda: self._ehlo(hostname))

    async def _ehlo(self, hostname: str) -> None:
        if not hostname:
            return await self.say("501 5.5.4 Syntax: EHLO hostname")
        self._set_rset_state()  # type: ignore[no-untyped-call]
        self.session.extended_smtp = True
        self.session.host_name = hostname
        lines = [self.hostname, *self._extensions()]
        await self.say(*(f"250-{line}" for line in lines[:-1]), f"250 {lines[-1]}")

    def _extensions(self) -> list[str]:
        house = self.house
        switched = {"PIPELINING": house.pipelining, "8BITMIME": house.eight_bit, "SMTPUTF8": house.smtputf8}
        offered = [name for name, on in switched.items() if on]
        if house.size_limit:
            offered.append(f"SIZE {house.size_limit}")
        if not self.secure:
            offered.append("STARTTLS")
        elif house.mechanisms:
            offered.append(f"AUTH {' '.join(house.mechanisms)}")
        return [*offered, "ENHANCEDSTATUSCODES"]

    async def smtp_STARTTLS(self, arg: str) -> None:
        await self._stage("starttls", lambda: super(Dialogue, self).smtp_STARTTLS(arg))

    async def smtp_AUTH(self, arg: str | None) -> None:
        if self.user or not self.secure or not self.session.host_name:
            return await self.say("503 5.5.1 AUTH is not expected here")
        mechanism, _, initial = (arg or "").partition(" ")
        if mechanism.upper() not in self.house.mechanisms:
            return await self.say("504 5.5.4 Unrecognized authentication type")
        asked = await self._ask_credentials(mechanism.upper(), initial.strip())
        if asked is None:
            return None
        user, secret = asked
        await self._stage("auth", lambda: self._log_in(mechanism.upper(), user, secret), user=user)

    async def _ask_credentials(self, mechanism: str, initial: str) -> tuple[str, str] | None:
        """User name and secret as the client gave them; `None` once it was told what is wrong with them."""
        first = await self._challenge("User Name\x00" if mechanism == "LOGIN" else "", initial)
        if first is None:
            return None
        if mechanism == "LOGIN":
            second = await self._challenge("Password\x00", "")
            return None if second is None else (first, second)
        parts = re.split("[\x00\x01]", first)
        if mechanism == "PLAIN" and len(parts) == 3:
            return parts[1], parts[2]
        if mechanism == "XOAUTH2" and len(parts) == 4 and parts[0].startswith("user="):
            return parts[0].removeprefix("user="), parts[1].removeprefix("auth=Bearer ")
        if mechanism == "OAUTHBEARER" and (bearer := bearer_of(first)):
            return bearer
        await self.say("501 5.5.2 Cannot understand the credentials")
        return None

    async def _challenge(self, prompt: str, initial: str) -> str | None:
        if not initial:
            given = await self.challenge_auth(prompt)
            return None if given is MISSING else given.decode("utf-8", "replace")
        try:
            return base64.b64decode(initial, validate=True).decode("utf-8", "replace")
        except binascii.Error:
            await self.say("501 5.5.2 Cannot decode base64")
            return None

    async def _log_in(self, mechanism: str, user: str, secret: str) -> None:
        if self.house.knows(mechanism, user, secret):
            self.user = user
            self.house.sessions[user] += 1
            return await self.say("235 2.7.0 Accepted")
        if mechanism in BY_TOKEN:
            said = json.dumps({"status": "400", "schemes": "Bearer", "scope": "https://mail.google.com/"})
            await self.say(f"334 {base64.b64encode(said.encode()).decode()}")
            if (await self._reader.readline()).strip() != (b"" if mechanism == "XOAUTH2" else b"AQ=="):
                return await self.say("501 5.5.2 Another answer was due")
        await self.say("535 5.7.8 Username and Password not accepted.")

    # ── the envelope ────────────────────────────────────────────────────────────────────────────────────────────

    async def smtp_MAIL(self, arg: str | None) -> None:
        found = _PATH.fullmatch(arg or "")
        sender = found[2] if found else ""
        await self._stage("mail", lambda: self._mail(sender, found[3].upper() if found else ""))

    async def _mail(self, sender: str, parameters: str) -> None:
        if refusal := self._sender_refusal(sender, parameters.split()):
            return await self.say(*refusal.split("\n"))
        self.envelope.mail_from = sender
        await self.say("250 2.1.0 OK")

    def _sender_refusal(self, sender: str, parameters: list[str]) -> str | None:
        if not self.session.host_name or self.envelope.mail_from:
            return "503 5.5.1 Bad sequence of commands"
        if self.house.auth_required and not self.user:
            return "530 5.7.0 Authentication Required"
        if not sender:
            return "501 5.1.7 A sender is needed"
        return self._parameter_refusal(sender, parameters) or self.house.objection(self.user)

    def _parameter_refusal(self, sender: str, parameters: list[str]) -> str | None:
        given = dict(parameter.partition("=")[::2] for parameter in parameters)
        size = given.pop("SIZE", "0")
        if not size.isdigit():
            return "501 5.5.4 SIZE is no number"
        if int(size) > self.house.size_limit > 0:
            return "552 5.3.4 Your message exceeded the size limit"
        utf8 = "SMTPUTF8" in given
        if set(given) - self._allowed_parameters():
            return "555 5.5.2 Parameters not recognized"
        if not sender.isascii() and not utf8:
            return "553 5.6.7 Non-ASCII addresses need SMTPUTF8"
        return None

    def _allowed_parameters(self) -> set[str]:
        return {name for name, on in (("BODY", self.house.eight_bit), ("SMTPUTF8", self.house.smtputf8)) if on}

    async def smtp_RCPT(self, arg: str | None) -> None:
        found = _PATH.fullmatch(arg or "")
        recipient = found[2] if found else ""
        await self._stage("rcpt", lambda: self._rcpt(recipient), recipient=recipient)

    async def _rcpt(self, recipient: str) -> None:
        if not self.envelope.mail_from:
            return await self.say("503 5.5.1 MAIL first")
        if not recipient:
            return await self.say("501 5.1.3 Bad recipient address syntax")
        self.envelope.rcpt_tos.append(recipient)
        await self.say("250 2.1.5 OK")

    async def smtp_RSET(self, arg: str) -> None:
        await self._stage("rset", lambda: super(Dialogue, self).smtp_RSET(arg))

    async def smtp_NOOP(self, arg: str) -> None:
        await self._stage("noop", lambda: super(Dialogue, self).smtp_NOOP(arg))

    async def smtp_QUIT(self, arg: str) -> None:
        await self._stage("quit", lambda: super(Dialogue, self).smtp_QUIT(arg))

    # ── the mail ────────────────────────────────────────────────────────────────────────────────────────────────

    async def smtp_DATA(self, arg: str) -> None:
        self._receiving = False
        await self._stage("data", self._go_ahead)
        if self._receiving:
            incoming = Incoming(self.house.keep_bodies)
            await self._receive(incoming)
            await self._dot(incoming)
            self._set_post_data_state()  # type: ignore[no-untyped-call]

    async def _go_ahead(self) -> None:
        if not self.envelope.rcpt_tos:
            return await self.say("503 5.5.1 RCPT first")
        self._receiving = True
        await self.say("354 Go ahead")

    async def _receive(self, incoming: Incoming) -> None:
        """Read to the closing dot; what the client sent beyond it stays to be read as commands."""
        rule = self._rule("body")
        # The line end of DATA itself stands before the first line: a dot may follow it at once.
        buffer, came = LINE_END, 0
        while (end := buffer.find(_END)) < 0:
            if rule and came >= rule.after_bytes:
                await self._play(rule, self._nothing)
                rule = None
            incoming.feed(buffer[:-4])
            buffer = buffer[-4:] + (data := await self._reader.read(65536))
            came += len(data)
            self._reset_timeout()
        incoming.feed(buffer[: end + 2])
        self._reader._buffer[:0] = buffer[end + len(_END) :]

    async def _nothing(self) -> None:
        return None

    async def _dot(self, incoming: Incoming) -> None:
        if incoming.size > self.house.size_limit > 0:
            return await self.say("552 5.3.4 Your message exceeded the size limit")
        rule = self._rule("dot")
        before, after = self.house.delay()
        await asyncio.sleep(before)
        if rule is None:
            await self._take(incoming, "250", after)
        else:
            lost = rule.silent or rule.drop in ("before", "after")
            answer = "lost" if lost else (rule.reply or "250")[:3]
            await self._play(rule, lambda: self._take(incoming, answer, after))
        return None

    async def _take(self, incoming: Incoming, answer: str, after: float) -> None:
        queue_id = uuid4().hex[:12].upper()
        self.house.take(
            accepted := Accepted(
                rfc_message_id=incoming.message_id,
                user=self.user,
                sender=self.envelope.mail_from,
                recipients=tuple(self.envelope.rcpt_tos),
                sha256=incoming.sha256,
                size=incoming.size,
                accepted_at=self.house.now(),
                monotonic=time.monotonic(),
                session=self.session_id,
                answer=answer,
            ),
            queue_id,
            b"".join(incoming.kept) if incoming.size <= self.house.keep_bodies else b"",
        )
        if self.house.file_copy:
            self.house.file_copy(accepted, incoming.head)
        await asyncio.sleep(after)
        await self.say(f"250 2.0.0 Ok: queued as {queue_id}")

    async def handle_exception(self, error: Exception) -> str:
        if isinstance(error, (TLSSetupException, OSError)):
            return "421 4.4.2 The client went away"
        self.house.seen["errors"] += 1
        logging.getLogger("outtray.sandbox").error("the sandbox's SMTP server failed", exc_info=error)
        return "451 4.3.0 The sandbox has a fault of its own"
