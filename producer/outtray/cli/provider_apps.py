"""`outtray provider-app`: the OAuth clients by which mailboxes log in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from outtray.cli import options, secret
from outtray.cli.exits import Exit, UsageError
from outtray.cli.options import AppName, Json, Yes, examples, flag
from outtray.cli.screen import colored, done, hint, moment, out, print_json, table
from outtray.cli.session import client
from outtray.oauth_apps import Kind, ProviderApp

group = options.group("Provider apps: the OAuth clients by which mailboxes log in.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The provider app's name.")]
FromStdin = Annotated[bool, flag("--from-stdin", text="Read the secret from standard input.")]
FromFile = Annotated[
    Path | None,
    typer.Option(
        "--from-file",
        metavar="FILE",
        help="Read the secret from a file: text, Google's JSON, or a certificate with its key (PEM).",
        show_default=False,
    ),
]
STATES = {"active": "green", "refused": "bold red"}


@group.command(
    "add",
    epilog=examples(
        "outtray provider-app add google --from-file client_secret.json",
        "outtray provider-app add microsoft --client-id 1f0c... --tenant common",
        "outtray provider-app add microsoft --client-id 1f0c... --no-secret",
        "outtray provider-app add google --name robot --from-file service-account.json",
    ),
)
def add(
    provider: Annotated[Literal["google", "microsoft"], typer.Argument(metavar="PROVIDER", help="google, microsoft.")],
    client_id: Annotated[
        str | None, typer.Option("--client-id", metavar="ID", help="As the console shows it.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Default: the provider's.", show_default=False)
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option(
            "--tenant", metavar="TENANT", help="Microsoft: an id, common, organizations, consumers.", show_default=False
        ),
    ] = None,
    app_only: Annotated[
        bool, flag("--app-only", text="Microsoft: it has permissions of its own, without any person.")
    ] = False,
    public: Annotated[bool, flag("--no-secret", text="Microsoft: a public client.")] = False,
    own: Annotated[bool, flag("--own", text="For this app's mailboxes alone.")] = False,
    from_stdin: FromStdin = False,
    from_file: FromFile = None,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Add an OAuth client.

    How to register one, step by step: docs/connecting.md. It asks for the secret, unless a flag says where it is.
    """
    with client(app) as outtray:
        kind: Kind = "client_credentials" if app_only else "oauth"
        given = None if public else _read(from_stdin, from_file, f"Client secret at {provider}")
        made = outtray.provider_apps.add(
            name or provider, provider, client_id=client_id, secret=given, kind=kind, tenant=tenant, own=own
        )
    if as_json:
        print_json(made)
        return
    done(f"Provider app [bold]{escape(made.name)}[/] added.")
    people = f"outtray mailbox connect {provider}"
    hint(people if made.kind == "oauth" else f"outtray mailbox add delegated ADDRESS --provider-app {made.name}")


def _read(from_stdin: bool, from_file: Path | None, prompt: str) -> str:
    return secret.read_secret(from_stdin, from_file, prompt, "--from-stdin", "--from-file")


@group.command("list", epilog=examples("outtray provider-app list", "outtray provider-app list --json"))
def show_all(app: AppName = None, as_json: Json = False) -> None:
    """List the OAuth clients.

    One that is refused has mailboxes that wait for its new secret.
    """
    with client(app) as outtray:
        found = outtray.provider_apps.list()
    if as_json:
        print_json(found)
        return
    page = table("provider app", "provider", "kind", "client", "tenant", "#mailboxes", "state")
    for each in found:
        reason = f": {escape(each.status_reason)} since {moment(each.status_at)}" if each.status_reason else ""
        page.add_row(
            escape(each.name), each.provider, each.kind, escape(each.client_id or ""), escape(each.tenant or ""),
            str(each.mailboxes), colored(each.status, STATES) + reason,
        )  # fmt: skip
    out.print(page if found else "No provider apps yet: outtray provider-app add google --from-file FILE")


def _pace(name: str, text: str) -> Any:
    return typer.Option(name, metavar="N", min=0, help=f"{text} 0: no limit.", show_default=False)


@group.command(
    "set",
    epilog=examples(
        "outtray provider-app set google --units-per-minute 1200000 \\\n      --user-units-per-minute 6000",
        "outtray provider-app set google --messages-per-minute 600",
    ),
)
def change(
    name: Name,
    per_minute: Annotated[int | None, _pace("--messages-per-minute", "All its mailboxes together.")] = None,
    units: Annotated[int | None, _pace("--units-per-minute", "Google's quota units, all together.")] = None,
    user_units: Annotated[int | None, _pace("--user-units-per-minute", "And of each mailbox.")] = None,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Set how fast its mailboxes may send.

    Google gives a project 1,200,000 units a minute and each user 15,000, or
    6,000 where the project was made since May 2026; the console shows yours.
    A mail costs 100 to 130 of them.
    """
    if per_minute is None and units is None and user_units is None:
        raise UsageError("nothing to change; see: outtray provider-app set --help")
    with client(app) as outtray:
        made = outtray.provider_apps.set(
            name, per_minute=per_minute, units_per_minute=units, user_units_per_minute=user_units
        )
    if as_json:
        print_json(made)
        return
    done(f"Provider app [bold]{escape(made.name)}[/] keeps to {_paces(made) or 'no pace of its own'}.")


def _paces(made: ProviderApp) -> str:
    paces = {
        "messages": made.per_minute,
        "units": made.units_per_minute,
        "units of each mailbox": made.user_units_per_minute,
    }
    return ", ".join(f"{number:,} {what} a minute" for what, number in paces.items() if number is not None)


@group.command(
    "set-secret",
    epilog=examples(
        "outtray provider-app set-secret google", "outtray provider-app set-secret entra --from-file new.pem"
    ),
)
def set_secret(
    name: Name, from_stdin: FromStdin = False, from_file: FromFile = None, app: AppName = None, as_json: Json = False
) -> None:
    """Give an OAuth client a new secret.

    Mailboxes that waited for it go on at once; nobody has to consent again.
    """
    with client(app) as outtray:
        outtray.provider_apps.get(name)
        made = outtray.provider_apps.set_secret(name, _read(from_stdin, from_file, f"New secret of {name}"))
    if as_json:
        print_json(made)
        return
    done(f"Provider app [bold]{escape(made.name)}[/] is {colored(made.status, STATES)} with its new secret.")


@group.command("remove", epilog=examples("outtray provider-app remove google-old"))
def remove(name: Name, yes: Yes = False, app: AppName = None, as_json: Json = False) -> None:
    """Take an OAuth client away.

    Refused while a mailbox logs in by it.
    """
    with client(app) as outtray:
        found = outtray.provider_apps.get(name)
        if not yes and not as_json and not typer.confirm(f"Remove the provider app {found.name}?"):
            raise typer.Exit(Exit.REFUSED)
        outtray.provider_apps.remove(name)
    if as_json:
        print_json({"name": found.name, "removed": True})
        return
    done(f"Provider app {escape(found.name)} removed.")
