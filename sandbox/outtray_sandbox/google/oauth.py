"""Google's consent page, token, revocation and userinfo endpoints over HTTP."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Iterable
from urllib.parse import unquote, urlencode, urlsplit

from aiohttp import web

from outtray_sandbox.google.errors import OAuthRefusal, unauthenticated
from outtray_sandbox.google.house import GoogleHouse
from outtray_sandbox.google.tokens import Client, Code, subject_of
from outtray_sandbox.web import Route

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


class OAuth:
    """The endpoints of one house. `audience` is what a service account's assertion must be addressed to."""

    def __init__(self, house: GoogleHouse, audience: Callable[[], str]) -> None:
        self.house = house
        self.audience = audience

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/o/oauth2/v2/auth", "consent", self.consent)
        yield Route("POST", "/token", "token", self.token)
        yield Route("POST", "/revoke", "revoke", self.revoke)
        yield Route("GET", "/v1/userinfo", "userinfo", self.userinfo)
        yield Route("GET", "/oauth2/v3/userinfo", "userinfo.v3", self.userinfo)
        yield Route("GET", "/oauth2/v3/certs", "certs", self.certs)

    # ── consent ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def consent(self, request: web.Request) -> web.StreamResponse:
        """Agree at once, as `script_consent` says, and send the browser back."""
        asked = request.query
        client = self.house.tokens.clients.get(asked.get("client_id", ""))
        redirect = asked.get("redirect_uri", "")
        if client is None or client.broken:
            return _error_page("invalid_client", "The OAuth client was not found.")
        if not _may_return(client, redirect):
            return _error_page("redirect_uri_mismatch", "The redirect URI in the request does not match.")
        if asked.get("response_type") != "code" or not asked.get("scope"):
            return _error_page("invalid_request", "Missing required parameter: scope or response_type")
        if asked.get("code_challenge") and asked.get("code_challenge_method") != "S256":
            return _error_page("invalid_request", "code_challenge_method must be S256 here")
        answer = {"error": "access_denied"} if self.house.consent.get("deny") else self._code(client, request)
        back = {**answer, **({"state": asked["state"]} if "state" in asked else {})}
        raise web.HTTPFound(f"{redirect}{'&' if urlsplit(redirect).query else '?'}{urlencode(back)}")

    def _code(self, client: Client, request: web.Request) -> dict[str, str]:
        asked, script = request.query, self.house.consent
        email = script.get("user") or asked.get("login_hint") or next(iter(self.house.users))
        granted = tuple(each for each in asked["scope"].split() if each not in script.get("untick", ()))
        first = not any(held.email == email and held.client == client.id for held in self.house.tokens.refresh.values())
        code = f"4/{secrets.token_urlsafe(48)}"
        self.house.tokens.codes[code] = Code(
            client.id,
            email,
            granted,
            asked["redirect_uri"],
            asked.get("code_challenge"),
            # Without prompt=consent a second consent brings no refresh token (docs "web-server", 2026-11).
            asked.get("access_type") == "offline" and (first or "consent" in asked.get("prompt", "")),
            asked.get("nonce"),
        )
        return {"code": code, "scope": " ".join(granted)}

    # ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def token(self, request: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        tokens = self.house.tokens
        if form.get("grant_type") == JWT_BEARER:
            return web.json_response(tokens.by_assertion(form.get("assertion", ""), self.audience(), self.house.users))
        client = tokens.client_of(*_client_in(request, form))
        match form.get("grant_type"):
            case "authorization_code":
                said = tokens.by_code(
                    client, form.get("code", ""), form.get("redirect_uri", ""), form.get("code_verifier")
                )
            case "refresh_token":
                self.house.seen["refresh"] += 1
                said = tokens.by_refresh(client, form.get("refresh_token", ""), form.get("scope"))
            case other:
                raise OAuthRefusal("unsupported_grant_type", f"Invalid grant_type: {other}")
        return web.json_response(said)

    async def revoke(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        self.house.tokens.revoke(str(form.get("token") or request.query.get("token", "")))
        return web.json_response({})

    # ── who ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def userinfo(self, request: web.Request) -> web.StreamResponse:
        holder = self.house.tokens.holder(bearer(request))
        if holder is None:
            raise unauthenticated()
        said: dict[str, str | bool] = {"sub": subject_of(holder.email)}
        if {"email", "https://www.googleapis.com/auth/userinfo.email"} & set(holder.scopes):
            said |= {"email": holder.email, "email_verified": True}
        return web.json_response(said)

    async def certs(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self.house.tokens.certs())


def bearer(request: web.Request) -> str:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _client_in(request: web.Request, form: dict[str, str]) -> tuple[str, str | None]:
    kind, _, sealed = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() == "basic":
        try:
            client, _, secret = base64.b64decode(sealed).decode().partition(":")
        except ValueError:
            raise OAuthRefusal("invalid_client", "Unauthorized", 401) from None
        return unquote(client), unquote(secret)
    if not form.get("client_id"):
        raise OAuthRefusal("invalid_request", "Could not determine client ID from request.")
    # Installed apps have a secret too at Google, and it is asked for (docs "native-app", 2026-11).
    return form["client_id"], form.get("client_secret", "")


def _may_return(client: Client, redirect: str) -> bool:
    split = urlsplit(redirect)
    loopback = split.scheme == "http" and split.hostname in ("127.0.0.1", "::1", "localhost")
    return loopback or redirect in client.redirects


def _error_page(error: str, text: str) -> web.Response:
    """Google shows such errors to the person and sends nobody back."""
    return web.Response(status=400, text=f"<h1>Error 400: {error}</h1><p>{text}", content_type="text/html")
