"""A real worker whose Gmail is inside its process: each preparation asks for an access token, as the real one's does.

`python -m acceptance.token_worker LEDGER`: what was handed over is written there, with the token that did it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from outtray_schema.outcome import Outcome
from outtray_schema.settings import load_settings
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Account, Finding, Mail, NoToken, Prepared, Session, Trace
from outtray_worker.providers.memory import MemoryProvider
from outtray_worker.serve import run_worker


class TokenProvider(MemoryProvider):
    """Mails are taken with whatever token `account.tokens` gives."""

    name = "gmail"

    def __init__(self, ledger: Path) -> None:
        super().__init__()
        self.ledger = ledger

    def open(self, account: Account) -> Session:
        return TokenSession(self, account, super().open(account))


class TokenSession:
    def __init__(self, provider: TokenProvider, account: Account, real: Session) -> None:
        self.provider, self.account, self.real = provider, account, real

    async def prepare(self, mail: Mail) -> Prepared | Outcome:
        assert self.account.tokens is not None
        try:
            token = await self.account.tokens.access()
        except NoToken as error:
            return error.outcome
        prepared = await self.real.prepare(mail)
        return prepared if isinstance(prepared, Outcome) else TokenPrepared(self.provider, prepared, mail, token)

    async def find_evidence(self, trace: Trace) -> Finding:
        return await self.real.find_evidence(trace)

    async def close(self) -> None:
        await self.real.close()


class TokenPrepared:
    draft = None

    def __init__(self, provider: TokenProvider, real: Prepared, mail: Mail, token: str) -> None:
        self.provider, self.real, self.mail, self.token = provider, real, mail, token

    async def hand_over(self, begin_by: Deadline, answer_by: Deadline) -> Outcome:
        with self.provider.ledger.open("a") as ledger:
            ledger.write(f"{self.mail.message_id} {self.token}\n")
        return await self.real.hand_over(begin_by, answer_by)

    async def abandon(self) -> None:
        await self.real.abandon()


if __name__ == "__main__":
    settings = load_settings()
    run_worker(settings, {"gmail": TokenProvider(Path(sys.argv[1]))})
