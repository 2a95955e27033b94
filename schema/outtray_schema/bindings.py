"""What each encrypted value is bound to: its column and the key of its row.

A sealed value that is copied into another row or column no longer opens. Whoever writes or reads an encrypted column
takes its binding from here; rotation relies on it.
"""

from __future__ import annotations

from uuid import UUID


def head(message_id: UUID) -> str:
    """`outtray.content.head`, content ring."""
    return f"content.head:{message_id}"


def body(message_id: UUID) -> str:
    """`outtray.content.body`, content ring."""
    return f"content.body:{message_id}"


def chunk(message_id: UUID, n: int) -> str:
    """`outtray.content_chunk.data`, content ring."""
    return f"content_chunk.data:{message_id}:{n}"


def attachment(attachment_id: UUID, n: int) -> str:
    """`outtray.attachment_chunk.data`, content ring."""
    return f"attachment_chunk.data:{attachment_id}:{n}"


def template(app_id: UUID, name: str, version: int) -> str:
    """`outtray.template.source`, content ring."""
    return f"template:{app_id}:{name}:{version}"


def recipient(message_id: UUID, n: int) -> str:
    """`outtray.recipient.address`, addresses ring."""
    return f"recipient:{message_id}:{n}"


def mailbox_address(mailbox_id: UUID) -> str:
    """`outtray.mailbox.address`, addresses ring."""
    return f"mailbox.address:{mailbox_id}"


def suppression(app_id: UUID, address_index: bytes) -> str:
    """`outtray.suppression.address`, addresses ring."""
    return f"suppression:{app_id}:{address_index.hex()}"


def credentials(mailbox_id: UUID, version: int) -> str:
    """`outtray.mailbox.credentials`, credentials ring; the version makes an older one useless if it is put back."""
    return f"mailbox.credentials:{mailbox_id}:{version}"


def token(mailbox_id: UUID, audience: str, version: int) -> str:
    """`outtray.token.access`, credentials ring; an access token of another audience or version opens nowhere."""
    return f"token.access:{mailbox_id}:{audience}:{version}"


def provider_app_secret(name: str, version: int) -> str:
    """`outtray.provider_app.secret`, credentials ring."""
    return f"provider_app.secret:{name}:{version}"
