"""An aiohttp.web server on a thread and loop of its own, with the script of faults around every handler."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import struct
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from outtray_sandbox.accepted import Ledger
from outtray_sandbox.web.faults import Rule
from outtray_sandbox.web.house import House, rule_of
from outtray_sandbox.web.page import sent_page

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Work = Callable[[], Awaitable[web.StreamResponse]]

LARGEST = 256 << 20
_ABORT = struct.pack("ii", 1, 0)
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Route:
    """Where a handler answers. `stage` is unique within a server; rules and counts know the route by it."""

    method: str
    path: str
    stage: str
    handler: Handler


class WebServer:
    """`url` says where it is; `house` is what it knows. Port 0 picks a free one, and a restart keeps it."""

    title = "Sandbox"

    def __init__(self, house: House, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.house = house
        self.host, self.port = host, port
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="sandbox-web", daemon=True)

    def routes(self) -> Iterable[Route]:
        """What this server answers, besides the page of sent mail and the control."""
        return ()

    def user_of(self, request: web.Request) -> str:
        """Whose request it is, for rules that hold for some users only."""
        return ""

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def ledger(self) -> Ledger:
        return self.house.ledger

    @property
    def seen(self) -> Mapping[str, int]:
        return self.house.seen

    def __enter__(self) -> Self:
        self._thread.start()
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.ledger.close()

    def up(self) -> None:
        """Listen, on the same port as before."""
        self._run(self._up())

    def down(self) -> None:
        """Stop listening and break every connection: from now on connections are refused."""
        self._run(self._down())

    async def _up(self) -> None:
        if self._runner is not None:
            return
        self._runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, backlog=4096)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _down(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            for connection in list(runner.server.connections if runner.server else ()):
                if connection.transport is not None:
                    connection.transport.abort()
            await runner.cleanup()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    def drop_idle(self) -> None:
        """Break every connection now, as a server that lets go of idle ones; it goes on listening."""

        async def drop() -> None:
            for connection in list(self._runner.server.connections if self._runner and self._runner.server else ()):
                if connection.transport is not None:
                    connection.transport.close()

        self._run(drop())

    def _run(self, steps: Any) -> Any:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(steps, self._loop)
        return done.result(30)

    # ── commands ────────────────────────────────────────────────────────────────────────────────────────────────

    def do(self, command: str, /, **arguments: Any) -> Any:
        """A command of the control, on the server's own thread. Raises `ValueError` for an unknown one."""

        async def obey() -> Any:
            return self._obey(command, arguments)

        return self._run(obey())

    def add_rule(self, **fields: Any) -> int:
        """Misbehave as `Rule` says; returns the rule's id."""
        return int(self.do("add_rule", **fields))

    def forget(self, rule_id: int | None = None) -> None:
        """End one rule, or all."""
        self.do("forget", rule_id=rule_id)

    def _obey(self, command: str, arguments: dict[str, Any]) -> Any:
        if command not in self.house.commands:
            raise ValueError(f"no such command: {command}; there are {', '.join(self.house.commands)}")
        return getattr(self.house, command)(**arguments)

    # ── HTTP ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=LARGEST, middlewares=[self._around])
        own = (
            Route("GET", "/", "_page", self._page),
            Route("POST", "/_sandbox/rules", "_rules", self._add_rule),
            Route("DELETE", "/_sandbox/rules", "_forget", self._forget),
            Route("POST", "/_sandbox/do/{command}", "_do", self._command),
        )
        for route in (*own, *self.routes()):
            application.router.add_route(route.method, route.path, route.handler, name=route.stage)
        return application

    @web.middleware
    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count the request, play the rule that holds for it, and never show a bug of ours as an answer of theirs."""
        stage = request.match_info.route.name or "elsewhere"
        if stage.startswith("_"):
            return await handler(request)
        try:
            work = partial(handler, request)
            before, after = self.house.delay()
            await asyncio.sleep(before)
            rule = self._rule(stage, request)
            if rule is None or rule.does_work:
                self.house.seen[stage] += 1
            answer = await self.suffer(rule, request, work, stage)
            await asyncio.sleep(after)
            return answer
        except (web.HTTPException, asyncio.CancelledError):
            raise
        except Exception as error:
            if _client_left(error):
                self.house.seen["broken off"] += 1
                return hang_up(request)
            self.house.seen["errors"] += 1
            raise

    def _rule(self, stage: str, request: web.Request) -> Rule | None:
        brought = rule_of(request.headers.get("X-Sandbox-Fault"), stage)
        return brought or self.house.script.find(stage, self.user_of(request))

    async def suffer(
        self, rule: Rule | None, request: web.Request, work: Work, unworked: str = "repeated"
    ) -> web.StreamResponse:
        """Do the work and answer as it says, both as far as `rule` lets it; without the work count it as `unworked`."""
        if rule is None:
            return await work()
        await asyncio.sleep(rule.late)
        answer: web.StreamResponse | None = None
        if rule.does_work:
            answer = await work()
        else:
            await _swallow(request, rule.after_bytes if rule.drop == "early" else None)
            self.house.seen[unworked] += 1
        await asyncio.sleep(rule.answer_late)
        if rule.silent:
            self.house.seen["silent"] += 1
            await asyncio.get_running_loop().create_future()
        if rule.drop in ("early", "before", "after"):
            return hang_up(request, rule.reset)
        answer = _scripted(rule) if rule.status is not None or answer is None else answer
        return _half(request, answer) if rule.drop == "half" else answer

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text=sent_page(self.title, self.house.sent), content_type="text/html")

    async def _add_rule(self, request: web.Request) -> web.StreamResponse:
        return await self._answered(lambda fields: self._obey("add_rule", fields), request)

    async def _forget(self, request: web.Request) -> web.StreamResponse:
        self.house.forget()
        return web.json_response({"done": None})

    async def _command(self, request: web.Request) -> web.StreamResponse:
        return await self._answered(lambda fields: self._obey(request.match_info["command"], fields), request)

    @staticmethod
    async def _answered(obey: Callable[[dict[str, Any]], Any], request: web.Request) -> web.StreamResponse:
        try:
            return web.json_response({"done": obey(json.loads(await request.text() or "{}"))})
        except (ValueError, TypeError) as error:
            return web.json_response({"refused": str(error)}, status=400)


def _client_left(error: Exception) -> bool:
    """Whether the client went away in mid-request; aiohttp's reader has three words for it (3.14)."""
    if isinstance(error, RuntimeError):
        return str(error) == "Connection closed."
    return isinstance(error, ConnectionError | web.RequestPayloadError)


