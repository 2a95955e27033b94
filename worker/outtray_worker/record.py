"""From an outcome, a value, to what the tables say about it. No SQL here and no I/O: the decisions alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from outtray_schema.learned import measures_of
from outtray_schema.ledger import Allowance
from outtray_schema.outcome import Drafted, Failed, Held, NotBegun, Outcome, Parked, Retry, Sent, Unknown
from outtray_schema.plans import Limits
from outtray_schema.settings import Settings
from outtray_worker.backoff import mailbox_backoff, message_backoff
from outtray_worker.claim import ClaimedMailbox, DueMessage
from outtray_worker.items import MailboxMove, Record, Refusal
from outtray_worker.quotas.check import limits_of

# Google: near a sending limit a 200 is no proof, since the 429 may come minutes late (guide "handle errors", 2026-04).
NO_PROOF_NEAR_THE_LIMIT = frozenset({"gmail"})


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at one message, as far as the decisions need it."""

    settings: Settings
    mailbox: ClaimedMailbox
    message: DueMessage
    version: int
    counted: bool
    """The preparation was counted on the message, because its last turn died."""


def record_of(attempt: Attempt, handover: int, outcome: Outcome) -> Record:
    """What to write about a handover that ended with `outcome`."""
    outcome = give_up(attempt, outcome)
    ids = (
        (outcome.provider_id, outcome.rfc_message_id, outcome.conversation_id)
        if isinstance(outcome, (Sent, Drafted))
        else (None,) * 3
    )
    return Record(
        attempt.message.id,
        attempt.mailbox.id,
        handover,
        kind=kind_of(outcome),
        state=state_after(outcome),
        spends=isinstance(outcome, (Sent, Drafted, Retry, Failed, Unknown)),
        again=_again(attempt, outcome),
        reason=None if isinstance(outcome, (Sent, Drafted)) else outcome.reason,
        provider_id=ids[0],
        rfc_message_id=ids[1],
        conversation_id=ids[2],
        evidence=outcome.evidence,
        move=move_of(attempt, outcome) or _arming(attempt, outcome),
    )


def refusal_of(attempt: Attempt, outcome: Outcome) -> Refusal | MailboxMove | None:
    """What to write about an attempt that ended in preparation. A mailbox that waits leaves its message untouched."""
    outcome = give_up(attempt, outcome)
    move = move_of(attempt, outcome)
    spends = isinstance(outcome, (Retry, Failed))
    if not spends and not attempt.counted:
        return move
    return Refusal(
        attempt.message.id,
        attempt.mailbox.id,
        attempt.version,
        kind=kind_of(outcome) if spends else "preparing",
        state=state_after(outcome),
        spends=spends,
        again=_again(attempt, outcome),
        reason=outcome.reason if isinstance(outcome, (Retry, Failed)) else None,
        evidence=outcome.evidence if spends else None,
        move=move,
    )


def doubt(mailbox: ClaimedMailbox, allowance: Allowance, outcome: Outcome) -> Outcome:
    """A success that is no proof asks for another look (`look_again`); everything else stays as it is."""
    if not isinstance(outcome, Sent) or mailbox.provider not in NO_PROOF_NEAR_THE_LIMIT or not allowance.nearly_used:
        return outcome
    return replace(outcome, evidence={**outcome.evidence, "look_again": True})


def give_up(attempt: Attempt, outcome: Outcome) -> Outcome:
    """A retry too many, or too late, is a failure. Only the message's own failures ever count towards it."""
    if not isinstance(outcome, Retry):
        return outcome
    message, settings = attempt.message, attempt.settings
    tries = message.attempt + 1
    patience = message.give_up_after or settings.give_up_after
    if tries >= settings.attempts:
        return Failed(f"gave up after {tries} attempts: {outcome.reason}", outcome.scope, outcome.evidence)
    if message.failing_since is not None and message.now - message.failing_since >= patience:
        return Failed(
            f"gave up {_hours(patience)} after its first failure: {outcome.reason}", outcome.scope, outcome.evidence
        )
    return outcome


def _hours(patience: timedelta) -> str:
    return f"{patience.total_seconds() / 3600:g} h"


def kind_of(outcome: Outcome) -> str:
    """The outcome's name in the journal."""
    return "not begun" if isinstance(outcome, NotBegun) else type(outcome).__name__.lower()


def state_after(outcome: Outcome) -> str:
    """The message's state once the outcome is written."""
    if isinstance(outcome, (Sent, Drafted, Failed, Unknown)):
        return type(outcome).__name__.lower()
    return "queued"


def ends_turn(outcome: Outcome) -> bool:
    """After these, nothing else of this mailbox can be handed over now."""
    return isinstance(outcome, (Parked, Held))


def _again(attempt: Attempt, outcome: Outcome) -> timedelta | None:
    if not isinstance(outcome, Retry):
        return None
    backoff = message_backoff(attempt.settings, attempt.message.attempt + 1)
    return max(backoff, min(outcome.after, attempt.settings.park_hint_cap)) if outcome.after else backoff


def _arming(attempt: Attempt, outcome: Outcome) -> MailboxMove | None:
    """What returns to the queue arms its mailbox, should its turn be over by then (rule 13)."""
    return MailboxMove(attempt.mailbox.id, attempt.mailbox.fence) if state_after(outcome) == "queued" else None


def move_of(attempt: Attempt, outcome: Outcome) -> MailboxMove | None:
    """What the outcome does to the mailbox, if anything."""
    mailbox = attempt.mailbox
    match outcome:
        case Parked(reason=reason, after=after, teaches=teaches):
            park = mailbox_backoff(attempt.settings, mailbox.parks, after)
            learns = _lesson(mailbox) if teaches else None
            return MailboxMove(mailbox.id, mailbox.fence, park=park, park_reason=reason, counts=True, learns=learns)
        case Held(reason=reason, status=status):
            return MailboxMove(
                mailbox.id,
                mailbox.fence,
                hold=status,
                hold_reason=reason,
                credentials_version=mailbox.credentials_version,
            )
        case Sent() | Drafted() if mailbox.parks > 0:
            return MailboxMove(mailbox.id, mailbox.fence, resets=True)
        case _:
            return None


def _lesson(mailbox: ClaimedMailbox) -> dict[str, int | None]:
    limits = limits_of(mailbox) or Limits()
    return measures_of(limits.daily)
