"""What the worker adds to the command line: its processes, and the test of a mailbox's server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from outtray import Outtray
from outtray.cli import connect, mailboxes
from outtray.cli.exits import Exit
from outtray.cli.extras import needs
from outtray.cli.mailboxes import Mailbox, mailbox_name
from outtray.cli.options import AppName, Json, examples
from outtray.cli.screen import done, errors, facts, hint, out, print_json, size
from outtray.cli.session import database, ready_services
from outtray_worker import commands_intake, commands_spool

if TYPE_CHECKING:
    from outtray.mailboxes import Mailbox as MailboxView
    from outtray_schema.consent import Consented, Issuer
    from outtray_schema.outcome import Outcome
    from outtray_schema.settings import Settings
    from outtray_worker.mailbox_check import Found

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
    mailboxes.group.add_typer(connect.commands(ask_for_consent, learn_senders), name="connect")
    mailboxes.group.command("senders", epilog=examples("outtray mailbox senders ann@example.com"))(senders)
    mailboxes.group.command("test", epilog=examples("outtray mailbox test ann@example.com"))(check_mailbox)
    commands_spool.register(app)
    commands_intake.register(app)


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


def ask_for_consent(
    settings: Settings,
    issuer: Issuer,
    provider_app: str,
    scopes: Sequence[str],
    *,
    device: bool,
    hint: str | None,
    browser: bool,
    quiet: bool,
) -> Consented:
    """A person's consent, in a browser here or by a code elsewhere. Raises what `obtain` raises."""
    with needs("worker"):
        from outtray_worker.auth.consent import obtain
    return obtain(
        settings, issuer, provider_app, scopes, device=device, hint=hint, say=connect.tell,
        show=lambda url: connect.open_page(url, browser, quiet),
    )  # fmt: skip


def learn_senders(outtray: Outtray, box: MailboxView) -> MailboxView:
    """Take the From addresses that the provider shows as the mailbox's aliases, beside those that were entered."""
    if box.provider == "smtp":  # its server keeps no such list
        return box
    with needs("worker"):
        from outtray_schema.outcome import Outcome
        from outtray_worker import mailbox_check
    with database(outtray.settings) as connection:
        found = asyncio.run(mailbox_check.read_senders(outtray.settings, connection, box.id))
    if isinstance(found, Outcome):
        return box
    known = {address.lower() for address in (box.address, *box.aliases)}
    learned = [address for address in found if address.lower() not in known]
    return outtray.mailboxes.set(box.id, aliases=[*box.aliases, *learned]) if learned else box


def senders(name: Mailbox, app: AppName = None, as_json: Json = False) -> None:
    """Learn which From addresses a mailbox may use.

    They are kept as its aliases, beside those that were entered. `mailbox connect` does it by itself. Gmail shows them
    to settings.basic, readonly or modify; Microsoft to User.Read.
    """
    with ready_services() as settings, Outtray(settings, app=app) as outtray:
        box = learn_senders(outtray, outtray.mailboxes.get(mailbox_name(name)))
    if as_json:
        print_json({"mailbox": box})
        return
    done(f"{escape(box.address)} may send as: {escape(', '.join((box.address, *box.aliases)))}")


def check_mailbox(name: Mailbox, app: AppName = None, as_json: Json = False) -> None:
    """Connect and log in as a worker would; send nothing.

    Exit 1 if a mail would not leave now, with the reason.
    """
    with needs("worker"):
        from outtray_schema.outcome import Outcome
        from outtray_worker import mailbox_check
    with ready_services() as settings:
        with Outtray(settings, app=app) as outtray:
            box = outtray.mailboxes.get(mailbox_name(name))
            issuer = outtray.provider_apps.get(box.provider_app).provider if box.provider_app else None
        with database(settings) as connection:
            found = asyncio.run(mailbox_check.check_mailbox(settings, connection, box.id))
    if isinstance(found, Outcome):
        _show_trouble(found, f"connect {issuer}" if issuer else f"reconnect {name}", as_json)
        raise typer.Exit(Exit.REFUSED)
    _show_found(found, as_json)


def _show_found(found: Found, as_json: bool) -> None:
    said = asdict(found)
    if as_json:
        print_json({"ok": True, **said})
        return
    done(f"{escape(found.place)} takes mail from this mailbox. Nothing was sent.")
    out.print(facts(_server_facts(said) if "mechanisms" in said else _api_facts(said)))


def _server_facts(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    offered = escape(", ".join(said["mechanisms"])) or "none"
    yield "encryption", said["tls"] or "[yellow]none[/]"
    yield "login", f"{said['mechanism'] or 'none'} [dim](offered: {offered})[/]"
    yield "largest mail", size(said["size_limit"]) if said["size_limit"] else "the server names no limit"
    yield "extensions", escape(", ".join(said["extensions"]))
    yield "evidence", _looks(said["imap"])


def _looks(imap: Mapping[str, Any] | str | None) -> str:
    """What the mailbox's IMAP server shows; a mail leaves whatever it says."""
    if imap is None:
        return "none can be had: no IMAP server is named (outtray mailbox set --imap-host)"
    if isinstance(imap, str):
        return f"[yellow]{escape(imap)}[/]"
    search = ", Gmail's own search" if imap["gmail_search"] else ""
    return escape(f"{imap['sent']} at {imap['place']} ({imap['tls'] or 'in clear'}, {imap['mechanism']}){search}")


def _api_facts(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    looks = said["can_look"]
    yield "mail leaves", escape(str(said["route"]))
    yield "evidence", escape(looks) if isinstance(looks, str) else "can be looked for" if looks else "none can be had"
    if said.get("address_matches") is False:
        yield "address", "[yellow]the consent is of another account than this mailbox[/]"


def _show_trouble(found: Outcome, cure: str, as_json: bool) -> None:
    facts_: dict[str, Any] = asdict(found)
    reason, evidence = str(facts_.get("reason", "")), found.evidence
    if as_json:
        print_json({"ok": False, "outcome": type(found).__name__, **facts_})
        return
    errors.print(f"[red]✗[/] {escape(reason)}", soft_wrap=True)
    _show_reply(evidence)
    if facts_.get("status") == "reconnect":
        hint(f"outtray mailbox {cure}")


def _show_reply(evidence: Mapping[str, Any]) -> None:
    said = [str(evidence[name]) for name in ("code", "text") if evidence.get(name)]
    if said:
        errors.print(f"  the server said: {escape(' '.join(said))}", soft_wrap=True)
