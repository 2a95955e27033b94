"""What the worker adds to the command line: its processes, and the test of a mailbox's server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from outtray import Outtray
from outtray.cli import mailboxes
from outtray.cli.exits import Exit
from outtray.cli.extras import needs
from outtray.cli.mailboxes import Mailbox, mailbox_name
from outtray.cli.options import AppName, Json, examples
from outtray.cli.screen import done, errors, facts, hint, out, print_json, size
from outtray.cli.session import database, ready_services

if TYPE_CHECKING:
    from outtray_schema.outcome import Outcome
    from outtray_worker.providers.smtp import Check

Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="The port that Flower listens on.")]
ListenOn = Annotated[
    str,
    typer.Option(
        "--address", metavar="IP", help="Where it listens. It has no login: keep it on loopback or a private net."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the worker's commands. Their libraries are imported only when one runs."""
    panel = "Processes"
    app.command("worker", epilog=examples("outtray worker"), rich_help_panel=panel)(worker)
    app.command("dispatcher", epilog=examples("outtray dispatcher"), rich_help_panel=panel)(dispatcher)
    app.command("flower", epilog=examples("outtray flower --port 5556"), rich_help_panel=panel)(flower)
    mailboxes.group.command("test", epilog=examples("outtray mailbox test ann@example.com"))(check_mailbox)


def worker() -> None:
    """Run one worker: it delivers.

    Start one per core. SIGTERM ends it cleanly: handovers under way finish and are recorded.
    """
    with needs("worker"):
        from outtray_worker.serve import run_worker
    with ready_services() as settings:
        run_worker(settings)


def dispatcher() -> None:
    """Run one dispatcher: it says whose turn it is.

    Due mailboxes become rounds for the workers; overdue handovers, expiry and retention are its care. Run two, on two
    machines, and either may die.
    """
    with needs("worker"):
        from outtray_worker.serve import run_dispatcher
    with ready_services() as settings:
        run_dispatcher(settings)


def flower(port: Port = 5555, address: ListenOn = "127.0.0.1") -> None:
    """Run Flower, read-only: a look at the workers.

    The queue itself is in PostgreSQL, so the truth is in: outtray status
    """
    with needs("worker"):
        from outtray_worker.serve import run_flower
    with ready_services() as settings:
        run_flower(settings, port, address)


def check_mailbox(name: Mailbox, app: AppName = None, as_json: Json = False) -> None:
    """Connect and log in as a worker would; send nothing.

    Exit 1 if a mail would not leave now, with the reason.
    """
    with needs("worker"):
        from outtray_worker import mailbox_check
        from outtray_worker.providers.smtp import Check
    with ready_services() as settings:
        with Outtray(settings, app=app) as outtray:
            mailbox_id = outtray.mailboxes.get(mailbox_name(name)).id
        with database(settings) as connection:
            found = asyncio.run(mailbox_check.check_mailbox(settings, connection, mailbox_id))
    if isinstance(found, Check):
        _show_server(found, as_json)
        return
    _show_trouble(name, found, as_json)
    raise typer.Exit(Exit.REFUSED)


def _show_server(found: Check, as_json: bool) -> None:
    if as_json:
        print_json({"ok": True, **asdict(found)})
        return
    done(f"{escape(found.place)} takes mail from this mailbox. Nothing was sent.")
    offered = escape(", ".join(found.mechanisms)) or "none"
    largest = size(found.size_limit) if found.size_limit else "the server names no limit"
    out.print(
        facts(
            [
                ("encryption", found.tls or "[yellow]none[/]"),
                ("login", f"{found.mechanism or 'none'} [dim](offered: {offered})[/]"),
                ("largest mail", largest),
                ("extensions", escape(", ".join(found.extensions))),
            ]
        )
    )


def _show_trouble(name: str, found: Outcome, as_json: bool) -> None:
    facts_: dict[str, Any] = asdict(found)
    reason, evidence = str(facts_.get("reason", "")), found.evidence
    if as_json:
        print_json({"ok": False, "outcome": type(found).__name__, **facts_})
        return
    errors.print(f"[red]✗[/] {escape(reason)}", soft_wrap=True)
    _show_reply(evidence)
    if facts_.get("status") == "reconnect":
        hint(f"outtray mailbox reconnect {name}")


def _show_reply(evidence: Mapping[str, Any]) -> None:
    said = [str(evidence[name]) for name in ("code", "text") if evidence.get(name)]
    if said:
        errors.print(f"  the server said: {escape(' '.join(said))}", soft_wrap=True)
