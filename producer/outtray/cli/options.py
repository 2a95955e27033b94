"""Flags that many commands share, and how a command's examples are written."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape


def flag(*names: str, text: str, panel: str | None = None) -> Any:
    """A flag without a value."""
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar="")


Json = Annotated[bool, flag("--json", text="Write JSON, for machines.")]
AppName = Annotated[
    str | None, typer.Option("--app", metavar="NAME", help="The app to speak for. Default: OUTTRAY_APP.")
]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="Why, for the journal and for those who look later.")]
Yes = Annotated[bool, flag("--yes", "-y", text="Do not ask.")]


def examples(*lines: str) -> str:
    """The end of a help page: what one would really type."""
    return "\n".join(["[dim]Examples[/]", *(f"  [cyan]{escape(line)}[/]" for line in lines)])


def group(text: str) -> typer.Typer:
    """A command with commands of its own, like `outtray mailbox`."""
    return typer.Typer(
        help=text, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False
    )
