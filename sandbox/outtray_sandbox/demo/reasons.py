"""Why mail still waits, in the words of `outtray explain`."""

from __future__ import annotations

from outtray_sandbox.demo.stage import Stage
from outtray_sandbox.demo.watch import look


def reasons_of(stage: Stage) -> dict[str, list[str]]:
    """For each mailbox with mail waiting, by address: what `explain` says of it."""
    return {box.player.address: [box.state] for box in look(stage).boxes if box.queued}
