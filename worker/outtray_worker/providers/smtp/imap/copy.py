"""The copy of a sent mail, filed in the folder of sent mail by APPEND: looked for first, and never two.

It is the mail as it was frozen, without the key that travelled with it: that stands in what a *provider* filed, and is
how a look for evidence tells the two apart. What nobody else may see, its owner does: Bcc stands in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

from outtray_schema.outcome import Parked
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Filed, SentMail, Trace
from outtray_worker.providers.smtp.imap.client import Client
from outtray_worker.providers.smtp.imap.line import Line
from outtray_worker.providers.smtp.imap.look import Looked, look_for_copy


async def file_copy(
    line: Line, mail: SentMail, key_header: str, begin_by: Deadline, patience: timedelta, looked: Looked
) -> Filed:
    """Look, then file. Raises what keeps it from either: then nobody knows whether a copy is there now."""
    trace = Trace(mail.message_id, mail.rfc_message_id, mail.at, ())
    folder, there = await look_for_copy(line, trace, key_header, looked)
    if there:
        return Filed("found", looked.text)
    if folder is None:
        return Filed("failed", f"there is no folder of sent mail: {looked.text}")
    if there is None:
        reason = f"nobody can tell whether a copy is there: {looked.text}"
        return Filed("failed", reason, Parked(reason, "connection"))
    head = _bcc(mail)
    pieces = Pieces(head, mail.body(), begin_by)
    await line.run(lambda client: _append(client, folder.name, len(head) + mail.size, pieces), patience)
    return Filed("filed", f"in {folder.how} at {line.place.text}")


def _append(client: Client, folder: str, size: int, pieces: Iterator[bytes]) -> None:
    client.append_pieces(folder, size, pieces)


class Late(ConnectionError):
    """Its time was over before its first byte."""


class Pieces(Iterator[bytes]):
    """A mail's bytes for a thread, read by the loop. The first is given only before `begin_by`."""

    def __init__(self, head: bytes, body: AsyncIterator[bytes], begin_by: Deadline) -> None:
        self._head: bytes | None = head
        self._body = body
        self._begin_by = begin_by
        self._loop = asyncio.get_running_loop()

    def __next__(self) -> bytes:
        if self._head is not None:
            if self._begin_by.passed:
                raise Late("too late")
            head, self._head = self._head, None
            return head
        piece = asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()
        if piece is None:
            raise StopIteration
        return piece

    async def _next(self) -> bytes | None:
        return await anext(self._body, None)


def _bcc(mail: SentMail) -> bytes:
    """Who else received it, one to a line. Those beyond ASCII are left out: not every server stores such headers."""
    shown = [address for address in mail.bcc if address.isascii()]
    return ("Bcc: " + ",\r\n ".join(shown) + "\r\n").encode() if shown else b""
