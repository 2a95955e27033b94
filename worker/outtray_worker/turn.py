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
from typing import TYPE_CHECKING
from uuid import UUID

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from outtray_schema.errors import CannotOpen, UnknownKey
from outtray_schema.outcome import Failed, Outcome, Parked, Retry, Unknown
from outtray_worker import partial
from outtray_worker.abandon import abandon
from outtray_worker.claim import ClaimedMailbox, DueMessage
from outtray_worker.compose import Composed, make_final
from outtray_worker.conditions import Conditions, Rest
from outtray_worker.content import AHEAD, Content, ContentMissing, arrived, forget
from outtray_worker.deadline import Deadline
from outtray_worker.items import Gate, MailboxMove, Passed, Refusal, Stopped
from outtray_worker.lease import Lease
from outtray_worker.providers import Draft, Mail, Original, Prepared, Session
from outtray_worker.quotas.budgets import Spend
from outtray_worker.quotas.tokens import Tokens
from outtray_worker.record import Attempt, ends_turn, record_of, refusal_of

if TYPE_CHECKING:
    from outtray_worker.process import Process
    from outtray_worker.quotas.ledger import Allowance
    from outtray_worker.registrar import Registrar

log = structlog.get_logger()


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
        self._session = session
        self.lease = lease
        self._until = Deadline.after(process.settings.turn_length)
        self._unwritten: asyncio.Future[bool] | None = None
        self._position = 0
        self._ahead: deque[tuple[UUID, asyncio.Future[Content]]] = deque()
        self._rest: Rest | None = None
        self._conditions = Conditions(process, mailbox, allowance, tokens, self._until)

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
            standing = await self._conditions.ask(message, self._written)
            if isinstance(standing, Rest):
                return standing
            if standing is not None:
                self._pass_over(message, standing)
                continue
            if not await self._deliver(message):
                return self._rest
        return None

    def _over(self) -> bool:
        return self._until.passed or self.lease.lost or self._process.draining

    def _pass_over(self, message: DueMessage, why: Refusal | Failed) -> None:
        """It does not leave now, or never can, while the others go on."""
        attempt = self._attempt(message, message.version, False)
        self._write(why if isinstance(why, Refusal) else refusal_of(attempt, why))

    async def _written(self) -> None:
        if self._unwritten is not None:
            await self._unwritten

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
            self._conditions.nothing_moved()
            return True
        if not isinstance(prepared, _Ready):
            self._conditions.not_prepared(prepared)
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
        begin_by = self._conditions.begin_by(begin_by, attempt.message)
        passed = await self._registrar.gate(self._gate(attempt, prepared.draft), begin_by)
        if isinstance(passed, Stopped):
            await self._stop(attempt, prepared, passed)
            return not passed.turn_over
        self._conditions.began(attempt.message)
        self._read_ahead(self._position + 1)
        self._process.crash_point("gated", attempt.message.id)
        outcome = await self._hand_over(prepared, begin_by, answer_by)
        self._process.crash_point("handed over", attempt.message.id)
        self._settle(attempt, passed, outcome)
        return self._rest is None and not ends_turn(outcome)

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
        self._conditions.nothing_moved()
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
        outcome, self._rest = self._conditions.ended(attempt.message, outcome)
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
        self._conditions.close()
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
        await self._written()
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
