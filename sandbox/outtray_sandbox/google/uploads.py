"""Media uploads: multipart/related in one request, and resumable sessions that go on where they broke off."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from email import message_from_bytes
from typing import Any

from aiohttp import web

from outtray_sandbox.google.errors import Refusal, invalid, refusal

LARGEST = 36_700_160
"""`maxSize` of drafts.create and messages.send (discovery document, revision 20261005)."""
GRAIN = 256 * 1024
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")


@dataclass
class Session:
    """A resumable upload. What came of a broken request stays, as at Google; it is consumed by its last byte."""

    about: str
    email: str
    resource: dict[str, Any]
    length: int
    data: bytearray = field(default_factory=bytearray)


def too_large() -> Refusal:
    return refusal(413, "uploadTooLarge", f"Media larger than the maximum of {LARGEST} bytes.")


async def multipart(request: web.Request) -> tuple[bytes, bytes]:
    """The JSON and the mail of a multipart/related body. Raises `Refusal`."""
    content_type = request.headers.get("Content-Type", "")
    if not content_type.startswith("multipart/related"):
        raise invalid("Bad content type. Please use multipart.")
    whole = await request.read()
    found = re.search(r'boundary="?([^";]+)"?', content_type)
    if found is None or not whole.rstrip().endswith(f"--{found[1]}--".encode()):
        raise invalid("Missing end boundary in multipart body.")
    _, json_part, mail_part, *_rest = whole.split(f"--{found[1]}".encode())
    return _part(json_part, "application/json"), _mail(mail_part)


def _part(part: bytes, expected: str) -> bytes:
    head, _, body = part.partition(b"\r\n\r\n") if b"\r\n\r\n" in part else part.partition(b"\n\n")
    if message_from_bytes(head.lstrip() + b"\n\n").get_content_type() != expected:
        raise invalid(f"Media type of the part is not supported. Valid: {expected}")
    return body[:-2] if body.endswith(b"\r\n") else body[:-1]


def _mail(part: bytes) -> bytes:
    mail = _part(part, "message/rfc822")
    if len(mail) > LARGEST:
        raise too_large()
    return mail


class Uploads:
    """The open sessions of one server."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.finished: dict[str, bytes] = {}
        """Answers of sessions that have ended: asked how much came, Google repeats them for a while."""

    def begin(self, request: web.Request, about: str, email: str, resource: dict[str, Any]) -> str:
        """A new session's id. Raises `Refusal`."""
        kind = request.headers.get("X-Upload-Content-Type", "")
        length = request.headers.get("X-Upload-Content-Length", "")
        if not kind.startswith("message/"):
            raise invalid(f"Media type '{kind}' is not supported. Valid media types: [message/*]")
        if not length.isdigit():
            raise invalid("Missing X-Upload-Content-Length")
        if int(length) > LARGEST:
            raise too_large()
        upload_id = secrets.token_urlsafe(80)
        self.sessions[upload_id] = Session(about, email, resource, int(length))
        return upload_id

    async def put(self, request: web.Request, finish: Callable[[Session], web.Response]) -> web.StreamResponse:
        """A piece, or the question how much has come. With the last byte the session ends and `finish` answers."""
        upload_id = request.query.get("upload_id", "")
        session = self.sessions.get(upload_id)
        first, last, total = _range_of(request)
        if session is None and first is None and upload_id in self.finished:
            return web.Response(body=self.finished[upload_id], content_type="application/json")
        if session is None:
            raise refusal(404, "notFound", "Not Found")
        if total != session.length:
            raise invalid("Content-Range does not match X-Upload-Content-Length")
        if first is not None:
            await _take(session, request, first, last)
        if len(session.data) < session.length:
            return web.Response(status=308, headers=_came(session))
        del self.sessions[upload_id]
        answer = finish(session)
        self.finished[upload_id] = answer.body if isinstance(answer.body, bytes) else b""
        return answer


def _range_of(request: web.Request) -> tuple[int | None, int, int]:
    found = _CONTENT_RANGE.fullmatch(request.headers.get("Content-Range", ""))
    if found is None:
        raise invalid("Invalid Content-Range")
    return (None, 0, int(found[3])) if found[1] is None else (int(found[1]), int(found[2]), int(found[3]))


async def _take(session: Session, request: web.Request, first: int, last: int) -> None:
    length = last - first + 1
    if last + 1 < session.length and length % GRAIN:
        raise invalid("Pieces but the last must be multiples of 256 KiB")
    if request.content_length != length:
        raise invalid("Content-Length does not match Content-Range")
    if first != len(session.data):
        raise refusal(503, "backendError", "Invalid request. The piece does not begin where the last one ended.")
    async for piece in request.content.iter_any():
        session.data += piece


def _came(session: Session) -> dict[str, str]:
    """How much is kept: whole grains only, which is what a client must go on from."""
    if len(session.data) < session.length:
        del session.data[len(session.data) // GRAIN * GRAIN :]
    return {"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {}
