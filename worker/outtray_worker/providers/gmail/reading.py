"""Reading messages of the mailbox: the Message-ID that Gmail assigned, and an original that is to be answered."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import getaddresses, parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from outtray_schema.outcome import Failed, Sent
from outtray_worker.deadline import Deadline
from outtray_worker.providers import OriginalFile, OriginalMail, Person
from outtray_worker.providers.gmail.caller import LONG, Ended

if TYPE_CHECKING:
    from outtray_worker.providers.gmail.session import GmailSession

LARGEST = 64 << 20
"""Bytes of one answer that holds a file: Gmail gives files whole, as base64 in JSON (discovery document, 2026-10)."""
_PIECE = 1 << 20
_MESSAGE_ID = re.compile(r"<[^<>\s]+>")


# ── what Gmail assigned ─────────────────────────────────────────────────────────────────────────────────────────────


async def read_back(session: GmailSession, sent: Sent, by: Deadline) -> Sent:
    """`sent` with the Message-ID that Gmail assigned, or with the reason why there is none. Never fails."""
    if not session.grants.see_messages:
        return _without(sent, "not readable with these scopes")
    try:
        async with asyncio.timeout(max(by.left(), 0.0)):
            request = session.api.headers_of(str(sent.provider_id), "Message-ID")
            said = await session.caller.call(request, "read", "messages.get")
    except (Ended, TimeoutError) as error:
        why = "Gmail did not answer in time" if isinstance(error, TimeoutError) else "Gmail did not let us read it"
        return _without(sent, f"not read: {why}")
    found = rfc_message_id_of(said)
    return replace(sent, rfc_message_id=found) if found else _without(sent, "not read: Gmail showed none")


def _without(sent: Sent, why: str) -> Sent:
    return replace(sent, evidence={**sent.evidence, "rfc_message_id": why})


def header_of(message: Mapping[str, Any], name: str) -> str | None:
    """A header of a message in Gmail's JSON, the first of its name."""
    for each in headers_of(message.get("payload")):
        if each[0] == name.lower():
            return each[1]
    return None


def headers_of(part: Any) -> Iterator[tuple[str, str]]:
    for each in (part.get("headers") if isinstance(part, dict) else None) or []:
        yield str(each.get("name", "")).lower(), str(each.get("value", ""))


def rfc_message_id_of(message: Mapping[str, Any]) -> str | None:
    found = _MESSAGE_ID.search(header_of(message, "Message-ID") or "")
    return found[0] if found else None


# ── an original ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def read(session: GmailSession, ref: str) -> OriginalMail:
    """Raises `Ended`."""
    message_id = await _found(session, ref) if ref.startswith("<") else ref
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", message_id):
        raise Ended(Failed("that is no id of a Gmail message", evidence={"rule": "not-found"}))
    said = await session.caller.call(session.api.message(message_id), "read", "messages.get", LARGEST)
    return original_of(session, said)


async def _found(session: GmailSession, rfc_message_id: str) -> str:
    """By Gmail's search, which lags by minutes: good for a message that a person has read, no proof of anything."""
    request = session.api.search(f"rfc822msgid:{rfc_message_id.strip('<>')}")
    listed = await session.caller.call(request, "read", "messages.list")
    messages = listed.get("messages") or []
    if not messages:
        reason = "no message of this mailbox has that Message-ID, or Gmail's search does not know it yet"
        raise Ended(Failed(reason, evidence={"rule": "not-found"}))
    return str(messages[0]["id"])


def original_of(session: GmailSession, said: Mapping[str, Any]) -> OriginalMail:
    """A message in Gmail's JSON, format `full`."""
    headers: dict[str, str] = {}
    for name, value in headers_of(said.get("payload")):
        headers.setdefault(name, value)
    parts = list(_leaves(said.get("payload")))
    texts = {kind: _text_of(parts, f"text/{kind}") for kind in ("plain", "html")}
    senders = _people(headers.get("from", ""))
    return OriginalMail(
        message_id=str(said["id"]),
        conversation_id=said.get("threadId"),
        rfc_message_id=rfc_message_id_of(said),
        references=tuple(_MESSAGE_ID.findall(headers.get("references") or headers.get("in-reply-to", ""))),
        subject=_decoded(headers.get("subject", "")),
        sender=senders[0] if senders else None,
        reply_to=_people(headers.get("reply-to", "")),
        to=_people(headers.get("to", "")),
        cc=_people(headers.get("cc", "")),
        date=_date(said, headers),
        text=texts["plain"],
        html=texts["html"],
        attachments=tuple(_files(session, str(said["id"]), parts)),
    )


def _leaves(part: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(part, dict):
        return
    inner = part.get("parts")
    if inner:
        for each in inner:
            yield from _leaves(each)
    else:
        yield part


def _text_of(parts: list[dict[str, Any]], mime_type: str) -> str | None:
    """The first text of that kind that is no file, in the character set that its own header names."""
    for part in parts:
        if part.get("mimeType") == mime_type and not part.get("filename"):
            data = (part.get("body") or {}).get("data")
            return _characters(_bytes_of(data), part) if data else None
    return None


def _characters(data: bytes, part: dict[str, Any]) -> str:
    """Gmail undoes the transfer encoding and leaves the character set (discovery document, 2026-10)."""
    head = EmailMessage()
    head["Content-Type"] = dict(headers_of(part)).get("content-type", "text/plain")
    try:
        return data.decode(head.get_content_charset("utf-8"), "replace")
    except LookupError:
        return data.decode("utf-8", "replace")


def _files(session: GmailSession, message_id: str, parts: list[dict[str, Any]]) -> Iterator[OriginalFile]:
    for part in parts:
        body = part.get("body") or {}
        inline_id = dict(headers_of(part)).get("content-id", "").strip("<> ") or None
        if not part.get("filename") and inline_id is None:
            continue
        fetch = _fetch(session, message_id, body)
        kind = str(part.get("mimeType") or "application/octet-stream")
        yield OriginalFile(part.get("filename") or "file", kind, int(body.get("size") or 0), fetch, inline_id)


def _fetch(session: GmailSession, message_id: str, body: Mapping[str, Any]) -> Callable[[], AsyncIterator[bytes]]:
    async def pieces() -> AsyncIterator[bytes]:
        text = body.get("data") or await _fetched(session, message_id, str(body.get("attachmentId")))
        data = await asyncio.to_thread(_bytes_of, text) if len(text) > LONG else _bytes_of(text)
        for start in range(0, len(data), _PIECE):
            yield data[start : start + _PIECE]

    return pieces


async def _fetched(session: GmailSession, message_id: str, attachment_id: str) -> str:
    request = session.api.attachment(message_id, attachment_id)
    said = await session.caller.call(request, "read", "messages.attachments.get", LARGEST)
    return str(said.get("data") or "")


def _bytes_of(data: Any) -> bytes:
    text = str(data or "")
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""


def _people(value: str) -> tuple[Person, ...]:
    return tuple((_decoded(name), address) for name, address in getaddresses([value]) if address)


def _decoded(value: str) -> str:
    """Gmail shows headers decoded or as they came; encoded words are undone either way."""
    try:
        return str(make_header(decode_header(value))).strip()
    except (UnicodeError, LookupError, ValueError):
        return value.strip()


def _date(said: Mapping[str, Any], headers: Mapping[str, str]) -> datetime | None:
    try:
        return parsedate_to_datetime(headers.get("date", ""))
    except ValueError:
        at = said.get("internalDate")
        return datetime.fromtimestamp(int(at) / 1000, UTC) if at else None
