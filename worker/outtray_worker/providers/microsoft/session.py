"""One mailbox's session: what the queue sees of Microsoft Graph. Every way out of a step becomes an outcome here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from outtray_schema.outcome import Failed, Held, Outcome, Parked, Retry
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Account, Draft, Finding, Mail, OriginalMail, Removed, Trace
from outtray_worker.providers.microsoft.calls import JSON, MIME, Ask, Calls, Ended, quoted, unanswered
from outtray_worker.providers.microsoft.drafts import Workshop, delete, remove
from outtray_worker.providers.microsoft.evidence import find_evidence
from outtray_worker.providers.microsoft.letter import (
    REQUEST,
    File,
    Json,
    as_base64,
    beside_the_loop,
    encoded,
    hidden,
    message_of,
    take_apart,
)
from outtray_worker.providers.microsoft.parts import Headers, NotOurs, headers_of
from outtray_worker.providers.microsoft.reading import read_original
from outtray_worker.providers.microsoft.routes import Route, route_of
from outtray_worker.providers.microsoft.scopes import Grant
from outtray_worker.providers.microsoft.sending import MicrosoftPrepared, rest_of
from outtray_worker.providers.redact import names_of
from outtray_worker.providers.web import ContentLost, NoAnswer

if TYPE_CHECKING:
    from outtray_worker.providers.microsoft import MicrosoftProvider

T = TypeVar("T")


class MicrosoftSession:
    """For one turn. It keeps no connection of its own: those are the process's."""

    def __init__(self, provider: MicrosoftProvider, account: Account) -> None:
        self._provider = provider
        self.account = account
        self.limit = provider.settings.prepare_limit.total_seconds()
        self.looks_after = provider.looks_after
        self.grant = Grant.of(account.scopes, account.server)
        self.calls = Calls(provider.web, provider.settings, account, self.grant, provider.lanes, provider.signals)
        self._closed = False

    # ── preparing ───────────────────────────────────────────────────────────────────────────────────────────────

    async def prepare(self, mail: Mail) -> MicrosoftPrepared | Outcome:
        """Everything but the handover. Raises what the mail's own content raises, never what Graph does."""
        self.calls.secrets = names_of(mail)
        return await self._answered(lambda: self._prepare(mail), loads=True)

    async def _answered(self, steps: Callable[[], Awaitable[T]], loads: bool = False) -> T | Outcome:
        """Run steps before the handover; whatever ends them early becomes an outcome."""
        try:
            async with asyncio.timeout(self.limit):
                return await steps()
        except Ended as end:
            return end.outcome
        except NoAnswer as none:
            return unanswered(none, loads)
        except NotOurs as error:
            return Failed(f"the message cannot be given to Graph: {error}", evidence={"rule": "content"})
        except ContentLost as lost:
            raise lost.__cause__ or lost from None
        except TimeoutError:
            evidence = {"rule": "timeout", "step": "prepare"}
            reason = "preparation took too long"
            return Retry(reason, evidence=evidence) if loads else Parked(reason, "connection", evidence=evidence)

    async def _prepare(self, mail: Mail) -> MicrosoftPrepared:
        if rest := rest_of(self.calls.lane.rest_until):
            raise Ended(Parked("Graph asked to slow down", after=rest, evidence={"rule": "slow-down"}))
        headers = await headers_of(mail.body())
        self.calls.secrets += (headers.get("Subject"),)
        if mail.draft is not None:
            return self._bound(mail, mail.draft)
        route = route_of(mail, headers, self.account.address, self.grant)
        if route == "send mime":
            return MicrosoftPrepared(self, mail, await self._send_mime(mail, headers), None)
        if route == "send json":
            return MicrosoftPrepared(self, mail, await self._send_json(mail), None)
        return await self._drafted(mail, route, headers)

    def _bound(self, mail: Mail, draft: Draft) -> MicrosoftPrepared:
        """The draft that an earlier gate bound is complete, and the only one."""
        if self.grant.lacks(mail.only_draft):
            raise Ended(Held("the consent lacks Mail.Send: connect the mailbox again", evidence={"rule": "no-scope"}))
        return MicrosoftPrepared(self, mail, _send(draft), draft)

    async def _drafted(self, mail: Mail, route: Route, headers: Headers) -> MicrosoftPrepared:
        """A complete draft. What a failure leaves is deleted; what cannot be, or is not known, is found next time."""
        suspect = mail.suspect or self._provider.doubtful(mail.message_id)
        shop = Workshop(self.calls, mail, self.account.address, suspect)
        try:
            draft = await shop.draft(route, headers)
        except asyncio.CancelledError:  # our own time limit's too: nothing more may be awaited
            self.doubt(mail.message_id)
            raise
        except BaseException:
            if shop.doubtful or (shop.made is not None and not await delete(self.calls, shop.made)):
                self.doubt(mail.message_id)
            raise
        self._provider.trust(mail.message_id)
        return MicrosoftPrepared(self, mail, _send(draft), draft)

    async def _send_mime(self, mail: Mail, headers: Headers) -> Ask:
        """Held until the handover: what the gate has let pass must not wait for our own storage. 4 MB at most."""
        length, pieces = as_base64(mail, hidden(mail, headers))
        body = b"".join([piece async for piece in pieces()])
        if len(body) != length:
            raise NotOurs(f"it holds another number of bytes than the {mail.size} that were frozen")
        self.calls.expect_room(len(body))
        return Ask("POST", "/sendMail", "sendMail", body, MIME)

    async def _send_json(self, mail: Mail) -> Ask:
        contents = await take_apart(mail, keep=mail.size <= 2 * REQUEST)
        message: Json = message_of(mail, self.account.address, contents)
        if any(file.data is None for file in contents.files):
            raise Ended(_too_large())
        body = await beside_the_loop(mail.size, lambda: _to_send(message, contents.files))
        if len(body) > REQUEST:
            raise Ended(_too_large())
        self.calls.expect_room(len(body))
        return Ask("POST", "/sendMail", "sendMail", body, JSON)

    # ── what is remembered for the next mails ───────────────────────────────────────────────────────────────────

    def slow_down(self, wait: timedelta) -> None:
        """Graph took a mail and wants a pause: nothing more of this mailbox is prepared in this process until then."""
        self.calls.lane.rest_until = Deadline.after(wait)

    def doubt(self, message_id: UUID) -> None:
        """A draft of this message may have been left."""
        self._provider.distrust(message_id)

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def find_evidence(self, trace: Trace) -> Finding:
        self.calls.secrets = trace.recipients
        return await find_evidence(self.calls, self.grant, trace, self.limit)

    async def remove_draft(self, trace: Trace) -> Removed:
        """Take away the draft of a message that has ended."""
        self.calls.secrets = trace.recipients
        removed = await self._answered(lambda: remove(self.calls, trace))
        return removed if isinstance(removed, Removed) else Removed("failed", removed)

    async def read_original(self, ref: str) -> OriginalMail | Outcome:
        self.calls.secrets = ()
        return await self._answered(lambda: read_original(self.calls, self.grant, ref))

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.calls.leave()


def _to_send(message: Json, files: Sequence[File]) -> bytes:
    """The body of a sendMail. Without its copy in Sent Items nothing could ever be proved."""
    if files:
        message["attachments"] = [file.with_bytes(file.data or b"") for file in files]
    return encoded({"message": message, "saveToSentItems": True})


def _send(draft: Draft) -> Ask:
    return Ask("POST", f"/messages/{quoted(draft.id)}/send", "send")


def _too_large() -> Failed:
    reason = "larger than the 4 MB that sendMail takes: files by upload need the permission Mail.ReadWrite"
    return Failed(reason, evidence={"rule": "size"})