async def _swallow(request: web.Request, limit: int | None) -> None:
    read = 0
    while limit is None or read < limit:
        piece = await request.content.read(_PIECE)
        if not piece:
            return
        read += len(piece)


def hang_up(request: web.Request, reset: bool = False) -> web.Response:
    """Close the connection under the answer."""
    transport = request.transport
    if transport is not None:
        if reset:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        transport.close()
    return web.Response()


def _scripted(rule: Rule) -> web.Response:
    body = rule.body.encode("latin-1") if isinstance(rule.body, str) else json.dumps(rule.body).encode()
    headers = {"Content-Type": "application/json; charset=UTF-8", **rule.headers}
    return web.Response(status=rule.status or 200, body=b"" if rule.body is None else body, headers=headers)


def _half(request: web.Request, answer: web.StreamResponse) -> web.Response:
    """Announce the whole answer, give half of it, and close."""
    body = answer.body if isinstance(answer, web.Response) and isinstance(answer.body, bytes) else b"{}"
    head = f"HTTP/1.1 {answer.status} OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    if isinstance(request.transport, asyncio.WriteTransport):
        request.transport.write(head.encode() + body[: len(body) // 2])
    return hang_up(request)


def main(make: Callable[[argparse.Namespace], WebServer], doc: str, *extra: tuple[str, dict[str, Any]]) -> None:
    """The server as a process of its own: one JSON line ({"url"}) once it listens; it ends on SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--ledger", type=Path, required=True, help="file that every accepted mail is appended to")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    for name, options in extra:
        parser.add_argument(name, **options)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with make(parser.parse_args()) as server:
        sys.stdout.write(json.dumps({"url": server.url}) + "\n")
        sys.stdout.flush()
        stop.wait()
