"""Wakes: hints in Redis that a mailbox has mail due at a time. Losing one only delays; the sweep finds the message.

One sorted set: member = the mailbox's id as text, score = the earliest due time in seconds since the epoch.
No address, subject or message id ever stands here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from uuid import UUID

KEY = "outtray:wakes"


def zadd_arguments(wakes: Mapping[UUID, datetime]) -> dict[str, float]:
    """`{mailbox id: due}` as the mapping of `ZADD KEY LT`: an earlier time wins, a later one changes nothing."""
    return {str(mailbox_id): due.timestamp() for mailbox_id, due in wakes.items()}


def parse(pairs: Iterable[tuple[bytes | str, float]]) -> dict[UUID, datetime]:
    """What `ZPOPMIN` returned, as `{mailbox id: due}`. What is no wake (somebody's invention) is left out."""
    wakes: dict[UUID, datetime] = {}
    for member, score in pairs:
        try:
            mailbox_id = UUID(member.decode() if isinstance(member, bytes) else member)
            wakes[mailbox_id] = datetime.fromtimestamp(score, UTC)
        except (ValueError, OverflowError, OSError):
            continue
    return wakes
