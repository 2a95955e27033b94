"""What a provider asks for a token, and how at most one worker at a time asks the token endpoint for it.

    cached in this process? → stored and young? → lease → read again → refresh → save → given out

Within a process a lock per mailbox, between processes a lease on its row, which ends by itself if its holder dies. Who
does not get the lease uses the present token while it lives, else waits and reads the new one. A refresh and its save
outlive the turn that wanted them: with a provider that rotates strictly, nobody else will ever have what it answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from outtray_schema.consent import APP_REFUSED, canonical, missing, of_audience
from outtray_schema.database import connect_options, conninfo
from outtray_schema.errors import CannotOpen, UnknownKey
from outtray_schema.outcome import Evidence, Held, Outcome, Parked, Scope
from outtray_schema.settings import Settings
from outtray_schema.vault import Vault, load_vault
from outtray_worker.auth import store
from outtray_worker.auth.answers import Verdict, classify
from outtray_worker.auth.apps import ProviderApp, ProviderApps
from outtray_worker.auth.grant import Grant, Unusable
from outtray_worker.auth.kept import Cache, Kept, Key
from outtray_worker.auth.refresher import KINDS, Refresher
from outtray_worker.auth.saving import Saving
from outtray_worker.auth.store import Renewal, Stored
from outtray_worker.auth.watch import Watch
from outtray_worker.auth.wire import Answered, NoAnswer
from outtray_worker.crash import crash_points
from outtray_worker.deadline import Deadline, boottime
from outtray_worker.providers import NoToken

log = structlog.get_logger()

LOOK_AGAIN = (0.05, 0.25)
"""Seconds between two looks for the token that somebody else is fetching."""
TRY_AGAIN = timedelta(seconds=15)
"""At most this long until a refresh ahead that failed is tried again while the present token lives."""


class Box(Protocol):
    """The mailbox whose tokens these are, as it was claimed.

    `credentials_version` is moved on when its tokens turn out to be those of newer credentials: a hold for a refused
    token is only written against the credentials that it came from.
    """

    @property
    def id(self) -> UUID: ...

    credentials_version: int


K = TypeVar("K", "Kept", "Ended")


class Ended(NoToken):
    """Only the owner can help; `credentials_version` says which credentials were refused."""

    def __init__(self, outcome: Held, credentials_version: int) -> None:
        super().__init__(outcome)
        self.credentials_version = credentials_version


class MailboxTokens:
    """`providers.Tokens` of one mailbox and audience, for one turn."""

    def __init__(self, auth: Auth, box: Box, audience: str = "") -> None:
        self._auth = auth
        self._box = box
        self._audience = audience

    async def access(self) -> str:
        """A token that has at least the margin to live. Raises `NoToken`."""
        kept = self._auth.kept(self._box.id, self._audience, self._box.credentials_version)
        return self._follow(kept or await self._fetch(None, None)).token

    async def renewed(self, refused: str, claims: str | None = None) -> str:
        """A newer token than `refused`; with a challenge one that answers its claims. Raises `NoToken`."""
        return self._follow(await self._fetch(refused, claims)).token

    async def _fetch(self, refused: str | None, claims: str | None) -> Kept:
        try:
            return await self._auth.fetch(self._box.id, self._audience, refused, claims)
        except Ended as end:
            self._follow(end)
            raise

    def _follow(self, found: K) -> K:
        """Whatever becomes of this turn speaks of these credentials."""
        self._box.credentials_version = max(self._box.credentials_version, found.credentials_version)
        return found


class Auth:
    """One process's tokens. Belongs to its loop; `connection` gives a pooled connection in autocommit."""

    def __init__(
        self,
        settings: Settings,
        vault: Vault,
        connection: Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]],
        note: Callable[[str, str], None] = lambda provider, signal: None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._settings = settings
        self._crash_point = crash_points(settings.crash_at)
        self._vault = vault
        self._connection = connection
        self._note = note
        self._clock = clock
        self._refresher = Refresher(settings)
        self._apps = ProviderApps(clock)
        self._watch = Watch(connection, self._apps)
        self._cache = Cache()
        self._saving = Saving(connection, vault, clock)
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    @property
    def connection(self) -> Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]]:
        """What gives a pooled connection in autocommit."""
        return self._connection

    # ── in this process ─────────────────────────────────────────────────────────────────────────────────────────

    def kept(self, mailbox_id: UUID, audience: str, credentials_version: int) -> Kept | None:
        """The cached token, if it is young and of these credentials or newer ones."""
        kept = self._cache.get((mailbox_id, audience))
        if kept is None or kept.credentials_version < credentials_version or not self._young(kept):
            return None
        return kept

    def _young(self, kept: Kept) -> bool:
        return self._clock() < kept.refresh_at

    async def fetch(self, mailbox_id: UUID, audience: str, refused: str | None, claims: str | None) -> Kept:
        """The stored token if it will do, else a refreshed one. Raises `NoToken`."""
        lock = self._locks.setdefault(mailbox_id, asyncio.Lock())
        async with lock:
            if refused is not None:
                self._cache.drop((mailbox_id, audience), refused)
            try:
                return await self._fetch(_Wish(mailbox_id, audience, refused, claims))
            except (psycopg.Error, PoolTimeout) as error:
                log.warning("a token was not read", mailbox_id=str(mailbox_id), error=type(error).__name__)
                return self._or_present(mailbox_id, audience, Parked("PostgreSQL did not answer", scope="app"))
            except UnknownKey as error:
                log.error("a key is missing", ring=error.ring, mailbox_id=str(mailbox_id))
                reason = "this worker's key file lacks the key that its credentials were sealed with"
                raise NoToken(Parked(reason, scope="app")) from None
            except CannotOpen:
                raise NoToken(Held("its stored credentials are damaged; connect it again")) from None

    def _or_present(self, mailbox_id: UUID, audience: str, outcome: Outcome) -> Kept:
        """The present token while it lives. Raises `NoToken` with the outcome, once it does not."""
        kept = self._cache.get((mailbox_id, audience))
        if kept is not None and self._clock() < kept.useless_at:
            return kept
        raise NoToken(outcome)

    # ── between processes ───────────────────────────────────────────────────────────────────────────────────────

    async def _fetch(self, wish: _Wish) -> Kept:
        patience = self._clock() + (self._settings.token_lease + self._settings.token_timeout).total_seconds()
        while True:
            await self._saving.done(wish.mailbox_id)
            kept = await self._read(wish)
            if kept and self._young(kept):
                return kept
            # Before the lease is asked for: a refresh never begins, or goes on, when it may be somebody else's turn.
            deadline = Deadline.after(self._settings.token_timeout)
            async with self._connection() as connection:
                fence = await store.take_lease(connection, wish.mailbox_id, self._settings.token_lease)
            if fence is not None:
                renewed = await self._saving.outliving(self._under_lease(wish, fence, deadline))
                if renewed is not None:
                    return renewed
            elif kept:
                return kept  # somebody is fetching the next one
            elif self._clock() > patience:
                raise NoToken(Parked("another worker fetches its access token, and takes long", scope="connection"))
            else:
                await asyncio.sleep(random.uniform(*LOOK_AGAIN))  # noqa: S311 - spreads load, guards nothing

    async def _read(self, wish: _Wish) -> Kept | None:
        """The stored token if it lives and is not the refused one; whatever its age, it is kept."""
        async with self._connection() as connection:
            read_at = self._clock()
            stored = await store.read(connection, wish.mailbox_id, wish.audience)
        return self._usable(wish, stored, read_at) if stored else None

    def _usable(self, wish: _Wish, stored: Stored, read_at: float) -> Kept | None:
        if stored.seconds is None or stored.seconds <= 0:
            return None
        opened = store.open_access(self._vault, wish.mailbox_id, wish.audience, stored)
        if opened is None or opened[0] == wish.refused:
            return None
        kept = Kept.of(*opened, stored.seconds, stored.credentials_version, read_at)
        return self._cache.keep(wish.key, kept) if self._clock() < kept.useless_at else None

    async def _under_lease(self, wish: _Wish, fence: int, deadline: Deadline) -> Kept | None:
        """Read again, and refresh if it is still needed. None: things have changed meanwhile; look anew."""
        released = False
        try:
            async with self._connection() as connection:
                read_at = self._clock()
                stored = await store.read(connection, wish.mailbox_id, wish.audience)
                kept = self._usable(wish, stored, read_at) if stored else None
                if stored is None or (kept and self._young(kept)):
                    return kept or self._gone()
                app = await self._app(connection, stored)
                if app.refused and not await self._apps.may_try(connection, app, self._settings.provider_app_probe):
                    return self._go_on(wish, kept, self._waits_for(app, app.status_reason or "it is refused"))
            try:
                renewal, asked_at = await self._refresh(wish, stored, app, fence, deadline)
            except (Answered, NoAnswer, Unusable) as trouble:
                return await self._refused(wish, stored, app, kept, trouble)
            released = True  # by the save, whenever it succeeds
            return await self._take(wish, renewal, app, asked_at)
        finally:
            if not released:
                with contextlib.suppress(psycopg.Error, PoolTimeout):  # then it ends by itself
                    async with self._connection() as connection:
                        await store.release(connection, wish.mailbox_id, fence)

    def _gone(self) -> Kept:
        raise NoToken(Held("the mailbox was removed", status="disabled"))

    async def _app(self, connection: AsyncConnection[Any], stored: Stored) -> ProviderApp:
        """The OAuth client of this mailbox. Raises `NoToken` if it has none."""
        app = await self._apps.read(connection, stored.provider_app) if stored.provider_app else None
        if app is None:
            raise NoToken(Held("it names no OAuth client (provider app); connect it again"))
        return app

    def _waits_for(self, app: ProviderApp, reason: str) -> Parked:
        self._watch.begin(app.name)
        after = self._settings.provider_app_probe
        return Parked(
            f"{APP_REFUSED} ({app.name}): {reason}", scope="app", after=after, evidence={"rule": "app-refused"}
        )

    async def _refresh(
        self, wish: _Wish, stored: Stored, app: ProviderApp, fence: int, deadline: Deadline
    ) -> tuple[Renewal, float]:
        """Ask the token endpoint, with no transaction open. Raises `Answered`, `NoAnswer`, `Unusable`, `NoToken`."""
        credentials = store.open_credentials(self._vault, wish.mailbox_id, stored)
        if credentials.get("kind") not in KINDS or not (credentials.get("refresh_token") or credentials.get("subject")):
            raise Ended(Held("its consent was given back; connect it again"), stored.credentials_version)
        asked_at = self._clock()
        self._crash_point("token asked", wish.mailbox_id)
        grant = await self._refresher.refresh(
            credentials, app.client(self._vault), stored.scopes, wish.audience, wish.claims, deadline
        )
        renewal = Renewal(
            wish.mailbox_id, wish.audience, fence, grant, credentials, stored.credentials_version, stored.version
        )
        self._check_scopes(stored, credentials["kind"], wish.audience, grant)
        return renewal, asked_at

    def _check_scopes(self, stored: Stored, kind: str, audience: str, grant: Grant) -> None:
        """Raise `NoToken` that names the scopes which the owner has withdrawn while others stand."""
        issuer, bearer = KINDS[kind]
        if bearer == "app" or not grant.scopes:
            return
        wanted = of_audience(stored.scopes, audience) if issuer == "microsoft" else stored.scopes
        lost = missing(wanted, grant.scopes)
        # In part only: where none is named as we know it, the names differ, and the provider's API will tell.
        if lost and len(lost) < len(wanted):
            log.info("a consent was withdrawn in part", scopes=lost)
            reason = f"the consent for {', '.join(lost)} was withdrawn; connect it again, or with fewer scopes"
            evidence: Evidence = {"rule": "scope-withdrawn", "granted": len(canonical(grant.scopes))}
            raise Ended(Held(reason, evidence=evidence), stored.credentials_version)

    # ── what came of it ─────────────────────────────────────────────────────────────────────────────────────────

    async def _take(self, wish: _Wish, renewal: Renewal, app: ProviderApp, asked_at: float) -> Kept | None:
        """Save a refresh, or keep it until it can be saved; it is given out at once either way."""
        grant = renewal.grant
        self._crash_point("token answered", wish.mailbox_id)
        if not await self._saving.save(renewal, asked_at):
            return None
        self._crash_point("token saved", wish.mailbox_id)
        await self._accepted(app)
        kept = Kept.of(grant.access, grant.lifetime, grant.lifetime, renewal.credentials_after, asked_at)
        return self._cache.keep(wish.key, kept)

    async def _refused(
        self, wish: _Wish, stored: Stored, app: ProviderApp, kept: Kept | None, trouble: Answered | NoAnswer | Unusable
    ) -> Kept | None:
        """What a failed refresh means. None: the credentials or the client have changed meanwhile; look anew."""
        verdict = self._verdict(wish, stored, trouble)
        if verdict.becomes == "reconnect":
            await self._accepted(app)
            if await self._changed(wish, stored):
                return None
            raise Ended(Held(verdict.reason, evidence=verdict.evidence), stored.credentials_version)
        if verdict.becomes == "app" and await self._refuse(app, verdict):
            return None
        if verdict.becomes == "bug":
            log.error("a token request is refused as wrong", provider_app=app.name, rule=verdict.id)
        return self._go_on(wish, kept, self._wait_of(app, verdict))

    def _go_on(self, wish: _Wish, kept: Kept | None, wait: Parked) -> Kept:
        """Use the present token while it lives, whatever keeps us from the next. Raises `NoToken` without one."""
        if kept is None:
            raise NoToken(wait)
        pause = min((wait.after or TRY_AGAIN).total_seconds(), TRY_AGAIN.total_seconds())
        return self._cache.postpone(wish.key, kept, self._clock() + pause * random.uniform(0.5, 1))  # noqa: S311

    def _verdict(self, wish: _Wish, stored: Stored, trouble: Answered | NoAnswer | Unusable) -> Verdict:
        if isinstance(trouble, Unusable):
            return Verdict("app-unusable", "app", str(trouble), None, {"rule": "app-unusable"})
        issuer, bearer = KINDS[store.open_credentials(self._vault, wish.mailbox_id, stored)["kind"]]
        verdict = classify(issuer, bearer, trouble)
        if verdict.unknown:
            self._note(issuer, f"token {verdict.evidence.get('status')} {verdict.evidence.get('error', '')}".strip())
        return verdict

    def _wait_of(self, app: ProviderApp, verdict: Verdict) -> Parked:
        if verdict.becomes == "app":
            return self._waits_for(app, verdict.reason)
        scopes: dict[str, Scope] = {"wait": "connection", "tenant": "tenant"}
        scope = scopes.get(verdict.becomes, "app")
        return Parked(verdict.reason, scope=scope, after=verdict.after, evidence=verdict.evidence)

    async def _changed(self, wish: _Wish, stored: Stored) -> bool:
        """Whether somebody rotated the refresh token, or consented anew, while the old one was refused."""
        async with self._connection() as connection:
            now = await store.read(connection, wish.mailbox_id, wish.audience)
        return now is not None and now.credentials_version != stored.credentials_version

    async def _refuse(self, app: ProviderApp, verdict: Verdict) -> bool:
        """Mark the client as refused. True: it has a newer secret by now, and the mailbox is to be looked at anew."""
        async with self._connection() as connection:
            now = await self._apps.read_anew(connection, app.name)
            if now is None or now.secret_version != app.secret_version:
                return now is not None
            await self._apps.refuse(connection, app, verdict.reason)
            return False

    async def _accepted(self, app: ProviderApp) -> None:
        """The provider knows this client: if it was refused, it is so no longer."""
        if app.refused:
            with contextlib.suppress(psycopg.Error, PoolTimeout):
                async with self._connection() as connection:
                    await self._apps.restore(connection, app)

    async def close(self) -> None:
        """Finish the refreshes under way and save what is not saved, within one time-out; then forget everything."""
        await self._saving.close(self._settings.token_timeout.total_seconds())
        self._watch.close()
        self._refresher.close()
        self._cache.clear()


@asynccontextmanager
async def own_auth(settings: Settings) -> AsyncIterator[Auth]:
    """The tokens of a process that is no worker: for the command line, with a connection of its own."""
    options = connect_options(settings, "tokens") | {"autocommit": True}
    pool = AsyncConnectionPool[AsyncConnection[Any]](
        conninfo(settings),
        kwargs=options,
        min_size=0,
        max_size=2,
        open=False,
        timeout=settings.database_timeout.total_seconds(),
    )
    async with pool:
        auth = Auth(settings, load_vault(settings), pool.connection)
        try:
            yield auth
        finally:
            await auth.close()


@dataclass(frozen=True, slots=True)
class _Wish:
    """What one caller wants: a token, or a newer one than the refused."""

    mailbox_id: UUID
    audience: str
    refused: str | None = field(repr=False)
    claims: str | None = field(repr=False)

    @property
    def key(self) -> Key:
        return self.mailbox_id, self.audience
