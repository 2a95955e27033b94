"""A real worker whose provider, in its process, reads every mail whole and counts it; `SIDE_BY_SIDE` at the same time.

`python -m acceptance.counting_worker LEDGER SIDE_BY_SIDE`; settings come from the environment, as always.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from outtray_schema.outcome import Outcome
from outtray_schema.settings import load_settings
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Account, Mail, Prepared, Session
from outtray_worker.providers.memory import MemoryProvider
from outtray_worker.serve import run_worker

LARGE = 10 * 1024 * 1024


class CountingProvider(MemoryProvider):
    """Large mails wait, each with its first piece in hand, until so many of them are on their way at once."""

    def __init__(self, ledger: Path, side_by_side: int) -> None:
        super().__init__()
        self.ledger = ledger
        self.side_by_side = side_by_side
        self.begun = 0
        self.all_begun: asyncio.Event | None = None

    def open(self, account: Account) -> Session:
        return CountingSession(self, super().open(account))

    async def wait_for_the_others(self) -> None:
        self.all_begun = self.all_begun or asyncio.Event()
        self.begun += 1
        if self.begun == self.side_by_side:
            self.all_begun.set()
        await self.all_begun.wait()


class CountingSession:
    def __init__(self, provider: CountingProvider, real: Session) -> None:
        self.provider, self.real = provider, real

    async def prepare(self, mail: Mail) -> Prepared | Outcome:
        if mail.size > LARGE:
            mail = replace(mail, body=lambda body=mail.body: self._side_by_side(body()))
        prepared = await self.real.prepare(mail)
        return prepared if isinstance(prepared, Outcome) else CountingPrepared(self.provider, prepared)

    async def _side_by_side(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        first = True
        async for piece in pieces:
            if first:
                await self.provider.wait_for_the_others()
                first = False
            yield piece

    async def close(self) -> None:
        await self.real.close()


class CountingPrepared:
    def __init__(self, provider: CountingProvider, real: Prepared) -> None:
        self.provider, self.real = provider, real

    async def hand_over(self, begin_by: Deadline, answer_by: Deadline) -> Outcome:
        outcome = await self.real.hand_over(begin_by, answer_by)
        taken = self.provider.accepted[-1]
        with self.provider.ledger.open("a") as ledger:
            ledger.write(f"{taken.message_id} {taken.size} {taken.sha256}\n")
        return outcome

    draft = None

    async def abandon(self) -> None:
        await self.real.abandon()


if __name__ == "__main__":
    settings = load_settings()
    run_worker(settings, {"memory": CountingProvider(Path(sys.argv[1]), int(sys.argv[2]))})
