"""Requests to Graph for one mailbox: its URLs, the headers that every one carries, its token, and one renewal of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import quote, urlsplit
from uuid import uuid4

from outtray_schema.outcome import Evidence, Held, NotBegun, Outcome, Parked, Retry
from outtray_schema.settings import Settings
from outtray_worker.crash import crash_points
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Account, NoToken, Tokens
from outtray_worker.providers.microsoft.answers import APP_ONLY, claims_of, refusal
from outtray_worker.providers.microsoft.letter import Json, encoded
from outtray_worker.providers.microsoft.limits import Lane, Lanes
from outtray_worker.providers.microsoft.scopes import Grant
from outtray_worker.providers.redact import Redactor
from outtray_worker.providers.web import Answer, NoAnswer, Request, Stream, Web
from outtray_worker.providers.web.client import LARGEST
from outtray_worker.providers.web.rows import Step
from outtray_worker.providers.web.signals import Signals

JSON = "application/json"
MIME = "text/plain"
PREFER = 'IdType="ImmutableId"'
ASIDE = 5.0
"""Seconds that what no mail depends on may take: deleting a draft, learning the ids after the handover."""


class Ended(Exception):
    """The attempt ends here with `outcome`: a step's way out, caught where the session answers."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(type(outcome).__name__)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, and the id under which Microsoft knows its request."""

    answer: Answer
    client_request_id: str
    about: str

    @property
    def status(self) -> int:
        return self.answer.status

    def json(self) -> Json:
        return self.answer.json() or {}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, relative to the mailbox. `about` names the operation as the table of answers does."""

    method: str
    path: str
    about: str
    body: bytes | Stream | None = None
    content_type: str = JSON

    @property
    def size(self) -> int:
        return self.body.length if isinstance(self.body, Stream) else len(self.body or b"")


def with_json(method: str, path: str, about: str, body: Json) -> Ask:
    return Ask(method, path, about, encoded(body))


def quoted(identifier: str) -> str:
    """An id or address as one segment of a path. Ids are case-sensitive and may hold slashes."""
    return quote(identifier, safe="")


def literal(text: str) -> str:
    """A string in a filter, ready for a query."""
    return quote("'" + text.replace("'", "''") + "'", safe="")


class Calls:
    """One session's. `secrets` are what no evidence may hold of the mail that is under way."""

    def __init__(
        self, web: Web, settings: Settings, account: Account, grant: Grant, lanes: Lanes, signals: Signals
    ) -> None:
        self._web = web
        self._settings = settings
        self.crash_point = crash_points(settings.crash_at)
        self._account = account
        self._grant = grant
        self._lanes = lanes
        self._signals = signals
        self._base = settings.graph_url.rstrip("/")
        self.lane: Lane = lanes.enter(account.mailbox_id)
        self.secrets: tuple[str, ...] = ()
        self._last_token = ""

    @property
    def root(self) -> str:
        """Whose mailbox: `/me`, or another one by its address (shared, or app-only)."""
        return f"/users/{quoted(self._account.address)}" if self._account.server.get("shared") else "/me"

    @property
    def place(self) -> str:
        """The host, for people."""
        return urlsplit(self._base).netloc

    @property
    def redact(self) -> Redactor:
        """Takes out what is private in what Graph says."""
        return Redactor(self._account.address, self._last_token, *self.secrets)

    async def sign_in(self) -> None:
        """Have a token. Raises `Ended`."""
        await self._token()

    def leave(self) -> None:
        self._lanes.leave(self._account.mailbox_id)

    # ── before the handover, and for reading ────────────────────────────────────────────────────────────────────

    async def ask(self, ask: Ask, within: float | None = None, largest: int = LARGEST) -> Said:
        """One request, and a second one if the token was refused. Raises `Ended`, `NoAnswer`, `ContentLost`."""
        token = await self._token()
        said = await self._once(ask, token, within, largest)
        if said.status == 401:
            token = await self._renewed(token, said)
            said = await self._once(ask, token, within, largest)
        return said

    async def _once(self, ask: Ask, token: str, within: float | None, largest: int) -> Said:
        request, name = self._request(ask, token)
        self._pay(ask.size)
        async with self.lane.room:
            answer = await self._web.ask(request, within or self._settings.command_timeout.total_seconds(), largest)
        return Said(answer, name, ask.about)

    async def put(self, url: str, headers: dict[str, str], body: bytes) -> Answer:
        """A piece of an upload, to a URL that is itself the permission: no token goes there. Raises `NoAnswer`."""
        if urlsplit(url).scheme != "https" and urlsplit(url).netloc != urlsplit(self._base).netloc:
            raise Ended(Retry("Graph named a place for an upload that is not secured", evidence={"rule": "upload-url"}))
        self._pay(len(body))
        async with self.lane.room:
            request = Request("PUT" if body else "GET", url, headers, body or None, exact=True)
            return await self._web.ask(request, self._settings.command_timeout.total_seconds())

    def _pay(self, size: int) -> None:
        """Count bytes that go out. Raises `Ended` if the mailbox has to wait for room in its five minutes."""
        self.expect_room(size)
        self._lanes.spend(self.lane, size)

    def expect_room(self, size: int) -> None:
        """Raises `Ended` if so many bytes do not fit now: better before the first of them than in the middle."""
        if wait := self._lanes.wait_for(self.lane, size):
            raise Ended(self.too_much(wait))

    @staticmethod
    def too_much(wait: float) -> Parked:
        reason = "uploads of this mailbox reach the 150 MB in 5 minutes that Microsoft allows"
        return Parked(reason, after=timedelta(seconds=wait), evidence={"rule": "upload-budget"})

    # ── the handover ────────────────────────────────────────────────────────────────────────────────────────────

    async def commit(self, ask: Ask, begin_by: Deadline, answer_by: Deadline) -> Said | Outcome:
        """The one request that can send the mail: never again, but once with a new token after a 401, a refusal.

        Handovers of one mailbox follow one another; waiting for that, and for a token, ends at `begin_by`.
        """
        try:
            async with asyncio.timeout(max(begin_by.left(), 0.0)):
                token = await self._token()
                await self.lane.commit.acquire()
        except TimeoutError:
            return NotBegun("the time to begin the handover had passed", evidence={"rule": "too-late"})
        except Ended as end:
            return end.outcome
        try:
            async with self.lane.room:
                return await self._commit(ask, token, begin_by, answer_by)
        finally:
            self.lane.commit.release()

    async def _commit(self, ask: Ask, token: str, begin_by: Deadline, answer_by: Deadline) -> Said | Outcome:
        said = await self._commit_once(ask, token, begin_by, answer_by)
        if not isinstance(said, Said) or said.status != 401:
            return said
        try:
            async with asyncio.timeout(max(answer_by.left(), 0.0)):
                token = await self._renewed(token, said)
        except TimeoutError:
            return Parked("no new token in time", evidence={"rule": "token-timeout"})
        except Ended as end:
            return end.outcome
        return await self._commit_once(ask, token, begin_by, answer_by)

    async def _commit_once(self, ask: Ask, token: str, begin_by: Deadline, answer_by: Deadline) -> Said | Outcome:
        request, name = self._request(ask, token)
        self._lanes.spend(self.lane, ask.size)
        answer = await self._web.commit(request, begin_by, answer_by)
        return Said(answer, name, ask.about) if isinstance(answer, Answer) else answer

    # ── what every request needs ────────────────────────────────────────────────────────────────────────────────

    def _request(self, ask: Ask, token: str) -> tuple[Request, str]:
        name = str(uuid4())
        # Ids are immutable only where every request asks for them (learn.microsoft.com/graph/outlook-immutable-id).
        headers = {"Authorization": f"Bearer {token}", "Prefer": PREFER, "client-request-id": name, "Accept": JSON}
        body = ask.body
        if body is None and ask.method == "POST":
            body = b""  # a POST without a body says so: Content-Length 0
        if body:
            headers["Content-Type"] = ask.content_type
        return Request(ask.method, self._base + self.root + ask.path, headers, body), name

    async def _token(self) -> str:
        return await self._of_tokens(lambda tokens: tokens.access())

    async def _renewed(self, refused: str, said: Said) -> str:
        return await self._of_tokens(lambda tokens: tokens.renewed(refused, claims_of(said.answer)))

    async def _of_tokens(self, get: Callable[[Tokens], Awaitable[str]]) -> str:
        if self._account.tokens is None:
            raise Ended(Held("this mailbox has no consent: connect it", evidence={"rule": "no-consent"}))
        try:
            self._last_token = await get(self._account.tokens)
        except NoToken as none:
            raise Ended(none.outcome) from None
        return self._last_token

    # ── what answers mean ───────────────────────────────────────────────────────────────────────────────────────

    def outcome(self, said: Said, step: Step) -> Outcome:
        """What an answer means that is no success."""
        about = f"{said.about} {APP_ONLY}" if self._grant.app_only else said.about
        return refusal(said.answer, step, about, said.client_request_id, self.redact, self._signals)

    def expect(self, said: Said, *statuses: int) -> Json:
        """The answer's JSON. Raises `Ended` for anything but `statuses`."""
        if said.status not in statuses:
            raise Ended(self.outcome(said, "prepare"))
        return said.json()

    def values(self, said: Said, step: Step) -> list[Json]:
        """What a list holds. Raises `Ended` for a refusal, and for what is no list."""
        if said.status != 200:
            raise Ended(self.outcome(said, step))
        found = said.json().get("value")
        if not isinstance(found, list):
            raise garbled(said)
        return [each for each in found if isinstance(each, dict)]


def garbled(said: Said) -> Ended:
    """A success that does not say what it must. Nobody may take it for "there is nothing"."""
    evidence: Evidence = {"rule": "garbled", "status": said.status, "client_request_id": said.client_request_id}
    return Ended(Retry("Graph gave an answer that fits nowhere", evidence=evidence))


def unanswered(none: NoAnswer, loads: bool) -> Outcome:
    """No answer to a step before the handover. `loads`: it carried the mail, which may itself be the cause."""
    evidence = {"rule": none.rule, "step": "prepare"}
    if loads and none.begun:
        return Retry(none.reason, evidence=evidence)
    return Parked(none.reason, scope="connection", evidence=evidence)
