"""A real worker whose provider blocks the event loop in a preparation: once, for whoever takes the file FLAG first.

`python -m acceptance.stuck_worker LEDGER FLAG`: what was handed over is written to LEDGER, by any such worker.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from outtray_schema.outcome import Outcome
from outtray_schema.settings import load_settings
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Account, Finding, Mail, Prepared, Session, Trace
from outtray_worker.providers.memory import MemoryProvider
from outtray_worker.serve import run_worker


class BlockingProvider(MemoryProvider):
    """The memory provider, but for one preparation that never lets the loop go."""

    def __init__(self, ledger: Path, flag: Path) -> None:
        super().__init__()
        self.ledger, self.flag = ledger, flag

    def open(self, account: Account) -> Session:
        return BlockingSession(self, super().open(account))

    def block_once(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.flag.unlink()
            time.sleep(3600)


class BlockingSession:
    def __init__(self, provider: BlockingProvider, real: Session) -> None:
        self.provider, self.real = provider, real

    async def prepare(self, mail: Mail) -> Prepared | Outcome:
        self.provider.block_once()
        prepared = await self.real.prepare(mail)
        return prepared if isinstance(prepared, Outcome) else BlockingPrepared(self.provider, prepared, mail)

    async def find_evidence(self, trace: Trace) -> Finding:
        return await self.real.find_evidence(trace)

    async def close(self) -> None:
        await self.real.close()


class BlockingPrepared:
    draft = None

    def __init__(self, provider: BlockingProvider, real: Prepared, mail: Mail) -> None:
        self.provider, self.real, self.mail = provider, real, mail

    async def hand_over(self, begin_by: Deadline, answer_by: Deadline) -> Outcome:
        with self.provider.ledger.open("a") as ledger:
            ledger.write(f"{self.mail.message_id}\n")
        return await self.real.hand_over(begin_by, answer_by)

    async def abandon(self) -> None:
        await self.real.abandon()


if __name__ == "__main__":
    run_worker(load_settings(), {"memory": BlockingProvider(Path(sys.argv[1]), Path(sys.argv[2]))})
