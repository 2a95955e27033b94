"""A mailbox that can be looked into, as far and as fast as a test wants it: the memory provider with scripted looks."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import timedelta
from typing import Any
from uuid import UUID

from inside import Inside
from outtray_worker.providers import Account, Finding, Removed, Trace
from outtray_worker.providers.memory import Answer, MemoryProvider, MemorySession

LOST = Answer("hand_over")
"""The connection breaks before the mail is taken."""
TAKEN = Answer("hand_over", take=True)
"""The mail is taken, and the answer to it is lost."""
SETTLED = timedelta(minutes=12)
"""Later than any handover's deadline and what settles after it."""


class Readable(MemoryProvider):
    """`findings` come first, one for each look; `gate` holds every look until it is set."""

    def __init__(self, drafts: bool = False) -> None:
        super().__init__(drafts=drafts, readable=True)
        self.findings: deque[Finding] = deque()
        self.traces: list[Trace] = []
        self.gate: asyncio.Event | None = None
        self.at_once = self.most_at_once = 0
        self.refuses_removal = False
        self.breaks: Exception | None = None

    def open(self, account: Account) -> MemorySession:
        self.seen["open"] += 1
        return _Session(self, account)


class _Session(MemorySession):
    def __init__(self, provider: Readable, account: Account) -> None:
        super().__init__(provider, account)
        self._readable = provider

    async def find_evidence(self, trace: Trace) -> Finding:
        mine = self._readable
        mine.traces.append(trace)
        mine.at_once += 1
        mine.most_at_once = max(mine.most_at_once, mine.at_once)
        try:
            if mine.breaks:
                raise mine.breaks
            found = mine.findings.popleft() if mine.findings else await super().find_evidence(trace)
            if mine.gate is not None:
                await mine.gate.wait()
            return found
        finally:
            mine.at_once -= 1

    async def remove_draft(self, trace: Trace) -> Removed:
        return Removed("failed") if self._readable.refuses_removal else await super().remove_draft(trace)


async def doubted(office: Inside, answer: Answer = LOST, **fields: Any) -> tuple[UUID, UUID]:
    """A mailbox and its one message, whose handover got no answer; its looks are planned."""
    box = await office.mailbox(**fields.pop("mailbox", {}))
    (message,) = office.enqueue(box, **fields)
    office.provider.answer(answer)
    await office.round()
    await office.later(timedelta(0))
    row = await office.message(message)
    assert (row["state"], row["look_at"] is not None, row["looks"]) == ("unknown", True, 0)
    return box, message


async def looks_of(office: Inside, message: UUID) -> list[str]:
    """The findings that the message's journal shows, oldest first."""
    query = "SELECT detail FROM outtray.journal WHERE message_id = %s AND kind = 'look' ORDER BY id"
    return [row["detail"]["finding"] for row in await office.w.rows(query, message)]


async def usage_of(office: Inside, message: UUID) -> list[tuple[int, str]]:
    query = "SELECT handover, source FROM outtray.usage WHERE message_id = %s ORDER BY handover"
    return [(row["handover"], row["source"]) for row in await office.w.rows(query, message)]
