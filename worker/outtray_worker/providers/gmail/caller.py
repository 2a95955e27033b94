"""One mailbox's way to Gmail: a token for each request, one renewal after a 401, and answers judged by the table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from googleapiclient.errors import HttpError
from googleapiclient.http import HttpRequest

from outtray_schema.outcome import Evidence, Held, Outcome, Parked, Retry
from outtray_worker.deadline import Deadline, boottime
from outtray_worker.providers import Account, NoToken
from outtray_worker.providers.gmail.answers import (
    AGAIN,
    AS_NAMED,
    BY_ID,
    LONGER_EACH_TIME,
    LONGEST_GUESS,
    TABLE,
    header_in,
    signal_of,
    wish_of,
)  # fmt: skip
from outtray_worker.providers.gmail.api import parsed
from outtray_worker.providers.gmail.scopes import least_for
from outtray_worker.providers.redact import Redactor
from outtray_worker.providers.web import Answer, NoAnswer, Request, Stream
from outtray_worker.providers.web.client import LARGEST
from outtray_worker.providers.web.rows import Row, Signal, Step

if TYPE_CHECKING:
    from outtray_worker.providers.gmail import GmailProvider

NEAR_QUOTA = timedelta(hours=24)
"""For so long after its 429 a mailbox's 200s are looked at again: the sending limit rolls over 24 hours, and Google
says that 200 proves nothing near it (guide "handle errors", 2026-04)."""


class Ended(Exception):
    """The attempt ends here with `outcome`: a step's way out, caught where the session returns."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(type(outcome).__name__)
        self.outcome = outcome


@dataclass(slots=True)
class Recent:
    """What one mailbox's last answers were, in this process: the same row again, and when sending was last limited."""

    row: str = ""
    times: int = 0
    limited_at: float | None = None

    def count(self, row: str) -> int:
        """How many of these in a row, this one included; looks for evidence are not counted."""
        self.times = self.times + 1 if row == self.row else 1
        self.row = row
        return self.times

    def clear(self) -> None:
        self.row, self.times = "", 0

    @property
    def near_quota(self) -> bool:
        return self.limited_at is not None and boottime() - self.limited_at < NEAR_QUOTA.total_seconds()


LONG = 256 * 1024
"""Bytes of an answer that are parsed beside the event loop: about 2 ms."""
CARRYING = ("drafts.create", "upload to")
"""Requests before the handover that bring the mail's bytes."""

Make = Callable[[str], Request]
"""A request, given the token."""


