"""Google's tokens by google-auth: a person's refresh token, or a service account that acts for its domain's people."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import UTC, datetime

from google.oauth2 import service_account
from google.oauth2.credentials import Credentials

from outtray_worker.auth.grant import Client, Grant, Unusable
from outtray_worker.auth.wire import GoogleTransport, Wire


def refresh(wire: Wire, url: str, client: Client, refresh_token: str) -> Grant:
    """A new access token for a person. Raises `Answered`, `NoAnswer`."""
    # No scopes are asked for: Google then gives all that are granted, and says which (docs, 2026-11).
    held = Credentials(
        token=None, refresh_token=refresh_token, token_uri=url, client_id=client.client_id,
        client_secret=client.secret or "",
    )  # type: ignore[no-untyped-call]  # fmt: skip
    transport = GoogleTransport(wire)
    held.refresh(transport)  # type: ignore[no-untyped-call]
    scopes = frozenset(str(transport.said.get("scope") or "").split())
    return Grant(str(held.token), held.refresh_token, _lifetime(held.expiry), scopes)


def impersonate(wire: Wire, url: str, client: Client, subject: str, scopes: Collection[str]) -> Grant:
    """A token for a person whose domain delegated to this service account. Raises also `Unusable`."""
    try:
        info = {**json.loads(client.secret or ""), "token_uri": url}
        held = service_account.Credentials.from_service_account_info(info, scopes=sorted(scopes), subject=subject)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, KeyError):
        raise Unusable("its service account key is no such key; store the JSON file as Google made it") from None
    held.refresh(GoogleTransport(wire))
    return Grant(str(held.token), None, _lifetime(held.expiry), frozenset())


def _lifetime(expiry: datetime | None) -> float:
    """Seconds from now. google-auth has expiries as naive UTC (2.62, source)."""
    return (expiry.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds() if expiry else 0.0
