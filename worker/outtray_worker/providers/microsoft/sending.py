"""The handover: `{draft}/send`, or `sendMail` where only sending was granted. Each is one request that nothing repeats.

202 means that Graph has stored it; transport runs later, so what Exchange then thinks of it comes as a bounce
(learn.microsoft.com/graph/outlook-things-to-know-about-send-mail, 2026-11). With Retry-After it is a success as well.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from outtray_schema.outcome import Drafted, Evidence, NotBegun, Outcome, Sent
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Draft, Mail
from outtray_worker.providers.microsoft.answers import TABLE, evidence_of, retry_after, signal_of
from outtray_worker.providers.microsoft.calls import ASIDE, Ask, Calls, Ended, Said
from outtray_worker.providers.microsoft.drafts import delete
from outtray_worker.providers.microsoft.sent_copy import Look, Sought, by_id, in_sent_items
from outtray_worker.providers.web import NoAnswer

if TYPE_CHECKING:
    from outtray_worker.providers.microsoft.session import MicrosoftSession

NO_ID = "sendMail names none, and reading was not granted (learn.microsoft.com/graph/api/user-sendmail)"
NOT_YET = "the sent copy was not seen in time; this is the draft's id, which Microsoft calls immutable"
NOT_SEEN = "sendMail names none, and the sent copy was not seen in time"


class MicrosoftPrepared:
    """A mail that lacks only its handover: a complete draft, or the body of one `sendMail`."""

    def __init__(self, session: MicrosoftSession, mail: Mail, ask: Ask, draft: Draft | None) -> None:
        self._session = session
        self._calls: Calls = session.calls
        self._mail = mail
        self._ask = ask
        self.draft = draft
        self._bound = mail.draft is not None
        self._spent = False

    async def hand_over(self, begin_by: Deadline, answer_by: Deadline) -> Outcome:
        if self._spent:
            return NotBegun("this mail was handed over or given up before", evidence={"rule": "spent"})
        self._spent = True
        if begin_by.passed:
            return NotBegun("the time to begin the handover had passed", evidence={"rule": "too-late"})
        if self._mail.only_draft and self.draft is not None:
            return Drafted(self.draft.id, self.draft.rfc_message_id, self.draft.conversation_id)
        said = await self._calls.commit(self._ask, begin_by, answer_by)
        if not isinstance(said, Said):
            return said
        row = TABLE.classify(signal_of(said.answer, "commit", said.about))
        if row.becomes != "sent":
            return self._calls.outcome(said, "commit")
        return await self._sent(
            said, evidence_of(said.answer, row, "commit", said.client_request_id, self._calls.redact)
        )

    async def _sent(self, said: Said, evidence: Evidence) -> Sent:
        """Nothing from here on may fail the mail: it has left."""
        if (wait := retry_after(said.answer)) is not None:
            self._session.slow_down(wait)
            evidence = {**evidence, "slow_down": wait.total_seconds()}
        draft = self.draft
        known = Sent(
            draft.id if draft else None,
            (draft.rfc_message_id if draft else None) or self._mail.rfc_message_id,
            draft.conversation_id if draft else None,
            evidence,
        )
        return await self._with_final_ids(known)

    async def _with_final_ids(self, sent: Sent) -> Sent:
        """The ids of the sent copy, if it shows up in time; else why they are not known."""
        if not self._session.grant.read:
            missing = {"provider_id": NO_ID, "conversation_id": NO_ID}
            return replace(sent, evidence={**sent.evidence, **missing})
        copy = None
        try:
            async with asyncio.timeout(ASIDE):
                copy = await self._copy()
        except (TimeoutError, Ended, NoAnswer):
            pass
        if copy is None:
            why = NOT_YET if self.draft else NOT_SEEN
            return replace(sent, evidence={**sent.evidence, "provider_id": why})
        return Sent(
            copy.get("id"),
            copy.get("internetMessageId") or sent.rfc_message_id,
            copy.get("conversationId") or sent.conversation_id,
            sent.evidence,
        )

    async def _copy(self) -> dict[str, str] | None:
        draft = self.draft
        sought = Sought(
            str(self._mail.message_id),
            ((draft.rfc_message_id if draft else None) or self._mail.rfc_message_id,),
            draft.id if draft else None,
        )
        for pause in self._session.looks_after:
            await asyncio.sleep(pause)
            look = Look()
            if sought.draft_id:
                await by_id(self._calls, sought.draft_id, look)
            if look.copy is None and look.draft is None:
                await in_sent_items(self._calls, sought, look, keyed=False)
            if look.copy is not None:
                return look.copy
        return None

    async def abandon(self) -> None:
        """Delete an unbound draft; a bound one stays, for it is what every attempt sends."""
        if self._spent or self.draft is None or self._bound:
            self._spent = True
            return
        self._spent = True
        if not await delete(self._calls, self.draft.id):
            self._session.doubt(self._mail.message_id)


def rest_of(until: Deadline | None) -> timedelta | None:
    """How long Graph's wish to slow down still holds."""
    if until is None or until.passed:
        return None
    return timedelta(seconds=until.left())