class Caller:
    """`redact` knows what must not stand in evidence; the session adds the addresses of its mails to it."""

    def __init__(self, provider: GmailProvider, account: Account) -> None:
        self._provider = provider
        self._account = account
        self._patience = provider.settings.command_timeout.total_seconds()
        self._words: tuple[str, ...] = (account.address, account.address.partition("@")[0])
        self._token = ""
        self.carrying = False
        """Whether the mail's own bytes are on their way: what breaks then may be the mail's fault."""
        self.recent = provider.recent(account.mailbox_id)

    def knows(self, *words: str) -> None:
        """What this mail's answers could echo: its addresses."""
        self._words = (self._account.address, self._account.address.partition("@")[0], *words)

    def redact(self, text: str) -> str:
        return Redactor(self._token, *self._words)(" ".join(text.split()))

    # ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def token(self) -> str:
        """Raises `Ended`."""
        return await self._ask_for_token(None, self._patience)

    async def _ask_for_token(self, refused: str | None, within: float) -> str:
        tokens = self._account.tokens
        if tokens is None:
            raise Ended(Held("the mailbox is not connected to Google", evidence={"rule": "no-token"}))
        try:
            async with asyncio.timeout(within):
                self._token = await (tokens.access() if refused is None else tokens.renewed(refused))
        except NoToken as none:
            raise Ended(none.outcome) from None
        except TimeoutError:
            reason = "no access token in time"
            raise Ended(Parked(reason, "connection", evidence={"rule": "token-timeout"})) from None
        return self._token

    # ── before the handover, and reading ────────────────────────────────────────────────────────────────────────

    async def call(self, named: HttpRequest, step: Step, about: str, largest: int = LARGEST) -> dict[str, Any]:
        """A named request's answer, parsed. Raises `Ended`."""
        answer = await self.ask(lambda token: self._provider.api.on_wire(named, token), step, about, largest)
        if len(answer.body) > LONG:  # a file of 25 MB takes 100 ms to parse
            return await asyncio.to_thread(self.success, named, answer, step, about)
        return self.success(named, answer, step, about)

    async def ask(self, make: Make, step: Step, about: str, largest: int = LARGEST) -> Answer:
        """Any whole answer but 401, after one renewal. Raises `Ended` where there is none, and `ContentLost`."""
        self.carrying = False
        token = await self.token()
        answer = await self._once(make(token), step, about, largest)
        if answer.status == 401:
            token = await self._ask_for_token(token, self._patience)
            answer = await self._once(make(token), step, about, largest)
            if answer.status == 401:
                raise Ended(self.refused(answer, step, about))
        return answer

    async def _once(self, request: Request, step: Step, about: str, largest: int) -> Answer:
        self.carrying = about.startswith(CARRYING)
        # An upload takes as long as its bytes take: `prepare_limit` bounds it. Everything else is one reply.
        streams = isinstance(request.body, Stream)
        patience = self._provider.settings.prepare_limit.total_seconds() if streams else self._patience
        try:
            return await self._provider.web.ask(request, patience, largest)
        except NoAnswer as none:
            raise Interrupted(none, self.broken(none.reason, none.rule, step, none.begun)) from None

    def broken(self, reason: str, rule: str, step: Step, begun: bool = True) -> Outcome:
        """A request before the handover that broke off: the connection's matter, as long as no mail was in it.

        A mail that never gets through (a filter, a size) would else park its mailbox for ever.
        """
        evidence: Evidence = {"rule": rule, "step": step}
        if self.carrying and begun:
            return Retry(reason, evidence=evidence)
        return Parked(reason, scope="connection", evidence=evidence)

    def success(self, named: HttpRequest, answer: Answer, step: Step, about: str) -> dict[str, Any]:
        """A 2xx as the client parses it. Raises `Ended` for everything else."""
        try:
            return parsed(named, answer)
        except (HttpError, ValueError):
            raise Ended(self.refused(answer, step, about)) from None

    # ── the handover ────────────────────────────────────────────────────────────────────────────────────────────

    async def commit(
        self, make: Make, begin_by: Deadline, answer_by: Deadline, fresh: bool = False
    ) -> Answer | Outcome:
        """The handover's answer, 401 included once a new token was refused as well; or the outcome without one.

        401 means that nothing was accepted (guide "handle errors", 2026-04), so one more request is no second sending.
        """
        try:
            token = self._token or await self.token()
            answer = await self._provider.web.commit(make(token), begin_by, answer_by, fresh)
            if not isinstance(answer, Answer) or answer.status != 401:
                return answer
            token = await self._ask_for_token(token, min(max(begin_by.left(), 0.0), self._patience))
        except Ended as end:
            return end.outcome
        return await self._provider.web.commit(make(token), begin_by, answer_by, fresh)

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────

    def judge(self, answer: Answer, step: Step, about: str) -> tuple[Row, Signal]:
        signal = signal_of(answer, step, about)
        return TABLE.classify(signal), signal

    def _note(self, signal: Signal) -> None:
        """Count an answer that no row knows, redacted, for the operator."""
        said = f"{signal.step} {signal.about} {signal.status} {', '.join(signal.codes) or 'no code'}: {signal.text}"
        self._provider.signals.note("gmail", self.redact(said))

    def refused(self, answer: Answer, step: Step, about: str) -> Outcome:
        """What an answer that is no success means."""
        row, signal = self.judge(answer, step, about)
        if row.unknown_signal:
            self._note(signal)
        times = self.recent.count(row.id) if step != "read" else 1
        if row.id in AGAIN and times >= AGAIN[row.id][0]:
            row = BY_ID[AGAIN[row.id][1]]
        if row.id == "mail-quota":
            self.recent.limited_at = boottime()
        wait = self._wait(row, answer, signal, times)
        return row.outcome(self._reason(row, signal, about), self.evidence(row, signal), wait)

    def _wait(self, row: Row, answer: Answer, signal: Signal, times: int) -> timedelta | None:
        """Gmail's own wish, but never shorter than the row's, unless the named time is all that is known of it."""
        floor = row.after or timedelta(0)
        if row.id in LONGER_EACH_TIME:
            floor = min(floor * 2 ** min(times - 1, 10), LONGEST_GUESS)
        wish = wish_of(answer, signal.text, row)
        if wish is not None and row.id in AS_NAMED:
            return wish
        return max(wish or floor, floor) or None

    def _reason(self, row: Row, signal: Signal, about: str) -> str:
        reason = row.reason
        if row.id == "scope-missing":
            reason += f": {about.partition(' ')[0]} needs {least_for(about.partition(' ')[0])}"
        if row.id == "invalid-field" and (header := header_in(signal.text)):
            reason += f": {header}"
        return f"{reason} (Gmail said {self.redact(' '.join((str(signal.status), *signal.codes[:1])))})"

    def evidence(self, row: Row, signal: Signal) -> Evidence:
        """An answer as evidence, redacted."""
        return {
            "rule": row.id,
            "step": signal.step,
            "request": signal.about,
            "status": signal.status,
            "code": self.redact(", ".join(signal.codes)),
            "text": self.redact(signal.text),
        }


class Interrupted(Ended):
    """A request before the handover without a whole answer. `none.begun`: Gmail may have done what was asked."""

    def __init__(self, none: NoAnswer, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.none = none
