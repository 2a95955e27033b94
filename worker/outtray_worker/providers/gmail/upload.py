"""The resumable upload of a large mail: begun, filled in one stream, taken up again where it broke off.

The session's URL is a secret of its own, so it never leaves this object. A draft's upload is preparation to its end; of
a message that is sent by its upload, everything but the last piece is: that piece is the handover.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from outtray_worker.providers.gmail.api import MESSAGE, Api
from outtray_worker.providers.gmail.body import Content, chunk, metadata
from outtray_worker.providers.gmail.caller import Caller, Ended, Interrupted
from outtray_worker.providers.web import Answer, Request, Stream

GRAIN = 256 * 1024
"""Pieces but the last are multiples of this (guide "uploads", 2026-11)."""
RESUMED = 3
"""How often one preparation takes a broken upload up again."""
_RANGE = re.compile(r"bytes=0-(\d+)")


class Upload:
    """One session. `about` is what the upload does: `drafts.create` or `messages.send`."""

    def __init__(self, caller: Caller, api: Api, about: str, content: Content) -> None:
        self._caller = caller
        self._api = api
        self._content = content
        self._begin_about = about
        self._url = ""
        self.about = f"upload to {about}"

    async def begin(self, resource: Mapping[str, str], in_thread: str) -> None:
        """Open the session. Raises `Ended`."""
        body = metadata(self._begin_about, resource)

        def make(token: str) -> Request:
            return self._api.upload(
                self._begin_about, True, token, body,
                **{"X-Upload-Content-Type": MESSAGE, "X-Upload-Content-Length": str(self._content.length)},
            )  # fmt: skip

        about = f"{self._begin_about}{in_thread}"
        answer = await self._caller.ask(make, "prepare", about)
        if answer.status != 200 or "location" not in answer.headers:
            raise Ended(self._caller.refused(answer, "prepare", about))
        self._url = self._api.rebased(answer.headers["location"])

    async def fill(self) -> Answer:
        """Upload it all, taking up what breaks off: the final answer. Raises `Ended`."""
        answer = await self._fill(self._content.length)
        if answer.status == 308:
            raise Ended(self._caller.refused(answer, "prepare", self.about))
        return answer

    async def fill_up_to(self, end: int) -> None:
        """All but what the handover brings. Raises `Ended`."""
        answer = await self._fill(end)
        if answer.status != 308 or came_of(answer) != end:
            raise Ended(self._caller.refused(answer, "prepare", self.about))

    async def _fill(self, end: int) -> Answer:
        start = resumed = 0
        while True:
            try:
                return await self._put(start, end)
            except Interrupted:
                resumed += 1
                if resumed > RESUMED:
                    raise
            answer = await self._asked_how_much_came()
            if answer.status != 308 or came_of(answer) >= end:
                return answer
            start = came_of(answer)

    async def _put(self, start: int, end: int) -> Answer:
        body = chunk(self._content, start, end)
        return await self._caller.ask(lambda token: self.piece(token, body, start, end), "prepare", self.about)

    async def _asked_how_much_came(self) -> Answer:
        """308 with its Range while bytes are missing, the final answer once none is."""
        asking = {"Content-Range": f"bytes */{self._content.length}"}
        return await self._caller.ask(lambda token: self._on_wire(token, b"", asking), "prepare", self.about)

    def piece(self, token: str, body: bytes | Stream, start: int, end: int) -> Request:
        """Bytes `start` up to `end` as a request."""
        total = self._content.length
        return self._on_wire(token, body, {"Content-Range": f"bytes {start}-{end - 1}/{total}"})

    def _on_wire(self, token: str, body: bytes | Stream, headers: Mapping[str, str]) -> Request:
        authorized = {"authorization": f"Bearer {token}", "content-type": MESSAGE, **headers}
        return Request("PUT", self._url, authorized, body)


def came_of(answer: Answer) -> int:
    """Bytes that the session has, from a 308's Range; without one it has none (guide "uploads", 2026-11)."""
    found = _RANGE.fullmatch(answer.headers.get("range", "").strip())
    return int(found[1]) + 1 if found else 0


def last_piece(length: int) -> int:
    """Where the piece begins that is the handover: at least one byte, at most `GRAIN`."""
    return (length - 1) // GRAIN * GRAIN
