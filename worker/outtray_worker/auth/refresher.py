"""From stored credentials to a refreshed token, in a bounded pool of threads: google-auth and msal both block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog

from outtray_schema.consent import SMTP_AUDIENCE, Issuer, of_audience
from outtray_schema.settings import Settings
from outtray_worker.auth.answers import Bearer
from outtray_worker.auth.grant import Client, Grant, Unusable
from outtray_worker.auth.wire import Answered, NoAnswer, Wire
from outtray_worker.deadline import Deadline

if TYPE_CHECKING:
    from outtray_worker.auth.microsoft import Entra

log = structlog.get_logger()

KINDS: Mapping[str, tuple[Issuer, Bearer]] = {
    "google": ("google", "person"),
    "google_service_account": ("google", "app"),
    "microsoft": ("microsoft", "person"),
    "microsoft_app": ("microsoft", "app"),
}
"""The kinds of stored credentials that tokens come from: who issues them, and for whom."""

GRAPH = "https://graph.microsoft.com"
EXCHANGE = "https://outlook.office365.com"
"""The resource of app-only SMTP (Exchange's OAuth guide for SMTP, docs, 2026-11)."""


class Refresher:
    """One process's refreshes: at most `token_threads` at once, each within `token_timeout`.

    google-auth and msal, 0.1 s of CPU each (measured 2026-11), are loaded by the first refresh that needs them, in its
    thread: neither the process's start nor its loop waits for them.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._wire = Wire(settings.token_threads)
        self._entra: Entra | None = None
        self._loading = threading.Lock()
        self._threads = ThreadPoolExecutor(settings.token_threads, thread_name_prefix="tokens")

    async def refresh(
        self,
        credentials: Mapping[str, Any],
        client: Client,
        scopes: Sequence[str],
        audience: str,
        claims: str | None,
        deadline: Deadline,
    ) -> Grant:
        """One request to a token endpoint. Raises `Answered`, `NoAnswer`, `Unusable`.

        Never begins after `deadline`: the lease under which it was allowed may be somebody else's by then.
        """
        work = self._request(credentials, client, scopes, audience, claims)

        def within() -> Grant:
            if deadline.passed:
                raise NoAnswer("timeout")
            with self._wire.until(deadline):
                return _proper(work)

        return await asyncio.get_running_loop().run_in_executor(self._threads, within)

    def _request(
        self,
        credentials: Mapping[str, Any],
        client: Client,
        scopes: Sequence[str],
        audience: str,
        claims: str | None,
    ) -> Callable[[], Grant]:
        url, tenant = self._settings.google_token_url, str(credentials.get("tenant") or client.tenant or "common")
        match credentials["kind"]:
            case "google":
                return lambda: _google().refresh(self._wire, url, client, credentials["refresh_token"])
            case "google_service_account":
                return lambda: _google().impersonate(self._wire, url, client, credentials["subject"], scopes)
            case "microsoft":
                asked = [self._named(scope) for scope in of_audience(scopes, audience)]
                return lambda: self._microsoft().refresh(client, tenant, credentials["refresh_token"], asked, claims)
            case _:
                resource = EXCHANGE if audience == SMTP_AUDIENCE else self._graph()
                return lambda: self._microsoft().for_app(client, tenant, resource, claims)

    def _microsoft(self) -> Entra:
        """One for all threads: it keeps a client for each app and tenant."""
        with self._loading:
            if self._entra is None:
                module = import_module("outtray_worker.auth.microsoft")
                self._entra = module.Entra(self._wire, self._settings.entra_url)
            return self._entra

    def _named(self, scope: str) -> str:
        """A scope with its resource: without one it would mean the worldwide Graph, whatever cloud we are in."""
        return scope if "://" in scope else f"{self._graph()}/{scope}"

    def _graph(self) -> str:
        """Graph's resource name: that of the cloud that the settings name; the sandbox bears the worldwide one's."""
        url = urlsplit(str(getattr(self._settings, "graph_url", GRAPH)))
        return f"https://{url.netloc}" if url.scheme == "https" else GRAPH

    def close(self) -> None:
        """Begin nothing new; what is under way ends within its time-out."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._wire.close()


def _google() -> Any:
    return import_module("outtray_worker.auth.google")


def _proper(work: Callable[[], Grant]) -> Grant:
    """What the work brings or says. A library that stumbles over an answer must not look like a fault of a message."""
    try:
        return work()
    except (Answered, NoAnswer, Unusable):
        raise
    except Exception as error:
        log.error("a token answer could not be read", error=type(error).__name__)
        raise NoAnswer("garbled") from None
