"""A person's consent, for the command line: in a browser on this machine, or by a code on any other (Microsoft).

    begin   a URL with PKCE, a state and a nonce, all made for this one login
    wait    the loopback page takes the answer; the state must be ours
    redeem  the code becomes tokens; which scopes were granted is read from the answer, since people can untick

Nothing is stored here. Blocks: for a process of its own, with nothing else to do.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlencode

import msal
import psycopg
from psycopg.rows import class_row

from outtray_schema.consent import Consented, Issuer
from outtray_schema.database import connect_options, conninfo
from outtray_schema.errors import NotFound, Problem, Refused, Unavailable
from outtray_schema.settings import Settings
from outtray_schema.vault import load_vault
from outtray_worker.auth.answers import read
from outtray_worker.auth.apps import READ, ProviderApp
from outtray_worker.auth.grant import Client
from outtray_worker.auth.loopback import Loopback
from outtray_worker.auth.microsoft import KeepsNothing, build
from outtray_worker.auth.wire import Answered, MsalHttp, NoAnswer, Wire, in_form, token_or_raise
from outtray_worker.deadline import Deadline

ENOUGH = 300.0
"""Seconds that a person has to log in and consent."""

Say = Callable[[str], None]
Open = Callable[[str], object]


class Login(Protocol):
    """One login under way."""

    url: str
    state: str

    def redeem(self, answer: Mapping[str, str]) -> Consented:
        """The tokens for the answer's code. Raises `Answered`, `NoAnswer`, `Refused`."""
        ...


def obtain(
    settings: Settings,
    issuer: Issuer,
    provider_app: str,
    scopes: Sequence[str],
    *,
    device: bool = False,
    hint: str | None = None,
    say: Say,
    show: Open,
    seconds: float = ENOUGH,
) -> Consented:
    """Ask a person for their consent. `say` tells them what to do, `show` opens a page in their browser.

    Raises `Refused` if they decline or are too late, `NotFound`, `Unavailable`.
    """
    client = read_client(settings, provider_app)
    wire = Wire(1)
    try:
        if device:
            return by_device(settings, wire, client, scopes, say)
        return by_browser(settings, wire, issuer, client, scopes, hint, show, seconds)
    except Answered as answered:
        evidence = read(answered).evidence
        codes = " ".join(str(evidence[name]) for name in ("error", "codes") if evidence.get(name))
        raise _refused(f"the provider gave no token for it ({codes or answered.status})") from None
    except NoAnswer as silence:
        raise Unavailable(f"the provider's login does not answer ({silence}); try again later") from None
    finally:
        wire.close()


def by_browser(
    settings: Settings,
    wire: Wire,
    issuer: Issuer,
    client: Client,
    scopes: Sequence[str],
    hint: str | None,
    show: Open,
    seconds: float,
) -> Consented:
    """Authorization code with PKCE, to a loopback address (RFC 8252)."""
    state = secrets.token_urlsafe(32)
    with Loopback(state) as loopback:
        parts = (settings, wire, client, scopes, loopback.port, state, hint)
        login: Login = GoogleLogin(*parts) if issuer == "google" else EntraLogin(*parts)
        show(login.url)
        try:
            answer = loopback.wait(seconds)
        except TimeoutError:
            raise _refused(f"nobody consented within {seconds:g} s; start again") from None
        try:
            consented = login.redeem(answer)
        except BaseException:
            loopback.show(False, "The consent was not given, or could not be used. The terminal says more.")
            raise
        loopback.show(True, "The mailbox can be used by Outtray now.")
        return consented


class GoogleLogin:
    """Google's side, by its own documents (OAuth for desktop apps, 2026-11): offline, and asked for anew each time."""

    def __init__(
        self,
        settings: Settings,
        wire: Wire,
        client: Client,
        scopes: Sequence[str],
        port: int,
        state: str,
        hint: str | None,
    ) -> None:
        self._settings, self._wire, self._client = settings, wire, client
        self._verifier = secrets.token_urlsafe(64)
        self._nonce = secrets.token_urlsafe(16)
        self._back = f"http://127.0.0.1:{port}"
        self.state = state
        asked = {
            "client_id": client.client_id, "redirect_uri": self._back, "response_type": "code",
            "scope": " ".join([*scopes, "openid", "email"]), "state": state, "nonce": self._nonce,
            "code_challenge": challenge(self._verifier), "code_challenge_method": "S256",
            # Without these two a second consent brings no refresh token (docs "web-server", 2026-11).
            "access_type": "offline", "prompt": "consent", "include_granted_scopes": "true",
        } | ({"login_hint": hint} if hint else {})  # fmt: skip
        self.url = f"{settings.google_auth_url}?{urlencode(asked)}"

    def redeem(self, answer: Mapping[str, str]) -> Consented:
        if "code" not in answer:
            raise _declined(answer)
        form = {
            "grant_type": "authorization_code", "code": answer["code"], "redirect_uri": self._back,
            "client_id": self._client.client_id, "client_secret": self._client.secret or "",
            "code_verifier": self._verifier,
        }  # fmt: skip
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        with self._wire.until(Deadline.after(self._settings.token_timeout)):
            reply = self._wire.ask("POST", self._settings.google_token_url, headers, urlencode(form).encode())
        said = json.loads(token_or_raise(reply).data)
        claims = claims_of(said.get("id_token"), self._client.client_id, self._nonce)
        scopes = frozenset(str(said.get("scope") or "").split())
        return _consented(said.get("refresh_token"), scopes, claims.get("email"), None)


