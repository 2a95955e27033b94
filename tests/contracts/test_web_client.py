"""The process's HTTP client: one request, told from none, and nothing that the protocol does not know of."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from provider_rigs import quick_settings, soon

from outtray_sandbox.smtp import make_certificates
from outtray_sandbox.web import House, Ledger, Route, WebServer
from outtray_schema.outcome import NotBegun, Outcome, Parked, Unknown
from outtray_worker.deadline import Deadline, boottime
from outtray_worker.providers.web import Answer, ContentLost, NoAnswer, Request, Stream, Web


class Echo(WebServer):
    def routes(self) -> Iterable[Route]:
        for method in ("GET", "POST", "PUT", "DELETE"):
            yield Route(method, "/echo", f"echo.{method}", self.echo)
        yield Route("GET", "/large", "large", self.large)
        yield Route("GET", "/packed", "packed", self.packed)
        yield Route("GET", "/moved", "moved", self.moved)

    async def echo(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        said = {
            "size": len(body),
            "length": request.headers.get("Content-Length"),
            "cookie": request.headers.get("Cookie"),
        }
        response = web.json_response(said)
        response.set_cookie("canary", "1")
        return response

    async def large(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x" * 2_000_000)

    async def packed(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=gzip.compress(b"{}"), headers={"Content-Encoding": "gzip"})

    async def moved(self, request: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect("/echo")


Steps = Callable[[Web], Coroutine[Any, Any, Any]]


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Echo]:
    with Echo(House(Ledger(tmp_path / "ledger"))) as server:
        yield server


def run(folder: Path, steps: Steps) -> Any:
    async def main() -> Any:
        client = Web(quick_settings(folder))
        try:
            return await steps(client)
        finally:
            await client.close()

    return asyncio.run(main())


def ask(folder: Path, method: str, url: str, body: Any = None, **options: Any) -> Answer:
    answer: Answer = run(folder, lambda client: client.ask(Request(method, url, {}, body), 5, **options))
    return answer


def commit(folder: Path, method: str, url: str, body: Any = None, within: float = 5.0, **options: Any) -> Any:
    return run(folder, lambda client: client.commit(Request(method, url, {}, body), soon(), soon(within), **options))


def test_a_request_without_a_body_says_so(echo: Echo, tmp_path: Path) -> None:
    answer = commit(tmp_path, "POST", f"{echo.url}/echo")
    assert answer.json() == {"size": 0, "length": "0", "cookie": None}


@pytest.mark.parametrize("drop", ["early", "before", "after", "half"])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_nothing_is_sent_twice_on_a_kept_connection_that_ends(
    echo: Echo, tmp_path: Path, method: str, drop: str, fresh: bool
) -> None:
    """aiohttp would repeat GET, PUT and DELETE by itself."""

    async def after_a_good_one(client: Web) -> Answer | Outcome:
        request = Request(method, f"{echo.url}/echo", {}, None if method == "GET" else b"x")
        assert isinstance(await client.commit(request, soon(), soon(), fresh), Answer)
        echo.add_rule(stage="echo.*", drop=drop)
        return await client.commit(request, soon(), soon(), fresh)

    assert isinstance(run(tmp_path, after_a_good_one), Unknown)
    assert echo.seen[f"echo.{method}"] == 2


def test_a_reading_that_breaks_says_whether_it_had_begun(echo: Echo, tmp_path: Path) -> None:
    echo.add_rule(stage="echo.GET", drop="before")
    with pytest.raises(NoAnswer) as broken:
        ask(tmp_path, "GET", f"{echo.url}/echo")
    assert (broken.value.rule, broken.value.begun) == ("closed", True)
    echo.down()
    with pytest.raises(NoAnswer) as refused:
        ask(tmp_path, "GET", f"{echo.url}/echo")
    assert (refused.value.rule, refused.value.begun) == ("refused", False)


@pytest.mark.parametrize(("url", "rule"), [("http://nowhere.invalid/x", "dns"), ("http://127.0.0.1:1/x", "refused")])
def test_what_never_reached_anybody_is_definite(tmp_path: Path, url: str, rule: str) -> None:
    outcome = commit(tmp_path, "POST", url, b"x")
    assert isinstance(outcome, Parked) and outcome.scope == "connection"
    assert outcome.evidence["rule"] == rule
    assert "/x" not in outcome.reason


def test_a_certificate_that_nobody_vouches_for_gets_not_one_byte(tmp_path: Path) -> None:
    got: list[bytes] = []
    files = make_certificates(tmp_path / "tls")
    started, stop = threading.Event(), threading.Event()
    port: list[int] = []

    async def serve() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got.append(await reader.read(1))
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=files.server_context())
        port.append(server.sockets[0].getsockname()[1])
        started.set()
        await asyncio.to_thread(stop.wait)
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(10)
        outcome = commit(tmp_path, "POST", f"https://127.0.0.1:{port[0]}/x", b"canary")
    finally:
        stop.set()
        thread.join(10)
    assert isinstance(outcome, Parked)
    assert outcome.evidence["rule"] == "tls-certificate"
    assert got == []


def test_too_late_is_not_begun_and_nobody_sees_it(echo: Echo, tmp_path: Path) -> None:
    late = Deadline(boottime() - 0.001)
    outcome = run(tmp_path, lambda client: client.commit(Request("POST", f"{echo.url}/echo"), late, soon()))
    assert isinstance(outcome, NotBegun)
    assert echo.seen["echo.POST"] == 0


def test_silence_is_unknown_at_its_deadline(echo: Echo, tmp_path: Path) -> None:
    echo.add_rule(stage="echo.POST", silent=True)
    begun = boottime()
    outcome = commit(tmp_path, "POST", f"{echo.url}/echo", b"x", within=0.3)
    assert isinstance(outcome, Unknown) and outcome.evidence["rule"] == "timeout"
    assert boottime() - begun < 3


def test_an_answer_that_is_there_when_the_deadline_is_noticed_counts(echo: Echo, tmp_path: Path) -> None:
    """A process that was frozen wakes up to a deadline that has passed and to an answer that had come in time."""

    async def frozen(client: Web) -> Answer | Outcome:
        answer_by = soon(0.6)
        echo.add_rule(stage="echo.POST", answer_late=0.1)
        exchange = asyncio.ensure_future(
            client.commit(Request("POST", f"{echo.url}/echo", {}, b"x"), soon(), answer_by)
        )
        while echo.seen["echo.POST"] == 0:
            await asyncio.sleep(0.005)
        stopped = threading.Event()
        stopped.wait(max(answer_by.left(), 0) + 0.2)  # the loop stands still, as under SIGSTOP
        return await exchange

    assert isinstance(run(tmp_path, frozen), Answer)


def test_what_is_much_longer_than_an_answer_is_none(echo: Echo, tmp_path: Path) -> None:
    assert len(ask(tmp_path, "GET", f"{echo.url}/large").body) == 2_000_000
    with pytest.raises(NoAnswer) as broken:
        ask(tmp_path, "GET", f"{echo.url}/large", largest=1_000_000)
    assert broken.value.rule == "garbled"


def test_redirects_cookies_and_packing_are_left_alone(echo: Echo, tmp_path: Path) -> None:
    assert ask(tmp_path, "GET", f"{echo.url}/moved").status == 307
    assert echo.seen["echo.GET"] == 0
    assert gzip.decompress(ask(tmp_path, "GET", f"{echo.url}/packed").body) == b"{}"

    async def twice(client: Web) -> Answer:
        await client.ask(Request("GET", f"{echo.url}/echo"), 5)
        return await client.ask(Request("GET", f"{echo.url}/echo"), 5)

    said = run(tmp_path, twice).json()
    assert said is not None and said["cookie"] is None


@pytest.mark.parametrize("length", [5, 7, 0])
def test_a_body_of_another_length_than_announced_is_never_finished(echo: Echo, tmp_path: Path, length: int) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"abc"
        yield b"def"

    with pytest.raises(ContentLost):
        ask(tmp_path, "POST", f"{echo.url}/echo", Stream(length, pieces))
    outcome = commit(tmp_path, "POST", f"{echo.url}/echo", Stream(length, pieces))
    assert isinstance(outcome, NotBegun)
    assert ask(tmp_path, "POST", f"{echo.url}/echo", Stream(6, pieces)).json() == {
        "size": 6,
        "length": "6",
        "cookie": None,
    }


def test_a_server_that_answers_before_it_has_read_everything_is_heard(echo: Echo, tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x" * 100_000

    async def early(request: web.Request) -> web.StreamResponse:
        return web.Response(status=413)

    echo.down()
    echo.echo = early  # type: ignore[method-assign]
    echo.up()
    answer = ask(tmp_path, "POST", f"{echo.url}/echo", Stream(20_000_000, pieces))
    assert answer.status == 413
