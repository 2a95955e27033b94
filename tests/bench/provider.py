"""The bench-only provider of our arm: one POST of the same bytes, on one shared aiohttp session per process.

`Connected` gives a real provider's mailboxes a token, for what refreshing costs is not asked here.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace

import aiohttp
from tests.bench.payload import CONTENT_TYPE

from outtray_schema.outcome import NotBegun, Outcome, Sent, Unknown
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Account, Finding, Mail, Provider, Session, Trace

CONNECTIONS = 512
"""Kept connections of one process to the sink: one per turn that the engine runs."""


class HttpProvider:
    """Posts to `server["url"]` of the mailbox. Belongs to the loop on which it is first used."""

    name = "bench"

    def __init__(self) -> None:
        self._http: aiohttp.ClientSession | None = None

    def open(self, account: Account) -> HttpSession:
        if self._http is None:
            connector = aiohttp.TCPConnector(limit=CONNECTIONS, ttl_dns_cache=3600)
            self._http = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return HttpSession(self._http, account)


@dataclass(slots=True)
class HttpSession:
    """One mailbox's turn: nothing is connected for it, the pool is the process's."""

    http: aiohttp.ClientSession
    account: Account

    async def prepare(self, mail: Mail) -> HttpMail:
        body = b"".join([piece async for piece in mail.body()])
        return HttpMail(self.http, str(self.account.server["url"]), str(mail.message_id), body)

    async def find_evidence(self, trace: Trace) -> Finding:
        return Finding("no_way", "the bench's sink shows nothing of what it took")

    async def close(self) -> None:
        """The connections stay in the pool."""


@dataclass(slots=True)
class HttpMail:
    """A request that lacks only its being sent."""

    http: aiohttp.ClientSession
    url: str
    key: str
    data: bytes

    async def hand_over(self, begin_by: Deadline, answer_by: Deadline) -> Outcome:
        if begin_by.passed:
            return NotBegun("too late to begin")
        headers = {"Content-Type": CONTENT_TYPE, "Authorization": "Bearer bench", "X-Message": self.key}
        try:
            async with (
                asyncio.timeout(answer_by.left()),
                self.http.post(self.url, data=self.data, headers=headers) as answer,
            ):
                if answer.status != 200:
                    return Unknown(f"the sink answered {answer.status}")
                return Sent(str(json.loads(await answer.read())["id"]))
        except (TimeoutError, aiohttp.ClientError) as error:
            return Unknown(type(error).__name__)

    draft = None

    async def abandon(self) -> None:
        """Nothing was begun."""


class FixedToken:
    """A mailbox's tokens: one that is always valid."""

    async def access(self) -> str:
        return "bench"

    async def renewed(self, refused: str, claims: str | None = None) -> str:
        return refused


class Connected:
    """A provider all of whose mailboxes are connected."""

    def __init__(self, provider: Provider) -> None:
        self.name = provider.name
        self._provider = provider

    def open(self, account: Account) -> Session:
        return self._provider.open(replace(account, tokens=FixedToken()))
