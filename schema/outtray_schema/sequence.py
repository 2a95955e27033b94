"""Sequences: what a message says of the one that it follows, and after which of its ends it goes on.

A follower waits, with no due time, until the message before it has ended. `sent` lets it go on, always; after the other
ends it goes on or is cancelled, as `on_predecessor` says of each. *unknown* is no end: while nobody can tell whether
that message left, the follower waits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from outtray_schema.errors import Problem
from outtray_schema.settings import parse_duration

if TYPE_CHECKING:
    from outtray_schema.message import Message

Choice = Literal["cancel", "go_on"]

DEFAULT: Mapping[str, Choice] = {
    "failed": "cancel",
    "cancelled": "cancel",
    "expired": "cancel",
    # Who follows a message that was only to become a draft knows that this is how it ends.
    "drafted": "go_on",
}
"""What follows from each end of the message before, beside *sent*."""

_BY_HAND = ("in_reply_to", "references", "reply_to_message", "raw")
"""What says a message's place in a thread by itself; a raw mail stays as it is."""

LONGEST = timedelta(days=366)
_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def predecessor(value: Any) -> UUID | str | None:
    """The message before: its id, or its idempotency key. A text that looks like an id may be either."""
    if value is None or isinstance(value, UUID):
        return value
    if not isinstance(value, str) or not value.strip() or len(value) > 255:
        raise ValueError("must be the id or the idempotency key of the message before it")
    return value


def possible_id(name: UUID | str) -> UUID | None:
    """The id that a name may be."""
    if isinstance(name, UUID):
        return name
    return UUID(name) if _ID.fullmatch(name) else None


def delay(value: Any) -> timedelta:
    """The time from the end of the message before to this one: from nothing to 366 days."""
    if isinstance(value, bool) or not isinstance(value, (timedelta, str, int, float)):
        raise ValueError("must be a duration like 3d or timedelta(days=3)")
    try:
        found: timedelta = parse_duration(value)
    except OverflowError:
        found = timedelta.max
    if not timedelta(0) <= found <= LONGEST:
        raise ValueError(f"must be from 0s to {LONGEST.days}d")
    return found


def on_predecessor(value: Any) -> dict[str, Choice]:
    """What to do after each end: a mapping of ends, or one choice for all of them."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = dict.fromkeys(DEFAULT, value)
    if not isinstance(value, Mapping):
        raise ValueError('must be a mapping like {"failed": "go_on"}, or "go_on" for every end')
    if wrong := [end for end in value if end not in DEFAULT]:
        raise ValueError(f"{wrong[0]!r} is no end that it can choose for; those are {', '.join(DEFAULT)}")
    if wrong := [choice for choice in value.values() if choice not in ("cancel", "go_on")]:
        raise ValueError(f"{wrong[0]!r} is no choice; write cancel or go_on")
    return dict(value)


def goes_on_after(choices: Mapping[str, Choice]) -> list[str]:
    """The ends of the message before after which a follower goes on."""
    chosen = {**DEFAULT, **choices}
    return ["sent", *(end for end, choice in chosen.items() if choice == "go_on")]


def problems_of_sequence(message: Message) -> list[Problem]:
    """What is wrong between the fields of a sequence."""
    if message.follows is None:
        given_thread = message.thread is not None
        lonely = {"after": message.after, "on_predecessor": message.on_predecessor, "thread": given_thread}
        return [Problem(name, "needs follows: the message before it") for name, given in lonely.items() if given]
    by_hand = [name for name in _BY_HAND if getattr(message, name)]
    if message.thread and by_hand:
        return [Problem("thread", f"its place in a thread stands in {by_hand[0]} already; leave one of the two out")]
    return []


def is_threaded(message: Message) -> bool:
    """Whether a follower is to answer the message before it, if it can."""
    return message.thread is not False and not any(getattr(message, name) for name in _BY_HAND)
