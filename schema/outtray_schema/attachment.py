"""Attachments and inline images, as an app hands them in."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outtray_schema.address import refuse_control_characters
from outtray_schema.errors import InvalidMessage, Problem
from outtray_schema.media_type import BEGINNING, UNKNOWN, media_type

_PARAMETER = r"""\s*;\s*[A-Za-z0-9!#$&^_.+-]+=(?:[A-Za-z0-9!#$&^_.+-]+|"[ !#-\[\]-~]*")"""
_CONTENT_TYPE = re.compile(rf"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*(?:{_PARAMETER})*")
_INLINE_ID = re.compile(r"[A-Za-z0-9._+@-]{1,128}")
_PIECE = 57 * 4096
"""Bytes that are read at once: whole lines of base64 (57 bytes make 76 columns), 228 KiB."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that travels with a message. Raises `InvalidMessage` naming every field that is wrong.

    Give either `content` (bytes) or `path` (read when the message is enqueued, never held whole). `content_type`
    follows from the file's name and its first bytes if it is left out (`media_type`). With `inline_id="logo"` it is an
    image that the html shows by `<img src="cid:logo">`.
    """

    filename: str = field(repr=False)
    content: bytes | None = field(default=None, repr=False)
    path: Path | None = field(default=None, repr=False, kw_only=True)
    content_type: str | None = field(default=None, kw_only=True)
    inline_id: str | None = field(default=None, kw_only=True)
    _digest: bytes | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        problems: list[Problem] = []
        for name, check in _CHECKS.items():
            try:
                object.__setattr__(self, name, check(self))
            except ValueError as error:
                problems.append(Problem(name, str(error)))
        if problems:
            raise InvalidMessage(problems)

    @property
    def mime_type(self) -> str:
        """The content type, given or guessed, with its parameters."""
        return self.content_type or "application/octet-stream"

    @property
    def size(self) -> int:
        """Its bytes; of a file, what it has now. Raises `OSError` if the file is gone."""
        return len(self.content) if self.path is None else self.path.stat().st_size  # type: ignore[arg-type]

    def read(self) -> Iterator[bytes]:
        """Its bytes in pieces of at most 228 KiB, each but the last a multiple of 57 bytes. Raises `OSError`."""
        if self.path is None:
            content = memoryview(self.content or b"")
            for start in range(0, len(content), _PIECE):
                yield bytes(content[start : start + _PIECE])
            return
        with self.path.open("rb", buffering=0) as file:
            while piece := _read_full(file.read, _PIECE):
                yield piece

    def digest(self) -> bytes:
        """SHA-256 of its bytes; reckoned once for bytes, and for a file while it stays as it is. Raises `OSError`."""
        if self.path is not None:
            return digest_of_file(self.path, self.read)
        if self._digest is None:
            object.__setattr__(self, "_digest", hashlib.sha256(self.content or b"").digest())
        return self._digest  # type: ignore[return-value]


_SETTLED = 2.0
"""Seconds after its last change from which a file's stamps tell its content: within one tick of its file system a
second change leaves the same stamps (git's documentation calls such an entry racy, 2026-11)."""

_digests: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
_DIGESTS = 256


def digest_of_file(path: Path, read: Callable[[], Iterator[bytes]]) -> bytes:
    """SHA-256 of a file: thousands of messages that attach it have it read once. Raises `OSError`."""
    status = path.stat()
    stamps = (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if (known := _digests.get(stamps)) is not None:
        return known
    settled = time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED
    digest = hashlib.sha256()
    for piece in read():
        digest.update(piece)
    if settled:
        _digests[stamps] = digest.digest()
        while len(_digests) > _DIGESTS:
            _digests.popitem(last=False)
    return digest.digest()


def attachment_from_json(fields: Mapping[str, Any], *, paths: bool) -> Attachment:
    """An attachment from JSON: `content` in base64, or, where `paths` allows it, `path`.

    Paths are for callers who may read this machine's files anyway: never for what came over a network.
    """
    fields = dict(fields)
    if unknown := fields.keys() - {"filename", "content", "path", "content_type", "inline_id"}:
        raise InvalidMessage([Problem(str(name), "is no field of an attachment") for name in sorted(unknown, key=str)])
    if fields.get("path") is not None:
        if not paths:
            raise InvalidMessage(Problem("path", "is not allowed here; send the bytes as base64 in content"))
        fields.setdefault("filename", Path(str(fields["path"])).name)
    if isinstance(fields.get("content"), str):
        try:
            fields["content"] = base64.b64decode(fields["content"], validate=True)
        except (binascii.Error, ValueError):
            raise InvalidMessage(Problem("content", "must be base64 without line breaks")) from None
    return Attachment(**{"filename": "", **fields})


def _read_full(read: Callable[[int], bytes], size: int) -> bytes:
    """Read until `size` bytes or the end: a raw file may return less, and base64 needs whole lines."""
    piece = read(size)
    while 0 < len(piece) < size and (more := read(size - len(piece))):
        piece += more
    return piece


def _checked_filename(attachment: Attachment) -> str:
    name: object = attachment.filename
    if not isinstance(name, str) or not name.strip():
        raise ValueError("needs a name like offer.pdf")
    refuse_control_characters(name)
    if "/" in name or "\\" in name or name.strip() in (".", ".."):
        raise ValueError("must be a file's name without folders")
    if "=?" in name:
        raise ValueError("must not contain =?, which mail programs would take for an encoded word (RFC 2047)")
    if len(name.encode()) > 255:
        raise ValueError("has at most 255 bytes")
    return name.strip()


def _checked_path(attachment: Attachment) -> Path | None:
    path: object = attachment.path
    if path is None:
        return None
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError("must be a path to a file")
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no path"
        raise ValueError(f"the file cannot be read: {why}") from None
    # Opening a FIFO or a device would hang the caller, or never end.
    if not stat.S_ISREG(status.st_mode) or not os.access(path, os.R_OK):
        raise ValueError("must be a regular file that this process may read")
    return Path(os.fspath(path))


def _checked_content(attachment: Attachment) -> bytes | None:
    content: object = attachment.content
    if (content is None) == (attachment.path is None):
        raise ValueError("give the bytes in content, or a file in path: one of them")
    if content is None or isinstance(content, bytes):
        return content
    if isinstance(content, (bytearray, memoryview)):
        return bytes(content)
    raise ValueError('must be bytes; encode a text first: text.encode("utf-8")')


def _checked_content_type(attachment: Attachment) -> str:
    given: object = attachment.content_type
    if given is None:
        if not isinstance(attachment.filename, str):
            return UNKNOWN
        found = media_type(attachment.filename, _beginning(attachment))
        return UNKNOWN if _is_composite(found) else found
    if not isinstance(given, str) or len(given) > 200 or not _CONTENT_TYPE.fullmatch(given):
        raise ValueError("must be a media type like application/pdf")
    # RFC 2046 5.2.1 forbids base64 on these, and without it their lines could not be kept as they are.
    if _is_composite(given):
        raise ValueError("multipart and message types cannot be attached as they are; use application/octet-stream")
    return given


def _beginning(attachment: Attachment) -> bytes:
    """Its first bytes, as far as they can be read now."""
    content: object = attachment.content
    try:
        if attachment.path is not None:
            if not isinstance(attachment.path, Path) or not attachment.path.is_file():  # a FIFO would hang
                return b""
            return next(iter(attachment.read()), b"")[:BEGINNING]
        return bytes(content[:BEGINNING]) if isinstance(content, (bytes, bytearray, memoryview)) else b""
    except (OSError, ValueError, AttributeError):  # the field's own check says what is wrong
        return b""


def _is_composite(content_type: str) -> bool:
    return content_type.lower().startswith(("multipart/", "message/"))


def _checked_inline_id(attachment: Attachment) -> str | None:
    inline_id: object = attachment.inline_id
    if inline_id is None or (isinstance(inline_id, str) and _INLINE_ID.fullmatch(inline_id)):
        return inline_id
    raise ValueError("has 1 to 128 of the characters A-Z a-z 0-9 . _ + @ -, as in cid:logo")


_CHECKS: dict[str, Callable[[Attachment], object]] = {
    "filename": _checked_filename,
    "content": _checked_content,
    "path": _checked_path,
    "content_type": _checked_content_type,
    "inline_id": _checked_inline_id,
}
