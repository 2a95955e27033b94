"""What is asked of a bucket, and what it answers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import timedelta

MINUTE = 60.0
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Want:
    """Tokens wanted of one bucket, one for each handover.

    Where a provider counts in units, `per_minute` and `burst` are in units and a token is `cost` of them. Mailboxes
    that share such a bucket may have different costs; `burst` is at least each one's. `used_last_minute` are handovers,
    as the ledger shows them; None: not known, so a missing bucket begins empty. `sharers` is how many processes draw
    from it at once; None for a mailbox's own bucket, from which only its one turn draws.
    """

    key: str
    per_minute: int
    burst: int
    tokens: int
    used_last_minute: int | None = None
    sharers: int | None = None
    read_at: float = field(default_factory=time.monotonic)
    """When `used_last_minute` was read."""
    cost: int = 1

    @property
    def used_units(self) -> int | None:
        """`used_last_minute` as the bucket counts."""
        return None if self.used_last_minute is None else self.used_last_minute * self.cost


@dataclass(frozen=True, slots=True)
class Grant:
    """Tokens that were granted, up to those wanted, and how long until the bucket has one more."""

    tokens: int
    wait: timedelta


def bucket_key(owner: str, per_minute: int, burst: int) -> str:
    """The bucket's name in Redis. `owner` is a mailbox's id, or `app:` and a provider app's name: no personal data."""
    return f"outtray:pace:{owner}:{per_minute}:{burst}"
