"""The fake Google as one server: OAuth and Gmail, told apart by their paths."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from outtray_sandbox.google.errors import Refusal
from outtray_sandbox.google.gmail import Gmail, dated
from outtray_sandbox.google.house import GoogleHouse
from outtray_sandbox.google.oauth import OAuth, bearer
from outtray_sandbox.web import Route, WebServer


class GoogleServer(WebServer):
    """`url` is the Gmail API's base URL; the OAuth endpoints are below it."""

    title = "Google sandbox"
    house: GoogleHouse

    def __init__(self, house: GoogleHouse, *, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(house, host=host, port=port)
        self.oauth = OAuth(house, lambda: self.token_url)
        self.gmail = Gmail(house, self.suffer)

    @property
    def auth_url(self) -> str:
        return f"{self.url}/o/oauth2/v2/auth"

    @property
    def token_url(self) -> str:
        return f"{self.url}/token"

    @property
    def revoke_url(self) -> str:
        return f"{self.url}/revoke"

    def routes(self) -> Iterable[Route]:
        for route in (*self.oauth.routes(), *self.gmail.routes()):
            yield Route(route.method, route.path, route.stage, self._refusing(route.handler))

    def _refusing(
        self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                response = await handler(request)
            except Refusal as refusal:
                response = refusal.response()
            return dated(response, self.house.now())

        return answer

    def user_of(self, request: web.Request) -> str:
        holder = self.house.tokens.holder(bearer(request))
        return holder.email if holder else ""
