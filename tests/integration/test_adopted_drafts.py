"""Rule 6: a worker that stood still past its lease takes no draft away that a later turn has adopted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from inside import Inside, inside
from outtray_schema.outcome import Outcome
from outtray_worker import abandon
from outtray_worker.deadline import Deadline
from outtray_worker.process import Process
from outtray_worker.providers import Account, Mail
from outtray_worker.providers.memory import MemoryPrepared, MemoryProvider, MemorySession
from polling import until
from world import LEASE, run

LATER = LEASE + timedelta(seconds=1)
HALF_A_MINUTE = timedelta(seconds=30)


class Slow(MemoryProvider):
    """Stands still after each preparation until it is told, and writes down which drafts were deleted by their id."""

    def __init__(self) -> None:
        super().__init__(drafts=True, readable=True)
        self.go = [asyncio.Event(), asyncio.Event()]
        self.deleted: list[str] = []

    def open(self, account: Account) -> MemorySession:
        return _SlowSession(self, account)


class _SlowSession(MemorySession):
    _provider: Slow

    async def prepare(self, mail: Mail) -> Any:
        prepared = await super().prepare(mail)
        await self._provider.go[self._provider.seen["prepare"] - 1].wait()
        return _Prepared(prepared) if isinstance(prepared, MemoryPrepared) else prepared


class _Prepared:
    def __init__(self, real: MemoryPrepared) -> None:
        self.real, self.draft = real, real.draft

    async def hand_over(self, begin_by: Deadline, answer_by: Deadline) -> Outcome:
        return await self.real.hand_over(begin_by, answer_by)

    async def abandon(self) -> None:
        self.real._provider.deleted.append(self.draft.id)  # type: ignore[attr-defined, union-attr]
        await self.real.abandon()


@asynccontextmanager
async def overtaken(database: Any, provider: Slow) -> AsyncIterator[tuple[Inside, Process, UUID]]:
    """A worker stands still with its draft made and not bound; another one has the mailbox, and has adopted it."""
    async with inside(database.settings, provider) as office:
        box = await office.mailbox()
        (message,) = office.enqueue(box)
        await office.begin()
        await until(lambda: provider.seen["prepare"] == 1)
        await office.later(LATER)
        other = Process(office.process.settings, {"memory": provider})
        await other.open()
        try:
            await other.engine.admit([box])
            await until(lambda: provider.seen["prepare"] == 2)
            assert provider.drafts == {"draft-1": message}
            yield office, other, message
        finally:
            await other.close()


@pytest.mark.parametrize("when", ["before it is bound", "after it is sent"])
def test_a_draft_that_a_later_turn_adopted_is_not_deleted_by_the_worker_that_made_it(database, when):
    async def scene() -> None:
        provider = Slow()
        async with overtaken(database, provider) as (office, other, message):
            workers = [office.process, other]
            order = [0, 1] if when == "before it is bound" else [1, 0]
            for which in order:
                provider.go[which].set()
                await workers[which].engine.drain()
            row = await office.message(message)
            assert (row["state"], row["draft"]["id"], row["handover"]) == ("sent", "draft-1", 1)
            assert provider.deleted == [], "at Graph the copy of what was sent still has the draft's id"
            assert office.accepted == [message]

    run(scene())


BOUND_IT, BOUND_ANOTHER = '{"id": "draft-1"}', '{"id": "draft-2"}'


@pytest.mark.parametrize(
    ("draft", "state", "lease", "ours"),
    [
        (None, "queued", HALF_A_MINUTE, True),
        (None, "queued", -HALF_A_MINUTE, False),
        (None, "queued", None, False),
        (None, "cancelled", None, True),
        (BOUND_ANOTHER, "queued", None, True),
        (BOUND_IT, "queued", HALF_A_MINUTE, False),
        (BOUND_IT, "cancelled", None, False),
    ],
)
def test_a_draft_is_a_turns_own_while_its_lease_runs_or_once_nobody_can_adopt_it(database, draft, state, lease, ours):
    async def scene() -> None:
        async with inside(database.settings, MemoryProvider(drafts=True)) as office:
            box = await office.mailbox()
            (message,) = office.enqueue(box)
            ended = "outtray.outtray_now()" if state != "queued" else "NULL"
            update = f"UPDATE outtray.message SET draft = %s, state = %s, ended_at = {ended} WHERE id = %s"
            await office.w.db.execute(update, [draft, state, message])
            lease_until = "UPDATE outtray.mailbox SET turn_fence = 7, turn_until = outtray.outtray_now() + %s"
            await office.w.db.execute(lease_until, [lease])
            asked = {"id": message, "draft": "draft-1"}
            for fence, expected in ((7, ours), (6, ours and (draft is not None or state != "queued"))):
                found = await office.w.db.execute(abandon.IS_OURS, asked | {"fence": fence})
                assert await found.fetchone() == (expected,)

    run(scene())
