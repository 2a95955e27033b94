"""The media type of a file: what its name says, what its first bytes say, and who is believed where they differ.

1. A name that says nothing (no ending, or one that nobody knows): the bytes, where they begin like a file of some kind
   that is told by its beginning alone; else `application/octet-stream`.
2. A name that says an image, PDF, audio or video, and bytes that surely begin another of these: the bytes. A PNG that
   is called .jpg is shown by no mail program that trusts its type.
3. Everything else: the name. Word, Excel and zip files begin alike, and a text like anything.

The names are the standard library's, without what this machine's own `mime.types` says, so that every machine says the
same; the bytes are puremagic's (MIT, pure Python, kept by Chris Griffith; releases in 2025 and 2026).
"""

from __future__ import annotations

from functools import lru_cache
from mimetypes import MimeTypes

UNKNOWN = "application/octet-stream"
BEGINNING = 1024
"""First bytes that are looked at."""

_SHOWN = ("image/", "audio/", "video/")
_PLAIN = ("image/svg+xml",)
"""Shown, but told by no beginning."""
# What people send that the standard library of Python 3.11 does not know (IANA's list of media types, 2026-11).
_MORE = {
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".ics": "text/calendar", ".vcf": "text/vcard", ".webp": "image/webp", ".heic": "image/heic", ".avif": "image/avif",
    ".jfif": "image/jpeg", ".7z": "application/x-7z-compressed", ".gz": "application/gzip", ".md": "text/markdown",
    ".rtf": "application/rtf", ".xz": "application/x-xz", ".bz2": "application/x-bzip2",
}  # fmt: skip
_SURE = {
    "pdf", "png", "jpg", "jpeg", "jfif", "gif", "webp", "bmp", "tiff", "tif", "heic", "avif", "mp3", "mp4", "wav",
    "ogg", "flac", "zip", "7z", "gz", "xz", "bz2", "rar",
}  # fmt: skip
"""Kinds that a beginning of three bytes or more tells for sure; puremagic guesses at many more."""


@lru_cache(maxsize=256)
def media_type(filename: str, beginning: bytes) -> str:
    """The type of a file of that name that begins with these bytes (`BEGINNING` of them are enough)."""
    named = _by_name(filename)
    if named is None:
        return _by_bytes(beginning) or UNKNOWN
    if not _shown(named):
        return named
    found = _by_bytes(beginning)
    return found if found is not None and _shown(found) and not _same(found, named) else named


def _shown(media: str) -> bool:
    return (media.startswith(_SHOWN) and media not in _PLAIN) or media == "application/pdf"


def _same(one: str, other: str) -> bool:
    """Containers of sound and of moving pictures begin alike."""
    av = ("audio/", "video/")
    return one == other or (one.startswith(av) and other.startswith(av))


def _by_name(filename: str) -> str | None:
    ending = "." + filename.rpartition(".")[2].lower() if "." in filename else ""
    return _MORE.get(ending) or _names().guess_type(f"x{ending}", strict=True)[0]


def _by_bytes(beginning: bytes) -> str | None:
    from puremagic import PureError, magic_string  # noqa: PLC0415 - it reads its tables, 20 ms

    if len(beginning) < 4:
        return None
    try:
        found = magic_string(beginning[:BEGINNING])
    except (PureError, ValueError):
        return None
    zipped = any(each.extension == ".zip" for each in found)
    if zipped:
        return "application/zip"
    sure = [each for each in found if each.extension.lstrip(".") in _SURE and each.mime_type]
    return _by_name(f"x{sure[0].extension}") if sure else None


@lru_cache(maxsize=1)
def _names() -> MimeTypes:
    return MimeTypes()
