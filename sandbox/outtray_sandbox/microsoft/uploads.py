"""Upload sessions of the fake Graph: pieces in order, no token, and a URL that opens only as it was given."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from aiohttp import web

from outtray_sandbox.microsoft.admission import Admission, Refused
from outtray_sandbox.microsoft.mail import stamp
from outtray_sandbox.microsoft.mailbox import Attachment, Mailbox, new_id
from outtray_sandbox.microsoft.messages import draft_of, json_of
from outtray_sandbox.microsoft.properties import Wrong

_SINGLE_PIECE = 3 * 1024 * 1024
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_LIVES = 3600.0


class Uploads:
    """`url` says where the server is: it learns its port only when it listens."""

    def __init__(self, admission: Admission, url: Callable[[], str]) -> None:
        self.admission = admission
        self.house = admission.house
        self.url = url

    async def begin(self, request: web.Request, mailbox: Mailbox) -> web.Response:
        told = await json_of(request, "createUploadSession")
        item = draft_of(request, mailbox, self.house.now())
        asked = next(iter(told.values()), None) or {}
        size = int(asked.get("size", 0))
        if asked.get("attachmentType") != "file" or not asked.get("name"):
            raise Wrong("AttachmentItem needs attachmentType and name.", "ErrorInvalidRequest")
        if size > self.house.limits.attachment:
            message = "The attachment is larger than the maximum of 150 MB."
            raise Refused(400, "ErrorAttachmentSizeShouldNotBeMoreThanMaximumSize", message)
        if size < _SINGLE_PIECE - 4096:
            message = "The attachment is smaller than the minimum of 3 MB."
            raise Refused(400, "ErrorAttachmentSizeShouldNotBeLessThanMinimumSize", message)
        name = new_id("session")
        until = self.house.now() + _LIVES
        path = f"/upload/{name}?authtoken=canary-upload-%2F%2B%3D{uuid4().hex}"
        self.house.uploads[name] = {
            "item": item, "told": asked, "size": size, "data": bytearray(), "until": until, "path": path,
        }  # fmt: skip
        answer = {
            "uploadUrl": f"{self.url()}{path}",
            "expirationDateTime": stamp(until),
            "nextExpectedRanges": ["0-"],
        }
        return web.json_response(answer, status=201)

    def _session(self, request: web.Request) -> dict[str, Any]:
        if "Authorization" in request.headers:
            raise Refused(401, "InvalidAuthenticationToken", "The upload URL is pre-authenticated.")
        session = self.house.uploads.get(request.match_info["session"])
        # The URL is a signed one: it opens only as it was given, escapes and all.
        if session is None or request.raw_path != session["path"]:
            raise Refused(404, "ErrorItemNotFound", "The upload session was not found.")
        if session["until"] <= self.house.now():
            raise Refused(404, "ErrorItemNotFound", "The upload session has expired.")
        return session

    def _expects(self, session: dict[str, Any]) -> web.Response:
        told = {"ExpirationDateTime": stamp(session["until"]), "nextExpectedRanges": [str(len(session["data"]))]}
        return web.json_response(told)

    async def state(self, request: web.Request) -> web.Response:
        self.admission.note(request, "upload.get")
        try:
            return self._expects(self._session(request))
        except Refused as refused:
            return self.admission.error(refused, self.admission.ids(request))

    async def put(self, request: web.Request) -> web.Response:
        self.admission.note(request, "upload.put")
        try:
            return await self._take_piece(request, self._session(request))
        except Refused as refused:
            return self.admission.error(refused, self.admission.ids(request))

    async def _take_piece(self, request: web.Request, session: dict[str, Any]) -> web.Response:
        found = _RANGE.fullmatch(request.headers.get("Content-Range", ""))
        data = await request.read()
        if found is None or request.content_type != "application/octet-stream":
            raise Refused(400, "ErrorInvalidRequest", "Content-Range and application/octet-stream are required.")
        first, last, total = map(int, found.groups())
        complete = last + 1 == total
        if total != session["size"] or last - first + 1 != len(data) or len(data) > self.house.limits.piece:
            raise Refused(400, "ErrorInvalidRequest", "The range is not what was announced.")
        if not complete and len(data) % (320 * 1024):
            raise Refused(400, "ErrorInvalidRequest", "A piece must be a multiple of 320 KiB.")
        if first != len(session["data"]):
            raise Refused(416, "ErrorInvalidRange", "The uploaded fragment overlaps with data that was received.")
        session["data"] += data
        if not complete:
            return self._expects(session)
        del self.house.uploads[request.match_info["session"]]
        attachment = Attachment(session["told"], bytes(session["data"]))
        session["item"].attachments.append(attachment)
        return web.Response(status=201, headers={"Location": f"{self.url()}/attachments/{attachment.id}"})
