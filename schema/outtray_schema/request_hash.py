"""What an idempotency key remembers of its request: enough to name the fields that differ, and no content.

Each field that is not at its default leaves eight bytes of a keyed hash, bound to the app and the key, so that equal
fields of two messages look different to whoever reads the table. Layout: version (1 byte), a bit for each field (in 4
bytes; in 8 in version 2, for requests with a field from the 33rd on), eight bytes for each bit that is set, in
the order of `FIELDS`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

from outtray_schema.address import Address
from outtray_schema.attachment import Attachment
from outtray_schema.errors import InvalidMessage, Problem
from outtray_schema.message import Message
from outtray_schema.vault import Vault
from outtray_schema.windows import Window

FIELDS = (
    "from", "to", "cc", "bcc", "reply_to", "subject", "text", "html", "attachments", "headers", "in_reply_to",
    "references", "tags", "metadata", "priority", "send_at", "expires_at", "give_up_after", "on_unknown", "mailbox",
    "importance", "request_read_receipt", "mode", "reply_to_message", "answering", "window", "recipients",
    "follows", "after", "on_predecessor", "thread", "raw", "invitation", "unsubscribe_url", "unsubscribe_mailto",
)  # fmt: skip
"""Stored by position: a new field is appended, none is ever moved or removed."""

_NAMES = {"from": "from_", "recipients": "recipient_policy"}
"""Fields whose attribute has another name."""

_BITS = {1: 4, 2: 8}
"""Bytes of bits in each version."""
_DIGEST = 8


def request_hash(vault: Vault, app_id: UUID, message: Message) -> bytes:
    """What is stored of the request beside its idempotency key; constant for a message that has none.

    Raises `InvalidMessage` if an attachment's file cannot be read any more.
    """
    if message.idempotency_key is None:
        return _packed({})
    key = vault.keyed_hash(app_id, "request.key", message.idempotency_key.encode())
    return _packed(
        {
            field: vault.keyed_hash(app_id, f"request.{field}", key + data)[:_DIGEST]
            for field, data in canonical(message).items()
        }
    )


def differing_fields(stored: bytes, new: bytes) -> list[str]:
    """The fields in which two requests under one idempotency key differ, in the order of `FIELDS`; none if equal."""
    before, after = _unpacked(stored), _unpacked(new)
    return [field for field in FIELDS if before.get(field) != after.get(field)]


def canonical(message: Message) -> dict[str, bytes]:
    """Each field that is not at its default, as bytes that are equal exactly where the requests are.

    The order of tags and headers says nothing; that of recipients does. Times are compared as moments.
    """
    fields = dict(message.__dict__)
    default = Message.model_fields
    found: dict[str, bytes] = {}
    for field in FIELDS:
        name = _NAMES.get(field, field)
        if fields[name] != default[name].get_default(call_default_factory=True, validated_data={}):
            found[field] = _bytes(field, fields[name])
    return found


def _bytes(field: str, value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    if field == "attachments" and isinstance(value, tuple):
        value = [_attachment(index, each) for index, each in enumerate(value)]
    if field == "tags" and isinstance(value, Iterable):
        value = sorted(map(str, value))
    return json.dumps(value, default=_plain, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _plain(value: object) -> object:
    if isinstance(value, Address):
        return [value.email, value.name]
    if isinstance(value, Window):
        return value.as_json()
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()  # the same moment in another zone is the same request
    return value.total_seconds() if isinstance(value, timedelta) else str(value)


def _attachment(index: int, attachment: Attachment) -> list[str | None]:
    try:
        digest = attachment.digest().hex()
    except OSError as error:
        reason = f"the file cannot be read any more: {error.strerror}"
        raise InvalidMessage(Problem(f"attachments[{index}].path", reason)) from None
    return [attachment.filename, attachment.content_type, attachment.inline_id, digest]


def _packed(digests: Mapping[str, bytes]) -> bytes:
    bits = sum(1 << position for position, field in enumerate(FIELDS) if field in digests)
    version = 1 if bits < 1 << 32 else 2
    return (
        bytes([version])
        + bits.to_bytes(_BITS[version], "big")
        + b"".join(digests[field] for field in FIELDS if field in digests)
    )


def _unpacked(packed: bytes) -> dict[str, bytes]:
    begin = 1 + _BITS[packed[0]]
    bits = int.from_bytes(packed[1:begin], "big")
    present = [field for position, field in enumerate(FIELDS) if bits >> position & 1]
    return {field: packed[begin + _DIGEST * at : begin + _DIGEST * (at + 1)] for at, field in enumerate(present)}
