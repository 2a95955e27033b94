"""Named points at which a test lets this process die, as `kill -9` would: no cleanup, no flush, no goodbye."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

POINTS = ("claimed", "preparing", "gated", "handed over", "looked")


def crash_points(wanted: str | None) -> Callable[[str], None]:
    """A function that kills the process at the point `wanted`, and that does nothing anywhere else."""
    if wanted is None:
        return lambda point: None

    def reach(point: str) -> None:
        if point == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return reach
