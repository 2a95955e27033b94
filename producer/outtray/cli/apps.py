"""`outtray app`: the tenants of this installation."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.markup import escape

from outtray.cli import options
from outtray.cli.options import Json, examples
from outtray.cli.screen import done, hint, moment, out, print_json, table
from outtray.cli.session import client

group = options.group("Apps: tenants with mailboxes of their own.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A short name, like crm or crm-eu.")]
OnUnknown = Annotated[
    Literal["hold", "resend"],
    typer.Option(
        "--on-unknown", help="What becomes of messages that nobody can tell left, if they say nothing themselves."
    ),
]


@group.command("add", epilog=examples("outtray app add crm", "outtray app add alerts --on-unknown resend"))
def add(name: Name, on_unknown: OnUnknown = "hold", as_json: Json = False) -> None:
    """Add an app."""
    with client() as outtray:
        app = outtray.apps.add(name, on_unknown=on_unknown)
    if as_json:
        print_json(app)
        return
    done(f"App [bold]{escape(app.name)}[/] added.")
    hint(f"outtray mailbox add smtp ann@example.com --host smtp.example.com --app {app.name}")


@group.command("list", epilog=examples("outtray app list", "outtray app list --json"))
def show_all(as_json: Json = False) -> None:
    """List the apps."""
    with client() as outtray:
        apps = outtray.apps.list()
    if as_json:
        print_json(apps)
        return
    page = table("app", "default mailbox", "if unknown", "added")
    for app in apps:
        page.add_row(escape(app.name), str(app.default_mailbox_id or "none"), app.on_unknown, moment(app.created_at))
    out.print(page if apps else "No apps yet: outtray app add NAME")
