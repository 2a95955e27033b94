"""SMTP, driven phase by phase on aiosmtplib's protocol: the closing dot is the handover, and a write of its own.

    connect → TLS → EHLO → one AUTH     once per turn, renewed after `smtp_session_messages` messages
    MAIL → RCPT → DATA → body           `prepare`: repeatable, every wait bounded, nothing accepted yet
    the dot                             `hand_over`: after the gate, one write, then the server's one answer

A link whose state is in doubt (a time-out, a broken reply, a body without its dot) is dropped, never reset and reused.
A refusal is returned first; RSET comes before the link's *next* mail, where its stall can no longer hide the verdict.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from outtray_schema.outcome import Failed, Held, NotBegun, Outcome, Parked, Sent
from outtray_schema.settings import Settings
from outtray_worker.crash import crash_points
from outtray_worker.deadline import Deadline, boottime
from outtray_worker.providers import Account, Filed, Finding, Mail, NoToken, RefusedRecipient, SentMail, Trace
from outtray_worker.providers.names import Names
from outtray_worker.providers.redact import Redactor, names_of
from outtray_worker.providers.smtp.auth import secrets_of
from outtray_worker.providers.smtp.body import Body, ContentLost, keyed
from outtray_worker.providers.smtp.dialogue import envelope, give_body, give_envelope, write_dot
from outtray_worker.providers.smtp.imap import Imap, ImapSession
from outtray_worker.providers.smtp.imap.line import Place
from outtray_worker.providers.smtp.imap.look import Check as ImapCheck
from outtray_worker.providers.smtp.link import Ended, Link, Server, connect
from outtray_worker.providers.smtp.troubles import interrupted
from outtray_worker.providers.smtp.trust import Trust, build_context
from outtray_worker.providers.smtp.wire import Garbled

T = TypeVar("T")

_CHECK_AFTER = 1.0
"""Seconds of silence after which a kept connection is asked whether it lives: within a turn mails follow at once."""
_FAREWELL = 5.0
"""Seconds that a server gets to answer QUIT, which nothing depends on."""


@dataclass(frozen=True, slots=True)
class Check:
    """What a mailbox's server showed: for `outtray mailbox test`. Nothing was sent."""

    place: str
    tls: str
    """`TLSv1.3` and the like; "" in clear."""
    mechanism: str
    """The login that worked, e.g. `plain`; "" if the mailbox has no credentials."""
    mechanisms: tuple[str, ...]
    size_limit: int
    """Bytes; 0 where the server names no limit."""
    extensions: tuple[str, ...]
    imap: ImapCheck | str | None = None
    """What the server for looking shows, or why it cannot be read; None where the mailbox names none."""


class SmtpProvider:
    """Mailboxes that are sent from by SMTP, each with a server of its own. One object per process."""

    name = "smtp"

    def __init__(self, settings: Settings) -> None:
        self.names = Names()
        self.settings = settings
        self.crash_point = crash_points(settings.crash_at)
        self._contexts: dict[tuple[Trust, float], ssl.SSLContext] = {}
        self.imap = Imap(settings, self.names, self.context)

    def open(self, account: Account) -> SmtpSession:
        return SmtpSession(self, account)

    async def check(self, account: Account) -> Check | Outcome:
        """Connect, log in and leave, sending nothing: what the server offers, or the outcome that a mail would get."""
        session = self.open(account)
        try:
            return await session.check()
        finally:
            await session.close()

    async def context(self, trust: Trust) -> ssl.SSLContext:
        """TLS as `build_context` makes it, kept until the file changes. Raises `Ended` if the file cannot be used."""
        try:
            key = (trust, await asyncio.to_thread(trust.version) if trust.ca_file else 0.0)
            if key not in self._contexts:
                self._contexts[key] = await asyncio.to_thread(build_context, trust)
        except OSError as error:
            where = f"ca_file cannot be used: {trust.ca_file}" if trust.ca_file else "authority cannot be used"
            reason = f"the mailbox's {where} ({error.strerror or 'no certificates in it'})"
            raise Ended(Held(reason, status="disabled", evidence={"rule": "ca-file"})) from error
        return self._contexts[key]


