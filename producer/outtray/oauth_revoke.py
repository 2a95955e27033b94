"""Revocation at Google: one request, by the standard library: a CRM that only enqueues installs nothing for it."""

from __future__ import annotations

import json
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from outtray_schema.errors import Unavailable, WrongState
from outtray_schema.settings import Settings


def revoke_at_google(settings: Settings, refresh_token: str) -> None:
    """End all that this person granted to this project. A token that Google no longer knows is as good as revoked.

    Raises `Unavailable` if Google does not answer, `WrongState` if it refuses. No error shows the token.
    """
    body = urlencode({"token": refresh_token}).encode()
    request = Request(settings.google_revoke_url, data=body, method="POST")  # noqa: S310 - settings allow https, or loopback
    try:
        with urlopen(request, timeout=settings.token_timeout.total_seconds()) as answer:  # noqa: S310
            answer.read(65536)
    except HTTPError as error:
        if error.code == 400 and _error(error.read(65536)) == "invalid_token":
            return
        if error.code in (408, 429) or error.code >= 500:
            raise Unavailable(f"Google has trouble of its own ({error.code}); try again later") from None
        raise WrongState(
            f"Google refuses to revoke this consent ({error.code}); disconnect the mailbox instead"
        ) from None
    except (URLError, OSError) as error:
        raise Unavailable(f"Google does not answer ({type(error).__name__}); nothing was changed") from None


def _error(body: bytes) -> str:
    try:
        found = json.loads(body)
    except ValueError:
        return ""
    return str(found.get("error")) if isinstance(found, dict) else ""
