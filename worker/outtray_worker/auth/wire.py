"""The bytes of a token request: one call is one request on the wire, bounded in time and size. Blocks: for threads.

google-auth sends a refused refresh again by itself, three times, and msal answers a second try from its memory of the
first for a minute (google-auth 2.62, msal 1.39; source). Both only do so with an answer in hand, so whatever is not a
proper 200 is raised here, past them: `Answered` or `NoAnswer`.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NameResolutionError, ReadTimeoutError, SSLError

from outtray_worker.deadline import Deadline

MOST = 1024 * 1024
"""Bytes of an answer that are read: tokens and discovery documents have a few KiB."""


class Answered(Exception):
    """The endpoint answered, and not with a token. The body may quote what was sent, so it is never shown."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.headers = headers
        self.body = body


class NoAnswer(Exception):
    """No proper answer came: `timeout`, `dns`, `tls`, `closed`. The request may have arrived nevertheless."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer. The names are those that google-auth and msal look for."""

    status: int
    headers: Mapping[str, str]
    data: bytes = field(repr=False)

    @property
    def status_code(self) -> int:
        return self.status

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "replace")

    def raise_for_status(self) -> None:
        if self.status >= 400:
            raise Answered(self.status, self.headers, self.data)


class Wire:
    """One process's connections to token endpoints; for many threads, each within its own `until`."""

    def __init__(self, threads: int = 8) -> None:
        self._pool = urllib3.PoolManager(num_pools=8, maxsize=threads, retries=False)
        self._local = threading.local()

    @contextmanager
    def until(self, deadline: Deadline) -> Iterator[None]:
        """The deadline of this thread's requests."""
        self._local.deadline = deadline
        try:
            yield
        finally:
            del self._local.deadline

    def ask(self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> Reply:
        """One request, and its whole answer whatever its status. Redirects are not followed. Raises `NoAnswer`."""
        deadline: Deadline = self._local.deadline
        if deadline.passed:
            raise NoAnswer("timeout")
        try:
            response = self._pool.urlopen(
                method,
                url,
                body=body,
                headers=dict(headers or {}),
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(deadline.left()),
                preload_content=False,
            )
            return Reply(response.status, dict(response.headers), _read(response, deadline))
        except (HTTPError, OSError) as error:
            raise NoAnswer(_trouble(error)) from None

    def close(self) -> None:
        self._pool.clear()


def _read(response: urllib3.BaseHTTPResponse, deadline: Deadline) -> bytes:
    """The body, in pieces: a server that drips bytes must not hold the thread beyond its deadline."""
    try:
        read = b""
        while piece := response.read1(65536):
            read += piece
            if deadline.passed or len(read) > MOST:
                raise NoAnswer("timeout" if deadline.passed else "closed")
        response.release_conn()
        return read
    except BaseException:
        response.close()
        raise


def _trouble(error: Exception) -> str:
    match error:
        case ConnectTimeoutError() | ReadTimeoutError() | TimeoutError():
            return "timeout"
        case NameResolutionError() | socket.gaierror():
            return "dns"
        case SSLError():
            return "tls"
    return "closed"


def token_or_raise(reply: Reply) -> Reply:
    """The reply if it holds a token. Raises `Answered`, also for a 200 without one: a portal's page, half an answer."""
    if reply.status == 200 and isinstance(said_by(reply.data).get("access_token"), str):
        return reply
    raise Answered(reply.status, reply.headers, reply.data)


def said_by(body: bytes) -> Mapping[str, Any]:
    """An answer's JSON object; empty for anything else."""
    try:
        said = json.loads(body)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


class GoogleTransport:
    """A `google.auth.transport.Request`: a callable that google-auth gives its requests to."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.said: Mapping[str, Any] = {}
        """The last answer: google-auth shows its scopes only to who had asked for some (2.62, source)."""

    def __call__(
        self, url: str, method: str = "GET", body: Any = None, headers: Mapping[str, str] | None = None, **_: Any
    ) -> Reply:
        reply = token_or_raise(self._wire.ask(method, url, headers, body))
        self.said = said_by(reply.data)
        return reply


class MsalHttp:
    """msal's `http_client`. `place` is where Entra is; msal speaks https only in form, so the sandbox is renamed.

    `raising=False`: failures are given back to msal, as its device flow needs them. `patience` bounds each request
    where no `until` does.
    """

    def __init__(self, wire: Wire, place: str, raising: bool = True, patience: timedelta | None = None) -> None:
        self._wire = wire
        self._patience = patience
        self._place = place.rstrip("/")
        self._form = in_form(place)
        self._raising = raising

    def get(
        self, url: str, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None, **_: Any
    ) -> Reply:
        reply = self._ask("GET", self._real(url) + (f"?{urlencode(params)}" if params else ""), headers)
        if self._raising:
            reply.raise_for_status()
        return Reply(reply.status, reply.headers, reply.data.replace(self._place.encode(), self._form.encode()))

    def post(
        self,
        url: str,
        params: Mapping[str, str] | None = None,
        data: Mapping[str, Any] | str | None = None,
        headers: Mapping[str, str] | None = None,
        **_: Any,
    ) -> Reply:
        body = data if isinstance(data, str) else urlencode(data or {})
        typed = {**(headers or {}), "Content-Type": "application/x-www-form-urlencoded"}
        where = self._real(url) + (f"?{urlencode(params)}" if params else "")
        reply = self._ask("POST", where, typed, body.encode())
        return token_or_raise(reply) if self._raising else reply

    def _ask(self, method: str, url: str, headers: Mapping[str, str] | None, body: bytes | None = None) -> Reply:
        if self._patience is None:
            return self._wire.ask(method, url, headers, body)
        with self._wire.until(Deadline.after(self._patience)):
            return self._wire.ask(method, url, headers, body)

    def close(self) -> None:
        """The connections are the process's."""

    def _real(self, url: str) -> str:
        return self._place + url.removeprefix(self._form) if url.startswith(self._form) else url


def in_form(place: str) -> str:
    """A place as msal takes it: `https://`, whatever the sandbox speaks."""
    return "https://" + place.rstrip("/").removeprefix("http://").removeprefix("https://")
