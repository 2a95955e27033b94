"""Conditions: what must hold before a message of this turn may leave now, and what each attempt does to them.

Asked in this order, and answered without a statement wherever nothing stands against it:

    the message's own window → the daily limits → the mailbox's window and gap → pace → the breaker of its host

A token is taken only for a message that the daily limits let pass, and given back where it moved nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from outtray_schema.outcome import Failed, NotBegun, Outcome, Sent, Unknown
from outtray_worker.breaker import NO_ANSWERS
from outtray_worker.claim import ClaimedMailbox, DueMessage
from outtray_worker.deadline import Deadline
from outtray_worker.items import Refusal
from outtray_worker.quotas.tokens import Tokens
from outtray_worker.record import doubt
from outtray_worker.windows import CLOSED, TurnTimes

if TYPE_CHECKING:
    from outtray_worker.process import Process
    from outtray_worker.quotas.ledger import Allowance


@dataclass(frozen=True, slots=True)
class Rest:
    """Why and how long the mailbox rests after this turn. `None` everywhere else: it is due as its messages say."""

    wait: timedelta
    reason: str


class Conditions:
    """Those of one turn. `until`: the turn's own end, beyond which nothing is waited for."""

    def __init__(
        self, process: Process, mailbox: ClaimedMailbox, allowance: Allowance, tokens: Tokens, until: Deadline
    ) -> None:
        self._quotas = process.quotas
        self._breakers = process.breakers
        self._mailbox = mailbox
        self._allowance = allowance
        self._tokens = tokens
        self._times = TurnTimes(process.pool, mailbox)
        self._until = until

    async def ask(self, message: DueMessage, written: Callable[[], Awaitable[None]]) -> Rest | Refusal | Failed | None:
        """None: it may leave, and has its token. Rest: nothing of this mailbox may, for so long.

        Else this message alone does not, and the next one may: what is to be written of it, or why it never can.
        `written` returns once the outcome before this message is written.
        """
        wait = self._times.wait_of(message)
        if wait is not None:
            return Refusal(message.id, self._mailbox.id, message.version, kind=CLOSED, again=wait, reason=CLOSED)
        limit = await self._binding(message)
        rest = await self._times.rest(self._until)
        if rest is not None:
            return Rest(*rest)
        if limit is not None:
            return await self._over_quota(message, limit, written)
        wait = await self._tokens.take(self._until)
        if wait is not None:
            return Rest(wait, "pace")
        held = await self._breakers.hold(self._mailbox)
        if held is not None:  # only the one that is the probe goes on, with this one message
            self._tokens.give_back()
            return Rest(*held)
        return None

    async def _binding(self, message: DueMessage) -> str | None:
        """The limit that this message would break now. A draft for its person breaks none."""
        if message.only_draft:
            return None
        return await self._quotas.binding(self._mailbox, self._allowance, message)

    async def _over_quota(
        self, message: DueMessage, limit: str, written: Callable[[], Awaitable[None]]
    ) -> Rest | Failed:
        """How long the mailbox rests until this message fits, unless it never can."""
        await written()  # or the last handover would still count as open: from its deadline
        frees = await self._quotas.frees_in(self._mailbox, message)
        if frees is None:
            return Failed(f"alone more than the mailbox's limit of {limit}")
        return Rest(frees, f"quota: {limit}")

    # ── what an attempt does to them ────────────────────────────────────────────────────────────────────────────

    def begin_by(self, deadline: Deadline, message: DueMessage) -> Deadline:
        """The gate's "window?": nothing begins once it has closed, however long the gate's answer takes."""
        return self._times.begin_by(deadline, message)

    def began(self, message: DueMessage) -> None:
        """Its gate passed."""
        if not message.only_draft:
            self._allowance.take(message)
        self._times.began(message)

    def nothing_moved(self) -> None:
        """The token that was last taken goes back: no handover began with it."""
        self._tokens.give_back()

    def not_prepared(self, outcome: Outcome) -> None:
        """An attempt ended in preparation."""
        self._breakers.note(self._mailbox, outcome)

    def ended(self, message: DueMessage, outcome: Outcome) -> tuple[Outcome, Rest | None]:
        """Its handover ended so. Returns what to record, in doubt near a limit, and whether the mailbox rests now."""
        if not isinstance(outcome, (Sent, Unknown)) and not message.only_draft:  # not accepted: does not count
            self._allowance.give_back(message)
        if isinstance(outcome, NotBegun):
            self.nothing_moved()
        own = self._breakers.note(self._mailbox, outcome)
        rest = Rest(own, NO_ANSWERS) if own is not None else None
        return doubt(self._mailbox, self._allowance, outcome), rest

    def close(self) -> None:
        """The turn is over."""
        self._tokens.return_unused()
