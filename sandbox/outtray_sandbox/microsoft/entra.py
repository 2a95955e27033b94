"""The fake Entra: consent, tokens, device codes, and errors in the shapes of the real one.

    GET  /{tenant}/v2.0/.well-known/openid-configuration     what msal asks first
    GET  /{tenant}/oauth2/v2.0/authorize                     redirects at once with a code, or as `house.deny` says
    POST /{tenant}/oauth2/v2.0/devicecode
    POST /{tenant}/oauth2/v2.0/token                         code (PKCE), refresh token, client credentials, device code

(learn.microsoft.com/entra/identity-platform: v2-oauth2-auth-code-flow, -client-creds-grant-flow, -device-code,
reference-error-codes, refresh-tokens; 2026-11). Every use of a refresh token brings a new one; the old one lives on
unless `strict_rotation` says otherwise.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from uuid import uuid4

from aiohttp import web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509 import load_pem_x509_certificate

from outtray_sandbox.microsoft.house import GRAPH, Client, MicrosoftHouse, Refreshing
from outtray_sandbox.web import Route

if TYPE_CHECKING:
    from outtray_sandbox.microsoft.server import MicrosoftServer

RESERVED = {"openid", "profile", "email", "offline_access"}
CODE_LIVES = 600.0
DEVICE_LIVES = 900.0
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class Denied(Exception):
    """An error of the token endpoint."""

    def __init__(self, error: str, number: int, text: str, status: int = 400, **more: Any) -> None:
        super().__init__(error)
        self.error, self.number, self.text, self.status, self.more = error, number, text, status, more


def routes(server: MicrosoftServer) -> Iterable[Route]:
    entra = Entra(server)
    base = "/{tenant}"
    yield Route("GET", f"{base}/v2.0/.well-known/openid-configuration", "openid", entra.openid)
    yield Route("GET", f"{base}/discovery/instance", "instance", entra.instance)
    yield Route("GET", f"{base}/discovery/v2.0/keys", "keys", entra.keys)
    yield Route("GET", f"{base}/oauth2/v2.0/authorize", "authorize", entra.authorize)
    yield Route("POST", f"{base}/oauth2/v2.0/devicecode", "devicecode", entra.device)
    yield Route("POST", f"{base}/oauth2/v2.0/token", "token", entra.token)


class Entra:
    def __init__(self, server: MicrosoftServer) -> None:
        self._server = server

    @property
    def house(self) -> MicrosoftHouse:
        return self._server.house

    @cached_property
    def _key(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)

    # ── what a client asks first ────────────────────────────────────────────────────────────────────────────────

    async def openid(self, request: web.Request) -> web.Response:
        base = f"{request.scheme}://{request.host}/{request.match_info['tenant']}"
        return web.json_response(
            {
                "issuer": f"{base}/v2.0",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
                "jwks_uri": f"{base}/discovery/v2.0/keys",
                "response_modes_supported": ["query", "fragment", "form_post"],
                "id_token_signing_alg_values_supported": ["RS256"],
                "tenant_region_scope": "EU",
                "cloud_instance_name": "microsoftonline.com",
            }
        )

    async def instance(self, request: web.Request) -> web.Response:
        base = f"{request.scheme}://{request.host}/{request.match_info['tenant']}"
        endpoint = f"{base}/v2.0/.well-known/openid-configuration"
        return web.json_response({"tenant_discovery_endpoint": endpoint, "api-version": "1.1", "metadata": []})

    async def keys(self, request: web.Request) -> web.Response:
        numbers = self._key.public_key().public_numbers()
        key = {"kty": "RSA", "use": "sig", "kid": "sandbox", "n": _number(numbers.n), "e": _number(numbers.e)}
        return web.json_response({"keys": [key]})

    # ── consent ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def authorize(self, request: web.Request) -> web.StreamResponse:
        """The owner is asked, and answers at once."""
        asked = request.query
        target = asked.get("redirect_uri", "")
        client = self.house.clients.get(asked.get("client_id", ""))
        if client is None or not target:
            raise web.HTTPBadRequest(text="AADSTS700016: Application was not found in the directory.")
        answer = {"state": asked.get("state", "")}
        if self.house.deny:
            text = "AADSTS65004: User declined to consent to access the app."
            answer |= {"error": self.house.deny, "error_description": text}
        else:
            answer |= {"code": self._code(client, asked), "session_state": uuid4().hex}
        return _back(target, answer, asked.get("response_mode", "query"))

    def _code(self, client: Client, asked: Mapping[str, str]) -> str:
        user = (asked.get("login_hint") or self.house.next_user or next(iter(self.house.mailboxes), "")).casefold()
        scopes = set(asked.get("scope", "").split()) - self.house.untick
        self.house.consents[user] |= {_short(scope) for scope in scopes}
        code = secrets.token_urlsafe(40)
        self.house.codes[code] = {
            "client_id": client.client_id,
            "redirect_uri": asked.get("redirect_uri"),
            "challenge": asked.get("code_challenge"),
            "method": asked.get("code_challenge_method", "plain"),
            "nonce": asked.get("nonce"),
            "user": user,
            "scopes": scopes,
            "until": self.house.now() + CODE_LIVES,
        }
        return code

    async def device(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        if form.get("client_id") not in self.house.clients:
            return self._denied(Denied("unauthorized_client", 700016, "Application was not found in the directory."))
        code, shown = secrets.token_urlsafe(32), secrets.token_hex(4).upper()
        self.house.devices[code] = {
            "user_code": shown,
            "user": None,
            "client_id": form["client_id"],
            "scopes": set(form.get("scope", "").split()),
            "until": self.house.now() + DEVICE_LIVES,
        }
        where = f"{request.scheme}://{request.host}/device"
        return web.json_response(
            {
                "device_code": code,
                "user_code": shown,
                "verification_uri": where,
                "expires_in": int(DEVICE_LIVES),
                "interval": 1,
                "message": f"To sign in, open the page {where} and enter the code {shown} to authenticate.",
            }
        )

    # ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def token(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        grants = {
            "authorization_code": self._by_code,
            "refresh_token": self._by_refresh,
            "client_credentials": self._by_credentials,
            DEVICE: self._by_device,
            "device_code": self._by_device,
        }
        try:
            grant = grants.get(form.get("grant_type", ""))
            if grant is None:
                raise Denied("unsupported_grant_type", 70003, "The app requested an unsupported grant type.")
            return web.json_response(grant(request, form))
        except Denied as denied:
            return self._denied(denied)

    def _denied(self, denied: Denied) -> web.Response:
        trace, correlation = str(uuid4()), str(uuid4())
        now = "2026-11-21 12:00:00Z"
        text = f"AADSTS{denied.number}: {denied.text} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {now}"
        body = {
            "error": denied.error,
            "error_description": text,
            "error_codes": [denied.number],
            "timestamp": now,
            "trace_id": trace,
            "correlation_id": correlation,
            "error_uri": f"https://login.microsoftonline.com/error?code={denied.number}",
            **denied.more,
        }
        return web.json_response(body, status=denied.status)

    def _client(self, request: web.Request, form: Mapping[str, str], confidential: bool = False) -> Client:
        """The application, once it has proved to be it. Raises `Denied`."""
        client = self.house.clients.get(form.get("client_id", ""))
        if client is None:
            text = f"Application with identifier '{form.get('client_id')}' was not found in the directory."
            raise Denied("unauthorized_client", 700016, text)
        if client.secret is None and client.certificate is None:
            if confidential:
                raise Denied(
                    "invalid_client", 7000218, "The request body must contain client_assertion or secret.", 401
                )
            return client
        if "client_assertion" in form:
            self._check_assertion(request, client, form)
        elif client.secret is None or form.get("client_secret") != client.secret:
            text = "Invalid client secret provided. Ensure the secret being sent is the client secret value."
            raise Denied("invalid_client", 7000215, text, 401)
        elif client.secret_expired:
            raise Denied("invalid_client", 7000222, "The provided client secret keys are expired.", 401)
        return client

    def _check_assertion(self, request: web.Request, client: Client, form: Mapping[str, str]) -> None:
        """A JWT that the certificate's key signed, for this endpoint. Raises `Denied`."""
        wrong = Denied("invalid_client", 700027, "Client assertion failed signature validation.", 401)
        if client.certificate is None or form.get("client_assertion_type") != ASSERTION:
            raise wrong
        certificate = load_pem_x509_certificate(client.certificate)
        key = certificate.public_key()
        try:
            head, payload, signature = form["client_assertion"].split(".")
            header, claims = json.loads(_unpadded(head)), json.loads(_unpadded(payload))
            if not isinstance(key, rsa.RSAPublicKey):
                raise wrong
            scheme: Any = padding.PKCS1v15()
            if header.get("alg") == "PS256":
                scheme = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
            key.verify(_unpadded(signature), f"{head}.{payload}".encode(), scheme, hashes.SHA256())
        except (ValueError, InvalidSignature):
            raise wrong from None
        prints = {_unpadded(str(header.get(name, ""))) for name in ("x5t", "x5t#S256")}
        if not prints & {certificate.fingerprint(hashes.SHA1()), certificate.fingerprint(hashes.SHA256())}:  # noqa: S303
            raise wrong
        # msal takes no authority but https, so a client may know this sandbox by that name.
        endpoint = f"https://{request.host}{request.path}"
        if str(claims.get("aud")).replace("http://", "https://") != endpoint or claims.get("iss") != client.client_id:
            raise Denied("invalid_client", 700023, "Client assertion audience claim does not match Realm issuer.", 401)
        if float(claims.get("exp", 0)) <= self.house.now():
            raise Denied("invalid_client", 700024, "Client assertion is not within its valid time range.", 401)

    def _by_code(self, request: web.Request, form: Mapping[str, str]) -> dict[str, Any]:
        client = self._client(request, form)
        code = self.house.codes.pop(form.get("code", ""), None)
        if code is None or code["until"] <= self.house.now():
            raise Denied("invalid_grant", 70008, "The provided authorization code or refresh token has expired.")
        if code["client_id"] != client.client_id or code["redirect_uri"] != form.get("redirect_uri"):
            raise Denied("invalid_grant", 70000, "The provided value for the input parameter 'redirect_uri' is wrong.")
        if code["challenge"] is not None and not _proves(form.get("code_verifier", ""), code):
            raise Denied("invalid_grant", 501481, "The Code_Verifier does not match the code_challenge.")
        return self._delegated(client, code["user"], code["scopes"], form, code["nonce"])

    def _by_device(self, request: web.Request, form: Mapping[str, str]) -> dict[str, Any]:
        client = self._client(request, form)
        device = self.house.devices.get(form.get("device_code", ""))
        if device is None or device["until"] <= self.house.now():
            raise Denied("expired_token", 70020, "The provided value for the 'device_code' has expired.")
        if device["user"] is None:
            raise Denied("authorization_pending", 70016, "OAuth 2.0 device flow error. Authorization is pending.")
        if not device["user"]:
            raise Denied("authorization_declined", 70018, "The user declined.")
        del self.house.devices[form["device_code"]]
        self.house.consents[device["user"]] |= {_short(scope) for scope in device["scopes"]}
        return self._delegated(client, device["user"], device["scopes"], form, None)

    def _by_refresh(self, request: web.Request, form: Mapping[str, str]) -> dict[str, Any]:
        client = self._client(request, form)
        refresh = self._refreshing(client, form)
        self.house.refreshes[refresh.user] += 1
        wanted = set(form.get("scope", "").split()) or set(refresh.scopes)
        refresh.used = True
        return self._delegated(client, refresh.user, wanted, form, None)

    def _refreshing(self, client: Client, form: Mapping[str, str]) -> Refreshing:
        """A refresh token that lives. Raises `Denied`."""
        refresh = self.house.refresh_tokens.get(form.get("refresh_token", ""))
        if refresh is None or refresh.client_id != client.client_id:
            raise Denied("invalid_grant", 9002313, "Invalid request. Request is malformed or invalid.")
        if refresh.revoked:
            text = "The provided grant has expired due to it being revoked, a fresh auth token is needed."
            raise Denied("invalid_grant", 50173, text, suberror="bad_token")
        if refresh.used and self.house.strict_rotation:
            raise Denied(
                "invalid_grant", 70000, "The provided refresh token was used before.", suberror="token_expired"
            )
        return refresh

    def _by_credentials(self, request: web.Request, form: Mapping[str, str]) -> dict[str, Any]:
        client = self._client(request, form, confidential=True)
        if request.match_info["tenant"] in ("common", "organizations", "consumers"):
            raise Denied("invalid_request", 900144, "A concrete tenant is needed for client credentials.")
        scope = form.get("scope", "")
        if not scope.endswith("/.default"):
            text = f"The provided value for scope {scope} is not valid. Client credential flows need /.default."
            raise Denied("invalid_scope", 1002012, text)
        audience = scope.removesuffix("/.default")
        access = self.house.issue("", " ".join(client.roles), audience, client.client_id)
        lives = int(self.house.limits.token_lives)
        return {"token_type": "Bearer", "expires_in": lives, "ext_expires_in": lives, "access_token": access}

    def _delegated(
        self, client: Client, user: str, scopes: set[str], form: Mapping[str, str], nonce: str | None
    ) -> dict[str, Any]:
        """Tokens of one user for one audience. Raises `Denied` for a scope that was not agreed to."""
        if user not in self.house.mailboxes:
            raise Denied("invalid_grant", 50034, "The user account does not exist in the directory.")
        asked = {scope for scope in scopes if scope not in RESERVED}
        audiences = {_audience(scope) for scope in asked} or {GRAPH}
        if len(audiences) > 1:
            raise Denied("invalid_scope", 28000, "Provided value for the input parameter scope has several resources.")
        granted = {_short(scope) for scope in self.house.consents[user]}
        missing = {_short(scope) for scope in asked if _short(scope) not in {*granted, ".default"}}
        if missing:
            text = (
                f"The user or administrator has not consented to use the application for {' '.join(sorted(missing))}."
            )
            raise Denied("invalid_grant", 65001, text, suberror="consent_required")
        names = granted if any(_short(scope) == ".default" for scope in asked) else {_short(scope) for scope in asked}
        audience = audiences.pop()
        claims = _answers_challenge(form.get("claims"))
        if claims and user in self.house.challenged:
            self.house.answer_challenge(user)
        access = self.house.issue(user, " ".join(names), audience, client.client_id, claims)
        lives = int(self.house.limits.token_lives)
        told: dict[str, Any] = {
            "token_type": "Bearer",
            "scope": " ".join(sorted(f"{audience}/{name}" if audience != GRAPH else name for name in names)),
            "expires_in": lives,
            "ext_expires_in": lives,
            "access_token": access,
        }
        told["refresh_token"] = self.house.issue_refresh(user, client.client_id, frozenset(scopes))
        told["id_token"] = self._id_token(client, user, nonce, form)
        told["client_info"] = _packed({"uid": hashlib.sha256(user.encode()).hexdigest()[:32], "utid": "sandbox"})
        return told

    def _id_token(self, client: Client, user: str, nonce: str | None, form: Mapping[str, str]) -> str:
        now = int(self.house.now())
        claims: dict[str, Any] = {
            "aud": client.client_id, "iss": f"{self._server.url}/sandbox/v2.0", "iat": now, "nbf": now,
            "exp": now + 3600, "sub": hashlib.sha256(f"{user}{client.client_id}".encode()).hexdigest(),
            "oid": hashlib.sha256(user.encode()).hexdigest()[:32], "tid": "sandbox", "ver": "2.0",
            "preferred_username": self.house.mailboxes[user].address, "email": self.house.mailboxes[user].address,
            **({"nonce": nonce} if nonce else {}),
        }  # fmt: skip
        said = f"{_packed({'typ': 'JWT', 'alg': 'RS256', 'kid': 'sandbox'})}.{_packed(claims)}"
        signature = self._key.sign(said.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{said}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def _back(target: str, answer: Mapping[str, str], mode: str) -> web.StreamResponse:
    if mode == "form_post":
        fields = "".join(f'<input type="hidden" name="{name}" value="{value}">' for name, value in answer.items())
        page = f'<form method="post" action="{target}">{fields}</form><script>document.forms[0].submit()</script>'
        return web.Response(text=page, content_type="text/html")
    mark = "&" if "?" in target else "?"
    raise web.HTTPFound(f"{target}{mark}{urlencode(answer)}")


def _answers_challenge(claims: str | None) -> bool:
    """Whether the claims of a request are those of a challenge, not merely what the client says it understands."""
    try:
        return "nbf" in json.loads(claims or "{}").get("access_token", {})
    except (ValueError, AttributeError):
        return False


def _short(scope: str) -> str:
    """A scope without its resource."""
    return scope.rpartition("/")[2]


def _audience(scope: str) -> str:
    resource = scope.rpartition("/")[0]
    return resource or GRAPH


def _proves(verifier: str, code: Mapping[str, Any]) -> bool:
    if code["method"] == "S256":
        hashed = hashlib.sha256(verifier.encode()).digest()
        return bool(base64.urlsafe_b64encode(hashed).decode().rstrip("=") == code["challenge"])
    return bool(verifier == code["challenge"])


def _packed(claims: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _number(value: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes((value.bit_length() + 7) // 8, "big")).decode().rstrip("=")
