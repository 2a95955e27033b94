"""The live view: a table that stands still at the bottom, and above it, line by line, what happens.

On anything but a terminal the table is one line of progress every few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from outtray_sandbox.demo.watch import BoxNow, Now

Kind = Literal["step", "fault", "system", "good", "command"]

MARKS: dict[Kind, tuple[str, str]] = {
    "step": ("·", ""),
    "fault": ("✗", "bold red"),
    "system": ("!", "yellow"),
    "good": ("✓", "green"),
    "command": ("$", "bold"),
}
"""What stands before a line, and its colour: our own step, a fault that we make, what the system says of itself."""

Columns = tuple[tuple[str, int], ...]
WIDE = 107
"""Columns from which plan and quota stand in the mailbox's own line."""
PLAIN_EVERY = 4.0
"""Seconds between two lines of progress where there is no terminal."""


class View:
    """Where the demo shows what it sees. `say` adds a line of history; `show` refreshes the picture."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._moves = console.is_terminal and not console.is_dumb_terminal
        self._began = time.monotonic()
        self._said_at = float("-inf")

    @property
    def elapsed(self) -> float:
        """Seconds since the curtain rose."""
        return time.monotonic() - self._began

    @contextmanager
    def open(self) -> Iterator[None]:
        """Show the picture until the end of the block; its last state stays on screen."""
        if not self._moves:
            yield
            return
        with Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def say(self, text: str, kind: Kind = "step") -> None:
        """One line of history. `text` is plain."""
        mark, style = MARKS[kind]
        line = Table.grid(padding=(0, 1))
        line.add_column(justify="right", width=6, style="dim")
        line.add_column(width=1, style=style)
        line.add_column(style=style, overflow="fold")
        line.add_row(f"{self.elapsed:.1f} s", mark, Text(text))
        self._console.print(line)

    def show(self, now: Now) -> None:
        """The picture as it stands now."""
        if self._live is not None:
            self._live.update(picture(now, self.elapsed, self._console.width), refresh=True)
        elif not self._moves and self.elapsed - self._said_at >= PLAIN_EVERY:
            self._said_at = self.elapsed
            self._console.print(f"{self.elapsed:4.0f} s   {in_one_line(now)}", markup=False, style="dim")


def picture(now: Now, elapsed: float, width: int) -> RenderableType:
    """The table of mailboxes under a line of progress."""
    return Group(Text(), _headline(now, elapsed), _table(now, width))


def in_one_line(now: Now) -> str:
    """How far it is, and who waits."""
    words = [f"{name.replace('_', ' ')} {now.count(name)}" for name, _ in COUNTS]
    parked = [
        box.player.address for box in now.boxes if box.queued and box.parked_until and box.parked_reason != "pace"
    ]
    held = [f"{box.status} {box.player.address}" for box in now.boxes if box.status != "active"]
    return ", ".join([*words, *(f"parked {address}" for address in parked), *held])


def _headline(now: Now, elapsed: float) -> RenderableType:
    total = sum(now.count(column) for column, _ in COUNTS)
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_row(
        Text("Outtray demo", style="bold"),
        Text(f"{elapsed:3.0f} s", style="dim"),
        ProgressBar(total=max(1, total), completed=now.count("sent"), width=24),
        Text(f"{now.count('sent')} of {total} sent"),
    )
    return line


COUNTS = (("queued", ""), ("handing_over", "cyan"), ("sent", "green"), ("unknown", "bold yellow"), ("failed", "red"))
"""The columns of numbers, and their colours where they are not 0."""

NARROW = (
    ("mailbox", 22),
    ("queued", 8),
    ("in handover", 13),
    ("sent", 6),
    ("unknown", 9),
    ("failed", 8),
    ("quota", 11),
)
WIDE_ENDS = (("  plan", 16), ("quota used of allowed", 25))
"""Heads and widths of the columns; in a wide terminal the last of `NARROW` gives way to `WIDE_ENDS`."""

LEFT = ("mailbox", "  plan")


def _table(now: Now, width: int) -> RenderableType:
    columns = (*NARROW[:-1], *WIDE_ENDS) if width >= WIDE else NARROW
    lines = [_line(columns, [Text(name, style="dim") for name, _ in columns])]
    for box in now.boxes:
        lines.append(_line(columns, _cells(box, columns)))
        lines.append(_below(box, columns))
    return Group(*lines)


def _line(columns: Columns, cells: list[Text]) -> Text:
    """One line of cells: the names to the left, the numbers to the right."""
    line = Text(no_wrap=True, overflow="ellipsis")
    for (head, width), cell in zip(columns, cells, strict=True):
        missing = max(0, width - len(cell))
        cell.pad_right(missing) if head in LEFT else cell.pad_left(missing)
        line.append_text(cell)
    return line


def _cells(box: BoxNow, columns: Columns) -> list[Text]:
    numbers = [(getattr(box, name), style) for name, style in COUNTS]
    cells = [Text(box.player.address, style="bold")]
    cells += [Text(f"{number:,}" if number else "·", style=style if number else "dim") for number, style in numbers]
    if columns == NARROW:
        return [*cells, Text(f"{box.used:,}/{box.allowed:,}")]
    return [*cells, Text(f"  {box.player.label}"), Text(f"{box.used:,} of {box.allowed:,} {box.measure}")]


def _below(box: BoxNow, columns: Columns) -> Text:
    """The second line of a mailbox: its state in words, and its plan where that has no column."""
    line = Text("  ", no_wrap=True, overflow="ellipsis")
    if columns == NARROW:
        line.append(f"{box.player.label}: ", style="dim")
    return line.append(box.state, style=_colour(box))


def _colour(box: BoxNow) -> str:
    if box.status != "active" or box.unknown:
        return "bold yellow"
    if box.queued and box.parked_until:
        return "dim" if box.parked_reason == "pace" else "yellow"
    return "green" if box.queued + box.handing_over == 0 else "dim"
