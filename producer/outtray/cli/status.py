"""`outtray status`: how is the queue, on one page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated
from uuid import UUID

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape

from outtray import Outtray
from outtray.cli.options import Json, examples, flag
from outtray.cli.queue_facts import ATTENTION, BreakerFacts, HeldMailbox, Pending, QueueFacts, read_facts
from outtray.cli.screen import (
    MAILBOX_STATES,
    colored,
    count,
    duration,
    facts,
    moment,
    out,
    print_json,
    print_json_line,
    table,
)
from outtray.cli.session import database, ready_services
from outtray_schema.errors import NotFound, Unavailable
from outtray_schema.settings import Settings
from outtray_schema.vault import Vault, load_vault

EXAMPLES = examples("outtray status", "outtray status --watch", "outtray status --app crm --json")

LATE = timedelta(seconds=60)
"""A message that could leave and has been due for this long is worth a colour."""

Watch = Annotated[bool, flag("--watch", "-w", text="Stay and look again, until Ctrl-C. With --json a line each time.")]
Every = Annotated[float, typer.Option("--every", min=0.2, metavar="SECONDS", help="How often to look again.")]
OneApp = Annotated[
    str | None, typer.Option("--app", metavar="NAME", help="Only this app. Default: all.", show_default=False)
]


def status(watch: Watch = False, every: Every = 2.0, app: OneApp = None, as_json: Json = False) -> None:
    """Show the queue on one page: what waits and why."""
    with ready_services() as settings:
        vault = load_vault(settings)
        app_id = _app_id(settings, app) if app else None
        if watch:
            _watch(settings, vault, app_id, every, as_json)
            return
        found = _look(settings, vault, app_id)
    if as_json:
        print_json(_document(found))
    else:
        out.print(status_page(found))


def _app_id(settings: Settings, name: str) -> UUID:
    with Outtray(settings) as outtray:
        found = [app.id for app in outtray.apps.list() if app.name == name]
    if not found:
        raise NotFound(f"there is no app {name!r}; see `outtray app list`")
    return found[0]


def _look(settings: Settings, vault: Vault, app_id: UUID | None) -> QueueFacts:
    with database(settings) as connection:
        return read_facts(settings, connection, vault, app_id)


def _watch(settings: Settings, vault: Vault, app_id: UUID | None, every: float, as_json: bool) -> None:
    """Look again and again. A database that goes away is said, and looked for again."""
    with Live(
        console=Console(quiet=True) if as_json else out, auto_refresh=False, screen=not as_json and out.is_terminal
    ) as live:
        while True:
            try:
                found = _look(settings, vault, app_id)
                if as_json:
                    print_json_line(_document(found))
                else:
                    live.update(status_page(found), refresh=True)
            except Unavailable as error:
                if as_json:
                    print_json_line({"error": {"kind": "Unavailable", "message": str(error)}})
                else:
                    live.update(f"[red]✗[/] {escape(str(error))}. Looking again …", refresh=True)
            time.sleep(every)


def _document(found: QueueFacts) -> dict[str, object]:
    """The JSON of the page; `docs/commands.md` lists its keys."""
    return {
        "now": found.now,
        "messages": found.pending,
        "ended": found.ended,
        "mailboxes": found.mailboxes,
        "held": found.held,
        "switches": found.switches,
        "breakers": found.breakers,
        "processes": found.processes,
        "redis": found.redis,
    }


# ── the page ────────────────────────────────────────────────────────────────────────────────────────────────────────


def status_page(found: QueueFacts) -> RenderableType:
    """The whole page for a terminal: what needs a person stands first in its line."""
    parts: list[RenderableType] = [facts(_lines(found))]
    parts += [_held_table(found)] if found.held else []
    return Group(*parts)


def _lines(found: QueueFacts) -> Iterator[tuple[str, str]]:
    pending = found.pending
    yield "queued", _queued_line(found)
    yield "handing over", f"{pending.handing_over:,}" if pending.handing_over else "0"
    yield (
        "unknown",
        f"[bold yellow]{pending.unknown:,}[/] wait for a decision: outtray message list --state unknown"
        * bool(pending.unknown),
    )
    yield "failed", f"[red]{pending.failed:,}[/] outtray message list --state failed" * bool(pending.failed)
    yield "ended", _ended_line(found)
    yield "mailboxes", ", ".join(_box_counts(found)) or "none yet: outtray mailbox add smtp"
    yield from (("paused", _switch_line(found, switch)) for switch in found.switches)
    yield from (("failing", _breaker_line(found, each)) for each in found.breakers)
    yield "processes", _process_line(found)
    yield "redis", _redis_line(found)


def _queued_line(found: QueueFacts) -> str:
    pending = found.pending
    if not pending.queued:
        return "0"
    parts = [f"{pending.ready:,} ready"] if pending.ready else []
    held, later = pending.due - pending.ready, pending.queued - pending.due
    parts += [f"[yellow]{held:,} held[/]"] if held else []
    parts += [f"{later:,} later"] if later else []
    return f"[bold]{pending.queued:,}[/]: {', '.join(parts)}{_lag(pending, found)}"


def _lag(pending: Pending, found: QueueFacts) -> str:
    if pending.oldest_ready is None:
        return ""
    age = max(timedelta(0), found.now - pending.oldest_ready)
    color = "red" if age >= LATE else "default"
    return f"; the oldest ready one has waited [{color}]{duration(age)}[/]"


def _ended_line(found: QueueFacts) -> str:
    if found.ended is None:
        return "[dim]more than can be counted in two seconds[/]"
    states = ("sent", "drafted", "cancelled", "expired")
    return ", ".join(f"{found.ended[state]:,} {state}" for state in states if found.ended.get(state)) or "0"


def _box_counts(found: QueueFacts) -> Iterator[str]:
    for state in ("active", "parked", "reconnect", "paused", "disabled"):
        if number := found.mailboxes.get(state):
            yield f"{number:,} {colored(state, MAILBOX_STATES | {'parked': 'yellow'})}"


def _switch_line(found: QueueFacts, switch: dict[str, object]) -> str:
    what = "everything" if switch["kind"] == "all" else f"{switch['kind']} {switch['target']}"
    since = moment(switch["since"], found.now)  # type: ignore[arg-type]
    why = f": {switch['why']}" if switch["why"] else ""
    return f"[yellow]{escape(what)}[/] since {since} by {escape(str(switch['actor']))}{escape(why)}"


def _breaker_line(found: QueueFacts, each: BreakerFacts) -> str:
    since, probe = moment(each.opened_at, found.now), moment(each.probe_at, found.now)
    return f"[yellow]{escape(each.whose)}[/] since {since}: {escape(each.reason)}; probed from {probe} on"


def _process_line(found: QueueFacts) -> str:
    parts = []
    if not any(process.alive for process in found.processes):
        return "[red]none alive[/], so nothing leaves: outtray up"
    for role in ("worker", "dispatcher"):
        alive = found.alive(role)
        parts.append(count(alive, role) if alive else f"[red]no {role} alive[/]: outtray {role}")
    turns = sum(int(process.info.get("turns", 0)) for process in found.processes if process.alive)
    silent = sum(not process.alive for process in found.processes)
    parts += [f"{count(turns, 'turn')} under way"] if turns else []
    return ", ".join(parts) + (f" [dim]({silent} gone without a word)[/]" if silent else "")


def _redis_line(found: QueueFacts) -> str:
    if not found.redis.reachable:
        return f"[red]away[/] ({escape(found.redis.trouble)}): mail still leaves, more slowly"
    return f"ok, {count(found.redis.rounds or 0, 'round')} waiting for a worker"


def _held_table(found: QueueFacts) -> RenderableType:
    page = table("not sending", "state", "why", "until")
    page.columns[0].no_wrap = page.columns[1].no_wrap = True
    page.columns[3].min_width = 8
    for box in found.held:
        page.add_row(*_held_cells(box, found))
    more = sum(number for state, number in found.mailboxes.items() if state != "active") - len(found.held)
    note = f"\n[dim]and {more:,} more; at most {ATTENTION} are shown[/]" if more > 0 else ""
    return Group("", page, note) if note else Group("", page)


def _held_cells(box: HeldMailbox, found: QueueFacts) -> tuple[str, str, str, str]:
    until = moment(box.until, found.now) if box.until else "you act" if box.state != "disabled" else ""
    return escape(box.address), colored(box.state, MAILBOX_STATES | {"parked": "yellow"}), escape(box.reason), until