class SmtpSession:
    """One mailbox's connection for one turn. It connects at its first mail."""

    def __init__(self, provider: SmtpProvider, account: Account) -> None:
        self._provider = provider
        self._settings = provider.settings
        self.crash_point = provider.crash_point
        self._account = account
        self._secrets = tuple(secrets_of(account.credentials))
        self._link: Link | None = None
        self._looks: ImapSession | None = None

    async def prepare(self, mail: Mail) -> SmtpPrepared | Outcome:
        """Everything but the dot. Raises what the mail's own content raises, never what the network does."""
        if mail.only_draft:
            return Failed("SMTP keeps no drafts")
        return await self._bounded(lambda: self._prepare(mail))

    async def _prepare(self, mail: Mail) -> SmtpPrepared:
        link = await self._ready()
        link.redact = Redactor(*self._secrets, *names_of(mail))
        # Recipients see our key: it travels only where somebody can look for it, and never on somebody's own bytes. Of
        # a partial mail another one goes on with the same Message-ID, and only the key can tell their copies apart.
        if (self._imap or mail.partial) and not mail.unaltered:
            mail = keyed(mail, self._settings.key_header)
        body = Body(mail)
        try:
            refused = await give_envelope(link, envelope(link, mail, await body.look_ahead()), mail.partial)
            await give_body(link, body, mail.size)
            self.crash_point("uploaded")
        finally:
            await body.close()
        return SmtpPrepared(self, link, mail, refused)

    async def find_evidence(self, trace: Trace) -> Finding:
        """SMTP shows nothing of what it took; where the mailbox names an IMAP server, what was sent is read there."""
        if self._imap is None:
            return Finding("no_way", "SMTP cannot be asked what it took, and the mailbox names no IMAP server")
        return await self._imap.find_evidence(trace)

    @property
    def _imap(self) -> ImapSession | None:
        if self._looks is None and self._account.server.get("imap"):
            self._looks = self._provider.imap.open(self._account, self._credentials)
        return self._looks

    async def file_copy(self, mail: SentMail, begin_by: Deadline) -> Filed:
        """A copy in the folder of sent mail, where the mailbox names an IMAP server."""
        if self._imap is None:
            reason = "the mailbox names no IMAP server"
            return Filed("failed", reason, Held(reason))
        return await self._imap.file_copy(mail, begin_by)

    def with_copy(self, outcome: Outcome) -> Outcome:
        """An outcome that says of what was sent whether its copy is to be filed afterwards."""
        if not isinstance(outcome, Sent) or not self._account.server.get("imap"):
            return outcome
        wanted = Place.of(self._account.server).wants_copies
        return replace(outcome, evidence={**outcome.evidence, "sent_copy": wanted}) if wanted else outcome

    async def check(self) -> Check | Outcome:
        found = await self._bounded(self._check)
        if self._imap is None or not isinstance(found, Check):
            return found
        seen = await self._imap.check()
        if isinstance(seen, (Parked, Held)):
            return replace(found, imap=seen.reason)
        return replace(found, imap=seen if isinstance(seen, ImapCheck) else type(seen).__name__)

    async def _check(self) -> Check:
        link = await self._ready()
        transport = link.wire.transport
        secured: ssl.SSLObject | None = transport.get_extra_info("ssl_object") if transport else None
        return Check(
            place=link.server.place,
            tls=(secured.version() or "") if secured else "",
            mechanism=link.mechanism,
            mechanisms=link.mechanisms,
            size_limit=link.size_limit,
            extensions=tuple(sorted(link.extensions)),
        )

    async def _bounded(self, steps: Callable[[], Awaitable[T]]) -> T | Outcome:
        """Run steps before the handover within `prepare_limit`; whatever ends them early becomes an outcome."""
        try:
            async with asyncio.timeout(self._settings.prepare_limit.total_seconds()):
                return await steps()
        except Ended as end:
            if self._link and not self._link.usable:
                self.drop()
            return end.outcome
        except (OSError, TimeoutError, Garbled) as error:
            return self._interrupted(error)
        except ContentLost as lost:
            self.drop()
            raise lost.__cause__ or lost from None
        except BaseException:
            self.drop()
            raise

    def _interrupted(self, error: Exception) -> Outcome:
        link = self._link
        self.drop()
        return interrupted(link.phase, link.server.place, error) if link else interrupted("connect", "", error)

    async def _ready(self) -> Link:
        """The kept link if it is young and alive, else a new one."""
        if self._link and await self._still_good(self._link):
            return self._link
        await self.close()
        server = Server.of(self._account.server)
        context = await self._provider.context(Trust.of(self._account.server))
        credentials = await self._credentials()
        try:
            return await self._connect(server, context, credentials)
        except Ended as end:
            tokens = self._account.tokens
            if tokens is None or end.outcome.evidence.get("rule") != "credentials-refused":
                raise
        # A token may be revoked before its time: one newer one is tried, on a connection of its own (docs, 2026-11).
        self.drop()
        return await self._connect(server, context, await self._credentials(refused=str(credentials["access_token"])))

    async def _connect(self, server: Server, context: ssl.SSLContext, credentials: Mapping[str, Any]) -> Link:
        self._secrets = tuple(secrets_of(credentials))
        self._link = link = Link(server, self._settings, Redactor(*self._secrets))
        await connect(link, credentials, self._settings, context, self._provider.names, self._account.logins)
        return link

    async def _credentials(self, refused: str | None = None) -> Mapping[str, Any]:
        """What logs in: the stored password, or an access token. Raises `Ended` where there is none."""
        tokens = self._account.tokens
        if tokens is None:
            return self._account.credentials
        try:
            token = await (tokens.access() if refused is None else tokens.renewed(refused))
        except NoToken as error:
            raise Ended(error.outcome) from None
        return {**self._account.credentials, "access_token": token}

    async def _still_good(self, link: Link) -> bool:
        if not link.usable or link.messages >= self._settings.smtp_session_messages:
            return False
        if not link.dirty and boottime() - link.spoke_at < _CHECK_AFTER:
            return True
        try:
            async with asyncio.timeout(self._settings.connect_timeout.total_seconds()):
                reply = await link.ask(b"RSET" if link.dirty else b"NOOP")
        except (Ended, OSError, TimeoutError, Garbled):
            self.drop()
            return False
        link.dirty = link.dirty and reply.code != 250
        return reply.code == 250

    def drop(self) -> None:
        """Forget the connection at once: a body that is under way never gets its dot."""
        if self._link:
            self._link.wire.drop()
            self._link = None

    async def close(self) -> None:
        """Leave with QUIT where the dialogue allows it."""
        if self._looks:
            await self._looks.close()
        link, self._link = self._link, None
        if link is None:
            return
        if link.usable:
            with suppress(Ended, OSError, TimeoutError, Garbled):
                async with asyncio.timeout(min(_FAREWELL, link.patience)):
                    await link.ask(b"QUIT")
        link.wire.drop()


