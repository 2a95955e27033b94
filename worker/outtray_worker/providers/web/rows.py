"""What a provider's answers mean, as data: one row per kind of answer; the first that matches decides.

A row says at which steps and for which status, codes and text it holds, what the attempt becomes, who is affected, how
long to wait, and where that is known from. Rows whose id begins with `unknown-` are the safe way to take what no other
row knows: their answers are counted and kept, redacted, for the operator. Each table ends with enough of them that
every answer finds a row.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from outtray_schema.outcome import Evidence, Failed, Held, Outcome, Parked, Retry, Scope, Unknown

Step = Literal["prepare", "commit", "read"]
"""`prepare` may be repeated, `commit` is the handover, `read` looks for evidence or ids."""

Becomes = Literal["sent", "unknown", "retry", "parked", "reconnect", "disabled", "failed"]

ANYWHERE: tuple[Step, ...] = ("prepare", "commit", "read")
BEFORE: tuple[Step, ...] = ("prepare", "read")
COMMIT: tuple[Step, ...] = ("commit",)
REFUSED = range(400, 500)
BROKEN = range(500, 600)
ANY_STATUS = range(100, 1000)


@dataclass(frozen=True, slots=True)
class Signal:
    """A whole answer as the rows see it: `codes` are all the names that the provider gives to what happened."""

    step: Step
    status: int
    codes: tuple[str, ...] = ()
    text: str = ""
    hinted: bool = False
    """Whether it says how long to wait (Retry-After)."""
    about: str = ""
    """The operation, as the provider's table names it, where rows differ by it (`drafts.send`)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of answer. `codes` must match one of the signal's whole, `text` anywhere in it, regardless of case."""

    id: str
    steps: tuple[Step, ...]
    statuses: Container[int]
    becomes: Becomes
    reason: str
    source: str
    as_of: str
    codes: str = ""
    text: str = ""
    about: str = ""
    hinted: bool | None = None
    scope: Scope = "message"
    after: timedelta | None = None
    teaches: bool = False
    """The mailbox's own limit of a day is reached: we learn where it is."""

    def matches(self, signal: Signal) -> bool:
        return (
            signal.step in self.steps
            and signal.status in self.statuses
            and (not self.about or re.fullmatch(self.about, signal.about) is not None)
            and (self.hinted is None or self.hinted is signal.hinted)
            and (not self.codes or any(re.fullmatch(self.codes, each, re.IGNORECASE) for each in signal.codes))
            and (not self.text or re.search(self.text, signal.text, re.IGNORECASE) is not None)
        )

    @property
    def unknown_signal(self) -> bool:
        return self.id.startswith("unknown-")

    def outcome(self, reason: str, evidence: Evidence, after: timedelta | None = None) -> Outcome:
        """The row as an outcome, `after` (what the provider asked for) in place of the row's own.

        Raises `LookupError` for `sent`, which only the provider can fill with ids.
        """
        after = self.after if after is None else after
        match self.becomes:
            case "retry":
                return Retry(reason, scope=self.scope, after=after, evidence=evidence)
            case "parked":
                return Parked(reason, scope=self.scope, after=after, evidence=evidence, teaches=self.teaches)
            case "failed":
                return Failed(reason, scope=self.scope, evidence=evidence)
            case "unknown":
                return Unknown(reason, evidence=evidence)
            case "sent":
                raise LookupError(f"{self.id} is no refusal")
            case status:
                return Held(reason, status=status, evidence=evidence)


@dataclass(frozen=True, slots=True)
class Table:
    """One provider's rows, in the order in which they are tried."""

    provider: str
    rows: tuple[Row, ...]

    def classify(self, signal: Signal) -> Row:
        """The first row that matches. Raises `LookupError` if the table lacks its last rows."""
        for row in self.rows:
            if row.matches(signal):
                return row
        raise LookupError(f"{self.provider}: no row for {signal.status} at {signal.step}")
