"""Who may ask the fake Graph for what, and what its refusals look like."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import unquote
from uuid import uuid4

from aiohttp import web

from outtray_sandbox.microsoft.house import GRAPH, MicrosoftHouse, Token
from outtray_sandbox.microsoft.mail import stamp
from outtray_sandbox.microsoft.mailbox import Mailbox
from outtray_sandbox.microsoft.properties import Wrong

Handler = Callable[[web.Request, Mailbox], Awaitable[web.Response]]


class Refused(Exception):
    """An answer that is an error, as Graph writes it."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message
        self.headers = headers


def gone() -> Refused:
    return Refused(404, "ErrorItemNotFound", "The specified object was not found in the store.")


class Admission:
    """Stands in front of every handler."""

    def __init__(self, house: MicrosoftHouse) -> None:
        self.house = house

    def guarded(
        self, stage: str, scopes: frozenset[str], handler: Handler
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            self.note(request, stage)
            ids = self.ids(request)
            try:
                mailbox = self._admit(request, scopes)
                return await self._in_turn(request, mailbox, handler)
            except Wrong as wrong:
                return self.error(Refused(400, wrong.code, wrong.message), ids)
            except Refused as refused:
                return self.error(refused, ids)

        return answer

    def note(self, request: web.Request, stage: str) -> None:
        self.house.requests.append(
            {
                "stage": stage,
                "who": request.match_info.get("who", ""),
                "prefer": request.headers.get("Prefer", ""),
                "client_request_id": request.headers.get("client-request-id", ""),
                "size": int(request.headers.get("Content-Length", "0")),
                "token": "Authorization" in request.headers,
            }
        )

    @staticmethod
    def ids(request: web.Request) -> dict[str, str]:
        return {"request-id": str(uuid4()), "client-request-id": request.headers.get("client-request-id", str(uuid4()))}

    def error(self, refused: Refused, ids: dict[str, str]) -> web.Response:
        inner = {"date": stamp(self.house.now()), **ids}
        body = {"error": {"code": refused.code, "message": refused.message, "innerError": inner}}
        headers = {name.replace("_", "-"): value for name, value in refused.headers.items()}
        return web.json_response(body, status=refused.status, headers={**ids, **headers})

    def token_of(self, request: web.Request) -> Token | None:
        return self.house.tokens.get(request.headers.get("Authorization", "").removeprefix("Bearer "))

    def _admit(self, request: web.Request, scopes: frozenset[str]) -> Mailbox:
        """The mailbox, if the token opens it. Raises `Refused`."""
        token = self.token_of(request)
        if token is None:
            raise Refused(401, "InvalidAuthenticationToken", "Access token validation failure.")
        if token.until <= self.house.now():
            raise Refused(401, "InvalidAuthenticationToken", "Lifetime validation failed, the token is expired.")
        if token.audience != GRAPH:
            raise Refused(401, "InvalidAuthenticationToken", "Access token validation failure. Invalid audience.")
        if token.user in self.house.challenged and not token.claims:
            raise self._challenge(token.user)
        who = request.match_info["who"]
        shared = who != "me" and not token.app_only
        granted = {scope.rpartition("/")[2].removesuffix(".Shared") for scope in token.scopes}
        if not granted & scopes or (shared and not any(scope.endswith(".Shared") for scope in token.scopes)):
            raise Refused(403, "ErrorAccessDenied", "Access is denied. Check credentials and try again.")
        if who == "me" and token.app_only:
            raise Refused(400, "BadRequest", "/me request is only valid with delegated authentication flow.")
        return self._mailbox(token, who)

    def _mailbox(self, token: Token, who: str) -> Mailbox:
        address = token.user if who == "me" else unquote(who.removeprefix("users/"))
        policy = self.house.clients[token.client_id].policy if token.client_id in self.house.clients else None
        if token.app_only and policy is not None and address.casefold() not in policy:
            message = (
                "Access to OData is disabled: [RAOP] : Blocked by tenant configured AppOnly AccessPolicy settings."
            )
            raise Refused(403, "ErrorAccessDenied", message)
        mailbox = self.house.mailbox(address)
        if mailbox is None:
            raise Refused(404, "MailboxNotEnabledForRESTAPI",
                          "The mailbox is either inactive, soft-deleted, or is hosted on-premise.")  # fmt: skip
        return mailbox

    def _challenge(self, user: str) -> Refused:
        said = f'Bearer realm="", error="insufficient_claims", claims="{self.house.claims_of(user)}"'
        message = "Continuous access evaluation resulted in challenge with result: InteractionRequired."
        return Refused(401, "InvalidAuthenticationToken", message, WWW_Authenticate=said)

    async def _in_turn(self, request: web.Request, mailbox: Mailbox, handler: Handler) -> web.Response:
        """At most four at once for one mailbox, and no body beyond what Graph takes."""
        if mailbox.busy >= self.house.limits.at_once:
            message = "Application is over its MailboxConcurrency limit."
            raise Refused(429, "ApplicationThrottled", message, Retry_After="1")
        if int(request.headers.get("Content-Length", "0")) > self.house.limits.body:
            await request.read()
            raise Refused(413, "RequestEntityTooLarge", "The request body is too large: the maximum is 4 MB.")
        mailbox.busy += 1
        try:
            answer = await handler(request, mailbox)
        finally:
            mailbox.busy -= 1
        answer.headers.update(self.ids(request))
        return answer
