"""Providers whose libraries are loaded by the first mailbox that needs them, in a thread, once per process.

Loading Google's client takes half a second of CPU, aiohttp a fifth (measured 2026-11): a worker that is started, or
started again, has work to do before it needs them. On the event loop an import would stall every turn of the process;
in a thread it only slows them, and the turn that wants the provider waits within the deadline of its preparation.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

import structlog

from outtray_schema.outcome import Outcome, Parked
from outtray_schema.settings import Settings
from outtray_worker.providers import (
    Account,
    Finding,
    Mail,
    OriginalMail,
    Prepared,
    Provider,
    Reader,
    Removed,
    Remover,
    Session,
    Trace,
)

if TYPE_CHECKING:
    from outtray_worker.providers.web import Web

log = structlog.get_logger()


class LateWeb:
    """The process's one HTTP client, made by the first provider that needs it. Threads may call it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._web: Web | None = None

    def __call__(self) -> Web:
        with self._lock:
            if self._web is None:
                self._web = import_module("outtray_worker.providers.web.client").Web(self._settings)
            return self._web

    async def close(self) -> None:
        if self._web is not None:
            await self._web.close()


class LateProvider:
    """A provider that `load` brings. Belongs to the process's loop; `load` runs in a thread."""

    def __init__(self, name: str, load: Callable[[], Provider]) -> None:
        self.name = name
        self._load = load
        self._loaded: Provider | None = None
        self._loading: asyncio.Task[Provider | Outcome] | None = None

    def open(self, account: Account) -> Session:
        return self._loaded.open(account) if self._loaded is not None else _Opening(self, account)

    async def provider(self) -> Provider | Outcome:
        """The provider, once it is loaded; an outcome where it cannot be. Who gives up waiting stops nobody else's."""
        if self._loaded is not None:
            return self._loaded
        if self._loading is None:
            self._loading = asyncio.create_task(self._bring())
        return await asyncio.shield(self._loading)

    async def _bring(self) -> Provider | Outcome:
        try:
            self._loaded = await asyncio.to_thread(self._load)
            return self._loaded
        except Exception as error:  # whatever an import may raise; the next mailbox tries again
            log.error("a provider could not be loaded", provider=self.name, error=type(error).__name__, exc_info=True)
            return Parked(f"this worker cannot load its client for {self.name}: {type(error).__name__}", scope="app")
        finally:
            self._loading = None


class _Opening:
    """A session whose provider is not loaded yet: each call waits for it, then is the real session's.

    It is a `Reader` and a `Remover`, so a provider that is loaded late has sessions that are both.
    """

    def __init__(self, provider: LateProvider, account: Account) -> None:
        self._provider = provider
        self._account = account
        self._session: Session | None = None

    async def _opened(self) -> Session | Outcome:
        if self._session is None:
            provider = await self._provider.provider()
            if isinstance(provider, Outcome):
                return provider
            self._session = provider.open(self._account)
        return self._session

    async def prepare(self, mail: Mail) -> Prepared | Outcome:
        session = await self._opened()
        return session if isinstance(session, Outcome) else await session.prepare(mail)

    async def find_evidence(self, trace: Trace) -> Finding:
        session = await self._opened()
        if isinstance(session, Outcome):
            return Finding("failed", "nowhere: this worker cannot load its provider's client", outcome=session)
        return await session.find_evidence(trace)

    async def read_original(self, ref: str) -> OriginalMail | Outcome:
        session = await self._opened()
        if isinstance(session, Outcome):
            return session
        assert isinstance(session, Reader)  # noqa: S101 - as the class says
        return await session.read_original(ref)

    async def remove_draft(self, trace: Trace) -> Removed:
        session = await self._opened()
        if isinstance(session, Outcome):
            return Removed("failed", session)
        assert isinstance(session, Remover)  # noqa: S101 - as the class says
        return await session.remove_draft(trace)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
