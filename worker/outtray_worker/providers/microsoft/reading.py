"""Reading a message of the mailbox, to answer or forward it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from outtray_schema.outcome import Failed
from outtray_worker.providers import OriginalFile, OriginalMail, Person
from outtray_worker.providers.microsoft.calls import Ask, Calls, Ended, garbled, quoted
from outtray_worker.providers.microsoft.drafts import of_rfc_id
from outtray_worker.providers.microsoft.files import LARGEST
from outtray_worker.providers.microsoft.letter import Json
from outtray_worker.providers.microsoft.scopes import Grant

_SELECT = (
    "$select=id,conversationId,internetMessageId,subject,from,sender,replyTo,toRecipients,ccRecipients,"
    "sentDateTime,body,hasAttachments,internetMessageHeaders,isDraft"
)
_FILES = "$select=id,name,contentType,size,isInline,microsoft.graph.fileAttachment/contentId&$top=999"


async def read_original(calls: Calls, grant: Grant, ref: str) -> OriginalMail:
    """The message of that id, or of that Message-ID where `ref` has angle brackets. Raises `Ended`, `NoAnswer`."""
    if not grant.read:
        reason = "reading the message to answer needs the permission Mail.Read or Mail.ReadWrite"
        raise Ended(Failed(reason, evidence={"rule": "no-scope"}))
    message = await (_by_rfc_id(calls, ref) if ref.startswith("<") else _by_id(calls, ref))
    identifier = str(message["id"])
    # hasAttachments leaves out the images that the html shows (docs, resources/message, 2026-11).
    files = await _files(calls, identifier)
    return _original(message, files)


async def _by_id(calls: Calls, identifier: str) -> Json:
    said = await calls.ask(Ask("GET", f"/messages/{quoted(identifier)}?{_SELECT}", "original"))
    if said.status == 404 or "ErrorInvalidIdMalformed" in str(said.json().get("error")):
        raise _not_there()
    if said.status != 200:
        raise Ended(calls.outcome(said, "read"))
    if not said.json().get("id"):
        raise garbled(said)
    return said.json()


async def _by_rfc_id(calls: Calls, rfc_message_id: str) -> Json:
    path = f"/messages?$filter={of_rfc_id(rfc_message_id)}&$top=10&{_SELECT}"
    found = calls.values(await calls.ask(Ask("GET", path, "original")), "read")
    # A mail to oneself stands there twice, received and sent: either can be answered.
    for each in found:
        if not each.get("isDraft"):
            return each
    raise _not_there()


def _not_there() -> Ended:
    return Ended(Failed("the message to answer is not in this mailbox", evidence={"rule": "original-gone"}))


async def _files(calls: Calls, identifier: str) -> tuple[OriginalFile, ...]:
    path = f"/messages/{quoted(identifier)}/attachments"
    found = calls.values(await calls.ask(Ask("GET", f"{path}?{_FILES}", "attachments")), "read")
    return tuple(_file(calls, path, each) for each in found)


def _file(calls: Calls, path: str, told: Json) -> OriginalFile:
    """Its bytes come in one answer, which is held: Graph has no ranges for attachments."""

    async def fetch() -> AsyncIterator[bytes]:
        value = Ask("GET", f"{path}/{quoted(str(told.get('id', '')))}/$value", "attachment")
        said = await calls.ask(value, largest=LARGEST)
        if said.status != 200:
            raise Ended(calls.outcome(said, "read"))
        yield said.answer.body

    # An attached message has no content type; its $value is MIME (docs, attachment-get, 2026-11).
    attached_mail = str(told.get("@odata.type", "")).endswith("itemAttachment")
    content_type = "message/rfc822" if attached_mail else str(told.get("contentType") or "application/octet-stream")
    inline_id = told.get("contentId") if told.get("isInline") else None
    return OriginalFile(str(told.get("name") or ""), content_type, int(told.get("size") or 0), fetch, inline_id)


def _original(message: Json, files: tuple[OriginalFile, ...]) -> OriginalMail:
    body: Any = message.get("body") or {}
    html = str(body.get("contentType", "")).lower() == "html"
    sender = message.get("from") or message.get("sender")
    return OriginalMail(
        message_id=str(message["id"]),
        conversation_id=message.get("conversationId"),
        rfc_message_id=message.get("internetMessageId"),
        references=_references(message),
        subject=str(message.get("subject") or ""),
        sender=_person(sender) if sender else None,
        reply_to=_people(message, "replyTo"),
        to=_people(message, "toRecipients"),
        cc=_people(message, "ccRecipients"),
        date=_moment(message.get("sentDateTime")),
        text=None if html else str(body.get("content") or ""),
        html=str(body.get("content") or "") if html else None,
        attachments=files,
    )


def _references(message: Json) -> tuple[str, ...]:
    headers = {str(each.get("name")).lower(): each.get("value") for each in message.get("internetMessageHeaders") or ()}
    said = headers.get("references") or headers.get("in-reply-to") or ""
    return tuple(word for word in str(said).split() if word.startswith("<"))


def _people(message: Json, name: str) -> tuple[Person, ...]:
    return tuple(_person(each) for each in message.get(name) or ())


def _person(recipient: Json) -> Person:
    told = recipient.get("emailAddress") or {}
    return str(told.get("name") or ""), str(told.get("address") or "")


def _moment(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None
