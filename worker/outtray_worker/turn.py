"""A turn: one worker delivers one mailbox's due messages, in order, for a bounded time, under a fenced lease.

    claim → read → [ prepare → gate → hand over → record ]* → end

This is the page where a message is sent. No step knows Celery, and none knows a provider's words. The outcome of one
message is written in the same group as the gate of the next, so a turn waits for PostgreSQL once per message.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import astuple, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from outtray_schema.errors import CannotOpen, UnknownKey
from outtray_schema.outcome import Failed, NotBegun, Outcome, Parked, Retry, Sent, Unknown
from outtray_worker import partial
from outtray_worker.abandon import abandon
from outtray_worker.breaker import NO_ANSWERS
from outtray_worker.claim import ClaimedMailbox, DueMessage
from outtray_worker.compose import Composed, make_final
from outtray_worker.content import AHEAD, Content, ContentMissing, arrived, forget
from outtray_worker.deadline import Deadline
from outtray_worker.items import Gate, MailboxMove, Passed, Refusal, Stopped
from outtray_worker.lease import Lease
from outtray_worker.providers import Draft, Mail, Original, Prepared, Session
from outtray_worker.quotas.budgets import Spend
from outtray_worker.quotas.tokens import Tokens
from outtray_worker.record import Attempt, doubt, ends_turn, record_of, refusal_of
from outtray_worker.windows import CLOSED, TurnTimes

if TYPE_CHECKING:
    from outtray_worker.process import Process
    from outtray_worker.quotas.ledger import Allowance
    from outtray_worker.registrar import Registrar

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Rest:
    """Why and how long the mailbox rests after this turn. `None` everywhere else: it is due as its messages say."""

    wait: timedelta
    reason: str


class Turn:
    """One mailbox's turn, from the claim to the end. Run it once."""

    def __init__(
        self,
        process: Process,
        mailbox: ClaimedMailbox,
        messages: list[DueMessage],
        allowance: Allowance,
        tokens: Tokens,
        session: Session,
        lease: Lease,
        registrar: Registrar,
    ) -> None:
        self._process = process
        self._registrar = registrar
        self._mailbox = mailbox
        self._messages = messages
        self._allowance = allowance
        self._tokens = tokens
        self._session = session
        self.lease = lease
        self._until = Deadline.after(process.settings.turn_length)
        self._unwritten: asyncio.Future[bool] | None = None
        self._position = 0
        self._ahead: deque[tuple[UUID, asyncio.Future[Content]]] = deque()
        self._rest: Rest | None = None
        self._times = TurnTimes(process.pool, mailbox)

    async def run(self) -> bool:
        """Deliver what may be delivered, then end. True: the mailbox is due again at once."""
        rest: Rest | None = None
        try:
            rest = await self._deliver_all()
        except Exception as error:
            log.error("a turn ended early", mailbox_id=str(self._mailbox.id), error=type(error).__name__, exc_info=True)
            rest = Rest(self._process.settings.backoff_base, "internal error")
        finally:
            await self._close()
        return await self._end(rest)

    async def _deliver_all(self) -> Rest | None:
        for position, message in enumerate(self._messages):
            self._position = position
            if self._over():
                return None
            if self._moves_on(message):
                continue
            limit = await self._binding(message)
            rest = await self._closed() or (await self._over_quota(message, limit) if limit else await self._pace())
            if rest is not None:
                return rest
            if limit:
                continue
            rest = await self._held_by_breaker()
            if rest is not None:
                return rest
            if not await self._deliver(message):
                return self._rest
        return None

    def _over(self) -> bool:
        return self._until.passed or self.lease.lost or self._process.draining

    async def _binding(self, message: DueMessage) -> str | None:
        """The limit that this message would break now. A draft for its person breaks none."""
        if message.only_draft:
            return None
        return await self._process.quotas.binding(self._mailbox, self._allowance, message)

    # ── before a message ────────────────────────────────────────────────────────────────────────────────────────

    def _moves_on(self, message: DueMessage) -> bool:
        """Its own window is closed: it is due again once that opens, and the others go on."""
        wait = self._times.wait_of(message)
        if wait is not None:
            closed = Refusal(message.id, self._mailbox.id, message.version, kind=CLOSED, again=wait, reason=CLOSED)
            self._write(closed)
        return wait is not None

    async def _closed(self) -> Rest | None:
        """The mailbox's own window and gap; no attempt is spent by either."""
        rest = await self._times.rest(self._until)
        return Rest(*rest) if rest is not None else None

    async def _held_by_breaker(self) -> Rest | None:
        """Its host fails for most mailboxes. Only the one that is the probe goes on, with this one message."""
        held = await self._process.breakers.hold(self._mailbox)
        if held is None:
            return None
        self._tokens.give_back()
        return Rest(*held)

    async def _pace(self) -> Rest | None:
        """A token is taken only for a message that the quota lets pass."""
        wait = await self._tokens.take(self._until)
        return Rest(wait, "pace") if wait is not None else None

    async def _over_quota(self, message: DueMessage, limit: str) -> Rest | None:
        """How long the mailbox rests until this message fits. None: it never can, and has failed."""
        if self._unwritten is not None:  # or the last handover would still count as open: from its deadline
            await self._unwritten
        frees = await self._process.quotas.frees_in(self._mailbox, message)
        if frees is None:
            failed = Failed(f"alone more than the mailbox's limit of {limit}")
            self._write(refusal_of(self._attempt(message, message.version, False), failed))
            return None
        return Rest(frees, f"quota: {limit}")

    # ── one message ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _deliver(self, message: DueMessage) -> bool:
        """Deliver one message. False: nothing else of this mailbox can be handed over now."""
        if self._mailbox.dead_turns:
            return await self._deliver_suspect(message)
        return await self._attempt_once(message, message.version, False)

    async def _deliver_suspect(self, message: DueMessage) -> bool:
        """The last turn died: count this preparation durably before it begins (rule 9)."""
        settings = self._process.settings
        if message.prepares >= settings.poison_after:
            poison = Failed(f"poison: its worker died {message.prepares} times while preparing it")
            self._write(refusal_of(self._attempt(message, message.version, False), poison))
            return True
        async with self._process.quarantine.alone():
            counting = Refusal(message.id, self._mailbox.id, message.version, kind="preparing", counts=True)
            if not await self._registrar.record(counting):
                return True
            return await self._attempt_once(message, message.version + 1, True)

    async def _attempt_once(self, message: DueMessage, version: int, counted: bool) -> bool:
        attempt = self._attempt(message, version, counted)
        prepared = await self._prepare(attempt)
        if isinstance(prepared, Composed):
            self._tokens.give_back()
            return True
        if not isinstance(prepared, _Ready):
            self._process.breakers.note(self._mailbox, prepared)
            self._write(refusal_of(attempt, prepared))
            return not ends_turn(prepared)
        try:
            self._process.crash_point("prepared", message.id)
            if prepared.content.head.partial and not await self._note_refused(attempt, prepared.mail):
                return False
            return await self._gate_and_hand_over(attempt, prepared.mail)
        finally:
            prepared.content.release()

    async def _note_refused(self, attempt: Attempt, mail: Prepared) -> bool:
        """Whom the server refuses of a partial mail is written before its gate: it outlives a death at the dot."""
        try:
            await partial.note(self._process.pool, attempt, getattr(mail, "refused", ()))
        except (psycopg.Error, PoolTimeout) as error:
            await mail.abandon()
            self._write(refusal_of(attempt, _trouble(attempt.message, error)))
            return False
        return True

    async def _gate_and_hand_over(self, attempt: Attempt, prepared: Prepared) -> bool:
        settings = self._process.settings
        # Both deadlines are computed before the gate is submitted, on a clock that runs on while we are frozen: what
        # the gate writes as `handover_until` is later than `answer_by`, however long its answer takes (rule 5).
        begin_by = Deadline.after(settings.handover_begin)
        answer_by = Deadline(begin_by.at + settings.handover_answer.total_seconds())
        # The gate's "window?": nothing begins once it has closed, however long the gate's answer takes.
        begin_by = self._times.begin_by(begin_by, attempt.message)
        passed = await self._registrar.gate(self._gate(attempt, prepared.draft), begin_by)
        if isinstance(passed, Stopped):
            await self._stop(attempt, prepared, passed)
            return not passed.turn_over
        if not attempt.message.only_draft:
            self._allowance.take(attempt.message)
        self._times.began(attempt.message)
        self._read_ahead(self._position + 1)
        self._process.crash_point("gated", attempt.message.id)
        outcome = await self._hand_over(prepared, begin_by, answer_by)
        self._process.crash_point("handed over", attempt.message.id)
        self._settle(attempt, passed, outcome)
        own = self._process.breakers.note(self._mailbox, outcome)
        if own is not None:
            self._rest = Rest(own, NO_ANSWERS)
        return own is None and not ends_turn(outcome)

    def _gate(self, attempt: Attempt, draft: Draft | None) -> Gate:
        message, mailbox = attempt.message, self._mailbox
        spend = Spend(1, message.recipients, message.external) if mailbox.has_budgets else None
        return Gate(
            message.id,
            mailbox.id,
            mailbox.fence,
            attempt.version,
            message.handover + 1,
            mailbox.provider,
            self._process.settings.handover_limit,
            spend,
            draft,
        )

    async def _stop(self, attempt: Attempt, prepared: Prepared, stopped: Stopped) -> None:
        self._tokens.give_back()
        await abandon(self._process, attempt, prepared, stopped)
        if stopped.rest is not None:
            self._rest = Rest(stopped.rest, stopped.reason)
        elif stopped.never:
            self._write(refusal_of(attempt, Failed(f"alone more than a day's {stopped.reason}")))
        elif stopped.reason == "suppressed":
            suppressed = Refusal(
                attempt.message.id,
                self._mailbox.id,
                attempt.version,
                kind="cancelled",
                state="cancelled",
                reason="suppressed",
            )
            self._unwritten = self._registrar.record(suppressed)

    async def _hand_over(self, prepared: Prepared, begin_by: Deadline, answer_by: Deadline) -> Outcome:
        self._process.handing_over += 1
        try:
            return await prepared.hand_over(begin_by, answer_by)
        except Exception as error:  # a bug of ours after the first byte: whoever says "not sent" now would be guessing
            log.error("a handover ended in an error", error=type(error).__name__, exc_info=True)
            return Unknown(f"internal error: {type(error).__name__}")
        finally:
            self._process.handing_over -= 1

    def _settle(self, attempt: Attempt, passed: Passed, outcome: Outcome) -> None:
        if not isinstance(outcome, (Sent, Unknown)) and not attempt.message.only_draft:  # not accepted: does not count
            self._allowance.give_back(attempt.message)
        if isinstance(outcome, NotBegun):
            self._tokens.give_back()
        outcome = doubt(self._mailbox, self._allowance, outcome)
        self._process.metrics.outcome(self._mailbox.provider, outcome)
        self._unwritten = self._registrar.record(record_of(attempt, passed.handover, outcome))

    # ── preparation ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _prepare(self, attempt: Attempt) -> _Ready | Composed | Outcome:
        """Content, connection, login, upload: everything that can be repeated, within one deadline."""
        message = attempt.message
        content: Content | None = None
        ready = None
        self._process.crash_point("preparing", message.id)
        try:
            async with asyncio.timeout(self._process.settings.prepare_limit.total_seconds()):
                content = await self._content(message)
                if content.head.asked is not None:
                    return await self._compose(attempt, content)
                prepared = await self._session.prepare(_mail(message, content, self._mailbox.dead_turns > 0))
                ready = None if isinstance(prepared, Outcome) else _Ready(content, prepared)
                return ready or prepared  # type: ignore[return-value]
        except Exception as error:
            return _trouble(message, error)
        finally:
            if ready is None and content is not None:
                content.release()

    async def _compose(self, attempt: Attempt, content: Content) -> Composed | Outcome:
        """It answers a message that was not known yet when it came in: perhaps the last one of this very turn."""
        if self._unwritten is not None:
            await asyncio.wait([self._unwritten])  # awaited by itself, our deadline would cancel it
        return await make_final(self._process, self._session, self._mailbox, attempt.message, attempt.version, content)

    async def _content(self, message: DueMessage) -> Content:
        self._read_ahead(self._position)
        while self._ahead:
            message_id, content = self._ahead.popleft()
            if message_id == message.id:
                return await arrived(content)
            forget(content)
        return await self._process.content.load(message)

    def _read_ahead(self, position: int) -> None:
        """Ask for the next few messages' content, once none is left that was asked for.

        With a suspect nothing is read ahead: what its reading did would be counted on the message before it.
        """
        if not self._ahead and not self._mailbox.dead_turns:
            self._ahead.extend(self._process.content.ask_ahead(self._messages[position : position + AHEAD]))

    # ── after the messages ──────────────────────────────────────────────────────────────────────────────────────

    def _attempt(self, message: DueMessage, version: int, counted: bool) -> Attempt:
        return Attempt(self._process.settings, self._mailbox, message, version, counted)

    def _write(self, item: Refusal | MailboxMove | None) -> None:
        if isinstance(item, Refusal):
            self._unwritten = self._registrar.record(item)
        elif item is not None:
            self._unwritten = self._registrar.move(item)

    async def _close(self) -> None:
        for _, content in self._ahead:
            forget(content)
        self._tokens.return_unused()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(self._process.settings.connect_timeout.total_seconds()):
                await self._session.close()

    async def _end(self, rest: Rest | None) -> bool:
        """Release the lease behind the last outcome; what a wake wrote meanwhile stays (rule 8)."""
        end = MailboxMove(
            self._mailbox.id,
            self._mailbox.fence,
            ends=True,
            park=rest.wait if rest and rest.wait else None,
            park_reason=rest.reason if rest else None,
        )
        ending = self._registrar.move(end)
        if self._unwritten is not None:
            await self._unwritten
        return await ending