class EntraLogin:
    """Microsoft's side, by msal, which makes and checks PKCE, state and nonce itself."""

    def __init__(
        self,
        settings: Settings,
        wire: Wire,
        client: Client,
        scopes: Sequence[str],
        port: int,
        state: str,
        hint: str | None,
    ) -> None:
        place = settings.entra_url
        http = MsalHttp(wire, place, patience=settings.token_timeout)
        self._app = build(client, client.tenant or "common", place, http)
        with warnings.catch_warnings():
            # msal advises form_post; an answer to a loopback address comes as a query (RFC 8252 7.3).
            warnings.simplefilter("ignore", UserWarning)
            # `localhost`, not an address: Entra lets only that have any port (redirect URI restrictions, 2026-11).
            self._flow = self._app.initiate_auth_code_flow(
                list(scopes),
                redirect_uri=f"http://localhost:{port}",
                state=state,
                login_hint=hint,
                prompt="select_account",
            )
        self.state = state
        self.url = self._flow["auth_uri"].replace(in_form(place), place.rstrip("/"), 1)

    def redeem(self, answer: Mapping[str, str]) -> Consented:
        if "code" not in answer:
            raise _declined(answer)
        try:
            found = self._app.acquire_token_by_auth_code_flow(self._flow, dict(answer))
        except (ValueError, RuntimeError):
            raise _refused("the provider's answer is not one to this login; start again") from None
        return _of_entra(found)


def by_device(settings: Settings, wire: Wire, client: Client, scopes: Sequence[str], say: Say) -> Consented:
    """A code that is typed in on any other machine (RFC 8628). The client must allow public client flows."""
    place = settings.entra_url
    app = msal.PublicClientApplication(
        client.client_id, authority=f"{in_form(place)}/{client.tenant or 'common'}", token_cache=KeepsNothing(),
        http_client=MsalHttp(wire, place, raising=False, patience=settings.token_timeout), instance_discovery=False,
    )  # fmt: skip
    flow = app.initiate_device_flow(list(scopes))
    if "user_code" not in flow:
        raise _refused(f"the provider gives this client no device code ({_word(flow.get('error'))})")
    say(f"Open {flow['verification_uri']} in any browser and enter the code {flow['user_code']}")
    found = app.acquire_token_by_device_flow(flow)
    if "access_token" not in found:
        raise _refused(f"the code was not used, or the consent not given ({_word(found.get('error'))})")
    return _of_entra(found)


def read_client(settings: Settings, name: str) -> Client:
    """The OAuth client of that name, opened. Raises `NotFound`, `Unavailable`, and what the vault raises."""
    try:
        with psycopg.connect(conninfo(settings), autocommit=True, **connect_options(settings, "cli")) as connection:
            app = connection.cursor(row_factory=class_row(ProviderApp)).execute(READ, {"name": name}).fetchone()
    except psycopg.OperationalError:
        raise Unavailable("PostgreSQL does not answer; try again later") from None
    if app is None:
        raise NotFound(f"there is no provider app {name!r}; see `outtray provider-app list`")
    return app.client(load_vault(settings))


def challenge(verifier: str) -> str:
    """PKCE's S256 (RFC 7636 4.2)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def claims_of(id_token: Any, audience: str, nonce: str) -> Mapping[str, Any]:
    """Who logged in. The token came straight from the endpoint over TLS, which stands for its signature (OIDC 3.1.3.7).

    Empty if there is none; raises `Refused` if it is for another client or another login.
    """
    if not isinstance(id_token, str):
        return {}
    try:
        payload = id_token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, binascii.Error):
        return {}
    if claims.get("aud") != audience or claims.get("nonce") != nonce or float(claims.get("exp") or 0) < time.time():
        raise _refused("the provider's answer is not one to this login; start again")
    found: Mapping[str, Any] = claims
    return found


def _of_entra(found: Mapping[str, Any]) -> Consented:
    claims = found.get("id_token_claims") or {}
    address = claims.get("email") or claims.get("preferred_username")
    return _consented(
        found.get("refresh_token"), frozenset(str(found.get("scope") or "").split()), address, claims.get("tid")
    )


def _consented(refresh_token: Any, scopes: frozenset[str], address: Any, tenant: Any) -> Consented:
    if not isinstance(refresh_token, str) or not refresh_token:
        raise _refused("the provider gave no refresh token, so nothing could be sent later; start again")
    known = str(address) if isinstance(address, str) and "@" in address else None
    return Consented(refresh_token, scopes, known, str(tenant) if tenant else None)


def _declined(answer: Mapping[str, str]) -> Refused:
    return _refused(f"it was not given: {_word(answer.get('error'))}")


def _refused(reason: str) -> Refused:
    return Refused(Problem("consent", reason))


def _word(value: Any) -> str:
    """An error's name if it is one: whatever else came may quote anything."""
    return (
        value if isinstance(value, str) and value.replace("_", "").isalnum() and len(value) < 50 else "no reason given"
    )
