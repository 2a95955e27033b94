"""A mail as the sandbox's server receives it, without holding it."""

from __future__ import annotations

import hashlib
import re

LINE_END = b"\r\n"
_HEAD = 64 * 1024
_MESSAGE_ID = re.compile(rb"^message-id:\s*(<[^<>]*>)", re.IGNORECASE | re.MULTILINE)


class Incoming:
    """A mail's bytes as they come: dots unstuffed, hashed, the head kept to find the Message-ID."""

    def __init__(self, keep: int) -> None:
        self._tail = b""
        self._skip = len(LINE_END)
        self._hash = hashlib.sha256()
        self._keep = keep
        self.size = 0
        self.head = b""
        self.kept: list[bytes] = []

    def feed(self, data: bytes) -> None:
        """More of the mail as it travels, beginning with the line end before its first line."""
        joined = self._tail + data
        clean = joined.replace(b"\r\n.", b"\r\n")[len(self._tail) :]
        self._tail = joined[-2:]
        clean, self._skip = clean[self._skip :], max(0, self._skip - len(clean))
        self._hash.update(clean)
        self.size += len(clean)
        if len(self.head) < _HEAD:
            self.head += clean[:_HEAD]
        if self.size <= self._keep:
            self.kept.append(clean)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    @property
    def message_id(self) -> str:
        head = self.head.partition(b"\r\n\r\n")[0].replace(b"\r\n ", b" ").replace(b"\r\n", b"\n")
        found = _MESSAGE_ID.search(head)
        return found[1].decode("utf-8", "replace") if found else ""
