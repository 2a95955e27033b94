"""Access tokens in this process: how long each is young, how long it lives, and a bounded number of them."""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import UUID

MOST = 20_000
"""Access tokens that a process keeps: some 2 KiB each."""
AHEAD = timedelta(minutes=5)
"""A token is refreshed once to twice this before its expiry: at random, lest what began together end together."""
AHEAD_SHARE = 1 / 12
"""The same as a share of its life, for a token that lives shortly: for the usual hour both are five minutes."""
MARGIN = timedelta(seconds=60)
MARGIN_SHARE = 1 / 24
"""What a token given out has still to live: a minute, or this share of a short life."""

Key = tuple[UUID, str]
"""A mailbox and an audience."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An access token. Moments are seconds of `boottime`."""

    token: str = field(repr=False)
    credentials_version: int
    """Of the credentials that it came from, as they stand since."""
    refresh_at: float
    useless_at: float
    """When it has less than the margin to live."""

    @classmethod
    def of(cls, token: str, lifetime: float, left: float, credentials_version: int, read_at: float) -> Kept:
        """A token that was to live for so many seconds, of which so many were left at `read_at`."""
        ahead = min(lifetime * AHEAD_SHARE, AHEAD.total_seconds()) * random.uniform(1, 2)  # noqa: S311 - spreads load
        margin = min(lifetime * MARGIN_SHARE, MARGIN.total_seconds())
        return cls(token, credentials_version, read_at + left - ahead, read_at + left - margin)


class Cache:
    """The tokens that this process has seen, the latest used longest."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Key, Kept] = OrderedDict()

    def get(self, key: Key) -> Kept | None:
        return self._kept.get(key)

    def keep(self, key: Key, kept: Kept) -> Kept:
        """Keep a token. One that is kept already keeps its moment: another draw could only bring it forward."""
        present = self._kept.get(key)
        if present is not None and present.token == kept.token:
            kept = replace(kept, refresh_at=present.refresh_at)
        self._kept[key] = kept
        self._kept.move_to_end(key)
        while len(self._kept) > MOST:
            self._kept.popitem(last=False)
        return kept

    def postpone(self, key: Key, kept: Kept, until: float) -> Kept:
        """Its refresh was tried in vain: it counts as young until then, or until it is useless."""
        later = replace(kept, refresh_at=min(until, kept.useless_at))
        self._kept[key] = later
        return later

    def drop(self, key: Key, token: str) -> None:
        """Forget that token, if it is the one that is kept."""
        present = self._kept.get(key)
        if present is not None and present.token == token:
            del self._kept[key]

    def clear(self) -> None:
        self._kept.clear()
