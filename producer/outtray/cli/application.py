"""The command line as one application: it collects the commands of every installed root, and ends with a code."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import entry_points, version
from typing import Annotated, Any

import typer

from outtray.cli.exits import Exit, exit_code, show_error
from outtray.cli.options import group
from outtray.cli.screen import errors, out
from outtray_schema.errors import OuttrayError, SettingsError

COMMANDS = "outtray.commands"
"""The entry points under which the roots contribute: each is called with the application."""

_ABOUT = """Durable outbound mail from your users' own mailboxes.

New here? [cyan]outtray up[/] starts everything, [cyan]outtray mailbox add smtp[/] adds a mailbox, [cyan]outtray send[/]
sends.
Something stuck? [cyan]outtray status[/], then [cyan]outtray explain[/].

[dim]Exit codes: 0 ok, 1 refused, 2 usage or setting, 3 not found, 4 unavailable, 5 wrong state, 130 interrupted.[/]"""


@cache
def build() -> typer.Typer:
    """The application with every command of the installed roots.

    Built once: the roots add to groups that are their modules' own, which would grow with each further building.
    """
    app = group(_ABOUT)
    app.callback()(_options)
    # The same installation always shows the same page: mail first, then what runs it.
    for entry in sorted(entry_points(group=COMMANDS), key=lambda entry: (entry.name != "producer", entry.name)):
        entry.load()(app)
    return app


@cache
def _command() -> Any:
    """The same as one command to call: 0.1 s of reading signatures, once."""
    return typer.main.get_command(build())


def main() -> None:
    """Run the command of this process's arguments, and exit with its code. Never shows a traceback for our errors."""
    try:
        _command()(prog_name="outtray")
    except (OuttrayError, SettingsError) as error:
        show_error(error, as_json="--json" in sys.argv)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        errors.print("interrupted")
        sys.exit(Exit.INTERRUPTED)


def _show_version(asked: bool) -> None:
    if asked:
        out.print(f"outtray {version('outtray')}")
        raise typer.Exit


def _options(
    show_version: Annotated[
        bool,
        typer.Option("--version", metavar="", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """The application's own flags."""
