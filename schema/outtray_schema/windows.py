"""Windows: at which local times a mailbox, or one message, may leave; and when that is next, in UTC.

A window is data: `{"zone": "Europe/Berlin", "spans": [{"days": [1, 2, 3, 4, 5], "from": "09:00", "to": "17:30"}],
"blackout": ["2026-12-24"]}`. Days are those of ISO 8601, Monday is 1. People type it in one line:

    mon-fri 09:00-17:30 Europe/Berlin
    mon-thu 09:00-12:00,13:00-17:00; fri 09:00-15:00 Europe/Berlin
    daily 22:00-02:00 Asia/Kolkata

A moment is open exactly if a clock on a wall in that zone shows an open time: what it shows twice (autumn) is open
twice, what it skips (spring) never is. A span that ends before it begins ends on the next day. A blackout closes what
the calendar on the wall calls that day, the last hours of the night before included where a span crosses midnight.

The rules of the zones are those of the package `tzdata`, never those of the machine: the door and every worker must
answer alike.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from importlib.resources import files
from typing import Any
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MIDNIGHT = 24 * 60
"""Minutes of a day on the wall."""

MOST_SPANS = 50
MOST_BLACKOUTS = 400

LOOK_AHEAD = timedelta(days=400)
"""How far an opening is looked for: more than a year, in which the clocks of two zones drift apart and meet again."""

LONGEST = timedelta(days=7)
"""A window that closes later than that after its opening is said to close then; whoever needs more asks again."""

_HOURS = re.compile(r"(\d\d?):(\d\d)")
_STEP = timedelta(hours=6)
"""How often a zone's offset is looked at; no zone of this century moved its clock twice within it and back again."""


@dataclass(frozen=True, slots=True)
class Span:
    """Open from minute `begins` to minute `ends` (not included) of a wall's day, on these days of the week."""

    days: frozenset[int]
    begins: int
    ends: int


@dataclass(frozen=True, slots=True)
class Window:
    """When something may leave. `spans` are as they were asked for; one that ends before it begins crosses midnight."""

    zone: str
    spans: tuple[Span, ...]
    blackout: frozenset[date] = frozenset()

    def __str__(self) -> str:
        """In one line, as it is typed. Blackout days are not in it."""
        groups: dict[frozenset[int], list[str]] = {}
        for span in self.spans:
            groups.setdefault(span.days, []).append(f"{_clock(span.begins)}-{_clock(span.ends)}")
        return "; ".join(f"{_day_words(days)} {','.join(hours)}" for days, hours in groups.items()) + f" {self.zone}"

    def as_json(self) -> dict[str, Any]:
        """As it is stored, and as an app may write it."""
        spans = [
            {"days": sorted(span.days), "from": _clock(span.begins), "to": _clock(span.ends)} for span in self.spans
        ]
        return {"zone": self.zone, "spans": spans, "blackout": [day.isoformat() for day in sorted(self.blackout)]}


# ── when it is open ───────────────────────────────────────────────────────────────────────────────────────────────


def next_open(window: Window | Sequence[Window], t: datetime) -> tuple[datetime, datetime] | None:
    """The first time from `t` on at which it is open (`t` itself if it is), and when it then closes.

    Of several windows: when all are open. `None` if that is not within `LOOK_AHEAD`. Both times are in UTC; the second
    is at most `LONGEST` after the first. An open time holds its first moment and not its last.
    """
    windows = [window] if isinstance(window, Window) else list(window)
    t = t.astimezone(UTC)
    until = t + LOOK_AHEAD
    opening = t
    while opening < until:
        found = [_next_of_one(each, opening, until) for each in windows]
        if None in found:
            return None
        opens = max((each[0] for each in found if each), default=opening)
        if opens == opening:  # all are open at it, so that what they say of closing is said from the same moment
            return opens, min((each[1] for each in found if each), default=opening + LONGEST)
        opening = opens
    return None


def _next_of_one(window: Window, t: datetime, until: datetime) -> tuple[datetime, datetime] | None:
    """The first open time of one window that ends after `t`, cut to begin at `t` at the earliest."""
    opens: datetime | None = None
    closes = t
    for begin, end in _open_pieces(window, t, until):
        if opens is None:
            opens, closes = begin, end
        elif begin == closes:
            closes = end
        else:
            break
        if closes - opens >= LONGEST:
            break
    return None if opens is None else (opens, min(closes, opens + LONGEST))


