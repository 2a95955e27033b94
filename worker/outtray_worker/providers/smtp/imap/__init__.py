"""A mailbox's folder of sent mail, by IMAP: read for evidence, and given the copies that its provider does not file.

    connect → TLS → one login           once per session, kept for its other looks
    LIST → EXAMINE                      the folder marked as that of sent mail (RFC 6154), else one named like it
    SEARCH HEADER → FETCH of headers    by Message-ID, then by our key; what was found is read and compared
    the newest, read                    no index may say that something is absent
    APPEND                              only of what was sent, and only where no copy is; all else stays as it is

IMAPClient does the talking, in threads of a bounded pool; a step that takes too long loses its connection, which ends
its thread.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

from outtray_schema.consent import OFFICE_IMAP, canonical
from outtray_schema.outcome import Held, Outcome, Parked
from outtray_schema.settings import Settings
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Account, Answered, Filed, Finding, NoLoginNow, SentMail, Trace
from outtray_worker.providers.names import Names
from outtray_worker.providers.redact import Redactor
from outtray_worker.providers.smtp.auth import secrets_of
from outtray_worker.providers.smtp.imap.client import Client
from outtray_worker.providers.smtp.imap.copy import file_copy
from outtray_worker.providers.smtp.imap.folders import sent_folders
from outtray_worker.providers.smtp.imap.line import Line, Place
from outtray_worker.providers.smtp.imap.login import log_in
from outtray_worker.providers.smtp.imap.look import Check, Looked, look
from outtray_worker.providers.smtp.imap.troubles import Refused, broken, refused
from outtray_worker.providers.smtp.link import Ended
from outtray_worker.providers.smtp.trust import Trust
from outtray_worker.providers.smtp.wire import Garbled

T = TypeVar("T")

Credentials = Callable[[str | None], Awaitable[Mapping[str, Any]]]
"""What logs in; with a token that was refused, a newer one. Raises `Ended`."""
Context = Callable[[Trust], Awaitable[ssl.SSLContext]]

_FAREWELL = 5.0
"""Seconds that a server gets to answer LOGOUT, which nothing depends on."""


class Imap:
    """What the IMAP sessions of one process share."""

    def __init__(self, settings: Settings, names: Names, context: Context) -> None:
        self.settings = settings
        self.names = names
        self.context = context
        # As many as there are looks at once; an aborted look's thread ends as soon as it sees its socket shut.
        self.threads = ThreadPoolExecutor(settings.looks_at_once, thread_name_prefix="imap")

    def open(self, account: Account, credentials: Credentials) -> ImapSession:
        """Nothing is connected yet."""
        return ImapSession(self, account, credentials)


class ImapSession:
    """One mailbox's connection. It connects at its first look."""

    def __init__(self, imap: Imap, account: Account, credentials: Credentials) -> None:
        self._imap = imap
        self._account = account
        self._credentials = credentials
        self._line: Line | None = None
        self._redact = Redactor(*secrets_of(account.credentials))

    async def find_evidence(self, trace: Trace) -> Finding:
        """Whether that handover's mail lies in the folder of sent mail. Never raises for what a server answers."""
        if missing := self._missing_scope():
            return Finding("no_way", missing)
        looked = Looked()
        own_key = self._imap.settings.key_header

        async def steps() -> Finding:
            line = await self._ready()
            return await look(line, trace, own_key, looked)

        found = await self._bounded(steps)
        return found if isinstance(found, Finding) else _failed(looked, found)

    async def file_copy(self, mail: SentMail, begin_by: Deadline) -> Filed:
        """A copy of it in the folder of sent mail, unless one is there. Never raises for what a server answers."""
        if missing := self._missing_scope():
            return Filed("failed", missing, Held(missing))
        settings, looked = self._imap.settings, Looked()

        async def steps() -> Filed:
            line = await self._ready()
            return await file_copy(line, mail, settings.key_header, begin_by, settings.prepare_limit, looked)

        done = await self._bounded(steps, settings.look_limit + settings.prepare_limit)
        return done if isinstance(done, Filed) else Filed("failed", getattr(done, "reason", ""), done)

    async def check(self) -> Check | Outcome:
        """Log in and find the folder of sent mail, or the outcome that says why not."""
        if missing := self._missing_scope():
            return Held(missing)

        async def steps() -> Check:
            line = await self._ready()
            found = await line.run(lambda client: sent_folders(client, line.capabilities))
            how = found[0].how if found else "none was found: no send can be proven"
            return Check(line.place.text, line.tls, line.mechanism, how, "X-GM-EXT-1" in line.capabilities)

        return await self._bounded(steps)

    async def close(self) -> None:
        """Leave with LOGOUT where the connection allows it."""
        line, self._line = self._line, None
        if line is not None:
            await line.leave(_FAREWELL)

    # ── the connection ──────────────────────────────────────────────────────────────────────────────────────────

    def _missing_scope(self) -> str | None:
        """Which scope is lacking. Google's one scope is good for both; Microsoft has one for each (docs, 2026-11)."""
        scopes = {scope.casefold() for scope in canonical(self._account.scopes)}
        office = any(scope.startswith("https://outlook.office.com/") for scope in scopes)
        if self._account.tokens is None or self._own_password() or not office or OFFICE_IMAP.casefold() in scopes:
            return None
        return "the consent lacks IMAP.AccessAsUser.All, without which nobody may look into the mailbox"

    def _own_password(self) -> bool:
        return bool(self._account.credentials.get("imap_password"))

    async def _bounded(self, steps: Callable[[], Awaitable[T]], limit: timedelta | None = None) -> T | Outcome:
        """Run steps within `look_limit`, or another; whatever ends them early becomes an outcome."""
        limit = limit or self._imap.settings.look_limit
        place = Place.of(self._account.server)
        try:
            async with asyncio.timeout(limit.total_seconds()):
                return await steps()
        except Ended as end:
            return end.outcome
        except Refused as refusal:
            return refused(refusal, place.text, self._redact)
        except (OSError, TimeoutError, Garbled) as error:
            return broken(error, place.text)
        finally:
            if self._line and not self._line.usable:
                self.drop()

    async def _ready(self) -> Line:
        if self._line and self._line.usable:
            return self._line
        self.drop()
        place = Place.of(self._account.server)
        context = await self._imap.context(place.trust)
        credentials = await self._login(None)
        try:
            return await self._connect(place, context, credentials)
        except Refused as refusal:
            if self._account.tokens is None or self._own_password() or not refusal.at_login:
                raise
        # A token may be revoked before its time: one newer one is tried, on a connection of its own, as with SMTP.
        self.drop()
        return await self._connect(place, context, await self._login(str(credentials["access_token"])))

    async def _login(self, refused_token: str | None) -> Mapping[str, Any]:
        given = self._account.credentials
        if self._own_password():
            user = given.get("imap_username") or given.get("username")
            return {"username": user, "password": given["imap_password"]}
        found = await self._credentials(refused_token)
        return {**found, "username": given.get("imap_username") or found.get("username")}

    async def _connect(self, place: Place, context: ssl.SSLContext, credentials: Mapping[str, Any]) -> Line:
        settings = self._imap.settings
        self._redact = Redactor(*secrets_of(credentials), *secrets_of(self._account.credentials))
        self._line = line = Line(place, self._imap.threads, settings)
        await line.connect(await self._addresses(place), context)

        def steps(client: Client) -> tuple[str, frozenset[str]]:
            return log_in(client, credentials, (place.host, place.port)), client.offers()

        line.mechanism, line.capabilities = await self._counted(lambda: line.run(steps))
        line.ready = True
        return line

    async def _counted(self, login: Callable[[], Awaitable[T]]) -> T:
        """One login, asked for and told of where somebody counts them."""
        logins = self._account.logins
        if logins is None:
            return await login()
        try:
            await logins.permit("imap")
        except NoLoginNow as error:
            raise Ended(error.outcome) from None
        answer: Answered = "later"
        try:
            done = await login()
            answer = "accepted"
            return done
        except Refused as refusal:
            answer = "refused" if refusal.at_login and not refusal.waits else "later"
            raise
        finally:
            await logins.told("imap", answer)

    async def _addresses(self, place: Place) -> list[str]:
        async with asyncio.timeout(self._imap.settings.connect_timeout.total_seconds()):
            return await self._imap.names.addresses(place.host, place.port)

    def drop(self) -> None:
        """Forget the connection at once."""
        if self._line:
            self._line.drop()
            self._line = None


def _failed(looked: Looked, outcome: Outcome) -> Finding:
    return Finding("failed", looked.text, outcome=outcome if isinstance(outcome, (Parked, Held)) else None)
