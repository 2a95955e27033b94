"""Windows: the expected values of ten named transitions, written by hand; a walk over UTC minutes; what is refused."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outtray_schema.times import Gap, Times, open_for_both, parse_gap, read_times
from outtray_schema.windows import DAYS, LONGEST, Span, Window, next_open, parse_window, zone_named

MINUTE = timedelta(minutes=1)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# ── ten transitions, by hand ──────────────────────────────────────────────────────────────────────────────────────

# (what, window, blackout, asked at, opens, closes), all in UTC. Sources: tzdb 2026f; each line was worked out on paper
# from the zone's offsets before and after.
NAMED = [
    # Berlin goes from +1 to +2 on 29 March 2026 at 01:00 UTC: Friday's hours are 08:00-16:30 UTC, Monday's 07:00-15:30.
    ("spring in Berlin, over the weekend", "mon-fri 09:00-17:30 Europe/Berlin", [],
     "2026-03-27T16:30", "2026-03-30T07:00", "2026-03-30T15:30"),
    # The wall skips 02:00-03:00. Of 01:30-03:30 only 00:30-01:00 and then 01:00-01:30 UTC are left, without a break.
    ("spring in Berlin, inside the window", "sun 01:30-03:30 Europe/Berlin", [],
     "2026-03-29T00:00", "2026-03-29T00:30", "2026-03-29T01:30"),
    # 02:15-02:45 does not exist that Sunday; a week later Berlin is at +2.
    ("spring in Berlin, the window is skipped", "sun 02:15-02:45 Europe/Berlin", [],
     "2026-03-28T12:00", "2026-04-05T00:15", "2026-04-05T00:45"),
    # On 25 October 2026 the wall shows 02:00-03:00 twice (01:00 UTC: +2 to +1). 02:30-03:30 opens at 00:30 UTC, closes
    # as the clock goes back at 01:00, and opens again at 01:30, which is 02:30 for the second time, until 02:30 UTC.
    ("autumn in Berlin, the first time", "sun 02:30-03:30 Europe/Berlin", [],
     "2026-10-25T00:00", "2026-10-25T00:30", "2026-10-25T01:00"),
    ("autumn in Berlin, the second time", "sun 02:30-03:30 Europe/Berlin", [],
     "2026-10-25T01:00", "2026-10-25T01:30", "2026-10-25T02:30"),
    # New York leaves daylight time on 1 November 2026 (06:00 UTC: -4 to -5): 00:00-24:00 there has 25 hours.
    ("autumn in New York, a whole day", "sun 00:00-24:00 America/New_York", [],
     "2026-10-31T12:00", "2026-11-01T04:00", "2026-11-02T05:00"),
    # Lord Howe moves by half an hour: on 4 October 2026 at 15:30 UTC on the 3rd from +10:30 to +11.
    ("spring by half an hour, Lord Howe", "mon-fri 09:00-10:00 Australia/Lord_Howe", [],
     "2026-10-02T00:00", "2026-10-04T22:00", "2026-10-04T23:00"),
    # Kolkata is at +5:30 all year; a span over midnight, of which a blackout of the 2nd takes the hours after it.
    ("half an hour, and over midnight", "thu 22:00-02:00 Asia/Kolkata", ["2026-10-02"],
     "2026-10-01T00:00", "2026-10-01T16:30", "2026-10-01T18:30"),
    # 2028 is a leap year, and 29 February a Tuesday. Kathmandu is at +5:45.
    ("leap day in Kathmandu", "tue 09:00-17:00 Asia/Kathmandu", ["2028-02-22"],
     "2028-02-21T00:00", "2028-02-29T03:15", "2028-02-29T11:15"),
    # From Wednesday 30 December 2026, 17:00, to Monday 4 January 2027, 09:00: London is at +0. 31 December and
    # 1 January are off, then comes the weekend.
    ("year's end in London", "mon-fri 09:00-17:00 Europe/London", ["2026-12-31", "2027-01-01"],
     "2026-12-30T17:00", "2027-01-04T09:00", "2027-01-04T17:00"),
    # Apia left out all of Friday 30 December 2011 (10:00 UTC on the 30th: -10 to +14).
    ("a day that was skipped, Apia", "fri 00:00-24:00 Pacific/Apia", [],
     "2011-12-29T12:00", "2012-01-05T10:00", "2012-01-06T10:00"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "blackout", "at", "opens", "closes"), [each[1:] for each in NAMED],
                         ids=[each[0] for each in NAMED])  # fmt: skip
def test_a_named_transition_is_as_worked_out_by_hand(line, blackout, at, opens, closes):
    typed = parse_window(line)
    window = Window(typed.zone, typed.spans, frozenset(map(date.fromisoformat, blackout)))
    assert next_open(window, utc(at)) == (utc(opens), utc(closes))
    assert next_open(window, utc(opens)) == (utc(opens), utc(closes)), "at its opening it is open"
    after = next_open(window, utc(closes))
    assert after is not None and after[0] > utc(closes), "at its closing it is closed"


# ── a walk over UTC minutes ───────────────────────────────────────────────────────────────────────────────────────

# Zones that move by an hour and by half of one, in both hemispheres, and some that never move; and days on which one
# of them does.
ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/St_Johns", "Pacific/Apia",
         "Africa/Casablanca", "Asia/Kathmandu", "UTC"]  # fmt: skip
NEAR = ["2026-03-29", "2026-10-25", "2026-03-08", "2026-11-01", "2026-04-04", "2026-10-03", "2011-12-29", "2028-02-28",
        "2026-12-30", "2026-02-15"]  # fmt: skip
WALKED = 16 * 24 * 60
"""Minutes: a week that is skipped and one that is closed, and a day more."""

spans = st.builds(
    Span,
    st.frozensets(st.integers(1, 7), min_size=1),
    st.integers(0, 95).map(lambda quarter: quarter * 15),
    st.integers(1, 96).map(lambda quarter: quarter * 15),
).filter(lambda span: span.begins != span.ends)
moments = st.builds(
    lambda day, minutes: utc(day) + minutes * MINUTE, st.sampled_from(NEAR), st.integers(-4 * 1440, 2 * 1440)
)


def is_open(window: Window, at: datetime, zone: ZoneInfo) -> bool:
    """By the definition: what a clock on the wall shows."""
    wall = at.astimezone(zone)
    minute = wall.hour * 60 + wall.minute
    return wall.date() not in window.blackout and any(_spans(span, wall.isoweekday(), minute) for span in window.spans)


def _spans(span: Span, day: int, minute: int) -> bool:
    if span.begins < span.ends:
        return day in span.days and span.begins <= minute < span.ends
    yesterday = 7 if day == 1 else day - 1
    return (day in span.days and minute >= span.begins) or (yesterday in span.days and minute < span.ends)


@settings(max_examples=80)
@given(
    st.sampled_from(ZONES), st.lists(spans, min_size=1, max_size=4), moments, st.sets(st.integers(-2, 12), max_size=5)
)
def test_next_open_is_what_a_walk_over_utc_minutes_finds(zone, asked, t, days_off):
    blackout = frozenset((t + timedelta(days=days)).date() for days in days_off)
    window = Window(zone, tuple(asked), blackout)
    wall = zone_named(zone)
    shown = [is_open(window, t + minute * MINUTE, wall) for minute in range(WALKED)]
    found = next_open(window, t)
    if True not in shown:
        assert found is None or found[0] >= t + WALKED * MINUTE
        return
    opens = shown.index(True)
    closes = next((minute for minute in range(opens, WALKED) if not shown[minute]), WALKED)
    assert found is not None and found[0] == t + opens * MINUTE
    assert found[1] == min(t + closes * MINUTE, found[0] + LONGEST)


@settings(max_examples=25)
@given(st.lists(spans, min_size=1, max_size=2), st.lists(spans, min_size=1, max_size=2), moments)
def test_two_windows_are_open_where_both_are(first, second, t):
    mine, box = Window("America/New_York", tuple(first)), Window("Europe/Berlin", tuple(second))
    walls = zone_named(mine.zone), zone_named(box.zone)
    shown = [
        is_open(mine, at, walls[0]) and is_open(box, at, walls[1])
        for at in (t + minute * MINUTE for minute in range(WALKED))
    ]
    found = open_for_both(mine, box, t)
    if True not in shown:
        assert found is None or found[0] >= t + WALKED * MINUTE
        return
    assert found is not None and found[0] == t + shown.index(True) * MINUTE
    closes = next((minute for minute in range(shown.index(True), WALKED) if not shown[minute]), WALKED)
    assert found[1] == min(t + closes * MINUTE, found[0] + LONGEST)


def test_an_open_moment_opens_at_once_to_the_microsecond():
    window = parse_window("daily 09:00-17:00 UTC")
    at = utc("2026-05-05T12:34:56.789012")
    assert next_open(window, at) == (at, utc("2026-05-05T17:00"))
    last = utc("2026-05-05T16:59:59.999999")
    assert next_open(window, last) == (last, utc("2026-05-05T17:00"))


def test_a_window_around_the_clock_is_said_to_close_in_a_week_and_windows_that_never_meet_never_open():
    always = parse_window("daily 00:00-24:00 Europe/Berlin")
    t = utc("2026-03-27T16:30")
    assert next_open(always, t) == (t, t + LONGEST)
    assert next_open([parse_window("mon 09:00-10:00 UTC"), parse_window("tue 09:00-10:00 UTC")], t) is None
    # 09:00 in Berlin is 03:00 in New York but in the weeks in which only one of them has changed its clocks.
    berlin = parse_window("daily 09:00-09:30 Europe/Berlin")
    new_york = parse_window("daily 04:00-04:30 America/New_York")
    meets = next_open([berlin, new_york], utc("2026-04-10T00:00"))
    assert meets is not None and meets[0].date() == date(2026, 10, 25)


# ── reading and refusing ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "line",
    [
        "mon-fri 09:00-17:30 Europe/Berlin",
        "mon-thu 09:00-12:00,13:00-17:00; fri 09:00-15:00 Europe/Berlin",
        "daily 22:00-02:00 Asia/Kolkata",
        "sat,sun 00:00-24:00 UTC",
    ],
)
def test_what_is_typed_is_what_is_shown_and_what_is_stored_is_read_again(line):
    window = parse_window(line)
    assert str(window) == line
    assert parse_window(window.as_json()) == window
    stored = Times(window, parse_gap("30s-90s")).as_json()
    assert read_times(stored) == Times(window, Gap(timedelta(seconds=30), timedelta(seconds=90)))


@pytest.mark.parametrize(
    ("value", "cure"),
    [
        ("mon-fri 09:00-17:30 Europe/Berln", "did you mean Europe/Berlin"),
        ("mon-fri 09:00-17:30 ../../etc/passwd", "is no time zone"),
        ("Europe/Berlin", "write days, hours and zone"),
        ("mon-fri Europe/Berlin", "names no days and hours"),
        ("mon-fry 09:00-17:30 UTC", "'fry' is no day of the week"),
        ("mon-fri 09:00 UTC", "is no span of hours"),
        ("mon-fri 09:00-25:00 UTC", "'25:00' is no time of a day"),
        ("mon-fri 09:75-10:00 UTC", "'09:75' is no time of a day"),
        ("mon-fri 09:00-09:00 UTC", "a whole day is 00:00-24:00"),
        ({"zone": "UTC", "spans": []}, "never opens"),
        ({"zone": "UTC", "spans": [{"days": [], "from": "09:00", "to": "10:00"}]}, "never opens"),
        ({"zone": "UTC", "spans": [{"days": [0], "from": "09:00", "to": "10:00"}]}, "numbers from 1"),
        ({"zone": "UTC", "spans": [{"days": [1], "from": "09:00"}]}, "each span is like"),
        ({"zone": "UTC", "hours": []}, "not 'hours'"),
        ({"zone": 7, "spans": []}, "must be like"),
        ({"zone": "UTC", "spans": [{"days": [1], "from": "09:00", "to": "10:00"}], "blackout": ["soon"]}, "2026-12-24"),
        (17, "must be a window like"),
    ],
)  # fmt: skip
def test_what_is_no_window_is_refused_with_its_cure(value, cure):
    with pytest.raises(ValueError, match=r".") as refused:
        parse_window(value)
    assert cure in str(refused.value)


@pytest.mark.parametrize("value", ["90s-30s", "0s-5s", "13h", "soon", "30s-", None, 7, ("1s", "2s", "3s")])
def test_what_is_no_gap_is_refused(value):
    with pytest.raises(ValueError, match="gap"):
        parse_gap(value)


@given(st.uuids(), st.integers(1, 10_000))
def test_a_gap_is_within_its_bounds_and_the_same_for_whoever_asks(message, handover):
    gap = parse_gap("30s-90s")
    assert gap.least <= gap.after(message, handover) < gap.most
    assert gap.after(message, handover) == parse_gap("30s-90s").after(message, handover)
    assert parse_gap("1m").after(message, handover) == MINUTE


def test_gaps_spread_over_all_of_their_span():
    gap = parse_gap("0.001s-100s")
    drawn = sorted(gap.after(message, 1).total_seconds() for message in map(_id, range(400)))
    assert drawn[0] < 5 and drawn[-1] > 95 and 40 < drawn[200] < 60


def _id(n):
    from uuid import UUID

    return UUID(int=n)


def test_the_zones_are_those_of_the_package_whatever_the_machine_has(monkeypatch):
    monkeypatch.setenv("PYTHONTZPATH", "/nowhere")
    assert zone_named("Europe/Berlin").key == "Europe/Berlin"
    assert len(DAYS) == 7
