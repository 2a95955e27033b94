"""The command line's table of contents: which file answers which question."""

from __future__ import annotations

import typer

from outtray.cli import (
    apps,
    budgets,
    cancel,
    connect,
    doctor,
    erase,
    events,
    explain,
    forecast,
    journal,
    keys,
    mailboxes,
    message,
    migrate,
    provider_apps,
    resolve,
    retry,
    send,
    status,
    suppress,
    switches,
    templates,
    usage,
)

_MAIL = "Mail"
_CARE = "Care"
_SETTING_UP = "Setting up"


def register(app: typer.Typer) -> None:
    """Add what comes with the producer: everything but the processes, the embedded servers and the demo."""
    _add_mail(app)
    _add_care(app)
    _add_setting_up(app)


def _add_mail(app: typer.Typer) -> None:
    app.command("send", epilog=send.EXAMPLES, rich_help_panel=_MAIL)(send.send)
    app.add_typer(templates.group, name="template", rich_help_panel=_MAIL)
    app.add_typer(message.group, name="message", rich_help_panel=_MAIL)
    app.command("cancel", epilog=cancel.CANCEL_EXAMPLES, rich_help_panel=_MAIL)(cancel.cancel)
    app.command("reschedule", epilog=cancel.RESCHEDULE_EXAMPLES, rich_help_panel=_MAIL)(cancel.reschedule)
    app.command("resolve", epilog=resolve.EXAMPLES, rich_help_panel=_MAIL)(resolve.resolve)
    app.command("retry", epilog=retry.EXAMPLES, rich_help_panel=_MAIL)(retry.retry)


def _add_care(app: typer.Typer) -> None:
    app.command("status", epilog=status.EXAMPLES, rich_help_panel=_CARE)(status.status)
    app.command("explain", epilog=explain.EXAMPLES, rich_help_panel=_CARE)(explain.explain)
    app.command("forecast", epilog=forecast.EXAMPLES, rich_help_panel=_CARE)(forecast.forecast)
    app.command("pause", epilog=switches.PAUSE_EXAMPLES, rich_help_panel=_CARE)(switches.pause)
    app.command("resume", epilog=switches.RESUME_EXAMPLES, rich_help_panel=_CARE)(switches.resume)
    app.add_typer(suppress.group, name="suppress", rich_help_panel=_CARE)
    app.command("erase", epilog=erase.EXAMPLES, rich_help_panel=_CARE)(erase.erase)
    app.command("events", epilog=events.EXAMPLES, rich_help_panel=_CARE)(events.events)
    app.add_typer(journal.group, name="journal", rich_help_panel=_CARE)


def _add_setting_up(app: typer.Typer) -> None:
    app.add_typer(apps.group, name="app", rich_help_panel=_SETTING_UP)
    app.add_typer(mailboxes.group, name="mailbox", rich_help_panel=_SETTING_UP)
    mailboxes.group.command("import-usage", epilog=usage.EXAMPLES)(usage.import_usage)
    mailboxes.group.command("disconnect", epilog=connect.DISCONNECT_EXAMPLES)(connect.disconnect)
    mailboxes.group.command("revoke", epilog=connect.REVOKE_EXAMPLES)(connect.revoke)
    mailboxes.group.command("consents", epilog=connect.CONSENTS_EXAMPLES)(connect.consents)
    mailboxes.adding.command("delegated", epilog=connect.DELEGATED_EXAMPLES)(connect.add_delegated)
    app.add_typer(provider_apps.group, name="provider-app", rich_help_panel=_SETTING_UP)
    app.add_typer(budgets.group, name="budget", rich_help_panel=_SETTING_UP)
    app.add_typer(keys.group, name="keys", rich_help_panel=_SETTING_UP)
    app.command("migrate", epilog=migrate.EXAMPLES, rich_help_panel=_SETTING_UP)(migrate.migrate)
    app.command("doctor", epilog=doctor.EXAMPLES, rich_help_panel=_SETTING_UP)(doctor.doctor)
