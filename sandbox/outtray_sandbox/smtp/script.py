"""How the sandbox's server is made to misbehave: rules that hold at a stage of the dialogue, for whom and how often."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from outtray_sandbox import script

Stage = Literal["connect", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "body", "dot", "rset", "noop", "quit"]
"""`connect` is the greeting, `body` lies between 354 and the dot, `dot` is the answer to the closing dot."""

STAGES: tuple[str, ...] = Stage.__args__  # type: ignore[attr-defined]
_ids = count(1)


@dataclass
class Rule:
    """At `stage`, do this instead of, or around, what a good server does.

    `reply` is what it says, code first; lines apart by newlines, bytes as Latin-1, CRLF is added. A reply that begins
    with 2 or 3 follows the stage's work, any other stands in for it. Without a reply the true one is given.
    """

    stage: Stage
    reply: str | None = None
    late: float = 0.0
    """Seconds before anything else happens."""
    drop: Literal["before", "after", "reply", "half"] | None = None
    """Close the connection: before the stage's work, after it without a word, after the reply, or only our half."""
    reset: bool = False
    """Close by RST instead of FIN."""
    silent: bool = False
    """Never answer, and read nothing more."""
    pieces: float | None = None
    """Give the reply byte by byte, with this many seconds between them."""
    take: bool | None = None
    """At `dot`: whether the mail is taken. Unset: what the rest of the rule means to an honest server."""
    after_bytes: int = 0
    """At `body`: once this much has come."""
    raw: bool = False
    """Send `reply` as it stands, without CRLF."""
    user: str | None = None
    sender: str | None = None
    recipient: str | None = None
    """Regular expressions, anywhere in the address, whatever its case; unset holds for all."""
    times: int | None = None
    seconds: float | None = None
    """How often and for how long it holds; unset: until it is forgotten."""
    id: int = field(default_factory=lambda: next(_ids))
    born: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"no such stage: {self.stage}; there are {', '.join(STAGES)}")

    @property
    def does_work(self) -> bool:
        """Whether the stage's work is done: the login checked, the recipient added, the mail taken."""
        if self.stage == "dot" and self.take is not None:
            return self.take
        if self.silent or self.drop == "before":
            return False
        return self.reply is None or self.reply[:1] in ("2", "3")

    @property
    def is_over(self) -> bool:
        late = self.seconds is not None and time.monotonic() - self.born > self.seconds
        return self.times == 0 or late

    def holds(self, stage: str, user: str, sender: str, recipient: str) -> bool:
        if self.stage != stage or self.is_over:
            return False
        wanted = ((self.user, user), (self.sender, sender), (self.recipient, recipient))
        return all(pattern is None or re.search(pattern, text, re.IGNORECASE) for pattern, text in wanted)


class Script(script.Script[Rule]):
    """A server's rules. `find(stage, user, sender, recipient)`."""

    def holds(self, rule: Rule, *where: str) -> bool:
        return rule.holds(*where)
