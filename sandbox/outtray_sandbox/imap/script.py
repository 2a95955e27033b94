"""How the sandbox's IMAP server is made to misbehave: rules that hold at a stage, for whom and how often."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from outtray_sandbox import script

Stage = Literal["connect", "capability", "starttls", "login", "list", "select", "search", "fetch", "append", "logout"]
STAGES: tuple[str, ...] = Stage.__args__  # type: ignore[attr-defined]
_ids = count(1)


@dataclass
class Rule:
    """At `stage`, do this instead of, or around, what a good server does.

    `reply` stands in for the tagged answer (`NO [UNAVAILABLE] later`), and for the greeting at `connect`. `raw` is sent
    as it stands, in place of everything. `late`: seconds before anything else happens.
    """

    stage: Stage
    reply: str | None = None
    raw: str | None = None
    late: float = 0.0
    drop: Literal["before", "after"] | None = None
    """Close the connection: before the stage's work, or after it without a word."""
    silent: bool = False
    """Never answer, and read nothing more."""
    user: str | None = None
    times: int | None = None
    """How often it holds; unset: until it is forgotten."""
    id: int = field(default_factory=lambda: next(_ids))

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"no such stage: {self.stage}; there are {', '.join(STAGES)}")

    @property
    def is_over(self) -> bool:
        return self.times == 0

    def holds(self, stage: str, user: str) -> bool:
        return self.stage == stage and not self.is_over and self.user in (None, user)


class Script(script.Script[Rule]):
    """A server's rules. `find(stage, user)`."""

    def holds(self, rule: Rule, *where: str) -> bool:
        return rule.holds(*where)
