"""`outtray budget`: limits of 24 hours that several mailboxes share."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from outtray.budgets import Budget
from outtray.cli import options
from outtray.cli.exits import Exit
from outtray.cli.options import AppName, Json, Yes, examples, flag
from outtray.cli.screen import done, hint, out, print_json, table
from outtray.cli.session import client
from outtray_schema.plans import TRIAL_TENANT_EXTERNALS

group = options.group("Budgets: daily limits that several mailboxes share.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The budget's name.")]


def _number(flag: str, text: str) -> Any:
    return typer.Option(flag, metavar="N", min=0, help=text, show_default=False)


External = Annotated[int | None, _number("--external", "External recipients a day.")]
Recipients = Annotated[int | None, _number("--recipients", "Recipients a day.")]
Messages = Annotated[int | None, _number("--messages", "Messages a day.")]
Licences = Annotated[int | None, _number("--licences", "Microsoft's formula: 500 x N^0.7 + 9,500 external recipients.")]
Trial = Annotated[bool, flag("--trial", text=f"A trial tenant of Microsoft: {TRIAL_TENANT_EXTERNALS:,} external.")]


@group.command(
    "add",
    epilog=examples(
        "outtray budget add contoso --tenant contoso.onmicrosoft.com --licences 25",
        "outtray budget add --tenant contoso.onmicrosoft.com --external 12006",
        "outtray budget add newsletters --messages 3000",
    ),
)
def add(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Default: the tenant.", show_default=False)] = None,
    tenant: Annotated[
        str | None,
        typer.Option(
            "--tenant", metavar="TENANT", help="Mailboxes of its provider apps join by themselves.", show_default=False
        ),
    ] = None,
    external: External = None,
    recipients: Recipients = None,
    messages: Messages = None,
    licences: Licences = None,
    trial: Trial = False,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Make a budget that mailboxes share.

    Microsoft limits a tenant's external recipients. Prefer what the Exchange
    admin centre reports to the formula, and leave room for mail sent by hand:
    half of it is a careful start.
    """
    with client(app) as outtray:
        made = outtray.budgets.add(
            name, tenant=tenant, external=external, recipients=recipients, messages=messages, licences=licences,
            trial=trial,
        )  # fmt: skip
    if as_json:
        print_json(made)
        return
    done(f"Budget [bold]{escape(made.name)}[/] added: {_limit(made)}, {made.mailboxes} mailboxes share it.")
    hint(f"let a mailbox share it: outtray mailbox set MAILBOX --budget {made.name}")


def _limit(budget: Budget) -> str:
    words = {"external": "external recipients"}.get(budget.measure, budget.measure)
    return f"{budget.per_day:,} {words} in 24 h"


@group.command("list", epilog=examples("outtray budget list", "outtray budget list --json"))
def show_all(app: AppName = None, as_json: Json = False) -> None:
    """List the budgets, with what is spent of them."""
    with client(app) as outtray:
        found = outtray.budgets.list()
    if as_json:
        print_json(found)
        return
    page = table("budget", "tenant", "counts", "#in 24 h", "#used", "#mailboxes")
    for each in found:
        numbers = (f"{number:,}" for number in (each.per_day, each.used, each.mailboxes))
        page.add_row(escape(each.name), escape(each.tenant or ""), each.measure, *numbers)
    out.print(page if found else "No budgets yet: outtray budget add NAME --tenant TENANT --licences N")


@group.command("set", epilog=examples("outtray budget set contoso --external 15000"))
def change(
    name: Name,
    external: External = None,
    recipients: Recipients = None,
    messages: Messages = None,
    licences: Licences = None,
    trial: Trial = False,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Change a budget's limit.

    Mailboxes that wait for it look again at once. What is spent stays spent.
    """
    with client(app) as outtray:
        made = outtray.budgets.set(
            name, external=external, recipients=recipients, messages=messages, licences=licences, trial=trial
        )
    if as_json:
        print_json(made)
        return
    done(f"Budget [bold]{escape(made.name)}[/] changed: {_limit(made)}, {made.used:,} used.")


@group.command("remove", epilog=examples("outtray budget remove contoso"))
def remove(name: Name, yes: Yes = False, app: AppName = None, as_json: Json = False) -> None:
    """Take a budget away.

    The mailboxes that shared it go on without it.
    """
    if not yes and not as_json and not typer.confirm(f"Remove the budget {name}?"):
        raise typer.Exit(Exit.REFUSED)
    with client(app) as outtray:
        outtray.budgets.remove(name)
    if as_json:
        print_json({"name": name, "removed": True})
        return
    done(f"Budget {escape(name)} removed.")
