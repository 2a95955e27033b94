"""`outtray intake`: what apps send by their own Celery is accepted by the client, as from any app."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from outtray import Outtray
from outtray.cli.extras import needs
from outtray.cli.options import AppName, examples
from outtray.cli.session import ready_services
from outtray.refusals import remember
from outtray_schema.errors import InvalidMessage, Problem
from outtray_schema.vault import load_vault

if TYPE_CHECKING:
    from outtray_worker.intake import Answer


def register(app: typer.Typer) -> None:
    app.command("intake", epilog=examples("outtray intake --app crm"), rich_help_panel="Processes")(intake)


def intake(app: AppName = None) -> None:
    """Run one app's intake: it enqueues what its Celery sends.

    Messages come sealed by the task outtray.enqueue, in the queue enqueue.APP. Needed only where apps use that door.
    """
    with needs("worker"):
        from outtray_worker.intake import Intake, run_intake
    with ready_services() as settings:
        name = app or settings.app
        with Outtray(settings, app=name, actor="celery") as outtray:
            desk = ClientDesk(outtray)
            desk.check()
            run_intake(settings, Intake(desk, load_vault(settings).intake_key, name), name)


class ClientDesk:
    """An app's messages, accepted by its client."""

    def __init__(self, outtray: Outtray) -> None:
        self._outtray = outtray
        self._runner = outtray._runner

    def check(self) -> None:
        """Raises `NotFound` if there is no such app."""
        self._runner.run(self._runner.door.app())

    def accept(self, fields: Mapping[str, Any]) -> Answer:
        result = self._outtray.enqueue_many([fields], keep_going=True)
        return "refused" if result.refused else "accepted" if result.created else "known"

    def refuse(self, problem: Problem) -> None:
        app_id = self._runner.run(self._runner.door.app())
        self._runner.run(remember(self._runner.door, app_id, [(None, InvalidMessage(problem))]))
