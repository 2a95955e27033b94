"""How long to wait before another try: full jitter, so that what failed together does not come back together.

The strategies are tenacity's; their waits live in `due_at` and `parked_until`, never in a sleeping task.
"""

from __future__ import annotations

import random
from datetime import timedelta

from tenacity import RetryCallState
from tenacity.wait import wait_random_exponential

from outtray_schema.settings import Settings

HINT_AT_LEAST = timedelta(seconds=1)
"""A provider that asks for less is asked again after this."""

SPREAD = 0.1
"""Share of a provider's own hint that is added at random: everybody whom it told the same time would come at once."""


def message_backoff(settings: Settings, attempt: int) -> timedelta:
    """The wait after a message's `attempt`-th own failure (1, 2, …): from 0 to base × 2^(attempt-1), or the cap."""
    return _jittered(settings.backoff_base, settings.backoff_cap, attempt)


def mailbox_backoff(settings: Settings, parks: int, hint: timedelta | None) -> timedelta:
    """How long a mailbox is parked that was parked `parks` times (0, 1, …) in a row before, without a send between.

    `hint` is the provider's own wish: the wait is no shorter. A wish in the past is none; the others are believed from
    1 s to `settings.park_hint_cap`.
    """
    backoff = max(HINT_AT_LEAST, _jittered(settings.backoff_base, settings.park_cap, parks + 1))
    if hint is None or hint <= timedelta(0):
        return backoff
    wish = min(max(hint, HINT_AT_LEAST), settings.park_hint_cap)
    return max(wish + wish * (SPREAD * random.random()), backoff)  # noqa: S311 - spreads load, guards nothing


def _jittered(base: timedelta, cap: timedelta, attempt: int) -> timedelta:
    wait = wait_random_exponential(multiplier=base.total_seconds(), max=cap.total_seconds())
    state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
    state.attempt_number = attempt
    return timedelta(seconds=wait(state))
