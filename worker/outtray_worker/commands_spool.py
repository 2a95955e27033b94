"""`outtray spool`: which answers wait on this machine's disk, and how they get into the database."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from outtray.cli import options
from outtray.cli.exits import Exit
from outtray.cli.extras import needs
from outtray.cli.options import Json, examples
from outtray.cli.screen import count, done, errors, hint, out, print_json, relative, table
from outtray.cli.session import ready_services
from outtray_schema.errors import NotFound, Unavailable
from outtray_schema.settings import Settings, load_settings

if TYPE_CHECKING:
    from outtray_worker.registrar import Registrar
    from outtray_worker.replay import Replayed
    from outtray_worker.spool import Spool, SpoolFile
    from outtray_worker.spool_entry import Kept

group = options.group("The spool: answers of providers that PostgreSQL could not take, on this machine's disk.")

PATIENCE = 30.0
"""Seconds that a replay waits for PostgreSQL."""


@group.command("list", epilog=examples("outtray spool list", "outtray spool list --json"))
def show_all(as_json: Json = False) -> None:
    """List the files that wait on this machine.

    Workers write them into the database by themselves, within seconds of its
    being back. A file goes once all that it holds is written, so what a living
    worker's file holds may be written already. Needs no database.
    """
    folder = load_settings().spool
    files = _look_into(folder)
    if as_json:
        print_json({"folder": folder, "files": [_plain(each) for each in files]})
        return
    page = table("file", "whose", "#outcomes", "oldest", "#damaged")
    for each in files:
        page.add_row(each.path.name, _whose(each), f"{len(each.kept):,}", _oldest(each), f"{len(each.damaged):,}")
    out.print(page if files else f"Nothing waits in {folder}.")
    if any(each.path.suffix == ".damaged" or each.damaged for each in files):
        hint("what is damaged is never dropped; see it with: outtray spool show FILE")


@group.command(
    "show", epilog=examples("outtray spool show 4711-9f3c2a1b.spool", "outtray spool show 4711-9f3c2a1b.damaged")
)
def show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="As `outtray spool list` names it.")],
    as_json: Json = False,
) -> None:
    """Show what a file holds, and whether each answer is whole.

    Needs no database.
    """
    folder = load_settings().spool
    found = next((each for each in _look_into(folder) if each.path.name == Path(file).name), None)
    if found is None:
        raise NotFound(f"there is no {Path(file).name} in {folder}; see: outtray spool list")
    if as_json:
        print_json(_plain(found))
        return
    page = table("message", "#handover", "answer", "kept", "provider's id or reason")
    page.columns[0].no_wrap = True
    for each in found.kept:
        page.add_row(*_cells(each))
    out.print(page if found.kept else "Nothing in it is whole.")
    for line in found.damaged:
        errors.print(f"[red]✗[/] {len(line.line)} bytes are damaged: {escape(line.why)}", soft_wrap=True)


@group.command("replay", epilog=examples("outtray spool replay", "outtray spool replay --json"))
def replay(as_json: Json = False) -> None:
    """Write what dead workers left on this disk into the database, now.

    Running workers do it by themselves; this is for a machine that has none
    any more. Doing it twice changes nothing. Exit 1 if lines were set aside
    because they are damaged.
    """
    # What the replay logs on its way is no part of the answer.
    with needs("worker"), ready_services() as settings, contextlib.redirect_stdout(sys.stderr):
        done_ = asyncio.run(_replay(settings))
    if as_json:
        print_json(asdict(done_))
    else:
        done(f"{count(done_.outcomes, 'outcome')} of {count(done_.files, 'file')} written; {done_.taken} stand so now.")
    if done_.aside:
        if not as_json:
            errors.print(f"[red]✗[/] {count(done_.aside, 'line')} damaged: set aside. See: outtray spool list")
        raise typer.Exit(Exit.REFUSED)


async def _replay(settings: Settings) -> Replayed:
    from outtray_worker.lease import Leases
    from outtray_worker.process import connect
    from outtray_worker.registrar import Registrar
    from outtray_worker.replay import replay as replay_all
    from outtray_worker.spool import Spool

    spool = Spool(settings.spool)
    registrar = Registrar(settings, lambda: connect(settings, "registrar"), spool, Leases(settings.lease))
    running = asyncio.create_task(registrar.run())
    try:
        async with asyncio.timeout(PATIENCE):
            return await replay_all(_Writer(spool, registrar))
    except TimeoutError:
        raise Unavailable(f"PostgreSQL did not take them within {PATIENCE:.0f} s; they stay where they are") from None
    finally:
        registrar.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await running


@dataclass(frozen=True, slots=True)
class _Writer:
    spool: Spool
    registrar: Registrar


def _look_into(folder: Path) -> list[SpoolFile]:
    with needs("worker"):
        from outtray_worker.spool import look_into
    return look_into(folder)


# ── what is shown ─────────────────────────────────────────────────────────────────────────────────────────────────


def _plain(file: SpoolFile) -> dict[str, Any]:
    return {
        "file": file.path.name,
        "owned": file.owned,
        "oldest": min((each.at for each in file.kept if each.at), default=None),
        "outcomes": [_entry(each) for each in file.kept],
        "damaged": [{"bytes": len(each.line), "why": each.why} for each in file.damaged],
    }


def _entry(kept: Kept) -> dict[str, Any]:
    item = asdict(kept.item)
    item.pop("move")
    return {"is": type(kept.item).__name__.lower(), "kept_at": kept.at, **item}


def _cells(kept: Kept) -> Iterator[str]:
    item = kept.item
    yield str(item.message_id)
    yield str(getattr(item, "handover", "none"))
    yield item.kind
    yield relative(kept.at, datetime.now(UTC)) if kept.at else ""
    yield escape(getattr(item, "provider_id", None) or item.reason or "")


def _whose(file: SpoolFile) -> str:
    if file.path.suffix == ".damaged":
        return "[red]set aside[/]"
    return "a running worker's" if file.owned else "[yellow]a dead worker's[/]"


def _oldest(file: SpoolFile) -> str:
    at = min((each.at for each in file.kept if each.at), default=None)
    return relative(at, datetime.now(UTC)) if at else ""


def register(app: typer.Typer) -> None:
    """Add the spool's commands."""
    app.add_typer(group, name="spool", rich_help_panel="Care")