class SmtpPrepared:
    """A mail whose body the server has, and which lacks only the dot."""

    def __init__(
        self, session: SmtpSession, link: Link, mail: Mail, refused: tuple[RefusedRecipient, ...] = ()
    ) -> None:
        self.refused = refused
        self._session = session
        self._link = link
        self._mail = mail
        self._crash_point = session.crash_point
        self._spent = False

    async def hand_over(self, begin_by: Deadline, answer_by: Deadline) -> Outcome:
        """Write the dot if `begin_by` still lies ahead and the server has not turned away, then wait for its answer."""
        link = self._link
        if self._spent:
            return NotBegun("this mail was handed over or given up before", evidence={"rule": "spent"})
        self._spent = True
        try:
            link.heed()
        except Ended as end:
            self._session.drop()
            return end.outcome
        except (OSError, Garbled) as error:
            self._session.drop()
            return interrupted(link.phase, link.server.place, error)
        self._crash_point("last look")
        if begin_by.passed:
            self._session.drop()
            return NotBegun("the time to begin the handover had passed", evidence={"rule": "too-late"})
        return await self._commit(link, answer_by)

    async def _commit(self, link: Link, answer_by: Deadline) -> Outcome:
        link.messages += 1
        self._crash_point("first byte")
        try:
            return self._session.with_copy(await write_dot(link, self._mail, answer_by))
        finally:
            if not link.usable:
                self._session.drop()

    @property
    def draft(self) -> None:
        """SMTP has none."""

    async def abandon(self) -> None:
        """Drop the connection: without the dot the server throws the body away (RFC 5321 4.1.1.10)."""
        self._spent = True
        self._session.drop()
