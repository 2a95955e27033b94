"""What the sandbox adds to the command line: everything at once, on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import psycopg
import typer
from rich.text import Text

from outtray.cli.exits import Exit, UsageError
from outtray.cli.extras import needs
from outtray.cli.options import Json, examples, flag
from outtray.cli.screen import count, done, errors, facts, hint, moment, out, plain, print_json_line
from outtray.cli.session import ready_services
from outtray_schema.settings import Settings

if TYPE_CHECKING:
    from outtray_sandbox.up import Line, Member, OpenHandover, Up

_COLORS = ("cyan", "magenta", "blue", "green", "yellow")

Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Default: one per core.", show_default=False)]
FlowerPort = Annotated[
    int, typer.Option("--flower-port", min=1, max=65535, help="Of loopback; the next free one if taken.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of its random choices, to see others.")]
NoFlower = Annotated[bool, flag("--no-flower", text="Leave Flower out.")]
Port = Annotated[
    int | None,
    typer.Option(
        "--port", metavar="N", min=1, max=65532, show_default=False,
        help="The page's; Google, Microsoft and SMTP have the three behind it. Default: free ones.",
    ),
]  # fmt: skip
Folder = Annotated[
    Path | None,
    typer.Option("--folder", metavar="FOLDER", help="Keep what the servers took in it.", show_default=False),
]
FaultNames = Annotated[
    list[str] | None,
    typer.Option(
        "--fault", metavar="FAULT", show_default=False,
        help="Begin with this fault: a name of docs/sandbox.md, or SERVER:RULE. Several times.",
    ),
]  # fmt: skip
Env = Annotated[bool, flag("--env", text="Write the settings alone, as a shell reads them.")]


def register(app: typer.Typer) -> None:
    """Add the sandbox's commands. Their libraries are imported only when one runs."""
    panel = "Processes"
    app.command("up", epilog=examples("outtray up", "outtray up --workers 4 --no-flower"), rich_help_panel=panel)(up)
    app.command("sandbox", epilog=SANDBOX_EXAMPLES, rich_help_panel=panel)(sandbox)
    if find_spec("outtray_sandbox.demo") is not None:
        app.command("demo", epilog=examples("outtray demo"), rich_help_panel=panel)(demo)


SANDBOX_EXAMPLES = examples(
    "outtray sandbox",
    "outtray sandbox --port 8025 --env > sandbox.env &",
    "outtray sandbox --fault gmail-quota --fault graph-504",
    'outtray sandbox --fault \'google:{"stage": "drafts.send", "status": 503}\'',
    "outtray sandbox --json",
)


def up(
    workers: Workers = None, flower_port: FlowerPort = 5555, no_flower: NoFlower = False, as_json: Json = False
) -> None:
    """Run every process on this machine, until Ctrl-C.

    With no database configured, the embedded PostgreSQL and Redis are used. One Ctrl-C ends all cleanly: handovers
    under way finish and are recorded. A second one ends all at once, and names the messages that were in a handover.
    """
    with needs("worker"):
        import outtray_worker.serve  # noqa: F401 - better said here than by every process
    from outtray_sandbox.up import Up, cores, environment, free_port, members

    with ready_services() as settings:
        port = None if no_flower else free_port(flower_port)
        found = members(workers or cores(), port)
        run = Up(found, environment(settings, os.environ), _line_writer(found, as_json))
        if not as_json:
            _show_start(settings, found, port)
        if not asyncio.run(run.run()):
            _show_open_handovers(settings, run, as_json)
            raise typer.Exit(Exit.INTERRUPTED)
    if not as_json:
        done("All processes ended cleanly; what waits is kept.")


def sandbox(
    port: Port = None, folder: Folder = None, fault: FaultNames = None, env: Env = False, as_json: Json = False
) -> None:
    """Run a fake Google, Microsoft 365 and SMTP server to test with.

    Until Ctrl-C, on this machine alone; it needs no database. It says how to
    point a deployment at them, and has people who have agreed already. What is
    sent stands on one page; nothing leaves. Guide: docs/sandbox.md.
    """
    with needs("sandbox"):
        from outtray_sandbox.sandbox import Ports, Sandbox
        from outtray_sandbox.sandbox.told import as_json as document
        from outtray_sandbox.sandbox.told import exports, show

    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        with Sandbox(folder, ports=Ports.following(port) if port else None) as running:
            for each in fault or ():
                running.fault(each)
            if as_json:
                print_json_line(document(running))
            elif env:
                out.print(exports(running.environment), markup=False, soft_wrap=True)
            else:
                show(out, running)
            out.file.flush()
            ended.wait()
    except ValueError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"the sandbox cannot start: {error.strerror}; choose another --port or --folder") from None


def demo(seed: Seed = 2) -> None:
    """Watch mail leave while workers are killed.

    Real mail to a real server on this machine: paced, parked, explained, and each once. About a minute, then it ends.
    """
    with needs("sandbox"):
        from outtray_sandbox.demo import run_demo
    from outtray_schema.settings import load_settings

    raise typer.Exit(run_demo(load_settings(), out, seed))


def _show_start(settings: Settings, found: list[Member], port: int | None) -> None:
    names = [count(sum(each.role == role for each in found), role) for role in ("worker", "dispatcher")]
    out.print(
        facts(
            [
                ("running", ", ".join(names)),
                ("flower", f"http://127.0.0.1:{port} [dim]read-only, this machine alone[/]" if port else "left out"),
                ("data", str(settings.data_folder)),
                ("look", "outtray status --watch [dim](in another terminal)[/]"),
                ("end", "Ctrl-C"),
            ]
        )
    )


def _line_writer(found: list[Member], as_json: bool) -> _Writer:
    return _Writer([each.name for each in found], as_json)


class _Writer:
    """Writes each line behind the name of its process, each process in a colour of its own."""

    def __init__(self, names: list[str], as_json: bool) -> None:
        self._as_json = as_json
        self._width = max(map(len, names))
        self._colors = {name: _COLORS[number % len(_COLORS)] for number, name in enumerate(names)}

    def __call__(self, line: Line) -> None:
        if self._as_json:
            print_json_line(
                {"process": line.member.name if line.member else None, "event": line.event, "text": line.text}
            )
            return
        if not line.text and not line.event:
            return
        name = line.member.name if line.member else "outtray"
        style = "bold yellow" if line.event in ("died", "ending", "killing") else "dim" if line.event else ""
        # What a process wrote is text, never markup.
        out.print(
            Text.assemble((f"{name:<{self._width}} │ ", self._colors.get(name, "bold")), (line.text, style)),
            soft_wrap=True,
        )


def _show_open_handovers(settings: Settings, run: Up, as_json: bool) -> None:
    """Name what was with a provider when everything was ended at once."""
    from outtray_sandbox.up import open_handovers

    try:
        found = open_handovers(settings, run.worker_names)
    except psycopg.Error as error:
        errors.print(f"[red]✗[/] PostgreSQL does not say which messages were in a handover ({type(error).__name__})")
        return
    if as_json:
        print_json_line({"process": None, "event": "in_handover", "messages": plain(found)})
    elif found:
        _name(found)
    else:
        done("Ended at once; no message was in a handover.")


def _name(found: list[OpenHandover]) -> None:
    out.print(f"[bold yellow]{count(len(found), 'message')}[/] in a handover; nobody can tell yet whether they left:")
    for each in found:
        out.print(f"  {each.id}  unknown from {moment(each.until)}", soft_wrap=True)
    hint("start again, then: outtray message list --state unknown, and outtray resolve ID")
