"""One mailbox's turn at Gmail: a draft that is sent, or a message that is sent at once, as its scopes allow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from outtray_schema.outcome import Failed, Held, Outcome
from outtray_worker.crash import crash_points
from outtray_worker.providers import Account, Draft, Finding, Mail, OriginalMail, Removed, Trace
from outtray_worker.providers.gmail.body import Content, as_json, as_multipart, held
from outtray_worker.providers.gmail.caller import Caller, Ended, Interrupted
from outtray_worker.providers.gmail.evidence import look
from outtray_worker.providers.gmail.handover import ByDraft, BySend, BySendUpload, GmailPrepared
from outtray_worker.providers.gmail.orphans import find_orphan, remove
from outtray_worker.providers.gmail.reading import read
from outtray_worker.providers.gmail.scopes import grants_of, least_for
from outtray_worker.providers.gmail.upload import Upload, last_piece
from outtray_worker.providers.redact import names_of
from outtray_worker.providers.web import Answer, ContentLost, Request, Stream

if TYPE_CHECKING:
    from outtray_worker.providers.gmail import GmailProvider

T = TypeVar("T")

LARGEST = 36_700_160
"""Bytes of MIME that messages.send and drafts.create take (discovery document, revision 20261005)."""


class GmailSession:
    """Holds no connection: those are pooled, and the token rides on each request."""

    def __init__(self, provider: GmailProvider, account: Account) -> None:
        self.provider = provider
        self.account = account
        self.api = provider.api
        self.grants = grants_of(account.scopes)
        self.caller = Caller(provider, account)

    async def close(self) -> None:
        return None

    # ── preparing ───────────────────────────────────────────────────────────────────────────────────────────────

    async def prepare(self, mail: Mail) -> GmailPrepared | Outcome:
        """Everything but the handover. Raises what the mail's own content raises, never what the network does."""
        self.caller.knows(*names_of(mail))
        return await self._bounded(lambda: self._prepare(mail))

    async def _bounded(self, steps: Callable[[], Awaitable[T]]) -> T | Outcome:
        """Run steps before the handover within `prepare_limit`; whatever ends them early becomes an outcome."""
        try:
            async with asyncio.timeout(self.provider.settings.prepare_limit.total_seconds()):
                return await steps()
        except Ended as end:
            return end.outcome
        except TimeoutError:
            return self.caller.broken("Gmail took too long for the preparation", "timeout", "prepare")
        except ContentLost as lost:
            raise _root_of(lost) from None

    async def _prepare(self, mail: Mail) -> GmailPrepared | Outcome:
        if mail.draft is not None or mail.only_draft or self.grants.drafts:
            return await self._prepare_draft(mail)
        if not self.grants.send:
            return _missing("messages.send")
        return await self._prepare_send(mail)

    async def _prepare_draft(self, mail: Mail) -> GmailPrepared | Outcome:
        if not self.grants.drafts:
            return _missing("drafts.create" if mail.draft is None else "drafts.send")
        draft = mail.draft or await self._adopted(mail) or await self._created(mail)
        if not mail.only_draft:
            await self.caller.token()  # none may be waited for once the gate is passed
        return ByDraft(self, mail, draft)

    async def _adopted(self, mail: Mail) -> Draft | None:
        """The draft that an earlier preparation made and nobody bound."""
        if not (mail.suspect or mail.message_id in self.provider.orphaned):
            return None
        return await find_orphan(self, mail.message_id)

    async def _created(self, mail: Mail) -> Draft:
        """A new draft. Until an answer says so, Gmail may have made it: then the next preparation looks first."""
        content, orphaned = self._content(mail), self.provider.orphaned
        orphaned.add(mail.message_id)
        try:
            said = await self._make_draft(mail, content)
        except Ended as end:
            if not self._by_upload(content) and not (isinstance(end, Interrupted) and end.none.begun):
                orphaned.discard(mail.message_id)
            raise
        orphaned.discard(mail.message_id)
        crash_points(self.provider.settings.crash_at)("draft made")
        return _draft_of(said)

    async def _make_draft(self, mail: Mail, content: Content) -> dict[str, object]:
        about, in_thread = "drafts.create", _in_thread(mail)
        if self._by_upload(content):
            upload = Upload(self.caller, self.api, about, content)
            await upload.begin(resource_of(mail), in_thread)
            answer = await upload.fill()
        else:
            make = await self._request(mail, about, content)
            answer = await self.caller.ask(make, "prepare", about + in_thread)
        return self._created_draft(answer, about + in_thread)

    def _by_upload(self, content: Content) -> bool:
        return content.length > self.provider.sizes.multipart

    def _created_draft(self, answer: Answer, about: str) -> dict[str, object]:
        said = self.caller.success(self.api.deliver("drafts.create"), answer, "prepare", about)
        if not isinstance(said.get("id"), str):
            raise Ended(self.caller.refused(answer, "prepare", about))
        return said

    async def _prepare_send(self, mail: Mail) -> GmailPrepared:
        """All of it is read before the handover, so that no content can be missing in the middle of one."""
        content = self._content(mail)
        if self._by_upload(content):
            upload = Upload(self.caller, self.api, "messages.send", content)
            await upload.begin(resource_of(mail), _in_thread(mail))
            start = last_piece(content.length)
            if start:
                await upload.fill_up_to(start)
            last = await held(Stream(content.length - start, lambda: content.part(start, content.length)))
            return BySendUpload(self, mail, upload, last, start, content.length)
        await content.read_ahead()
        await self.caller.token()
        return BySend(self, mail, await self._request(mail, "messages.send", content))

    async def _request(self, mail: Mail, about: str, content: Content) -> Callable[[str], Request]:
        """JSON for small mails, multipart for larger ones; bodies up to 1 MiB are made once, others flow."""
        if content.length <= self.provider.sizes.json:
            body: bytes | Stream = as_json(content, about, resource_of(mail))
            if isinstance(body, Stream) and content.small:
                body = await held(body)
            named = self.api.deliver(about)
            return lambda token: self.api.on_wire(named, token, body)
        content_type, flowing = as_multipart(content, about, resource_of(mail))
        return lambda token: self.api.upload(about, False, token, flowing, **{"content-type": content_type})

    def _content(self, mail: Mail) -> Content:
        try:
            content = Content(mail, self.provider.settings.key_header)
        except ValueError:
            unwritable = Failed("an address cannot stand in a header", evidence={"rule": "unwritable-address"})
            raise Ended(unwritable) from None
        if content.length > LARGEST:
            reason = f"{mail.size} bytes; Gmail takes {LARGEST} at most"
            raise Ended(Failed(reason, evidence={"rule": "size"}))
        return content

    async def delete_draft(self, draft_id: str) -> None:
        """Best effort, and only for what nobody bound."""
        with suppress(Ended):
            make = self.api.delete_draft(draft_id)
            await self.caller.ask(lambda token: self.api.on_wire(make, token), "prepare", "drafts.delete")

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def find_evidence(self, trace: Trace) -> Finding:
        """Look at the draft, its conversation and what was sent, as far as the scopes allow."""
        self.caller.knows(*trace.recipients)
        found = await self._bounded(lambda: look(self, trace))
        return found if isinstance(found, Finding) else Finding("failed", "Gmail could not be asked", outcome=found)

    async def remove_draft(self, trace: Trace) -> Removed:
        """Take away the draft of a message that has ended."""
        if not self.grants.drafts:
            return Removed("failed", _missing("drafts.delete"))
        self.caller.knows(*trace.recipients)
        removed = await self._bounded(lambda: remove(self, trace))
        return removed if isinstance(removed, Removed) else Removed("failed", removed)

    async def read_original(self, ref: str) -> OriginalMail | Outcome:
        """The message of that provider id, or of that Message-ID where `ref` has its angle brackets."""
        if not self.grants.read:
            reason = "reading the message that this one answers needs gmail.readonly or gmail.modify"
            return Failed(reason, evidence={"rule": "scope-missing"})
        return await self._bounded(lambda: read(self, ref))


def resource_of(mail: Mail) -> dict[str, str]:
    """What stands beside the MIME: the conversation that an answer joins. A forward begins a new one."""
    original = mail.original
    if original is None or original.answering == "forward" or not original.conversation_id:
        return {}
    return {"threadId": original.conversation_id}


def _in_thread(mail: Mail) -> str:
    return " in a thread" if resource_of(mail) else ""


def _draft_of(said: dict[str, object]) -> Draft:
    message = said.get("message")
    ids = message if isinstance(message, dict) else {}
    return Draft(str(said["id"]), ids.get("id"), ids.get("threadId"))


def _missing(method: str) -> Held:
    return Held(f"a permission was not granted: {method} needs {least_for(method)}", evidence={"rule": "scope-missing"})


def _root_of(lost: ContentLost) -> BaseException:
    """The content's own error below however many wrappings."""
    error: BaseException = lost
    while isinstance(error, ContentLost) and error.__cause__ is not None:
        error = error.__cause__
    return error
