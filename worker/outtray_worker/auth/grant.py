"""What goes into a refresh and what comes out. None of it is ever shown: the secrets are out of every repr."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Client:
    """An OAuth client, opened: what Google and Entra know us by."""

    client_id: str
    secret: str | None = field(repr=False)
    """Client secret, a certificate's JSON, or a service account's; None for a public client."""
    secret_version: int
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """A successful refresh. `lifetime` is in seconds from the answer; `scopes` is empty where the answer names none."""

    access: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    lifetime: float
    scopes: frozenset[str]


class Unusable(Exception):
    """The stored client cannot even be tried: its key or certificate is none. The text says so, without it."""
