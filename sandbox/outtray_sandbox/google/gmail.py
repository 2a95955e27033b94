"""The fake Gmail API: each method as its discovery document describes it, for the user whose token comes."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from outtray_sandbox.accepted import Accepted
from outtray_sandbox.google.errors import (
    insufficient_scopes,
    invalid,
    not_found,
    refusal,
    sending_limit,
    unauthenticated,
)  # fmt: skip
from outtray_sandbox.google.house import DAY, GMAIL, GoogleHouse, User
from outtray_sandbox.google.mailbox import Stored, addresses, encoded, new_rfc_message_id, parse, shown, with_message_id
from outtray_sandbox.google.oauth import bearer
from outtray_sandbox.google.schemas import check_body, check_query, decoded, discovery, method_of
from outtray_sandbox.google.tokens import Access
from outtray_sandbox.google.uploads import LARGEST, Session, Uploads, multipart, too_large
from outtray_sandbox.web import Route, SentMail

JSON_BOUND = 5 * 1024 * 1024
MOST_RECIPIENTS = 500
"""Of one message by the API (knowledge.workspace.google.com, sending limits, 2026)."""
METADATA = f"{GMAIL}metadata"
_ADDRESS = re.compile(r"[^@\s<>]+@[^@\s<>]+\.[^@\s<>]+|[^@\s<>]+@localhost")


@dataclass(frozen=True, slots=True)
class Call:
    """One request, its token judged and its query checked."""

    request: web.Request
    user: User
    access: Access
    method: str

    @property
    def metadata_only(self) -> bool:
        allowed = set(method_of(self.method)["scopes"]) & set(self.access.scopes)
        return allowed == {METADATA}


Answering = Callable[[Call], Awaitable[web.StreamResponse]]
Suffer = Callable[[Any, web.Request, Callable[[], Awaitable[web.StreamResponse]]], Awaitable[web.StreamResponse]]


class Gmail:
    """The methods over one house."""

    def __init__(self, house: GoogleHouse, suffer: Suffer) -> None:
        self.house = house
        self.uploads = Uploads()
        self._suffer = suffer

    def routes(self) -> Iterable[Route]:
        methods: Mapping[str, Answering] = {
            "getProfile": self.profile,
            "settings.sendAs.list": self.send_as,
            "messages.send": self.send,
            "messages.list": self.list_messages,
            "messages.get": self.get_message,
            "messages.attachments.get": self.get_attachment,
            "threads.get": self.get_thread,
            "drafts.create": self.create_draft,
            "drafts.send": self.send_draft,
            "drafts.get": self.get_draft,
            "drafts.list": self.list_drafts,
            "drafts.delete": self.delete_draft,
        }
        for name, answering in methods.items():
            described = method_of(name)
            yield Route(described["httpMethod"], f"/{described['path']}", name, self._guarded(name, answering))
        for name in ("messages.send", "drafts.create"):
            path = method_of(name)["mediaUpload"]["protocols"]["simple"]["path"]
            yield Route("POST", path, f"upload.{name}", self._guarded(name, partial(self.upload, name)))
            yield Route("PUT", path, f"upload.put.{name}", self._guarded(name, self.put))

    def _guarded(self, method: str, answering: Answering) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            access = self.house.tokens.holder(bearer(request))
            if access is None:
                await request.read()
                raise unauthenticated()
            if not set(method_of(method)["scopes"]) & set(access.scopes):
                await request.read()
                raise insufficient_scopes(f"caribou.api.proto.MailboxService.{method}")
            if request.match_info["userId"] not in ("me", access.email):
                raise refusal(403, "forbidden", f"Delegation denied for {access.email}")
            if access.email not in self.house.users:
                raise refusal(400, "failedPrecondition", "Mail service not enabled")
            check_query(method, set(request.query))
            return await answering(Call(request, self.house.users[access.email], access, method))

        return answer

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def send(self, call: Call) -> web.StreamResponse:
        said = check_body(call.method, await _json(call.request))
        if "raw" not in said:
            raise invalid("Missing required parameter: raw")
        return await self._sent_with_its_fault(call, decoded(said["raw"]), said.get("threadId"))

    async def _sent_with_its_fault(self, call: Call, raw: bytes, thread_id: str | None) -> web.StreamResponse:
        async def work() -> web.StreamResponse:
            return _answer(self._sent(call.user, raw, thread_id))

        headers = parse(raw, 0)
        rule = self.house.fault_of_mail(call.method, {"X-Sandbox-Fault": str(headers.get("X-Sandbox-Fault", ""))})
        return await self._suffer(rule, call.request, work)

    def _sent(self, user: User, raw: bytes, thread_id: str | None) -> dict[str, Any]:
        """Judge, file and deliver a mail. Raises `Refusal`."""
        parsed, recipients = self._judged(raw)
        thread = self._thread(user, raw, thread_id)
        self._charge(user, len(recipients))
        sender = self._sender(user, addresses(parsed, "From"))
        if user.lose > 0:
            user.lose -= 1
            lost = user.mailbox.add(raw, ("SENT",), thread)
            user.mailbox.remove(lost.id)
            return {"id": lost.id, "threadId": lost.thread_id, "labelIds": ["SENT"]}
        rfc_message_id = new_rfc_message_id()
        stored = user.mailbox.add(with_message_id(raw, rfc_message_id), ("SENT",), thread)
        self._deliver(user, stored, raw, sender, recipients)
        return {"id": stored.id, "threadId": stored.thread_id, "labelIds": ["SENT"]}

    def _judged(self, raw: bytes) -> tuple[Any, tuple[str, ...]]:
        if len(raw) > LARGEST:
            raise too_large()
        parsed = parse(raw, 0)
        for name in ("To", "Cc", "Bcc"):
            if not all(_ADDRESS.fullmatch(each) for each in addresses(parsed, name)):
                raise invalid(f"Invalid {name} header")
        recipients = addresses(parsed, "To", "Cc", "Bcc")
        if not recipients:
            raise invalid("Recipient address required")
        if len(recipients) > MOST_RECIPIENTS:
            raise invalid("Invalid number of recipients")
        return parsed, recipients

    def _thread(self, user: User, raw: bytes, thread_id: str | None) -> str | None:
        """The conversation that the mail joins; None begins a new one, silently, as Gmail does."""
        if thread_id is None:
            return None
        if not user.mailbox.thread(thread_id):
            raise not_found()
        return thread_id if user.mailbox.joins(thread_id, raw) else None

    def _charge(self, user: User, recipients: int) -> None:
        messages, used = self.house.used(user)
        over = user.messages is not None and messages + 1 > user.messages
        if over or (user.recipients is not None and used + recipients > user.recipients):
            frees = (user.sent[0][0] if user.sent else self.house.now()) + DAY
            # In the sandbox the time is when the window really frees; Gmail often names about a quarter of an hour.
            raise sending_limit(datetime.fromtimestamp(frees, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z")
        user.sent.append((self.house.now(), recipients))

    @staticmethod
    def _sender(user: User, named: tuple[str, ...]) -> str:
        """The From that recipients see: another than the account or a verified alias is replaced, without an error."""
        address = named[0] if named else user.email
        allowed = address.casefold() == user.email.casefold() or user.aliases.get(address) == "accepted"
        return address if allowed else user.email

    def _deliver(self, user: User, stored: Stored, raw: bytes, sender: str, recipients: tuple[str, ...]) -> None:
        original = str(parse(raw, 0).get("Message-ID", "")).strip()
        digest = hashlib.sha256(raw).hexdigest()
        at, clock = self.house.now(), time.monotonic()
        taken = Accepted(original, user.email, sender, recipients, digest, len(raw), at, clock, stored.id, "200")
        body = stored.parsed.get_body(("plain", "html"))
        ids = {
            "message": stored.id,
            "conversation": stored.thread_id,
            "Message-ID": stored.rfc_message_id,
            "ours": original,
        }
        text = str(body.get_content()) if body is not None and body.get_content_maintype() == "text" else ""
        subject = stored.header("Subject")
        mail = SentMail(at, user.email, sender, recipients, subject, text, ids, stored.raw or b"")
        self.house.take(taken, mail, raw)

    # ── drafts ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def create_draft(self, call: Call) -> web.StreamResponse:
        said = check_body(call.method, await _json(call.request)).get("message") or {}
        if "raw" not in said:
            raise invalid("Missing required parameter: message.raw")
        return _answer(self._drafted(call.user, decoded(said["raw"]), said.get("threadId")))

    def _drafted(self, user: User, raw: bytes, thread_id: str | None) -> dict[str, Any]:
        if len(raw) > LARGEST:
            raise too_large()
        draft_id, stored = user.mailbox.add_draft(raw, self._thread(user, raw, thread_id))
        return {"id": draft_id, "message": {"id": stored.id, "threadId": stored.thread_id, "labelIds": ["DRAFT"]}}

    async def send_draft(self, call: Call) -> web.StreamResponse:
        said = check_body(call.method, await _json(call.request))
        if "id" not in said:
            raise invalid("Missing draft id")
        stored = call.user.mailbox.draft(said["id"])
        if stored is None:
            raise not_found()

        async def work() -> web.StreamResponse:
            return _answer(self._sent_draft(call.user, said["id"]))

        rule = self.house.fault_of_mail(call.method, {"X-Sandbox-Fault": stored.header("X-Sandbox-Fault")})
        return await self._suffer(rule, call.request, work)

    def _sent_draft(self, user: User, draft_id: str) -> dict[str, Any]:
        """The draft is consumed by its sending, and stays where that is refused."""
        stored = user.mailbox.draft(draft_id)
        if stored is None:
            raise not_found()
        raw = stored.raw or b""
        thread = stored.thread_id if user.mailbox.joins(stored.thread_id, raw) else None
        sent = self._sent(user, raw, thread)
        user.mailbox.remove(stored.id)
        return sent

    async def get_draft(self, call: Call) -> web.StreamResponse:
        draft_id = call.request.match_info["id"]
        stored = call.user.mailbox.draft(draft_id)
        if stored is None:
            raise not_found()
        return _answer({"id": draft_id, "message": shown(stored, call.request.query.get("format", "full"))})

    async def list_drafts(self, call: Call) -> web.StreamResponse:
        mailbox = call.user.mailbox
        found = [(draft_id, mailbox.messages[of]) for draft_id, of in mailbox.drafts.items()]
        found.sort(key=lambda each: each[1].at, reverse=True)
        most = int(call.request.query.get("maxResults", "100"))
        drafts = [{"id": each, "message": {"id": of.id, "threadId": of.thread_id}} for each, of in found[:most]]
        return _answer({"drafts": drafts, "resultSizeEstimate": len(found)} if drafts else {"resultSizeEstimate": 0})

    async def delete_draft(self, call: Call) -> web.StreamResponse:
        stored = call.user.mailbox.draft(call.request.match_info["id"])
        if stored is None:
            raise not_found()
        call.user.mailbox.remove(stored.id)
        return web.Response(status=204)

    # ── uploads ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def upload(self, name: str, call: Call) -> web.StreamResponse:
        """`uploadType` says which: all at once, or a session whose URL the answer's Location is."""
        kind = call.request.query.get("uploadType")
        if kind == "resumable":
            resource = check_body(name, await call.request.read())
            if name == "drafts.create":
                resource = resource.get("message") or {}
            if "threadId" in resource and not call.user.mailbox.thread(resource["threadId"]):
                raise not_found()
            return self._begun(call, name, resource)
        if kind != "multipart":
            raise invalid("Unsupported uploadType")
        text, raw = await multipart(call.request)
        resource = check_body(name, text)
        if name == "drafts.create":
            return _answer(self._drafted(call.user, raw, (resource.get("message") or {}).get("threadId")))
        return await self._sent_with_its_fault(call, raw, resource.get("threadId"))

    def _begun(self, call: Call, name: str, resource: dict[str, Any]) -> web.StreamResponse:
        upload_id = self.uploads.begin(call.request, name, call.user.email, resource)
        # Google names its own host, whatever way the request came.
        host = urlsplit(discovery()["rootUrl"]).netloc
        path = f"https://{host}{call.request.path}?alt=json&uploadType=resumable&upload_id={upload_id}"
        return web.Response(headers={"Location": path, "X-GUploader-UploadID": upload_id})

    async def put(self, call: Call) -> web.StreamResponse:
        return await self.uploads.put(call.request, lambda session: self._finished(call.user, session))

    def _finished(self, user: User, session: Session) -> web.Response:
        raw, thread = bytes(session.data), session.resource.get("threadId")
        return _answer((self._drafted if session.about == "drafts.create" else self._sent)(user, raw, thread))

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def get_message(self, call: Call) -> web.StreamResponse:
        stored = call.user.mailbox.messages.get(call.request.match_info["id"])
        form = self._form(call)
        if stored is None:
            raise not_found()
        return _answer(shown(stored, form, call.request.query.getall("metadataHeaders", [])))

    async def get_thread(self, call: Call) -> web.StreamResponse:
        form, found = self._form(call), call.user.mailbox.thread(call.request.match_info["id"])
        if not found:
            raise not_found()
        only = call.request.query.getall("metadataHeaders", [])
        messages = [shown(each, form, only) for each in found]
        return _answer({"id": found[0].thread_id, "historyId": "1", "messages": messages})

    @staticmethod
    def _form(call: Call) -> str:
        form = call.request.query.get("format", "full")
        if call.metadata_only and form in ("full", "raw"):
            raise refusal(403, "forbidden", f"Metadata scope doesn't allow format {form.upper()}")
        return form

    async def list_messages(self, call: Call) -> web.StreamResponse:
        """Newest first. By label at once; by `q` only what the search knows yet, and that is minutes behind."""
        query = call.request.query.get("q")
        if query is not None and call.metadata_only:
            raise refusal(403, "forbidden", "Metadata scope does not support 'q' parameter")
        found = call.user.mailbox.newest(call.request.query.getall("labelIds", []))
        if query is not None:
            found = self._searched(found, query)
        most = int(call.request.query.get("maxResults", "100"))
        start = int(call.request.query.get("pageToken", "0"))
        listed = [{"id": each.id, "threadId": each.thread_id} for each in found[start : start + most]]
        said: dict[str, Any] = {"resultSizeEstimate": len(found)} | ({"messages": listed} if listed else {})
        return _answer(said | ({"nextPageToken": str(start + most)} if start + most < len(found) else {}))

    def _searched(self, found: list[Stored], query: str) -> list[Stored]:
        known = [each for each in found if each.at <= self.house.now() - self.house.search_lag]
        for word in query.split():
            name, _, value = word.partition(":")
            if name == "rfc822msgid":
                known = [each for each in known if each.rfc_message_id.strip("<>") == value.strip("<>")]
            elif name == "in":
                known = [each for each in known if value.upper() in each.labels]
        return known

    async def get_attachment(self, call: Call) -> web.StreamResponse:
        stored = call.user.mailbox.messages.get(call.request.match_info["messageId"])
        data = stored.attachments.get(call.request.match_info["id"]) if stored else None
        if data is None:
            raise not_found()
        return _answer({"size": len(data), "data": encoded(data)})

    # ── the account ─────────────────────────────────────────────────────────────────────────────────────────────

    async def profile(self, call: Call) -> web.StreamResponse:
        total = len(call.user.mailbox.messages)
        said = {"emailAddress": call.user.email, "messagesTotal": total, "threadsTotal": total, "historyId": "1"}
        return _answer(said)

    async def send_as(self, call: Call) -> web.StreamResponse:
        user = call.user
        own = {"sendAsEmail": user.email, "displayName": user.name, "isPrimary": True, "isDefault": True}
        others = [
            {"sendAsEmail": alias, "displayName": "", "verificationStatus": status, "treatAsAlias": True}
            for alias, status in user.aliases.items()
        ]
        return _answer({"sendAs": [own, *others]})


async def _json(request: web.Request) -> bytes:
    if request.content_length is not None and request.content_length > JSON_BOUND:
        await _discard(request)
        raise refusal(413, "badRequest", f"Request payload size exceeds the limit: {JSON_BOUND} bytes.")
    return await request.read()


async def _discard(request: web.Request) -> None:
    async for _ in request.content.iter_any():
        pass


def _answer(said: dict[str, Any]) -> web.Response:
    return web.json_response(said)


def dated(response: web.StreamResponse, now: float) -> web.StreamResponse:
    """Google dates its answers; ours by the house's clock, which a test may have moved."""
    response.headers["Date"] = formatdate(now, usegmt=True)
    return response
