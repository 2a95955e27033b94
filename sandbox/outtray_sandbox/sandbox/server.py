"""The sandbox's one page: what was sent by all servers, and the control of their faults. For people, and as JSON.

GET  /                              the page of sent mail; ?server=, ?to=, ?user=, ?subject= choose among it
GET  /sent.json                     the same as JSON, oldest first
GET  /source/{key}                  one mail as its recipients get it
GET  /faults                        the rules in force, and buttons for the named faults
POST /control/{server}/{command}    every command of a server, with JSON arguments: {"done": …} or {"refused": …}
POST /forget                        no faults, and an empty page
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aiohttp import web

from outtray_sandbox.sandbox.mails import Mail
from outtray_sandbox.sandbox.page import faults_page, mail_page
from outtray_sandbox.web import House, Ledger, Route, WebServer

if TYPE_CHECKING:
    from outtray_sandbox.sandbox import Sandbox

FILTERS = ("server", "to", "user", "subject")
# A mail is somebody else's text: nothing in it is run, and nothing is fetched for it.
POLICY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; "
    "frame-src 'self'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class FrontServer(WebServer):
    """Shows one `Sandbox`; it takes no mail itself."""

    title = "Outtray sandbox"

    def __init__(self, sandbox: Sandbox, port: int = 0) -> None:
        super().__init__(House(Ledger(os.devnull)), port=port)
        self._sandbox = sandbox

    def routes(self) -> Iterable[Route]:
        # A leading underscore keeps a stage from being counted or made to fail.
        yield Route("GET", "/sent.json", "_sent", self._sent)
        yield Route("GET", "/source/{key}", "_source", self._source)
        yield Route("GET", "/faults", "_faults", self._faults)
        yield Route("POST", "/faults", "_fault", self._begin)
        yield Route("POST", "/forget", "_forget_all", self._forget_all)
        yield Route("POST", "/control/{server}/{command}", "_control", self._control)

    # ── mail ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _chosen(self, request: web.Request) -> list[Mail]:
        return self._sandbox.sent(**{name: request.query.get(name) for name in FILTERS})

    async def _page(self, request: web.Request) -> web.StreamResponse:
        chosen = {name: request.query[name] for name in FILTERS if request.query.get(name)}
        return _html(mail_page(self._sandbox.sent(), self._chosen(request), chosen))

    async def _sent(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"mails": [mail.as_json() for mail in self._chosen(request)]})

    async def _source(self, request: web.Request) -> web.StreamResponse:
        key = request.match_info["key"]
        found = next((mail for mail in self._sandbox.sent() if mail.key == key), None)
        if found is None or not found.raw:
            raise web.HTTPNotFound(text="This mail is not kept any more, or was too large to be kept.\n")
        return web.Response(text=found.raw.decode("utf-8", "replace"), content_type="text/plain", headers=POLICY)

    # ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _faults(self, request: web.Request) -> web.StreamResponse:
        rules = {name: server.house.script.rules for name, server in self._sandbox.servers().items()}
        return _html(faults_page(rules, self.url))

    async def _begin(self, request: web.Request) -> web.StreamResponse:
        """A button of the page: a fault by its name, or `forget` for one rule."""
        _same_origin(request)
        form = {name: str(value) for name, value in (await request.post()).items()}
        if "forget" in form:
            server, _, number = form["forget"].partition(":")
            await asyncio.to_thread(self._sandbox.servers()[server].forget, int(number))
        else:
            await asyncio.to_thread(self._sandbox.fault, form.get("fault", ""))
        raise web.HTTPSeeOther("/faults")

    async def _forget_all(self, request: web.Request) -> web.StreamResponse:
        _same_origin(request)
        await asyncio.to_thread(self._sandbox.forget)
        raise web.HTTPSeeOther("/")

    async def _control(self, request: web.Request) -> web.StreamResponse:
        _same_origin(request)
        server = self._sandbox.servers().get(request.match_info["server"])
        try:
            if server is None:
                raise ValueError(f"no such server; there are {', '.join(self._sandbox.servers())}")
            arguments = json.loads(await request.text() or "{}")
            done = await asyncio.to_thread(server.do, request.match_info["command"], **arguments)
            return web.json_response({"done": done}, dumps=_dumps)
        except (ValueError, TypeError, KeyError) as error:
            return web.json_response({"refused": str(error)}, status=400)


def _same_origin(request: web.Request) -> None:
    """A page of somebody else's, open in the same browser, may not command the sandbox."""
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise web.HTTPForbidden(text="This page of another origin may not do that.\n")


def _dumps(value: Any) -> str:
    return json.dumps(value, default=str)


def _html(text: str) -> web.Response:
    return web.Response(text=text, content_type="text/html", headers=POLICY)
