"""A claimed mailbox, opened: its address and credentials decrypted for its provider."""

from __future__ import annotations

import json

from outtray_schema.vault import Vault
from outtray_worker.claim import ClaimedMailbox
from outtray_worker.providers import Account


def open_account(vault: Vault, box: ClaimedMailbox) -> Account:
    """Raises what the vault raises, should a key be missing."""
    address = json.loads(vault.addresses.decrypt(box.address, f"mailbox.address:{box.id}"))
    credentials = {}
    if box.credentials is not None:
        sealed = vault.credentials.decrypt(box.credentials, f"mailbox.credentials:{box.id}:{box.credentials_version}")
        credentials = json.loads(sealed)
    return Account(box.id, box.host, box.server, address["address"], credentials)
