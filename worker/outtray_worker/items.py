"""What turns ask the registrar to write: a gate, an outcome, what ended in preparation, a move of the mailbox."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from outtray_schema.outcome import Evidence
from outtray_worker.providers import Draft
from outtray_worker.quotas.budgets import Spend


@dataclass(frozen=True, slots=True)
class Gate:
    """Ask to begin a handover of the message as it was read, under the fence of the claim."""

    message_id: UUID
    mailbox_id: UUID
    fence: int
    version: int
    handover: int
    """The number that this handover will have: what was read, plus one."""
    provider: str
    within: timedelta
    """How long the handover may last: from the gate to `handover_until`."""
    spend: Spend | None = None
    """What to spend from the mailbox's shared budgets, if it has any."""
    draft: Draft | None = None
    """The draft that this gate binds, if none is bound yet (rule 6)."""


@dataclass(frozen=True, slots=True)
class Passed:
    """The gate let the message pass; `handover` names everything that is written about it from now on."""

    handover: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """The gate did not let the message pass. `turn_over`: nothing else of this mailbox may pass either.

    `rest` is how long until a shared budget has room again; with `never`, the message alone is more than a day's.
    """

    reason: str
    turn_over: bool = False
    rest: timedelta | None = None
    never: bool = False


@dataclass(frozen=True, slots=True)
class MailboxMove:
    """What an outcome or the end of a turn does to the mailbox."""

    mailbox_id: UUID
    fence: int
    ends: bool = False
    park: timedelta | None = None
    park_reason: str | None = None
    counts: bool = False
    resets: bool = False
    hold: str | None = None
    hold_reason: str | None = None
    credentials_version: int = 0
    learns: Mapping[str, int | None] | None = None
    """The provider refused for a limit of its own: the limits in force, to be lowered to where the ledger stands."""


@dataclass(frozen=True, slots=True)
class Record:
    """The outcome of a handover, as the table takes it. `kind` is the outcome's name in the journal."""

    message_id: UUID
    mailbox_id: UUID
    handover: int
    kind: str
    state: str
    spends: bool
    again: timedelta | None = None
    reason: str | None = None
    provider_id: str | None = None
    rfc_message_id: str | None = None
    conversation_id: str | None = None
    evidence: Evidence | None = None
    move: MailboxMove | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """What ended (or is counted) in preparation: nothing was handed over. Named by the version that was read."""

    message_id: UUID
    mailbox_id: UUID
    version: int
    kind: str
    state: str = "queued"
    spends: bool = False
    counts: bool = False
    again: timedelta | None = None
    reason: str | None = None
    evidence: Evidence | None = None
    move: MailboxMove | None = None


Item = Gate | Record | Refusal | MailboxMove
