"""What the sandbox adds to the command line: everything at once, on this machine."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the sandbox's commands. Their libraries are imported only when one runs."""
