"""Microsoft's tokens by msal: a person's refresh token, or an app of its own with a secret or a certificate.

msal would keep tokens and failures in memory: its token cache is one that keeps nothing, and failures go past it (see
`wire`). So a person who has just consented again is never answered with yesterday's refusal.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import msal

from outtray_worker.auth.grant import Client, Grant, Unusable
from outtray_worker.auth.wire import MsalHttp, Wire, in_form

KEPT = 256
"""Clients that are kept per process: each costs a discovery request when it is made anew."""

CAPABILITIES = {"access_token": {"xms_cc": {"values": ["cp1"]}}}
"""That a claims challenge is understood here. Entra then gives tokens that live for up to 28 h and are revoked by
challenge (learn.microsoft.com/entra/identity-platform/app-resilience-continuous-access-evaluation, 2026-11)."""


class KeepsNothing(msal.TokenCache):  # type: ignore[misc]
    """A token cache without a memory: tokens are kept in the database, sealed, and nowhere else."""

    def add(self, event: Any, now: Any = None) -> None:
        return None


class Entra:
    """One process's msal clients. Its methods block, for threads; they raise `Answered`, `NoAnswer`, `Unusable`."""

    def __init__(self, wire: Wire, place: str) -> None:
        self._wire = wire
        self._place = place
        self._clients: OrderedDict[tuple[str, str, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def refresh(
        self, client: Client, tenant: str, refresh_token: str, scopes: Collection[str], claims: str | None
    ) -> Grant:
        """A new access token for a person, for the one resource that these scopes belong to."""
        found = self._client(client, tenant).acquire_token_by_refresh_token(
            refresh_token, sorted(scopes), data={"claims": merged(claims)}
        )
        return _grant(found, found.get("refresh_token"))

    def for_app(self, client: Client, tenant: str, resource: str, claims: str | None) -> Grant:
        """A token of the app itself (client credentials), for all that its administrator granted on that resource."""
        found = self._client(client, tenant).acquire_token_for_client([f"{resource}/.default"], claims_challenge=claims)
        return _grant(found, None)

    def _client(self, client: Client, tenant: str) -> Any:
        key = (client.client_id, tenant, client.secret_version)
        with self._lock:
            if key in self._clients:
                self._clients.move_to_end(key)
                return self._clients[key]
        made = build(client, tenant, self._place, MsalHttp(self._wire, self._place))
        with self._lock:
            self._clients[key] = made
            while len(self._clients) > KEPT:
                self._clients.popitem(last=False)
        return made


def build(client: Client, tenant: str, place: str, http: MsalHttp) -> Any:
    """An msal client: public where there is no secret. Raises what its discovery request meets, and `Unusable`."""
    options = {
        "authority": f"{in_form(place)}/{tenant}",
        "token_cache": KeepsNothing(),
        "http_client": http,
        # The place is a setting, so it is trusted as it stands; instance discovery would ask a third one about it.
        "instance_discovery": False,
    }
    if client.secret is None:
        return msal.PublicClientApplication(client.client_id, **options)
    try:
        return msal.ConfidentialClientApplication(
            client.client_id, client_credential=credential(client.secret), **options
        )
    except (ValueError, TypeError):
        raise Unusable("its certificate or tenant cannot be used; set them anew") from None


def credential(secret: str) -> str | Mapping[str, str]:
    """A client secret as it stands, or a certificate as msal takes it.

    A certificate is a PEM text that holds both the private key and the certificate; msal finds its SHA-256 itself.
    """
    if "-----BEGIN" not in secret:
        return secret
    return {"private_key": secret, "public_certificate": secret}


def merged(claims: str | None) -> str:
    """Our capabilities, with a challenge laid over them; a challenge that is no JSON object is left out."""
    try:
        asked = json.loads(claims) if claims else {}
    except ValueError:
        asked = {}
    whole: dict[str, Any] = dict(asked) if isinstance(asked, dict) else {}
    of_token = whole.get("access_token")
    whole["access_token"] = {**(of_token if isinstance(of_token, dict) else {}), **CAPABILITIES["access_token"]}
    return json.dumps(whole)


def _grant(found: Mapping[str, Any], refresh_token: str | None) -> Grant:
    scopes = frozenset(str(found.get("scope") or "").split())
    return Grant(found["access_token"], refresh_token, float(found.get("expires_in") or 0), scopes)
