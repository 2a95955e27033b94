"""Messages of the fake Graph: read, listed, made, changed, and the files on them."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from outtray_sandbox.microsoft.admission import Refused, gone
from outtray_sandbox.microsoft.filters import matches, parse, selected
from outtray_sandbox.microsoft.house import MicrosoftHouse
from outtray_sandbox.microsoft.mail import (
    attachment_of,
    check_message_id,
    decoded,
    from_json,
    from_mime,
    quoted_answer,
)
from outtray_sandbox.microsoft.mailbox import Attachment, Item, Mailbox
from outtray_sandbox.microsoft.properties import Wrong, check


async def json_of(request: web.Request, kind: str) -> dict[str, Any]:
    """The body, if it is of that type. Raises `Wrong`."""
    body = await request.read()
    if not body:
        return {}
    try:
        told = json.loads(body)
    except ValueError:
        raise Wrong("Unable to read JSON request payload.", "BadRequest") from None
    check(told, kind)
    return dict(told)


def draft_of(request: web.Request, mailbox: Mailbox, now: float) -> Item:
    """A draft that is one. Raises `Refused` for what is gone, or is a message that was sent."""
    draft = mailbox.draft(request.match_info["id"])
    if draft is not None:
        return draft
    found = mailbox.find(request.match_info["id"], now)
    if found is not None and not found.is_draft:
        raise Refused(400, "ErrorInvalidOperation", "The operation is only allowed on a draft message.")
    raise gone()


class Messages:
    def __init__(self, house: MicrosoftHouse) -> None:
        self.house = house

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────

    @staticmethod
    def _immutable(request: web.Request) -> bool:
        return 'idtype="immutableid"' in request.headers.get("Prefer", "").lower().replace(" ", "")

    def _show(self, request: web.Request, item: Item, status: int = 200) -> web.Response:
        return web.json_response(selected(item.shown(self._immutable(request)), request.query), status=status)

    def _found(self, request: web.Request, mailbox: Mailbox) -> Item:
        item = mailbox.find(request.match_info["id"], self.house.now())
        if item is None:
            raise gone()
        return item

    async def profile(self, request: web.Request, mailbox: Mailbox) -> web.Response:
        proxies = [f"SMTP:{mailbox.address}", *(f"smtp:{alias}" for alias in sorted(mailbox.aliases))]
        told = {"mail": mailbox.address, "userPrincipalName": mailbox.address, "proxyAddresses": proxies}
        return web.json_response(selected(told, request.query))

    async def folder(self, request: web.Request, mailbox: Mailbox) -> web.Response:
        return web.json_response({"id": f"folder-{request.match_info['folder']}"})

    async def listed(self, request: web.Request, mailbox: Mailbox) -> web.Response:
        condition = parse(request.query.get("$filter"))
        top = int(request.query.get("$top", "10"))
        found = [
            item
            for item in mailbox.at(self.house.now(), request.match_info.get("folder"))
            if matches(item.properties, condition)
        ]
        shown = [selected(item.shown(self._immutable(request)), request.query) for item in found[:top]]
        return web.json_response({"value": shown})

    async def get(self, request: web.Request, mailbox: Mailbox) -> web.Response:
        return self._show(request, self._found(request, mailbox))

    async def attachments(self, request: web.Request, mailbox: Mailbox) -> web.Response:
        item = self._found(request, mailbox)
        return web.json_response({"value": [each.shown() for each in item.attachments]})

    async def value(self, request: web.Request, mailbox: Mailbox) -> web.Response:
        found = self._attachment(request, self._found(request, mailbox))
        return web.Response(body=found.content, content_type="application/octet-stream")

    def _attachment(self, request: web.Request, item: Item) -> Attachment:
        found = next((each for each in item.attachments if each.id == request.match_info["file"]), None)
        if found is None:
            raise gone()
        return found

    # ── drafts ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _written(self, request: web.Request, mailbox: Mailbox) -> Item:
        if request.content_type == "text/plain":
            return from_mime(decoded(await request.read()), mailbox.address)
        return from_json(await json_of(request, "message"), mailbox.address)

    async def create(self, request: web.Request, mailbox: Mailbox) -> web.Response:
        item = await self._written(request, mailbox)
        mailbox.items.append(item)
        return self._show(request, item, 201)

    async def answer(self, request: web.Request, mailbox: Mailbox) -> web.Response:
        action = request.match_info["action"]
        told = await json_of(request, "createForward" if action == "createForward" else "createReply")
        original = self._found(request, mailbox)
        if action == "createForward" and not told.get("toRecipients") and not told.get("message"):
            raise Wrong("toRecipients is required.", "ErrorInvalidRecipients")
        item = quoted_answer(original, mailbox.address, action)
        item.properties["toRecipients"] = told.get("toRecipients") or item.properties["toRecipients"]
        mailbox.items.append(item)
        return self._show(request, item, 201)

    async def patch(self, request: web.Request, mailbox: Mailbox) -> web.Response:
        told = await json_of(request, "message")
        item = draft_of(request, mailbox, self.house.now())
        if "internetMessageHeaders" in told:
            raise Refused(400, "ErrorInvalidPropertySet", "Headers can be set only when the message is created.")
        check_message_id(told)
        properties = told.pop("singleValueExtendedProperties", None) or []
        kept = {each["id"]: each for each in item.properties.get("singleValueExtendedProperties") or ()}
        kept |= {each["id"]: each for each in properties}
        item.properties |= {**told, "singleValueExtendedProperties": list(kept.values())}
        if told.keys() - {"importance", "isRead"}:
            item.mime = None if set(told) & {"body", "subject", "toRecipients"} else item.mime
        return self._show(request, item)

    async def delete(self, request: web.Request, mailbox: Mailbox) -> web.Response:
        item = self._found(request, mailbox)
        if not any(each is item for each in mailbox.items):
            raise gone()
        mailbox.remove(item)
        return web.Response(status=204)

    async def attach(self, request: web.Request, mailbox: Mailbox) -> web.Response:
        told = await json_of(request, "fileAttachment")
        item = draft_of(request, mailbox, self.house.now())
        attachment = attachment_of(told)
        item.attachments.append(attachment)
        return web.json_response(attachment.shown(), status=201)

    async def detach(self, request: web.Request, mailbox: Mailbox) -> web.Response:
        item = draft_of(request, mailbox, self.house.now())
        item.attachments.remove(self._attachment(request, item))
        return web.Response(status=204)
