"""The request that both arms make of a message's bytes."""

from __future__ import annotations

import base64


def payload(body: bytes) -> bytes:
    """What Gmail's `messages.send` takes: the MIME in urlsafe base64 in JSON, whose alphabet needs no escapes."""
    return b'{"raw":"%b"}' % base64.urlsafe_b64encode(body)
