"""The Gmail API as Google's own client names it: methods, URIs and scopes from its installed discovery document.

The client never sends: it builds a request, our transport moves its bytes. Building costs 20 to 30 µs as long as the
resource collections (`drafts()`, `messages()`) are kept; asking the service for them each time cost 820 µs (2.202, one
core, 2026-11). Requests that differ by message in their body alone (deliveries, uploads) are named once, at the start.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from copy import copy
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from googleapiclient.discovery import build_from_document
from googleapiclient.errors import HttpError
from googleapiclient.http import HttpRequest, MediaInMemoryUpload
from httplib2 import Response

from outtray_worker.providers.gmail.discovery import discovery
from outtray_worker.providers.web import Answer, Request, Stream

MESSAGE = "message/rfc822"
_NOT_OURS = ("accept-encoding", "user-agent", "content-length")


class Api:
    """One per process: names requests for the account that the token is of (`me`), against `base_url`."""

    def __init__(self, base_url: str) -> None:
        # Below INFO the client logs URLs and refused answers' bodies, with the addresses in them (2.202, 2026-11).
        logging.getLogger("googleapiclient").setLevel(logging.INFO)
        self._base = urlsplit(base_url.rstrip("/"))
        users = build_from_document(discovery(), http=object()).users()
        self._users, self._drafts, self._messages = users, users.drafts(), users.messages()
        self._threads, self._send_as = users.threads(), users.settings().sendAs()
        self._attachments = self._messages.attachments()
        self._send_draft = self._drafts.send(userId="me", body={"id": ""})
        self._deliveries = {
            "drafts.create": self._drafts.create(userId="me", body={}),
            "messages.send": self._messages.send(userId="me", body={}),
        }
        self._uploads = {
            (about, resumable): self._named_upload(about, resumable)
            for about in ("drafts.create", "messages.send")
            for resumable in (False, True)
        }

    def _named_upload(self, about: str, resumable: bool) -> HttpRequest:
        media = MediaInMemoryUpload(b"", mimetype=MESSAGE, resumable=resumable)
        method = self._drafts.create if about == "drafts.create" else self._messages.send
        return method(userId="me", body={}, media_body=media)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────

    def send_draft(self, draft_id: str) -> HttpRequest:
        named = copy(self._send_draft)
        named.body = json.dumps({"id": draft_id})
        return named

    def deliver(self, about: str) -> HttpRequest:
        """`drafts.create` or `messages.send` as JSON; the caller brings the body."""
        return self._deliveries[about]

    def get_draft(self, draft_id: str) -> HttpRequest:
        return self._drafts.get(userId="me", id=draft_id, format="metadata")

    def list_drafts(self, most: int) -> HttpRequest:
        return self._drafts.list(userId="me", maxResults=most)

    def delete_draft(self, draft_id: str) -> HttpRequest:
        return self._drafts.delete(userId="me", id=draft_id)

    def headers_of(self, message_id: str, *headers: str) -> HttpRequest:
        return self._messages.get(userId="me", id=message_id, format="metadata", metadataHeaders=list(headers))

    def headers_of_thread(self, thread_id: str, *headers: str) -> HttpRequest:
        return self._threads.get(userId="me", id=thread_id, format="metadata", metadataHeaders=list(headers))

    def message(self, message_id: str) -> HttpRequest:
        return self._messages.get(userId="me", id=message_id, format="full")

    def attachment(self, message_id: str, attachment_id: str) -> HttpRequest:
        return self._attachments.get(userId="me", messageId=message_id, id=attachment_id)

    def list_sent(self, most: int, page: str | None) -> HttpRequest:
        return self._messages.list(userId="me", labelIds=["SENT"], maxResults=most, pageToken=page)

    def search(self, query: str) -> HttpRequest:
        return self._messages.list(userId="me", q=query, maxResults=5)

    def profile(self) -> HttpRequest:
        return self._users.getProfile(userId="me")

    def send_as(self) -> HttpRequest:
        return self._send_as.list(userId="me")

    # ── the wire ────────────────────────────────────────────────────────────────────────────────────────────────

    def on_wire(
        self,
        named: HttpRequest,
        token: str,
        body: bytes | Stream | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Request:
        """A named request as it travels. `body` stands in for its own."""
        own = named.body.encode() if isinstance(named.body, str) else named.body
        given = {name: value for name, value in named.headers.items() if name.lower() not in _NOT_OURS}
        every = {**given, "authorization": f"Bearer {token}", **(headers or {})}
        return Request(named.method, self.rebased(named.uri), every, own if body is None else body)

    def upload(self, about: str, resumable: bool, token: str, body: bytes | Stream, **headers: str) -> Request:
        """The first request of an upload; `headers` with underscores for hyphens."""
        named = self._uploads[about, resumable]
        return self.on_wire(named, token, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def rebased(self, uri: str) -> str:
        """A URI of Google's, at our base URL: an upload's session too, whatever host its answer named."""
        split = urlsplit(uri)
        path = split.path if split.path.startswith(f"{self._base.path}/") else self._base.path + split.path
        return urlunsplit((self._base.scheme, self._base.netloc, path, split.query, ""))


def parsed(named: HttpRequest, answer: Answer) -> dict[str, Any]:
    """A success, parsed as the client does. Raises `HttpError` for any other, `ValueError` for what is no object."""
    if answer.status >= 300:
        raise HttpError(Response({"status": str(answer.status)}), answer.body)
    said = named.postproc(Response({"status": str(answer.status)}), answer.body)
    if not isinstance(said, dict):
        raise ValueError("the answer is no object")
    return said


def reason_of(answer: Answer) -> str:
    """What a refusal says in words, as the client reads it: for classification, never shown unredacted."""
    try:
        return str(HttpError(Response({"status": str(answer.status)}), answer.body).reason)
    except (UnicodeDecodeError, AttributeError):
        return ""
