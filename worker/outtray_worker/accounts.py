"""A mailbox, opened: its address and credentials decrypted for its provider."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol
from uuid import UUID

from outtray_schema import bindings
from outtray_schema.vault import Vault
from outtray_worker.providers import Account


class SealedMailbox(Protocol):
    """The columns of a mailbox's row that its account is made of, whoever read them."""

    @property
    def id(self) -> UUID: ...
    @property
    def host(self) -> str: ...
    @property
    def server(self) -> Mapping[str, Any]: ...
    @property
    def address(self) -> bytes: ...
    @property
    def credentials(self) -> bytes | None: ...
    @property
    def credentials_version(self) -> int: ...


def open_account(vault: Vault, box: SealedMailbox) -> Account:
    """Raises what the vault raises, should a key be missing."""
    address = json.loads(vault.addresses.decrypt(box.address, bindings.mailbox_address(box.id)))
    credentials = {}
    if box.credentials is not None:
        sealed = vault.credentials.decrypt(box.credentials, bindings.credentials(box.id, box.credentials_version))
        credentials = json.loads(sealed)
    return Account(box.id, box.host, box.server, address["address"], credentials)
