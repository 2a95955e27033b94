"""Names and types of what Graph takes in requests, as a table: what is not in it is refused, as Graph does.

From learn.microsoft.com/graph/api/resources (message, recipient, emailAddress, itemBody, internetMessageHeader,
singleValueLegacyExtendedProperty, fileAttachment, attachmentItem) and the actions sendMail, createReply,
createReplyAll, createForward, createUploadSession of v1.0, read 2026-11. Only what can be written stands here.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

TYPES: Mapping[str, Mapping[str, str]] = {
    "message": {
        "bccRecipients": "[recipient]", "body": "itemBody", "categories": "[String]", "ccRecipients": "[recipient]",
        "flag": "followupFlag", "from": "recipient", "importance": "low|normal|high",
        "inferenceClassification": "focused|other", "internetMessageHeaders": "[internetMessageHeader]",
        "internetMessageId": "String", "isDeliveryReceiptRequested": "Boolean", "isRead": "Boolean",
        "isReadReceiptRequested": "Boolean", "replyTo": "[recipient]", "sender": "recipient",
        "singleValueExtendedProperties": "[singleValueLegacyExtendedProperty]", "subject": "String",
        "toRecipients": "[recipient]", "attachments": "[fileAttachment]",
    },
    "recipient": {"emailAddress": "emailAddress"},
    "emailAddress": {"address": "String", "name": "String"},
    "itemBody": {"contentType": "text|html", "content": "String"},
    "followupFlag": {"flagStatus": "notFlagged|complete|flagged"},
    "internetMessageHeader": {"name": "String", "value": "String"},
    "singleValueLegacyExtendedProperty": {"id": "String", "value": "String"},
    "fileAttachment": {
        "@odata.type": "String", "name": "String", "contentType": "String", "contentBytes": "Binary",
        "contentId": "String", "isInline": "Boolean",
    },
    "attachmentItem": {
        "attachmentType": "file|item|reference", "name": "String", "size": "Int64", "contentType": "String",
        "contentId": "String", "isInline": "Boolean",
    },
    "sendMail": {"message": "message", "saveToSentItems": "Boolean"},
    "createReply": {"message": "message", "comment": "String"},
    "createForward": {"message": "message", "comment": "String", "toRecipients": "[recipient]"},
    "createUploadSession": {"attachmentItem": "attachmentItem"},
}  # fmt: skip

_KINDS: Mapping[str, type] = {"String": str, "Boolean": bool}
_PROPERTY_ID = re.compile(
    r"(String|Integer|Boolean|SystemTime|Binary) (0x[0-9A-Fa-f]{1,4}"
    r"|\{[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\} (Name .+|Id 0x[0-9A-Fa-f]+))"
)


class Wrong(Exception):
    """A body that Graph refuses: `code` and `message` are what it says."""

    def __init__(self, message: str, code: str = "RequestBodyRead") -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def check(value: Any, kind: str) -> None:
    """Raises `Wrong` for a property that the type does not have, or for a value of another type."""
    if kind.startswith("["):
        if not isinstance(value, list):
            raise Wrong(f"A collection was expected where a {type(value).__name__} was found.")
        for each in value:
            check(each, kind.strip("[]"))
    elif kind in TYPES:
        _check_object(value, kind)
    else:
        _check_value(value, kind)


def _check_object(value: Any, kind: str) -> None:
    if not isinstance(value, dict):
        raise Wrong(f"An object of the type 'microsoft.graph.{kind}' was expected.")
    known = {name.lower(): each for name, each in TYPES[kind].items()} if kind == "createUploadSession" else TYPES[kind]
    for name, each in value.items():
        found = known.get(name.lower() if kind == "createUploadSession" else name)
        if found is None:
            raise Wrong(f"The property '{name}' does not exist on type 'microsoft.graph.{kind}'.")
        if each is not None:
            check(each, found)
    if kind == "singleValueLegacyExtendedProperty" and not _PROPERTY_ID.fullmatch(str(value.get("id"))):
        raise Wrong("The extended property's id is invalid.", "ErrorInvalidProperty")
    if kind == "fileAttachment" and value.get("@odata.type") != "#microsoft.graph.fileAttachment":
        raise Wrong("An attachment needs @odata.type '#microsoft.graph.fileAttachment'.")


def _check_value(value: Any, kind: str) -> None:
    if kind == "Int64":
        if not isinstance(value, int) or isinstance(value, bool):
            raise Wrong("Cannot convert a value to the expected type 'Edm.Int64'.")
    elif kind == "Binary":
        _check_binary(value)
    elif kind in _KINDS:
        if not isinstance(value, _KINDS[kind]):
            raise Wrong(f"Cannot convert a value to the expected type 'Edm.{kind}'.")
    elif not isinstance(value, str) or value.lower() not in kind.lower().split("|"):
        raise Wrong(f"The value is none of {kind}.")


def _check_binary(value: Any) -> None:
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise Wrong("Cannot convert a value to the expected type 'Edm.Binary'.") from None
