"""Why mail still waits, in the words of `outtray explain`."""

from __future__ import annotations

from collections.abc import Iterator

from outtray.cli.screen import moment
from outtray.explain import Explanation
from outtray_sandbox.demo.stage import Stage
from outtray_sandbox.demo.watch import look


def reasons_of(stage: Stage) -> dict[str, Explanation]:
    """For each mailbox with mail waiting, by address: what `outtray explain --mailbox` says of it."""
    waiting = [box.player.address for box in look(stage).boxes if box.queued]
    return {address: stage.client.mailboxes.explain(stage.boxes[address].id) for address in waiting}


def is_stated(reason: Explanation | None) -> bool:
    """Whether it says what ends the wait: a time, or a person."""
    return reason is not None and bool(reason.reason) and (reason.earliest is not None or reason.who != "nobody")


def lines_of(reason: Explanation) -> Iterator[tuple[str, str]]:
    """The same as name and value, one a line."""
    yield "why", reason.reason
    if reason.limit is not None and reason.used is not None and reason.allowed is not None:
        yield "limit", f"{reason.limit}: {reason.used:,} of {reason.allowed:,}"
    if reason.earliest is not None:
        yield "earliest", moment(reason.earliest)
    yield "who acts", "nobody: time alone helps" if reason.who == "nobody" else reason.who
