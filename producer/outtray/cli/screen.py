"""What the terminal is shown: two consoles, JSON, times and states. Colour only repeats what a word says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.markup import escape
from rich.table import Table

out = Console(highlight=False, emoji=False)
errors = Console(stderr=True, highlight=False, emoji=False)

STATES = {
    "queued": "default",
    "handing_over": "cyan",
    "unknown": "bold yellow",
    "sent": "green",
    "drafted": "green",
    "failed": "red",
    "cancelled": "dim",
    "expired": "dim",
}
"""Each state of a message and its colour."""

MAILBOX_STATES = {"active": "green", "paused": "yellow", "reconnect": "bold red", "disabled": "dim"}
"""Each status of a mailbox and its colour."""

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def plain(value: Any) -> Any:
    """A value as JSON has it: times in ISO 8601 UTC, durations in seconds, ids and paths as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    return next((write(value) for kind, write in _SCALARS if isinstance(value, kind)), value)


_SCALARS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (datetime, lambda at: at.astimezone(UTC).isoformat()),
    (date, lambda day: day.isoformat()),
    (timedelta, lambda span: span.total_seconds()),
    ((UUID, Path), str),
)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    out.print(json.dumps(plain(value), indent=2, ensure_ascii=False), markup=False, soft_wrap=True)


def print_json_line(value: Any) -> None:
    """One line of NDJSON on standard output, at once."""
    out.print(json.dumps(plain(value), ensure_ascii=False), markup=False, soft_wrap=True)
    out.file.flush()


def done(text: str) -> None:
    """Say in one line what was done. `text` is rich markup."""
    out.print(f"[green]✓[/] {text}", soft_wrap=True)


def hint(text: str) -> None:
    """Say what to type next. `text` is plain."""
    out.print(f"  [dim]{escape(text)}[/]", soft_wrap=True)


def warn(text: str) -> None:
    """Say on standard error what needs an eye, while the command goes on. `text` is plain."""
    errors.print(f"[yellow]![/] {escape(text)}", soft_wrap=True)


def colored(word: str, colors: Mapping[str, str]) -> str:
    """A state or status as rich markup."""
    return f"[{colors.get(word, 'default')}]{escape(word)}[/]"


def table(*columns: str, title: str | None = None) -> Table:
    """A table without lines: columns aligned, the head dim. A column whose name begins with `#` holds numbers."""
    made = Table(
        box=None, padding=(0, 2, 0, 0), header_style="dim", title=title, title_justify="left", title_style="bold"
    )
    for name in columns:
        number = name.startswith("#")
        made.add_column(name.removeprefix("#"), justify="right" if number else "left", no_wrap=number)
    return made


def facts(pairs: Iterable[tuple[str, str]]) -> Table:
    """A page of facts: name and value in rich markup, one a line. Pairs with an empty value are left out."""
    made = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        if value:
            made.add_row(name, value)
    return made


def duration(span: timedelta) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`: the two largest units that matter."""
    seconds = round(abs(span.total_seconds()))
    for n, (unit, size) in enumerate(_UNITS):
        if seconds >= size:
            text = f"{seconds // size} {unit}"
            below = _UNITS[n + 1] if n + 1 < len(_UNITS) and unit in ("d", "h") else None
            rest = seconds % size // below[1] if below else 0
            return f"{text} {rest} {below[0]}" if below and rest else text
    return "0 s"


def relative(at: datetime, now: datetime) -> str:
    """`in 12 min`, `3 s ago` or `now`."""
    span = at - now
    if abs(span) < timedelta(seconds=1):
        return "now"
    return f"in {duration(span)}" if span > timedelta(0) else f"{duration(span)} ago"


def moment(at: datetime | None, now: datetime | None = None) -> str:
    """A time in the terminal's own zone and how far off it is; empty for none."""
    if at is None:
        return ""
    now = now or datetime.now(UTC)
    local = at.astimezone()
    same_day = local.date() == now.astimezone().date()
    clock = local.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S")
    return f"{clock} ({relative(at, now)})"


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 message`, `12,000 messages`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def size(number: int) -> str:
    """Bytes as a person reads them."""
    if number < 1024:
        return f"{number} B"
    return f"{number / 1024:.0f} KiB" if number < 1024 * 1024 else f"{number / 1024 / 1024:.1f} MiB"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
