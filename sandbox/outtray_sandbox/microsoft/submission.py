"""Submission at the fake Graph: what Exchange minds, the ledger, and the copy in Sent Items."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from aiohttp import web

from outtray_sandbox.microsoft.admission import Refused
from outtray_sandbox.microsoft.house import MicrosoftHouse
from outtray_sandbox.microsoft.mail import (
    address_of,
    decoded,
    digest,
    from_json,
    from_mime,
    recipients_of,
    rendered,
    server_id,
    stamp,
    text_of,
)
from outtray_sandbox.microsoft.mailbox import Item, Mailbox
from outtray_sandbox.microsoft.messages import draft_of, json_of
from outtray_sandbox.microsoft.properties import Wrong
from outtray_sandbox.web import Accepted, SentMail


class Submission:
    def __init__(self, house: MicrosoftHouse) -> None:
        self.house = house

    async def send(self, request: web.Request, mailbox: Mailbox) -> web.Response:
        return self._hand_over(request, mailbox, draft_of(request, mailbox, self.house.now()))

    async def send_mail(self, request: web.Request, mailbox: Mailbox) -> web.Response:
        if request.content_type == "text/plain":
            item = from_mime(decoded(await request.read()), mailbox.address)
        else:
            told = await json_of(request, "sendMail")
            if not isinstance(told.get("message"), dict):
                raise Wrong("The message is required.", "ErrorInvalidRequest")
            item = from_json(told["message"], mailbox.address)
        item.folder = "outbox"
        return self._hand_over(request, mailbox, item)

    def _hand_over(self, request: web.Request, mailbox: Mailbox, item: Item) -> web.Response:
        recipients = recipients_of(item.properties)
        self._object(request, mailbox, item, recipients)
        message = rendered(item)
        if len(message) > self.house.limits.message:
            raise Refused(400, "ErrorMessageSizeExceeded", "The message exceeds the maximum supported size.")
        if self.house.rewrite_ids:
            item.properties["internetMessageId"] = server_id()
        user = mailbox.address.casefold()
        self.house.handed[user].append((self.house.now(), len(recipients)))
        identifier = str(item.properties["internetMessageId"])
        self._record(request, mailbox, item, message, recipients, identifier)
        item.properties["sentDateTime"] = stamp(self.house.now())
        self.house.file(mailbox, item)
        wait = self.house.accept_retry_after
        return web.Response(status=202, headers={} if wait is None else {"Retry-After": str(wait)})

    def _object(self, request: web.Request, mailbox: Mailbox, item: Item, recipients: Sequence[str]) -> None:
        """What Exchange minds at submission. Raises `Refused`."""
        if not recipients:
            raise Refused(400, "ErrorInvalidRecipients", "At least one recipient is not valid.")
        if len(recipients) > self.house.limits.recipients:
            raise Refused(400, "ErrorExceededMaxRecipientLimit", "The number of recipients exceeds the limit.")
        if any(not re.fullmatch(r"[^@\s]+@[^@\s]+", each) for each in recipients):
            raise Refused(400, "ErrorInvalidRecipients", "At least one recipient is not valid.")
        sender = address_of(item.properties["from"]).casefold()
        allowed = {mailbox.address.casefold(), *(alias.casefold() for alias in mailbox.aliases)}
        if sender not in allowed:
            message = "The user account which was used to submit this request does not have the right to send mail."
            raise Refused(403, "ErrorSendAsDenied", message)
        used = self.house.used(mailbox.address.casefold())
        if used + len(recipients) > self.house.limits.recipients_a_day:
            message = "The message can't be sent because the sender's daily message limit was exceeded."
            raise Refused(429, "ErrorExceededMessageLimit", message)

    def _record(
        self,
        request: web.Request,
        mailbox: Mailbox,
        item: Item,
        message: bytes,
        recipients: Sequence[str],
        identifier: str,
    ) -> None:
        sender = address_of(item.properties["from"])
        ids = {"id": item.immutable, "internetMessageId": identifier}
        self.house.take(
            Accepted(
                rfc_message_id=identifier,
                user=mailbox.address,
                sender=sender,
                recipients=tuple(recipients),
                sha256=digest(message),
                size=len(message),
                accepted_at=self.house.now(),
                monotonic=time.monotonic(),
                session=request.headers.get("client-request-id", ""),
                answer="202",
            ),
            SentMail(
                at=self.house.now(),
                user=mailbox.address,
                sender=sender,
                recipients=tuple(recipients),
                subject=str(item.properties.get("subject") or ""),
                text=text_of(item),
                ids={**ids, "conversationId": str(item.properties.get("conversationId"))},
                raw=message if len(message) <= self.house.keep_bodies else b"",
            ),
        )
