"""Messages sealed for a deployment by its public key: whoever seals needs no secret, and only it can open them.

HPKE in its base mode (RFC 9180), by `cryptography`: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. What is
sealed is JSON, `{field: value}` as `outtray send --file` takes it; `info` binds it to one app, so that a payload for
one opens in no other's queue. The text is base64 of version (1 byte, 1), the encapsulated key (32) and the ciphertext.

The private key follows from the index key, which every process of the deployment has and which is never rotated: so
there is no further secret to make, hand out or lose. Whoever has the key file can open what is sealed, and all content.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from outtray_schema.errors import CannotOpen

VERSION = b"\x01"
PREFIX = "outtray1:"
"""What a public key begins with, so that nobody takes something else for one."""

MOST = 16 * 1024 * 1024
"""Characters of a sealed message: they pass through Redis, whole. Larger files go by the API or the client."""

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def seal(public_key: str, fields: Mapping[str, Any], app: str = "default") -> str:
    """A message for the task `outtray.enqueue`. Raises `ValueError`: no public key, no JSON, or too large."""
    try:
        data = json.dumps(dict(fields), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"the fields must be JSON, files as base64 in content: {error}") from None
    text = base64.b64encode(VERSION + _SUITE.encrypt(data, _public(public_key), _info(app))).decode()
    if len(text) > MOST:
        raise ValueError(f"sealed it has {len(text)} characters; at most {MOST}: give large files to the client itself")
    return text


def unseal(private_key: X25519PrivateKey, text: object, app: str) -> dict[str, Any]:
    """The fields of a sealed message. Raises `CannotOpen` for anything else, without a word of what it holds."""
    if not isinstance(text, str) or len(text) > MOST:
        raise CannotOpen("payload", "it is no text, or too long")
    try:
        sealed = base64.b64decode(text, validate=True)
        if sealed[:1] != VERSION:
            raise CannotOpen("payload", "it is of another version")
        fields = json.loads(_SUITE.decrypt(sealed[1:], private_key, _info(app)))
    except (binascii.Error, ValueError, InvalidTag, RecursionError):
        raise CannotOpen("payload", "it was not sealed with this deployment's public key, for this app") from None
    if not isinstance(fields, dict):
        raise CannotOpen("payload", "it holds no message")
    return fields


def public_text(private_key: X25519PrivateKey) -> str:
    """The public key as apps are given it."""
    return PREFIX + base64.urlsafe_b64encode(private_key.public_key().public_bytes_raw()).decode()


def _public(text: str) -> X25519PublicKey:
    try:
        if not text.startswith(PREFIX):
            raise ValueError(text)
        return X25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(text.removeprefix(PREFIX)))
    except (ValueError, binascii.Error):
        raise ValueError(f"this is no public key; `outtray keys public` shows it: {PREFIX}…") from None


def _info(app: str) -> bytes:
    return f"outtray.enqueue:{app}".encode()