@dataclass(frozen=True, slots=True)
class _Ready:
    content: Content
    mail: Prepared


def _mail(message: DueMessage, content: Content, suspect: bool) -> Mail:
    return Mail(
        message.id,
        content.head.sender,
        tuple(address for _, address in content.head.recipients),
        message.rfc_message_id,
        message.size,
        content.body,
        bcc=tuple(address for role, address in content.head.recipients if role == "bcc"),
        original=Original(*astuple(content.head.answers)) if content.head.answers else None,
        draft=Draft(**message.draft) if message.draft else None,
        suspect=suspect,
        only_draft=message.only_draft,
        partial=content.head.partial,
        as_mime=content.head.form is not None,
        unaltered=content.head.form == "raw",
    )


def _trouble(message: DueMessage, error: Exception) -> Outcome:
    """What an exception in preparation means. Only a bug of ours on this very message spends one of its attempts."""
    match error:
        case ContentMissing():
            return Failed("its content was erased")
        case UnknownKey():
            log.error("a key is missing", ring=error.ring, message_id=str(message.id))
            return Parked("this worker's key file lacks the key that the content was sealed with", scope="app")
        case CannotOpen():
            return Failed("its stored content is damaged")
        case psycopg.Error() | PoolTimeout():
            log.warning("content not read", message_id=str(message.id), error=type(error).__name__)
            return Parked("PostgreSQL did not answer", scope="app")
        case TimeoutError():
            return Parked("preparation took too long", scope="connection")
    log.error("a preparation ended in an error", message_id=str(message.id), error=type(error).__name__, exc_info=error)
    return Retry(f"internal error: {type(error).__name__}")
