"""The command line's table of contents: which file answers which question."""

from __future__ import annotations

import typer

from outtray.cli import apps, keys, migrate


def register(app: typer.Typer) -> None:
    """Add what comes with the producer: everything but the processes, the embedded servers and the demo."""
    setting_up = "Setting up"
    app.add_typer(apps.group, name="app", rich_help_panel=setting_up)
    app.add_typer(keys.group, name="keys", rich_help_panel=setting_up)
    app.command("migrate", epilog=migrate.EXAMPLES, rich_help_panel=setting_up)(migrate.migrate)
