"""What Google's client costs a message: the product's Gmail provider with it and with requests by hand, in turn.

Both arms are the provider itself, from `prepare` to the outcome, over the same transport to the same sink, one message
at a time in this one process: only who names the requests and parses the answers differs. The hand-written arm runs
twice in each round, so that what it differs from itself shows what a difference is worth. CPU is the process's own.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import uvloop
from tests.bench.measure import Spread
from tests.bench.provider import FixedToken
from tests.bench.routes import BY_DRAFT, BY_SEND, Route
from tests.bench.sinks import letter
from tests.bench.stand import CannotRun, Stand

from outtray_schema.ids import new_id
from outtray_schema.outcome import Outcome, Sent
from outtray_schema.settings import load_settings
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Account, Mail
from outtray_worker.providers.gmail import GmailProvider
from outtray_worker.providers.gmail.api import Api, parsed
from outtray_worker.providers.web import Answer, Request, Stream, Web

WARM_UP = 100
PATIENCE = timedelta(seconds=30)
ALONE = 1_000
"""Messages of one sample where only the naming and parsing is measured."""
_TOKEN = "bench"


@dataclass(frozen=True, slots=True)
class Written:
    """A request as one writes it by hand; it has what the provider asks of the client's."""

    method: str
    path: str
    body: bytes = b""

    def postproc(self, response: object, content: bytes) -> Any:
        return json.loads(content)


class HandWritten(Api):
    """The same three requests without the client: a path, a dict of headers, `json`."""

    def __init__(self, base_url: str) -> None:
        super().__init__(base_url)
        self._url = base_url.rstrip("/")

    def deliver(self, about: str) -> Any:
        return Written("POST", "drafts" if about == "drafts.create" else "messages/send")

    def send_draft(self, draft_id: str) -> Any:
        return Written("POST", "drafts/send", json.dumps({"id": draft_id}).encode())

    def on_wire(
        self, named: Any, token: str, body: bytes | Stream | None = None, headers: Mapping[str, str] | None = None
    ) -> Request:
        every = {"authorization": f"Bearer {token}", "accept": "application/json", "content-type": "application/json"}
        url = f"{self._url}/gmail/v1/users/me/{named.path}?alt=json"
        return Request(named.method, url, every, named.body if body is None else body)


ARMS: Mapping[str, type[Api]] = {"client": Api, "hand": HandWritten, "hand again": HandWritten}


@dataclass(slots=True)
class ClientCost:
    """One route's figures: CPU in ms a message of each arm, sample by sample; in `alone`, naming and parsing only."""

    route: str
    arms: dict[str, list[float]] = field(default_factory=lambda: {arm: [] for arm in ARMS})
    alone: dict[str, list[float]] = field(default_factory=lambda: {"client": [], "hand": []})

    def spread(self, arm: str) -> Spread:
        return Spread.of(self.arms[arm])

    @property
    def difference(self) -> Spread:
        """What the client costs more, round by round."""
        return self._over("client")

    @property
    def noise(self) -> Spread:
        """What the hand-written requests differ from themselves, round by round."""
        return self._over("hand again")

    def _over(self, arm: str) -> Spread:
        return Spread.of([one - other for one, other in zip(self.arms[arm], self.arms["hand"], strict=True)])

    @property
    def within_the_spread(self) -> bool:
        """Whether the client's cost is smaller than what the hand-written runs themselves differ by."""
        runs = self.arms["hand"] + self.arms["hand again"]
        return abs(self.difference.median) < max(runs) - min(runs)


def client_cost(stand: Stand, rounds: int, messages: int) -> list[ClientCost]:
    """Both routes, `rounds` rounds of `messages` messages an arm."""
    return uvloop.run(_client_cost(stand, rounds, messages))


async def _client_cost(stand: Stand, rounds: int, messages: int) -> list[ClientCost]:
    url = stand.sink_url("google-client", "").rstrip("/")
    settings = load_settings(gmail_url=url, data_folder=stand.folder)
    web = Web(settings)
    costs = []
    try:
        for route in (BY_SEND, BY_DRAFT):
            costs.append(cost := ClientCost(route.name))
            sends = {arm: _sending(GmailProvider(settings, web), api(url), route) for arm, api in ARMS.items()}
            for send in sends.values():
                await _repeated(send, WARM_UP)
            for number in range(rounds):
                turned = [*sends.items()][number % len(sends) :] + [*sends.items()][: number % len(sends)]
                for arm, send in turned:
                    cost.arms[arm].append(await _repeated(send, messages))
                for arm in cost.alone:
                    cost.alone[arm].append(_alone(ARMS[arm](url), route))
    finally:
        await web.close()
    return costs


def _sending(provider: GmailProvider, api: Api, route: Route) -> Callable[[], Awaitable[Outcome]]:
    """One message by the provider whose requests `api` names."""
    provider.api = api
    account = Account(new_id(), "bench", {}, "writer@bench.test", {}, frozenset(route.scopes), FixedToken())
    session, whole = provider.open(account), letter()

    async def pieces() -> AsyncIterator[bytes]:
        yield whole

    async def send() -> Outcome:
        mail = Mail(new_id(), account.address, ("reader@example.net",), "<1@bench.test>", len(whole), pieces)
        prepared = await session.prepare(mail)
        by = Deadline.after(PATIENCE)
        return prepared if isinstance(prepared, Outcome) else await prepared.hand_over(by, by)

    return send


async def _repeated(send: Callable[[], Awaitable[Outcome]], messages: int) -> float:
    """CPU in ms a message."""
    begun = time.process_time()
    for _ in range(messages):
        outcome = await send()
        if not isinstance(outcome, Sent):
            raise CannotRun(f"the sink did not take it: {outcome}")
    return (time.process_time() - begun) * 1000 / messages


def _alone(api: Api, route: Route) -> float:
    """CPU in ms a message for what the provider asks of `api`, and nothing else."""
    made = Answer(200, {}, b'{"id":"18c0ffee","message":{"id":"18c0ffee","threadId":"18c0ffee"}}')
    body = b"{}"
    begun = time.process_time()
    for _ in range(ALONE):
        if route is BY_SEND:
            api.on_wire(api.deliver("messages.send"), _TOKEN, body)
        else:
            api.on_wire(api.deliver("drafts.create"), _TOKEN, body)
            parsed(api.deliver("drafts.create"), made)
            api.on_wire(api.send_draft("18c0ffee"), _TOKEN)
    return (time.process_time() - begun) * 1000 / ALONE