def _open_pieces(window: Window, begin: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    """All open times between two moments, in order, cut where a clock was moved and at each midnight of the wall."""
    zone, week = zone_named(window.zone), _week(window.spans)
    for piece_begin, piece_end, offset in _steady(zone, begin, until):
        wall, wall_end = (piece_begin + offset).replace(tzinfo=None), (piece_end + offset).replace(tzinfo=None)
        day = wall.date()
        while datetime.combine(day, time()) < wall_end:
            for opens, closes in week[day.weekday()] if day not in window.blackout else ():
                midnight = datetime.combine(day, time())
                first = max(wall, midnight + timedelta(minutes=opens))
                last = min(wall_end, midnight + timedelta(minutes=closes))
                if first < last:
                    yield (first - offset).replace(tzinfo=UTC), (last - offset).replace(tzinfo=UTC)
            day += timedelta(days=1)


def _steady(zone: ZoneInfo, begin: datetime, until: datetime) -> Iterator[tuple[datetime, datetime, timedelta]]:
    """The time between two moments in pieces of one offset each: (begin, end, offset). Lazy, some days at a time."""
    piece, offset, at = begin, _offset(zone, begin), begin
    while at < until:
        ahead = min(at + _STEP, until)
        if _offset(zone, ahead) != offset:
            moved = _when_moved(zone, at, ahead)
            yield piece, moved, offset
            piece, offset, at = moved, _offset(zone, moved), moved
        elif ahead - piece >= timedelta(days=1):
            yield piece, ahead, offset
            piece = at = ahead
        else:
            at = ahead
    if piece < until:
        yield piece, until, offset


def _when_moved(zone: ZoneInfo, before: datetime, after: datetime) -> datetime:
    """The second at which the offset changes, between two moments with different ones."""
    low, high, old = int(before.timestamp()), int(after.timestamp()) + 1, _offset(zone, before)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(zone, datetime.fromtimestamp(middle, UTC)) == old:
            low = middle
        else:
            high = middle
    return datetime.fromtimestamp(high, UTC)


def _offset(zone: ZoneInfo, at: datetime) -> timedelta:
    return at.astimezone(zone).utcoffset() or timedelta(0)


@lru_cache(maxsize=1024)
def _week(spans: tuple[Span, ...]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """For each day of the week, Monday first, its open minutes on the wall: in order, and without overlap."""
    days: list[list[tuple[int, int]]] = [[] for _ in DAYS]
    for span in spans:
        for day in span.days:
            days[day - 1].append((span.begins, span.ends if span.ends > span.begins else MIDNIGHT))
            if span.ends <= span.begins:
                days[day % 7].append((0, span.ends))
    return tuple(tuple(_joined(sorted(day))) for day in days)


def _joined(pieces: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    begins, ends = -1, -1
    for opens, closes in pieces:
        if opens <= ends:
            ends = max(ends, closes)
            continue
        if begins < ends:
            yield begins, ends
        begins, ends = opens, closes
    if begins < ends:
        yield begins, ends


# ── zones ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=1)
def zones() -> frozenset[str]:
    """The names of all zones."""
    return frozenset((files("tzdata") / "zones").read_text(encoding="utf-8").split())


@lru_cache(maxsize=1024)
def zone_named(name: str) -> ZoneInfo:
    """A zone by its IANA name. Raises `ValueError` with the cure."""
    if name not in zones():
        raise ValueError(f"{name!r} is no time zone; write one like Europe/Berlin or America/New_York{_meant(name)}")
    place = files("tzdata").joinpath("zoneinfo", *name.split("/"))
    with place.open("rb") as rules:
        return ZoneInfo.from_file(rules, key=name)


def _meant(name: str) -> str:
    cities = {zone.lower().rpartition("/")[2]: zone for zone in sorted(zones())}
    close = difflib.get_close_matches(name, sorted(zones()), 1, 0.8)
    meant = cities.get(name.lower().rpartition("/")[2]) or (close[0] if close else None)
    return f"; did you mean {meant}?" if meant else ""


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────


def parse_window(value: Any) -> Window:
    """A window from a `Window`, a line as people type it, or a mapping as it is stored. Raises `ValueError`."""
    if isinstance(value, Window):
        found = value
    elif isinstance(value, str):
        found = _from_line(value)
    elif isinstance(value, Mapping):
        found = _from_mapping(value)
    else:
        raise ValueError('must be a window like "mon-fri 09:00-17:30 Europe/Berlin"')
    zone_named(found.zone)
    if len(found.spans) > MOST_SPANS or len(found.blackout) > MOST_BLACKOUTS:
        raise ValueError(f"has at most {MOST_SPANS} spans and {MOST_BLACKOUTS} blackout days")
    if not any(_week(found.spans)):
        raise ValueError("never opens; name days and hours like mon-fri 09:00-17:30")
    return found


def parse_days_off(values: Sequence[Any]) -> frozenset[date]:
    """Blackout days from dates or ISO 8601. Raises `ValueError`."""
    if isinstance(values, (str, Mapping)) or len(values) > MOST_BLACKOUTS:
        raise ValueError(f"must be a list of at most {MOST_BLACKOUTS} days like 2026-12-24")
    return frozenset(map(_day_off, values))


def _day_off(value: Any) -> date:
    try:
        day = value if type(value) is date else date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is no blackout day; write it like 2026-12-24") from None
    if not 2000 <= day.year < 2200:
        raise ValueError(f"the year of the blackout day {day} is no plausible one")
    return day


def _from_line(text: str) -> Window:
    words, _, zone = text.strip().rpartition(" ")
    if not words:
        raise ValueError(f"{text!r} is no window; write days, hours and zone: mon-fri 09:00-17:30 Europe/Berlin")
    return Window(zone, tuple(span for group in words.split(";") for span in _group(group)))


def _group(text: str) -> Iterator[Span]:
    """`mon-thu 09:00-12:00,13:00-17:00`."""
    words = text.replace(", ", ",").split()
    if len(words) != 2:
        raise ValueError(f"{text.strip()!r} names no days and hours; write it like mon-fri 09:00-17:30")
    days = _days(words[0])
    for hours in words[1].split(","):
        begins, dash, ends = hours.partition("-")
        if not dash:
            raise ValueError(f"{hours!r} is no span of hours; write it like 09:00-17:30")
        yield _span(days, begins, ends)


def _days(text: str) -> frozenset[int]:
    """`mon-fri`, `mon,wed`, `sat-mon`, `daily`."""
    if text.lower() == "daily":
        return frozenset(range(1, 8))
    found: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = part.partition("-")
        begin, end = _day(first), _day(last if dash else first)
        found |= {(begin - 1 + n) % 7 + 1 for n in range((end - begin) % 7 + 1)}
    return frozenset(found)


def _day(text: str) -> int:
    if text not in DAYS:
        raise ValueError(f"{text!r} is no day of the week; they are {', '.join(DAYS)}, or daily")
    return DAYS.index(text) + 1


def _from_mapping(value: Mapping[str, Any]) -> Window:
    if unknown := value.keys() - {"zone", "spans", "blackout"}:
        raise ValueError(f"knows zone, spans and blackout, not {sorted(map(str, unknown))[0]!r}")
    spans = value.get("spans")
    if not isinstance(value.get("zone"), str) or not isinstance(spans, (list, tuple)):
        spans = '[{"days": [1], "from": "09:00", "to": "17:00"}]'
        raise ValueError(f'must be like {{"zone": "Europe/Berlin", "spans": {spans}}}')
    return Window(value["zone"], tuple(map(_span_of, spans)), parse_days_off(value.get("blackout") or ()))


def _span_of(value: Any) -> Span:
    if not isinstance(value, Mapping) or value.keys() != {"days", "from", "to"}:
        raise ValueError('each span is like {"days": [1, 2], "from": "09:00", "to": "17:00"}')
    days = value["days"]
    if not isinstance(days, (list, tuple)) or any(type(day) is not int or not 1 <= day <= 7 for day in days):
        raise ValueError("days are numbers from 1 (Monday) to 7 (Sunday)")
    return _span(frozenset(days), value["from"], value["to"])


def _span(days: frozenset[int], begins: Any, ends: Any) -> Span:
    span = Span(days, _minute(begins), _minute(ends))
    if span.begins in (span.ends, MIDNIGHT):
        raise ValueError(f"from {begins} to {ends} is no time at all; a whole day is 00:00-24:00")
    return span


def _minute(text: Any) -> int:
    match = _HOURS.fullmatch(text) if isinstance(text, str) else None
    minute = int(match[1]) * 60 + int(match[2]) if match else MIDNIGHT + 1
    if minute > MIDNIGHT or (match and int(match[2]) > 59):
        raise ValueError(f"{text!r} is no time of a day; write it from 00:00 to 24:00")
    return minute


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _day_words(days: frozenset[int]) -> str:
    if len(days) == 7:
        return "daily"
    ordered = sorted(days)
    if len(ordered) > 2 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{DAYS[ordered[0] - 1]}-{DAYS[ordered[-1] - 1]}"
    return ",".join(DAYS[day - 1] for day in ordered)
