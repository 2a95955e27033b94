"""What the sandbox's server knows and allows: users, limits, its clock, its ledger, its script, what it has seen."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from outtray_sandbox.accepted import Accepted, Ledger
from outtray_sandbox.smtp.script import Rule, Script

_DAY = 86_400.0
MECHANISMS = ("PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER")
BY_TOKEN = ("XOAUTH2", "OAUTHBEARER")


KEPT_MAILS = 1000
"""Mails that are kept in memory where any are."""


@dataclass(frozen=True, slots=True)
class Recent:
    """A mail that was taken, for the page of sent mail."""

    accepted: Accepted
    queue_id: str
    body: bytes = field(repr=False)


@dataclass
class House:
    """One server's rules and memory. Its methods are also the commands of the control socket."""

    ledger: Ledger
    users: dict[str, str] = field(default_factory=dict)
    """User name → password, which is also the access token that XOAUTH2 accepts."""
    tokens: Callable[[str, str], bool] | None = None
    """Whether an access token opens this user's mailbox by XOAUTH2, where a token server of the sandbox issues them."""
    file_copy: Callable[[Accepted, bytes], None] | None = None
    """Gets each mail that was taken, with its headers, before anybody is told: where an IMAP server is joined."""
    tls: Literal["clear", "starttls", "implicit"] = "clear"
    mechanisms: tuple[str, ...] = MECHANISMS
    auth_required: bool = True
    size_limit: int = 200 * 1024 * 1024
    pipelining: bool = True
    eight_bit: bool = True
    smtputf8: bool = True
    connections: int | None = None
    """Sessions that one user may have at once; more get 432 at MAIL, as Exchange does."""
    daily: dict[str, int] = field(default_factory=dict)
    """Mails per rolling 24 hours by user; "*" holds for all others. More get Gmail's 550 5.4.5 at MAIL."""
    latency: tuple[float, float] = (0.0, 0.0)
    """Seconds, lowest and highest, between the dot and its answer."""
    seed: int = 0
    keep_bodies: int = 0
    """Largest mail in bytes that is kept in memory: in `bodies` by its SHA-256, and the last ones in `recent`."""

    def __post_init__(self) -> None:
        self.script = Script()
        self.seen: Counter[str] = Counter()
        self.bodies: dict[str, bytes] = {}
        self.recent: deque[Recent] = deque(maxlen=KEPT_MAILS)
        self.sessions: Counter[str] = Counter()
        self.revoked: set[str] = set()
        self.random = random.Random(self.seed)  # noqa: S311 (a repeatable delay, no secret)
        self.clock_shift = 0.0
        self._times: dict[str, deque[float]] = defaultdict(deque)
        for accepted in self.ledger.read():
            self._times[accepted.user].append(accepted.accepted_at)

    # ── what the dialogue asks ──────────────────────────────────────────────────────────────────────────────────

    def now(self) -> float:
        """Seconds since the epoch on the server's own clock."""
        return time.time() + self.clock_shift

    def knows(self, mechanism: str, user: str, secret: str) -> bool:
        if user in self.revoked:
            return False
        by_token = mechanism in BY_TOKEN and self.tokens is not None and self.tokens(user, secret)
        return by_token or (user in self.users and self.users[user] == secret)

    def objection(self, user: str) -> str | None:
        """Why this user may not begin a mail now, as a reply."""
        if self.connections is not None and self.sessions[user] > self.connections:
            return "432 4.3.2 Concurrent connections limit exceeded. Visit the documentation for more information."
        limit = self.daily.get(user, self.daily.get("*"))
        if limit is not None and self.used(user) >= limit:
            return (
                "550-5.4.5 Daily user sending limit exceeded. For more information on Gmail\n"
                "550 5.4.5 sending limits go to support - gsmtp"
            )
        return None

    def used(self, user: str) -> int:
        """Mails that `user` sent in the last 24 hours."""
        times = self._times[user]
        while times and times[0] <= self.now() - _DAY:
            times.popleft()
        return len(times)

    def take(self, accepted: Accepted, queue_id: str = "", body: bytes = b"") -> None:
        """The mail is taken: it stands in the ledger before anybody is told. `body`: as it came, empty if too large."""
        self.ledger.append(accepted)
        self._times[accepted.user].append(accepted.accepted_at)
        if self.keep_bodies:
            self.recent.append(Recent(accepted, queue_id, body))
        if body:
            self.bodies[accepted.sha256] = body
            if len(self.bodies) > KEPT_MAILS:
                del self.bodies[next(iter(self.bodies))]
        self.seen["taken"] += 1

    def delay(self) -> tuple[float, float]:
        """Seconds before and after the mail is taken: a client that dies meanwhile leaves a mail on either side."""
        seconds = self.random.uniform(*self.latency)
        return (seconds, 0.0) if self.random.random() < 0.5 else (0.0, seconds)

    # ── what tests and demo command ─────────────────────────────────────────────────────────────────────────────

    def add_rule(self, **fields: Any) -> int:
        """Begin a `Rule`, given by its fields; returns its id."""
        return self.script.add(Rule(**fields))

    def forget(self, rule_id: int | None = None) -> None:
        """End one rule, or all."""
        self.script.forget(rule_id)

    def add_user(self, user: str, password: str) -> None:
        self.users[user] = password
        self.revoked.discard(user)

    def revoke(self, user: str) -> None:
        """From now on the user's password and token are refused."""
        self.revoked.add(user)

    def limit_daily(self, user: str, messages: int | None) -> None:
        """Mails per rolling 24 hours; `None` lifts the limit. User "*" is everybody without a limit of their own."""
        if messages is None:
            self.daily.pop(user, None)
        else:
            self.daily[user] = messages

    def limit_connections(self, sessions: int | None) -> None:
        self.connections = sessions

    def set_latency(self, low: float, high: float) -> None:
        self.latency = (low, high)

    def shift_clock(self, seconds: float) -> None:
        """Move the server's clock, on top of earlier moves."""
        self.clock_shift += seconds

    def stats(self) -> dict[str, int]:
        """How often each stage was reached; `taken` counts mails, `connections` sockets, `open` those still there."""
        return dict(self.seen)


COMMANDS = (
    "add_rule",
    "forget",
    "add_user",
    "revoke",
    "limit_daily",
    "limit_connections",
    "set_latency",
    "shift_clock",
    "stats",
)
