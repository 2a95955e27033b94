"""How a sandbox server is made to misbehave: rules that hold at a stage, for whom and how often."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from outtray_sandbox import script

_ids = count(1)


@dataclass
class Rule:
    """At a stage, do this instead of, or around, what a good server does. Without `status` the true answer is given."""

    stage: str = ".*"
    """A regular expression for the whole stage; several stages belong to one server (`drafts.send`, `token`)."""
    status: int | None = None
    body: Any = None
    """Bytes as Latin-1 text, or anything else as JSON."""
    headers: dict[str, str] = field(default_factory=dict)
    late: float = 0.0
    """Seconds before anything else happens."""
    answer_late: float = 0.0
    """Seconds between the work and its answer."""
    drop: Literal["early", "before", "after", "half"] | None = None
    """Close: once the head of the request is read, once all of it is, after the work without a word, in mid-answer."""
    after_bytes: int = 0
    """With `drop="early"`: once this much of the body has come."""
    reset: bool = False
    """Close by RST instead of FIN."""
    silent: bool = False
    """Never answer."""
    take: bool | None = None
    """Whether the stage's work is done. Unset: what the rest of the rule means to an honest server."""
    user: str | None = None
    """A regular expression, anywhere in the user's address; unset holds for all."""
    skip: int = 0
    """Let this many requests pass first."""
    times: int | None = None
    seconds: float | None = None
    """How often and for how long it holds; unset: until it is forgotten."""
    id: int = field(default_factory=lambda: next(_ids))
    born: float = field(default_factory=time.monotonic)

    @property
    def does_work(self) -> bool:
        if self.take is not None:
            return self.take
        if self.silent or self.drop in ("early", "before"):
            return False
        return self.status is None or self.status < 300

    @property
    def closes_at_once(self) -> bool:
        return self.drop == "early" or (self.drop == "before" and not self.does_work)

    @property
    def is_over(self) -> bool:
        late = self.seconds is not None and time.monotonic() - self.born > self.seconds
        return self.times == 0 or late

    def holds(self, stage: str, user: str) -> bool:
        if self.is_over or re.fullmatch(self.stage, stage) is None:
            return False
        return self.user is None or re.search(self.user, user, re.IGNORECASE) is not None


class Script(script.Script[Rule]):
    """A server's rules. `find(stage, user)`."""

    def holds(self, rule: Rule, *where: str) -> bool:
        return rule.holds(*where) and not self._passes(rule)

    @staticmethod
    def _passes(rule: Rule) -> bool:
        rule.skip -= 1
        return rule.skip >= 0
