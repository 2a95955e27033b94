"""A mailbox, opened: its address and credentials decrypted for its provider."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

from outtray_schema import bindings
from outtray_schema.consent import SMTP_AUDIENCE
from outtray_schema.vault import Vault
from outtray_worker.auth.logins import LoginGuard
from outtray_worker.auth.tokens import Auth, MailboxTokens
from outtray_worker.providers import Account

PASSWORD = "password"  # noqa: S105 - a kind of credentials, and what those without a kind are


class SealedMailbox(Protocol):
    """The columns of a mailbox's row that its account is made of, whoever read them."""

    credentials_version: int

    @property
    def id(self) -> UUID: ...
    @property
    def provider(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def server(self) -> Mapping[str, Any]: ...
    @property
    def address(self) -> bytes: ...
    @property
    def credentials(self) -> bytes | None: ...
    @property
    def scopes(self) -> Sequence[str]: ...


def open_account(vault: Vault, box: SealedMailbox, auth: Auth) -> Account:
    """Raises what the vault raises, should a key be missing.

    A mailbox that logs in by consent gets its tokens from `auth`; its refresh token stays there, and only the user's
    name for SMTP goes on.
    """
    address = json.loads(vault.addresses.decrypt(box.address, bindings.mailbox_address(box.id)))
    credentials = {}
    if box.credentials is not None:
        sealed = vault.credentials.decrypt(box.credentials, bindings.credentials(box.id, box.credentials_version))
        credentials = json.loads(sealed)
    by_password = credentials.get("kind", PASSWORD) == PASSWORD
    logins = _logins(box, auth, by_password) if box.provider == "smtp" else None
    if by_password:
        scopes = frozenset(box.scopes)
        return Account(box.id, box.host, box.server, address["address"], credentials, scopes, logins=logins)
    tokens = MailboxTokens(auth, box, SMTP_AUDIENCE if box.provider == "smtp" else "")
    named = {"username": credentials.get("username") or address["address"]}
    return Account(box.id, box.host, box.server, address["address"], named, frozenset(box.scopes), tokens, logins)


def _logins(box: SealedMailbox, auth: Auth, by_password: bool) -> LoginGuard:
    """Credentials by consent get a new version at each refresh, which says nothing about them."""
    version = box.credentials_version if by_password else 0
    return LoginGuard(auth.connection, box.id, version, getattr(box, "logins_are_clean", False))
