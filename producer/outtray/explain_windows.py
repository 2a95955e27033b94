"""What windows and gaps say in `explain`: when a message that could leave otherwise finds both of its windows open."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from outtray.explain_reasons import Explanation
from outtray.plan import Row
from outtray_schema.times import Times, open_for_both, read_times
from outtray_schema.windows import LOOK_AHEAD, next_open

AT_ITS_OPENING = timedelta(seconds=5)
"""A message that was moved to an opening is due a moment after it: by how long the writing took."""


def windowed(row: Row, answer: Explanation) -> Explanation:
    """The answer, or the window that opens only after the time that it names."""
    if answer.earliest is None:
        return answer
    try:
        own, box = read_times(row["times"]), read_times(row["mailbox_times"])
    except ValueError as error:
        reason = f"its times cannot be read by this version: {error}; it waits rather than guess"
        return Explanation("queued", "times_unreadable", reason, who="operator", details=("update Outtray here",))
    found = open_for_both(own.window, box.window, max(answer.earliest, row["now"]))
    if found is None:
        return _never(own, box)
    if found[0] > answer.earliest and found[0] > row["now"]:
        before = () if answer.code in _AT_ONCE else (f"before that: {answer.reason}",)
        return _opens(own, box, answer.earliest, found[0], (*answer.details, *before))
    if answer.code == "scheduled" and own.window is not None and _opens_then(own, box, answer.earliest):
        return _opens(own, box, answer.earliest - AT_ITS_OPENING, found[0], answer.details)
    return answer


_AT_ONCE = ("turn", "round", "due", "wake", "window")
"""Reasons that say nothing beside a closed window."""


def _opens_then(own: Times, box: Times, at: datetime) -> bool:
    """Whether they were closed just before."""
    before = open_for_both(own.window, box.window, at - AT_ITS_OPENING)
    return before is not None and before[0] > at - AT_ITS_OPENING


def _opens(own: Times, box: Times, closed_at: datetime, at: datetime, details: tuple[str, ...]) -> Explanation:
    closed = [(name, times.window) for name, times in (("its mailbox's", box), ("its own", own)) if times.window]
    whose = [(name, window) for name, window in closed if (found := next_open(window, closed_at)) is None
             or found[0] > closed_at] or closed  # fmt: skip
    names = " and ".join(name for name, _ in whose)
    verb = "windows open" if len(whose) > 1 else "window opens"
    hours = tuple(f"{name} window: {window}" for name, window in whose)
    reason = f"{names} {verb} at {at.astimezone(UTC).isoformat(' ', 'seconds')}"
    return Explanation("queued", "window", reason, at, limit="window", details=(*hours, *details))


def _never(own: Times, box: Times) -> Explanation:
    hours = tuple(f"{name} window: {times.window}" for name, times in (("its mailbox's", box), ("its own", own))
                  if times.window)  # fmt: skip
    reason = f"no common opening of its windows lies within {LOOK_AHEAD.days} days"
    cure = "give its mailbox other hours (outtray mailbox set --window), or cancel it and enqueue it with others"
    return Explanation("queued", "window_never", reason, None, "app developer", "window", details=(*hours, cure))


def with_window(row: Row, answer: Explanation) -> Explanation:
    """An idle mailbox says when it would send."""
    try:
        times = read_times(row["mailbox_times"])
    except ValueError:
        return answer
    if times.window is None:
        return answer
    found = next_open(times.window, row["now"])
    is_open = found is not None and found[0] <= row["now"]
    told = "open now" if is_open else f"opens at {found[0].isoformat(' ', 'seconds')}" if found else "never opens"
    return replace(answer, details=(*answer.details, f"its window is {told}: {times.window}" if is_open else
                                    f"its window {told}: {times.window}"))  # fmt: skip
