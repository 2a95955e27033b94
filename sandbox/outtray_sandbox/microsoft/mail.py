"""What a message is made of: MIME read into Graph's properties, and properties rendered as what a recipient gets."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import getaddresses
from typing import Any
from uuid import uuid4

from outtray_sandbox.microsoft.mailbox import Attachment, Item
from outtray_sandbox.microsoft.properties import Wrong

X_HEADERS = 5
_OWN = {"bcc", "reply-to", "mime-version", "content-type", "content-transfer-encoding"}
_BCC = re.compile(rb"(?im)^bcc:[^\r\n]*\r?\n([ \t][^\r\n]*\r?\n)*")


def person(name: str, address: str) -> dict[str, Any]:
    return {"emailAddress": {"name": name or address, "address": address}}


def address_of(recipient: Any) -> str:
    told = (recipient or {}).get("emailAddress") or {}
    return str(told.get("address") or "")


def recipients_of(properties: dict[str, Any]) -> list[str]:
    """To, Cc and Bcc in this order, each once."""
    found: dict[str, str] = {}
    for role in ("toRecipients", "ccRecipients", "bccRecipients"):
        for each in properties.get(role) or ():
            found.setdefault(address_of(each).casefold(), address_of(each))
    return [each for each in found.values() if each]


def server_id() -> str:
    """A Message-ID as Exchange makes them."""
    return f"<{uuid4().hex.upper()[:16]}@AM0PR01MB0001.eurprd01.prod.exchangelabs.com>"


def complete(properties: dict[str, Any], user: str) -> dict[str, Any]:
    """What every message has, whoever wrote it."""
    made = {
        "subject": "",
        "body": {"contentType": "text", "content": ""},
        "toRecipients": [],
        "ccRecipients": [],
        "bccRecipients": [],
        "replyTo": [],
        "importance": "normal",
        "isReadReceiptRequested": False,
        "internetMessageId": server_id(),
        "conversationId": f"AAQkAG{uuid4().hex}=",
        "sender": person("", user),
        "from": person("", user),
    }
    return {**made, **{name: value for name, value in properties.items() if value is not None}}


# ── MIME ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def decoded(body: bytes) -> bytes:
    """The MIME of a request. Raises `Wrong` as Graph refuses it: URL-safe base64 is none."""
    text = re.sub(rb"\s", b"", body)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise Wrong("Invalid base64 string for MIME content.", "ErrorMimeContentInvalidBase64String") from None


def from_mime(mime: bytes, user: str) -> Item:
    """A draft of it. Its From is ignored: the mailbox's own stands there (outlook-send-mime-message, 2026-11)."""
    parsed = message_from_bytes(mime, policy=policy.default)
    if not parsed.keys():
        raise Wrong("The MIME content is invalid.", "ErrorMimeContentInvalid")
    properties: dict[str, Any] = {
        "subject": str(parsed.get("Subject", "")),
        "body": _body(parsed),
        "internetMessageId": str(parsed.get("Message-ID", "")).strip() or None,
        "isReadReceiptRequested": parsed.get("Disposition-Notification-To") is not None,
        "importance": str(parsed.get("Importance", "normal")).lower(),
        "internetMessageHeaders": [{"name": name, "value": str(value)} for name, value in parsed.items()],
    }
    roles = {"To": "toRecipients", "Cc": "ccRecipients", "Bcc": "bccRecipients", "Reply-To": "replyTo"}
    for header, role in roles.items():
        found = getaddresses([str(value) for value in parsed.get_all(header, ())])
        properties[role] = [person(name, address) for name, address in found if "@" in address]
    item = Item("drafts", complete(properties, user), _BCC.sub(b"", mime, count=1))
    item.attachments = [_attachment(part) for part in parsed.iter_attachments()]
    return item


def _body(parsed: EmailMessage) -> dict[str, Any]:
    part = parsed.get_body(("html", "plain"))
    if part is None:
        return {"contentType": "text", "content": ""}
    kind = "html" if part.get_content_type() == "text/html" else "text"
    return {"contentType": kind, "content": part.get_content()}


