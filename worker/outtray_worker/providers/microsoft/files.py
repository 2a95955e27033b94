"""Attachments of a draft: small ones in one request each, large ones by an upload session, piece by piece and in order.

    POST   {draft}/attachments                          below 3 MB, base64 in JSON
    POST   {draft}/attachments/createUploadSession      3 to 150 MB; answers with a URL that is itself the permission
    PUT    {that URL}  Content-Range: bytes 0-…/…       no token; 200 says what it wants next, 201 is the end
    GET    {that URL}                                   after a break: what it has

(learn.microsoft.com/graph/outlook-large-attachments, 2026-11). Nothing of this can send the mail, so all of it may be
repeated.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence

from outtray_schema.outcome import Evidence, Failed, Retry
from outtray_worker.providers import Mail
from outtray_worker.providers.microsoft.answers import retry_after
from outtray_worker.providers.microsoft.calls import Ask, Calls, Ended, Said, quoted, with_json
from outtray_worker.providers.microsoft.letter import REQUEST, File, Json, beside_the_loop, bytes_from
from outtray_worker.providers.web import Answer, NoAnswer

LARGEST = 150_000_000
"""Bytes of one attachment (learn.microsoft.com/graph/outlook-large-attachments, 2026-11)."""

PIECE = 8 * 320 * 1024
"""Bytes of one PUT: below 4 MB, a multiple of 320 KiB (upload sessions, docs, 2026-11). One is held at a time."""

BREAKS = 5
"""Breaks of one upload that are mended; then the attempt ends."""

_URL = re.compile(r"https?://[\x21-\x7e]+")
_JSON_AROUND = 2048
_SINGLE = (REQUEST - _JSON_AROUND) // 4 * 3
"""Bytes that fit into one request as base64. The last few hundred below 3 MB go by session: 4 MB is the wall."""


async def attach(calls: Calls, draft_id: str, mail: Mail, files: Iterable[File], there: Iterable[File] = ()) -> None:
    """Every file onto the draft, which has those of `there`.

    Raises `Ended`, `NoAnswer`, and what reading the mail raises.
    """
    names = Counter(file.name for file in there)
    for file in files:
        if file.size > LARGEST:
            raise Ended(Failed("an attachment is larger than the 150 MB that Graph takes", evidence={"rule": "size"}))
        if file.size <= _SINGLE and len(file.name) < _JSON_AROUND // 8:
            await _attach_at_once(calls, draft_id, mail, file)
        else:
            await Upload(calls, draft_id, mail, file, names[file.name]).run()
        names[file.name] += 1


async def _attach_at_once(calls: Calls, draft_id: str, mail: Mail, file: File) -> None:
    data = file.data if file.data is not None else b"".join([piece async for piece in bytes_from(mail, file)])
    path = f"/messages/{quoted(draft_id)}/attachments"
    ask = await beside_the_loop(file.size, lambda: with_json("POST", path, "attach", file.with_bytes(data)))
    calls.expect(await calls.ask(ask), 201)


class Upload:
    """One file by an upload session, mended where it breaks."""

    def __init__(self, calls: Calls, draft_id: str, mail: Mail, file: File, namesakes: int) -> None:
        self._calls = calls
        self._draft_id = draft_id
        self._namesakes = namesakes
        """Files of that name that the draft has already."""
        self._path = f"/messages/{quoted(draft_id)}/attachments/createUploadSession"
        self._mail = mail
        self._file = file
        self._url = ""
        self._breaks = 0

    async def run(self) -> None:
        """Raises `Ended` where Graph refuses it, or where it breaks again and again."""
        offset: int | None = await self._begin()
        while offset is not None:
            offset = await self._from(offset)

    async def _begin(self) -> int:
        item: Json = {"attachmentType": "file", "name": self._file.name, "size": self._file.size}
        item |= {name: value for name, value in self._file.described().items() if name not in ("@odata.type", "name")}
        body = {"AttachmentItem": item}
        answer = self._calls.expect(await self._calls.ask(with_json("POST", self._path, "upload", body)), 200, 201)
        if not isinstance(url := answer.get("uploadUrl"), str) or not _URL.fullmatch(url):
            raise Ended(Retry("Graph named no place for an upload", evidence={"rule": "upload-url"}))
        self._url = url
        return 0

    async def _from(self, offset: int) -> int | None:
        """Upload from `offset` on. None: the file is complete; else where to go on."""
        async for piece in _pieces(bytes_from(self._mail, self._file, offset)):
            following = await self._put(piece, offset)
            if following is None or following != offset + len(piece):
                return following
            offset = following
        raise Ended(Retry("Graph has all of an upload, and wants more", evidence={"rule": "upload-range"}))

    async def _put(self, piece: bytes, offset: int) -> int | None:
        span = f"bytes {offset}-{offset + len(piece) - 1}/{self._file.size}"
        try:
            answer = await self._calls.put(
                self._url, {"Content-Range": span, "Content-Type": "application/octet-stream"}, piece
            )
        except NoAnswer as none:
            return await self._mend(none)
        if answer.status == 201:
            return None
        if answer.status in (200, 202):
            return self._wanted(answer)
        return await self._mend(answer)

    def _wanted(self, answer: Answer) -> int:
        """The first byte that it has not. For Outlook it is one number (docs, 2026-11); elsewhere `0-26`, `27-`."""
        ranges = (answer.json() or {}).get("nextExpectedRanges")
        first = str(ranges[0]) if isinstance(ranges, list) and ranges else ""
        number = first.partition("-")[0]
        if not (number.isascii() and number.isdigit()) or int(number) >= self._file.size:
            raise Ended(Retry("Graph does not say what it has of an upload", evidence={"rule": "upload-range"}))
        return int(number)

    async def _mend(self, trouble: NoAnswer | Answer) -> int | None:
        """After a break, ask what is there, or begin anew where the session is gone."""
        self._breaks += 1
        if self._breaks > BREAKS:
            raise self._given_up(trouble)
        if isinstance(trouble, Answer) and trouble.status in (400, 401, 403, 413, 429):
            raise self._given_up(trouble)
        try:
            answer = await self._calls.put(self._url, {}, b"")
        except NoAnswer as none:
            return await self._mend(none)
        if answer.status == 200:
            return self._wanted(answer)
        if answer.status in (404, 410) or (answer.status == 401 and self._breaks == 1):
            return None if await self._is_there() else await self._begin()
        await asyncio.sleep(0)
        return await self._mend(answer)

    async def _is_there(self) -> bool:
        """Whether the file was complete when its session ended: the answer to the last piece was lost."""
        names = [each.get("name") for each in await listed(self._calls, self._draft_id)]
        return names.count(self._file.name) > self._namesakes

    def _given_up(self, trouble: NoAnswer | Answer) -> Ended:
        """Never the URL, nor what the server said about it: both may hold its token."""
        if isinstance(trouble, NoAnswer):
            return Ended(Retry("an upload broke again and again", evidence={"rule": trouble.rule, "step": "prepare"}))
        if trouble.status == 429:
            return Ended(self._calls.outcome(Said(trouble, "", "upload"), "prepare"))
        evidence: Evidence = {"rule": "upload", "step": "prepare", "status": trouble.status}
        reason = f"Graph does not take an upload ({trouble.status})"
        return Ended(Retry(reason, after=retry_after(trouble), evidence=evidence))


async def _pieces(data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of exactly `PIECE`, but for the last."""
    waiting = bytearray()
    async for some in data:
        waiting += some
        while len(waiting) >= PIECE:
            yield bytes(waiting[:PIECE])
            del waiting[:PIECE]
    if waiting:
        yield bytes(waiting)


# ── what Graph carried over by itself ───────────────────────────────────────────────────────────────────────────────


async def listed(calls: Calls, draft_id: str) -> list[Json]:
    """The attachments that a draft has."""
    path = f"/messages/{quoted(draft_id)}/attachments?$select=id,name,contentType,isInline&$top=999"
    return calls.values(await calls.ask(Ask("GET", path, "attachments")), "prepare")


async def keep_those_of(calls: Calls, draft_id: str, files: Sequence[File]) -> list[File]:
    """Of what an answer took over from its original, keep what the mail has too, by name, and delete the rest.

    Returns the files that are still to be attached. Sizes are not compared: Graph counts more than the bytes.
    """
    wanted = Counter(file.name for file in files)
    kept: Counter[str] = Counter()
    for each in await listed(calls, draft_id):
        name = str(each.get("name", ""))
        if kept[name] < wanted[name]:
            kept[name] += 1
            continue
        path = f"/messages/{quoted(draft_id)}/attachments/{quoted(str(each.get('id', '')))}"
        calls.expect(await calls.ask(Ask("DELETE", path, "detach")), 204, 404)
    left = []
    for file in files:
        if kept[file.name] > 0:
            kept[file.name] -= 1
        else:
            left.append(file)
    return left
