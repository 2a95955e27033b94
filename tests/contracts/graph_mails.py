"""Frozen messages, as a worker gets them, for the tests of Microsoft Graph."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from provider_rigs import BCC, RECIPIENTS, SUBJECT, USER

from outtray_schema.address import Address
from outtray_schema.attachment import Attachment
from outtray_schema.message import Message
from outtray_schema.mime import freeze
from outtray_worker.providers import Mail

ALIAS = "canary-alias@sender.example"
UNSUBSCRIBE = {"List-Unsubscribe": "<https://x.example/u>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}
MB = 1024 * 1024


def frozen(sender: str = USER, **fields: Any) -> Mail:
    """A mail from a message of these fields, to, Cc and Bcc the contract's three recipients."""
    given = {"to": RECIPIENTS[0], "cc": RECIPIENTS[1], "bcc": BCC, "subject": SUBJECT, "text": "canary-text", **fields}
    message, message_id = Message(**given), uuid4()
    rfc_message_id = f"<{message_id}@sender.example>"
    date = datetime(2026, 11, 21, tzinfo=UTC)
    mime = freeze(message, sender=Address(sender), rfc_message_id=rfc_message_id, date=date)

    async def body() -> AsyncIterator[bytes]:
        for piece in mime.pieces():
            yield piece

    recipients = tuple(each.address.email for each in message.recipients)
    bcc = tuple(each.address.email for each in message.recipients if each.role == "bcc")
    return Mail(message_id, sender, recipients, rfc_message_id, mime.size, body, bcc)


def file(size: int, name: str = "a.bin", **fields: Any) -> Attachment:
    return Attachment(name, random.Random(size).randbytes(size), content_type="application/octet-stream", **fields)
