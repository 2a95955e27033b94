"""A token server for tests of tokens alone: Google's and Entra's token endpoints, counted, slow and strict on demand.

It is no kinder than they are. A refresh token is one person's; every use is written down with its times, so that a test
can tell one refresh per expiry from two. `rotate` gives a new refresh token at each use: the one before stays valid, as
at Entra, unless `strict`. `wait_open` says which refreshes are under way: a test kills a worker in the middle of one.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

CLIENT, SECRET = "client-1", "secret-1"


@dataclass(eq=False)
class Refresh:
    """One request for a token. Times are monotonic seconds; `answered` is None while it is open."""

    person: str
    form: dict[str, str]
    begun: float
    answered: float | None = None
    status: int = 0
    access: str | None = None


@dataclass
class Answer:
    """What the server says instead of a token; `drop` closes without a word, `late` waits first."""

    status: int = 400
    body: Mapping[str, Any] | str = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False
    late: float = 0.0
    grants: bool = False
    """With `drop`: the token was made (and the refresh token rotated) before the connection broke."""


@dataclass
class Person:
    """Whose refresh tokens are valid. `chain` has all that were ever given, the newest last."""

    name: str
    chain: list[str]
    scopes: str
    revoked: bool = False


class TokenServer:
    """A running server; `google_token_url` and `entra_url` are what the settings need."""

    def __init__(
        self,
        lifetime: float = 3600,
        rotate: bool = False,
        strict: bool = False,
        delay: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.lifetime, self.rotate, self.strict, self.delay = lifetime, rotate, strict, delay
        self.secret = SECRET
        self.people: dict[str, Person] = {}
        self.requests: list[Refresh] = []
        self.answers: list[Answer] = []
        self.valid: dict[str, str] = {}
        """Access tokens that were given, and to whom."""
        self.revocations: list[str] = []
        self._lock = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] # who asked was killed: no news
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> TokenServer:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def settings(self) -> dict[str, str]:
        """The settings that lead here."""
        return {
            "google_token_url": f"{self.url}/token",
            "google_revoke_url": f"{self.url}/revoke",
            "google_auth_url": f"{self.url}/auth",
            "entra_url": self.url,
        }

    def add_person(self, name: str, scopes: str = "") -> str:
        """A refresh token of a new person, or another one of a known."""
        with self._lock:
            token = f"rt-{name}-{secrets.token_hex(12)}"
            person = self.people.setdefault(name, Person(name, [], scopes))
            person.chain.append(token)
            person.scopes, person.revoked = scopes or person.scopes, False
            return token

    def say(self, *answers: Answer) -> None:
        """What the next requests are told, in turn."""
        with self._lock:
            self.answers += answers

    def refreshes(self, name: str | None = None) -> list[Refresh]:
        with self._lock:
            return [each for each in self.requests if name in (None, each.person)]

    def open(self) -> list[Refresh]:
        """Refreshes under way now."""
        return [each for each in self.refreshes() if each.answered is None]

    # ── the endpoint ────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, form: dict[str, str]) -> tuple[int, Mapping[str, Any] | str, Mapping[str, str], bool]:
        """Status, body, headers, and whether to close without a word."""
        with self._lock:
            person = self._person(form)
            refresh = Refresh(person.name if person else "", form, time.monotonic())
            self.requests.append(refresh)
            answer = self.answers.pop(0) if self.answers else None
        time.sleep(self.delay() + (answer.late if answer else 0.0))
        with self._lock:
            said = self._answer(form, person, answer)
            refresh.status, refresh.answered = said[0], time.monotonic()
            refresh.access = said[1].get("access_token") if isinstance(said[1], Mapping) else None
            return said

    def _answer(
        self, form: dict[str, str], person: Person | None, answer: Answer | None
    ) -> tuple[int, Mapping[str, Any] | str, Mapping[str, str], bool]:
        if answer is not None:
            if answer.grants:
                self._grant(form, person)
            return answer.status, answer.body, answer.headers, answer.drop
        secret = (form.get("client_id"), form.get("client_secret"))
        if not {"assertion", "client_assertion"} & set(form) and secret != (CLIENT, self.secret):
            return 401, {"error": "invalid_client", "error_description": "The OAuth client was not found."}, {}, False
        dead = person is None or person.revoked or (self.strict and form.get("refresh_token") != person.chain[-1])
        if dead and form.get("grant_type") == "refresh_token":
            return 400, {"error": "invalid_grant", "error_description": "Token has been revoked."}, {}, False
        return 200, self._grant(form, person), {}, False

    def _person(self, form: dict[str, str]) -> Person | None:
        token = form.get("refresh_token", "")
        return next((each for each in self.people.values() if token in each.chain), None)

    def _grant(self, form: dict[str, str], person: Person | None) -> dict[str, Any]:
        name = person.name if person else "app"
        access = f"at-{name}-{secrets.token_hex(12)}"
        self.valid[access] = name
        said: dict[str, Any] = {"access_token": access, "expires_in": int(self.lifetime), "token_type": "Bearer"}
        if person is not None:
            said["scope"] = form.get("scope", person.scopes)
            if self.rotate:
                person.chain.append(f"rt-{name}-{secrets.token_hex(12)}")
                said["refresh_token"] = person.chain[-1]
        return said


def _handler(server: TokenServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            tenant = urlsplit(self.path).path.split("/")[1]
            place = f"{server.url}/{tenant}/oauth2/v2.0"
            self._say(200, {
                "issuer": f"{server.url}/{tenant}/v2.0", "authorization_endpoint": f"{place}/authorize",
                "token_endpoint": f"{place}/token", "device_authorization_endpoint": f"{place}/devicecode",
            }, {})  # fmt: skip

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            form = {name: values[0] for name, values in parse_qs(raw).items()}
            if urlsplit(self.path).path == "/revoke":
                server.revocations.append(form.get("token", ""))
                self._say(200, {}, {})
                return
            status, body, headers, drop = server.take(form)
            if drop:
                self.close_connection = True
                return
            self._say(status, body, headers)

        def _say(self, status: int, body: Mapping[str, Any] | str, headers: Mapping[str, str]) -> None:
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            with suppress(OSError):  # who asked may have been killed
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Silence."""

    return Handler
