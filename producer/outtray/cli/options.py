"""Flags that many commands share, and how a command's examples are written."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

Json = Annotated[bool, typer.Option("--json", help="Write JSON for machines; keys stay the same between versions.")]
AppName = Annotated[str | None, typer.Option("--app", metavar="NAME", help="The app to speak for. Default: OUTTRAY_APP.")]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="Why, for the journal and for those who look later.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def examples(*lines: str) -> str:
    """The end of a help page: what one would really type."""
    return "\n\n".join(["[dim]Examples[/]", *(f"  [cyan]{escape(line)}[/]" for line in lines)])


def group(text: str) -> typer.Typer:
    """A command with commands of its own, like `outtray mailbox`."""
    return typer.Typer(help=text, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)