def _attachment(part: EmailMessage) -> Attachment:
    content = part.get_payload(decode=True)
    told = {"name": part.get_filename(), "contentType": part.get_content_type()}
    return Attachment(told, content if isinstance(content, bytes) else b"")


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def from_json(told: dict[str, Any], user: str) -> Item:
    """A draft of it. Raises `Wrong`."""
    check_headers(told)
    check_message_id(told)
    files = told.pop("attachments", None) or []
    item = Item("drafts", complete(told, user))
    item.attachments = [attachment_of(each) for each in files]
    return item


def check_headers(told: dict[str, Any]) -> None:
    headers = told.get("internetMessageHeaders") or []
    for each in headers:
        if not str(each.get("name", "")).lower().startswith("x-"):
            name = each.get("name")
            raise Wrong(
                f"The internet message header name '{name}' should start with 'x-' or 'X-'.",
                "InvalidInternetMessageHeader",
            )
    if len(headers) > X_HEADERS:
        raise Wrong("Maximum number of headers in one message should be less than or equal to 5.",
                    "InvalidInternetMessageHeaderCollection")  # fmt: skip


def check_message_id(told: dict[str, Any]) -> None:
    identifier = told.get("internetMessageId")
    if identifier is not None and not re.fullmatch(r"<[^<>\s]+@[^<>\s]+>", identifier):
        raise Wrong("The internetMessageId is invalid.", "ErrorInvalidPropertySet")


def attachment_of(told: dict[str, Any]) -> Attachment:
    """A file as it came in JSON. Raises `Wrong` without a name or bytes."""
    if not told.get("name") or told.get("contentBytes") is None:
        raise Wrong("An attachment needs a name and contentBytes.", "ErrorInvalidRequest")
    content = base64.b64decode(told["contentBytes"])
    return Attachment({name: each for name, each in told.items() if name != "contentBytes"}, content)


def rendered(item: Item) -> bytes:
    """What recipients get: MIME "more or less" as it came, anything else as Exchange writes it."""
    if item.mime is not None:
        return item.mime
    properties = item.properties
    message = EmailMessage(policy=policy.SMTP.clone(max_line_length=998))
    message["From"] = address_of(properties["from"])
    for header, role in (("To", "toRecipients"), ("Cc", "ccRecipients")):
        if found := [address_of(each) for each in properties.get(role) or ()]:
            message[header] = ", ".join(found)
    message["Subject"] = properties.get("subject") or ""
    message["Message-ID"] = properties["internetMessageId"]
    for each in properties.get("internetMessageHeaders") or ():
        if each["name"] not in message and each["name"].lower() not in _OWN:
            message[each["name"]] = each["value"]
    body = properties["body"]
    message.set_content(body.get("content") or "", subtype="html" if body["contentType"].lower() == "html" else "plain")
    for each in item.attachments:
        kind, _, subtype = str(each.told.get("contentType") or "application/octet-stream").partition("/")
        message.add_attachment(each.content, maintype=kind, subtype=subtype or "x", filename=str(each.told.get("name")))
    return message.as_bytes()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def text_of(item: Item) -> str:
    """For the page of sent mail."""
    return str((item.properties.get("body") or {}).get("content") or "")


def quoted_answer(original: Item, user: str, action: str) -> Item:
    """The draft that Graph derives from a message: subject, recipients, quote, conversation, and a forward's files."""
    told = original.properties
    prefix = "FW: " if action == "createForward" else "RE: "
    subject = str(told.get("subject") or "")
    to: list[Any] = []
    cc: list[Any] = []
    if action != "createForward":
        to = list(told.get("replyTo") or [told.get("from")])
    if action == "createReplyAll":
        others = [*(told.get("toRecipients") or ()), *(told.get("ccRecipients") or ())]
        cc = [each for each in others if address_of(each).casefold() != user.casefold()]
    properties = {
        "subject": subject if subject.lower().startswith(prefix.lower()) else prefix + subject,
        "body": {"contentType": "html", "content": f"<hr>{text_of(original)}"},
        "toRecipients": to,
        "ccRecipients": cc,
        "conversationId": told.get("conversationId"),
        "in-reply-to": told.get("internetMessageId"),
    }
    item = Item("drafts", complete(properties, user))
    if action == "createForward":
        item.attachments = [Attachment(dict(each.told), each.content) for each in original.attachments]
    return item


def stamp(now: float) -> str:
    """Seconds since the epoch, as Graph writes a time."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
