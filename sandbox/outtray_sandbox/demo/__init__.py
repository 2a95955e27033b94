"""The demo: eight mailboxes, 300 messages, real servers and processes, and everything that can go wrong, in a minute.

stage      what it plays on: PostgreSQL, Valkey, mailboxes, in a folder that is thrown away
cast       who plays: the mailboxes and their servers
servers    those of the mail: SMTP, Gmail, Graph
crew       the processes, started and killed
scenario   what happens, in order
decide     what becomes of an unknown message
show       how time passes; what the system says of itself
live       what is seen meanwhile
reasons    why mail still waits
ids        the three ids of what left, ours and theirs
summary    what is left of it, compared with the servers' own ledgers
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.text import Text

from outtray.cli.screen import duration
from outtray_sandbox.demo.crew import EndedByItself
from outtray_sandbox.demo.decide import DecisionFailed
from outtray_sandbox.demo.live import View
from outtray_sandbox.demo.reasons import reasons_of
from outtray_sandbox.demo.scenario import perform
from outtray_sandbox.demo.show import Show, TooSlow
from outtray_sandbox.demo.stage import SHORTENED, Stage, messages, set_up
from outtray_sandbox.demo.summary import checks, program, read_accounts, show_next, show_summary
from outtray_schema.settings import Settings

SEED = 2
"""With this one, the mail that is cut short had not been taken: it is sent again by decision."""


def run_demo(settings: Settings, console: Console, seed: int = SEED) -> int:
    """Play the demo on servers of its own; nothing of a real installation is touched. About a minute.

    Returns 0 if the servers' own ledgers confirm every promise, else 1; also after 150 s, saying what it waited for.
    Raises `SettingsError` where the embedded servers cannot start.
    """
    _introduce(console)
    view = View(console)
    view.say("PostgreSQL, Valkey and mail servers start in a folder of their own, which is removed at the end")
    with _leaving_in_order(), set_up(settings, seed) as stage:
        try:
            return _play(Show(stage, view, seed), console)
        except (TooSlow, EndedByItself, DecisionFailed) as trouble:
            console.print(Text(f"The demo stopped: {trouble}", "bold red"))
            _keep_logs(stage, console)
            return 1


def _play(show: Show, console: Console) -> int:
    with show.view.open():
        faults = perform(show)
    reasons = reasons_of(show.stage)  # while the workers are alive: afterwards that would be a reason of its own
    ended = show.stage.crew.end()
    accounts = read_accounts(show.stage, reasons)
    verdicts = checks(accounts, faults, ended)
    show_summary(console, accounts, verdicts)
    show_next(console, program(Path(sys.executable), Path.cwd(), shutil.which("outtray")))
    return 0 if all(verdict.held for verdict in verdicts) else 1


@contextmanager
def _leaving_in_order() -> Iterator[None]:
    """Whoever terminates the demo or closes its terminal leaves no process and no folder behind."""
    before = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _introduce(console: Console) -> None:
    console.rule("[bold]Outtray demo[/]", align="left", style="dim")
    console.print(
        f"Eight mailboxes on different plans, {len(messages())} messages, and real processes: things will break, and "
        "no mail will be lost or sent twice. It ends by itself after about a minute."
    )
    shortened = ", ".join(f"{name.replace('_', ' ')} {_against_real(name)}" for name in NAMED)
    console.print(Text(f"Time is shortened (in brackets: what it really is): {shortened}.", "dim"))
    console.print()


def _against_real(name: str) -> str:
    return f"{duration(SHORTENED[name])} ({duration(Settings.model_fields[name].default)})"


NAMED = (
    "lease",
    "turn_length",
    "handover_begin",
    "handover_answer",
    "backoff_base",
    "backoff_cap",
    "park_cap",
    "sweep_every",
)
"""The shortened settings that an onlooker can notice."""


def _keep_logs(stage: Stage, console: Console) -> None:
    """What the processes said outlives the folder."""
    stage.crew.end()
    kept = Path(tempfile.mkdtemp(prefix="outtray-demo-logs-"))
    for log in stage.folder.glob("*.log"):
        shutil.copy(log, kept)
    console.print(Text(f"What its processes said is kept in {kept}"))
