"""A provider inside the process, for tests: no network, every answer scriptable, and a ledger of what it took.

It passes the same contract as the real ones and is no kinder: it reads the whole body in `prepare`, takes a mail only
in `hand_over`, and can lose its answer, never answer, or refuse at either step. With `drafts` a mail becomes a draft
first and a draft is consumed by its one send; `readable` says what can be looked up afterwards.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from outtray_schema.outcome import Drafted, Failed, NotBegun, Outcome, Sent, Unknown
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Account, Draft, Finding, Mail, Original, OriginalMail, Removed, Trace

Step = Literal["prepare", "hand_over", "read"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """One mail that the provider took."""

    message_id: UUID
    mailbox_id: UUID
    rfc_message_id: str
    sender: str
    recipients: tuple[str, ...]
    sha256: str
    size: int
    monotonic: float
    original: Original | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the provider does at `step` instead of agreeing.

    `outcome` is returned as it stands; without one, `hand_over` loses its answer (`hang` waits for it until
    `answer_by`, else the connection breaks at once). `take`: whether the mail is taken nevertheless.
    """

    step: Step
    outcome: Outcome | None = None
    take: bool = False
    hang: bool = False


class MemoryProvider:
    """Everything is taken, save what `answers` says; each answer is used once, the first that fits the step."""

    name = "memory"

    def __init__(self, drafts: bool = False, readable: bool = False) -> None:
        self.drafts: dict[str, UUID] | None = {} if drafts else None
        """The drafts that are drafts yet, by their ids."""
        self.readable = readable
        """Whether a look finds what was sent. It is found at once; `hidden` keeps it from being found."""
        self.hidden: set[UUID] = set()
        self.accepted: list[Accepted] = []
        self.seen: Counter[str] = Counter()
        """How often `prepare`, `hand_over` (begun, not merely called) and `abandon` happened."""
        self.during_handover: asyncio.Event | None = None
        """Where set, a handover waits for it before it answers: a test stands in the middle of one."""
        self.originals: list[OriginalMail] = []
        """What lies in the mailbox, to be answered."""
        self._answers: deque[Answer] = deque()

    def answer(self, answer: Answer, times: int = 1) -> None:
        self._answers.extend([answer] * times)

    def open(self, account: Account) -> MemorySession:
        return MemorySession(self, account)

    def next_answer(self, step: Step) -> Answer | None:
        """The earliest answer for `step`, which is then used up."""
        found = next((answer for answer in self._answers if answer.step == step), None)
        if found:
            self._answers.remove(found)
        return found


class MemorySession:
    def __init__(self, provider: MemoryProvider, account: Account) -> None:
        self._provider = provider
        self._account = account

    async def prepare(self, mail: Mail) -> MemoryPrepared | Outcome:
        """Read the body whole, as any provider must. Raises what reading it raises."""
        self._provider.seen["prepare"] += 1
        digest, size = hashlib.sha256(), 0
        async for piece in mail.body():
            digest.update(piece)
            size += len(piece)
        answer = self._provider.next_answer("prepare")
        if answer and answer.outcome:
            return answer.outcome
        accepted = Accepted(
            mail.message_id,
            self._account.mailbox_id,
            mail.rfc_message_id,
            mail.sender,
            mail.recipients,
            digest.hexdigest(),
            size,
            time.monotonic(),
            mail.original,
        )
        if self._provider.drafts is None:
            return Failed("no drafts here") if mail.only_draft else MemoryPrepared(self._provider, accepted, None, mail)
        return MemoryPrepared(self._provider, accepted, self._draft(self._provider.drafts, mail), mail)

    def _draft(self, drafts: dict[str, UUID], mail: Mail) -> Draft:
        if mail.draft is not None:
            return mail.draft
        left = next((each for each, of in drafts.items() if of == mail.message_id), None) if mail.suspect else None
        if left is None:
            self._provider.seen["draft"] += 1
            left = f"draft-{self._provider.seen['draft']}"
            drafts[left] = mail.message_id
        return Draft(left, conversation_id=f"thread-{mail.message_id}")

    async def find_evidence(self, trace: Trace) -> Finding:
        self._provider.seen["look"] += 1
        if not self._provider.readable:
            return Finding("no_way", "nothing can be read here")
        found = next((each for each in self._provider.accepted if each.message_id == trace.message_id), None)
        if found and trace.message_id not in self._provider.hidden:
            sent = Sent(f"memory-{trace.message_id}", found.rfc_message_id, evidence={"found": "by our key"})
            return Finding("sent", "what was sent, by our key", sent)
        if trace.draft and trace.draft.id in (self._provider.drafts or {}):
            return Finding("still_draft", "the bound draft")
        return Finding("nothing" if trace.draft else "absent", "what was sent, by our key")

    async def remove_draft(self, trace: Trace) -> Removed:
        """The draft that is named, or else that of this message."""
        drafts = self._provider.drafts or {}
        named = trace.draft.id if trace.draft else None
        ours = [each for each, of in drafts.items() if each == named or (named is None and of == trace.message_id)]
        for each in ours:
            del drafts[each]
        self._provider.seen["removed"] += len(ours)
        return Removed("deleted" if ours else "gone")

    async def read_original(self, ref: str) -> OriginalMail | Outcome:
        """One of `originals`, by either of its ids."""
        self._provider.seen["read"] += 1
        answer = self._provider.next_answer("read")
        if answer and answer.outcome:
            return answer.outcome
        found = (each for each in self._provider.originals if ref in (each.message_id, each.rfc_message_id))
        return next(found, None) or Failed("the message that it answers is not in the mailbox")

    async def close(self) -> None:
        self._provider.seen["close"] += 1


class MemoryPrepared:
    def __init__(self, provider: MemoryProvider, accepted: Accepted, draft: Draft | None, mail: Mail) -> None:
        self._provider = provider
        self._accepted = accepted
        self.draft = draft
        self._bound = mail.draft is not None
        self._only_draft = mail.only_draft

    async def hand_over(self, begin_by: Deadline, answer_by: Deadline) -> Outcome:
        if begin_by.passed:
            return NotBegun("the time to begin the handover had passed", evidence={"rule": "too-late"})
        if self._only_draft and self.draft is not None:
            return Drafted(self.draft.id, self._accepted.rfc_message_id, self.draft.conversation_id)
        self._provider.seen["hand_over"] += 1
        if self.draft is not None and self.draft.id not in (self._provider.drafts or {}):
            return Unknown("the draft is gone", evidence={"rule": "draft-gone"})
        answer = self._provider.next_answer("hand_over")
        if answer is None or answer.take:
            self._provider.accepted.append(self._accepted)
            if self.draft is not None and self._provider.drafts is not None:
                del self._provider.drafts[self.draft.id]
        if self._provider.during_handover:
            await self._provider.during_handover.wait()
        if answer is None:
            return Sent(f"memory-{self._accepted.message_id}", self._accepted.rfc_message_id)
        return answer.outcome or await self._silence(answer, answer_by)

    async def _silence(self, answer: Answer, answer_by: Deadline) -> Unknown:
        if not answer.hang:
            return Unknown("the connection was closed", evidence={"rule": "closed"})
        with suppress(TimeoutError):
            async with asyncio.timeout(max(answer_by.left(), 0.0)):
                await asyncio.get_running_loop().create_future()
        return Unknown("no answer in time", evidence={"rule": "timeout"})

    async def abandon(self) -> None:
        self._provider.seen["abandon"] += 1
        if self.draft is not None and not self._bound and self._provider.drafts is not None:
            self._provider.drafts.pop(self.draft.id, None)
