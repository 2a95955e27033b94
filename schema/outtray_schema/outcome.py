"""What became of one attempt, as values. Providers return them, the turn reads them, the registrar writes them.

An outcome speaks about *one* attempt. `scope` says who is affected by it: only failures of the message itself (scope
`message` or `recipient`) spend one of its attempts; a connection, mailbox, tenant or app that has to wait spends none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

Scope = Literal["recipient", "message", "connection", "mailbox", "tenant", "app"]
Evidence = Mapping[str, str | int | float | bool | None]
"""What the provider said, redacted: codes, request ids, reply texts without addresses. Never a token or content."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The provider took the message. The ids are what it gave; `None` where it gives none."""

    provider_id: str | None = None
    rfc_message_id: str | None = None
    conversation_id: str | None = None
    evidence: Evidence = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Retry:
    """Definitely not accepted, and the message itself may be tried again. `after` is the provider's wish, if any."""

    reason: str
    scope: Scope = "message"
    after: timedelta | None = None
    evidence: Evidence = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Parked:
    """Definitely not accepted, and not the message's fault: the mailbox waits, the message keeps its attempts.

    `after` is how long the provider wants us to wait; `None` lets the backoff of the mailbox decide. `teaches`: the
    provider says that what the mailbox may send in a day is used up, so that its limit is where the ledger stands.
    """

    reason: str
    scope: Scope = "mailbox"
    after: timedelta | None = None
    evidence: Evidence = field(default_factory=dict)
    teaches: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """Definitely not accepted, and only a person can help: the mailbox takes `status` until somebody mends it."""

    reason: str
    status: Literal["reconnect", "disabled"] = "reconnect"
    evidence: Evidence = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """Definitely not accepted, and trying again cannot help."""

    reason: str
    scope: Scope = "message"
    evidence: Evidence = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unknown:
    """The handover began and nobody can tell whether the provider took it. Never tried again without evidence."""

    reason: str
    evidence: Evidence = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NotBegun:
    """The gate was passed, but not one byte that commits was written. The message goes back, its attempt with it."""

    reason: str
    evidence: Evidence = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Drafted:
    """The message was only to become a draft, and is one now, for its person to send. No quota counts it."""

    provider_id: str | None = None
    rfc_message_id: str | None = None
    conversation_id: str | None = None
    evidence: Evidence = field(default_factory=dict)


Outcome = Sent | Drafted | Retry | Parked | Held | Failed | Unknown | NotBegun
