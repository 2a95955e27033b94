"""Flags of times: a mailbox's window, its days off, and the gap between two mails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape

from outtray_schema.times import read_times

WindowFlag = Annotated[
    str | None,
    typer.Option(
        "--window",
        metavar="TEXT",
        help='Send only then: "mon-fri 09:00-17:30 Europe/Berlin". none: at any hour.',
        show_default=False,
    ),
]
Blackout = Annotated[
    list[str] | None,
    typer.Option("--blackout", metavar="DAY", help="Not on this day: 2026-12-24. Several times; none: on every day."),
]
GapFlag = Annotated[
    str | None,
    typer.Option(
        "--gap", metavar="MIN-MAX", help="Between two mails, at random: 30s-90s. none: as fast as its pace.",
        show_default=False,
    ),
]  # fmt: skip


def times_of(window: str | None, blackout: list[str] | None, gap: str | None) -> dict[str, Any]:
    """The flags that were given, as `mailboxes.set_times` takes them."""
    days = [] if blackout == ["none"] else blackout
    named = {"window": window, "blackout": days or ([] if blackout else None), "gap": gap}
    return {name: value for name, value in named.items() if value is not None}


def times_facts(stored: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """What a mailbox keeps to, for a page of facts."""
    try:
        times = read_times(stored)
    except ValueError as error:
        yield "times", f"[yellow]cannot be read[/]: {escape(str(error))}"
        return
    yield "window", escape(str(times.window)) if times.window else ""
    yield "days off", ", ".join(map(str, sorted(times.window.blackout))) if times.window else ""
    yield "gap", f"{times.gap} between two mails" if times.gap else ""
