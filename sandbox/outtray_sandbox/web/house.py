"""What every HTTP server of the sandbox knows: its ledger, its script, its movable clock, the mail that it sent."""

from __future__ import annotations

import json
import random
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from outtray_sandbox.accepted import Accepted, Ledger
from outtray_sandbox.web.faults import Rule, Script

KEPT_MAILS = 1000
"""Mails that the page of sent mail shows."""


@dataclass(frozen=True, slots=True)
class SentMail:
    """One mail as its reader would see it; `raw` is what the page offers as the source, cut at `House.keep_bodies`."""

    at: float
    user: str
    sender: str
    recipients: tuple[str, ...]
    subject: str
    text: str
    ids: Mapping[str, str]
    """The server's own ids, by name, for the page."""
    raw: bytes = field(repr=False)


@dataclass
class House:
    """One server's rules and memory. The methods that `commands` names can be called over HTTP too."""

    ledger: Ledger
    keep_bodies: int = 1 << 20
    """Largest mail in bytes whose source is kept."""
    latency: tuple[float, float] = (0.0, 0.0)
    """Seconds, lowest and highest, that an answer takes."""
    seed: int = 0
    """Of the latencies."""
    commands: tuple[str, ...] = ("add_rule", "forget", "shift_clock", "stats")

    def __post_init__(self) -> None:
        self.script = Script()
        self.seen: Counter[str] = Counter()
        self.sent: deque[SentMail] = deque(maxlen=KEPT_MAILS)
        self.bodies: dict[str, bytes] = {}
        """What clients gave, by its SHA-256: the last `KEPT_MAILS` of up to `keep_bodies` bytes."""
        self.clock_shift = 0.0
        self.random = random.Random(self.seed)  # noqa: S311 (a repeatable delay, no secret)

    def now(self) -> float:
        """Seconds since the epoch on the server's own clock."""
        return time.time() + self.clock_shift

    def delay(self) -> tuple[float, float]:
        """Seconds before and after the work: a client that dies meanwhile leaves it undone, or done and unanswered."""
        seconds = self.random.uniform(*self.latency)
        return (seconds, 0.0) if self.random.random() < 0.5 else (0.0, seconds)

    def shift_clock(self, seconds: float) -> None:
        """Move the server's clock, on top of earlier moves."""
        self.clock_shift += seconds

    def add_rule(self, **fields: object) -> int:
        """Begin a `Rule`, given by its fields; returns its id."""
        return self.script.add(Rule(**fields))  # type: ignore[arg-type]

    def forget(self, rule_id: int | None = None) -> None:
        """End one rule, or all."""
        self.script.forget(rule_id)

    def stats(self) -> dict[str, int]:
        """How often each stage was asked for; `connections` are sockets, `taken` mails, `errors` our own bugs."""
        return dict(self.seen)

    def take(self, accepted: Accepted, mail: SentMail, received: bytes = b"") -> None:
        """The mail is sent: it stands in the ledger before anybody is told. `received` is what the client gave."""
        self.ledger.append(accepted)
        self.sent.append(mail)
        if 0 < len(received) <= self.keep_bodies:
            self.bodies[accepted.sha256] = received
            if len(self.bodies) > KEPT_MAILS:
                del self.bodies[next(iter(self.bodies))]
        self.seen["taken"] += 1

    def fault_of_mail(self, stage: str, headers: Mapping[str, str]) -> Rule | None:
        """The fault that a mail brings in its header X-Sandbox-Fault, if it is for this stage."""
        return rule_of(headers.get("X-Sandbox-Fault"), stage)


def rule_of(text: str | None, stage: str) -> Rule | None:
    """A rule from a header; None without one, or if it is for other stages. Raises `ValueError`, `TypeError`."""
    if not text:
        return None
    rule = Rule(**json.loads(text))
    return rule if rule.holds(stage, "") else None
