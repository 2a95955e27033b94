"""A calendar invitation: iCalendar text that asks the recipients' calendars for something (iTIP over mail).

Gmail and Outlook show their buttons for a part `text/calendar` beside text and html, whose `method` parameter says what
the calendar says (RFC 6047 2.4); the same again as the file invite.ics is for programs that know files only. Google's
own invitations are made like that (samples, 2026-11).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

METHODS = ("PUBLISH", "REQUEST", "REPLY", "ADD", "CANCEL", "REFRESH", "COUNTER", "DECLINECOUNTER")
"""RFC 5546 1.4."""

MOST = 256 * 1024
_SEEN = {"BEGIN", "END", "METHOD", "UID", "ORGANIZER", "ATTENDEE", "DTSTART", "DTSTAMP", "SUMMARY"}
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_LINE = re.compile(r"([A-Za-z0-9-]+)((?:;[^:;\"]*(?:\"[^\"]*\"[^:;\"]*)*)*):(.*)", re.DOTALL)


def checked_invitation(text: str) -> str:
    """The text with line ends as LF. Raises `ValueError` with the cure."""
    if len(text) > MOST:
        raise ValueError(f"has more than {MOST} characters; an invitation is one event")
    if _CONTROL.search(text):
        raise ValueError("contains a control character; remove it")
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip("\n") + "\n"
    calendar, events = _taken_apart(text)
    if len(calendar.get("METHOD", [])) != 1 or calendar["METHOD"][0].upper() not in METHODS:
        raise ValueError(f"needs one METHOD in its VCALENDAR, of {', '.join(METHODS)}: METHOD:REQUEST invites")
    if not events:
        raise ValueError("has no VEVENT: Gmail and Outlook show invitations to events only")
    _check_events(calendar["METHOD"][0].upper(), events)
    return text


def method_of(text: str) -> str:
    """The METHOD of a checked invitation."""
    return _taken_apart(text)[0]["METHOD"][0].upper()


def summary_of(text: str) -> str:
    """The first event's title, for those whose program shows nothing else."""
    said = _taken_apart(text)[1][0].get("SUMMARY", [""])[0]
    return re.sub(r"\\([nN,;\\])", lambda found: " " if found[1] in "nN" else found[1], said).strip() or "Invitation"


_Properties = dict[str, list[str]]


def _check_events(method: str, events: list[_Properties]) -> None:
    uids = {uid for event in events for uid in event.get("UID", [""])}
    if len(uids) != 1 or "" in uids:
        raise ValueError("each VEVENT needs the one same UID (RFC 5546 3.2): a later change or CANCEL is known by it")
    needs = ["DTSTAMP", "ORGANIZER"]
    if method in ("PUBLISH", "REQUEST", "ADD"):
        needs.append("DTSTART")
    if method in ("REQUEST", "REPLY"):
        needs.append("ATTENDEE")
    for name in needs:
        if not all(event.get(name) for event in events):
            raise ValueError(f"METHOD:{method} needs {name} in each VEVENT (RFC 5546 3.2)")


def _taken_apart(text: str) -> tuple[_Properties, list[_Properties]]:
    """The calendar's own properties, and those of each event; alarms and time zones within are passed over."""
    calendar: _Properties = {}
    events: list[_Properties] = []
    within: list[str] = []
    for name, value in _lines(text):
        if name == "BEGIN":
            within.append(value.upper())
            if within == ["VCALENDAR", "VEVENT"]:
                events.append({})
        elif name == "END":
            if not within or within.pop() != value.upper():
                raise ValueError(f"END:{value[:40]} closes what is not open")
        elif within == ["VCALENDAR"]:
            calendar.setdefault(name, []).append(value)
        elif within == ["VCALENDAR", "VEVENT"]:
            events[-1].setdefault(name, []).append(value)
        elif not within:
            break
    if within or not text.upper().startswith("BEGIN:VCALENDAR\n") or not text.upper().endswith("END:VCALENDAR\n"):
        raise ValueError("must be one calendar, from BEGIN:VCALENDAR to END:VCALENDAR")
    return calendar, events


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """The properties that matter here, unfolded (RFC 5545 3.1). Raises `ValueError` for what is no property."""
    for number, line in enumerate(re.sub(r"\n[ \t]", "", text).strip("\n").split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"its line {number} (unfolded) is no property like UID:abc")
        if match[1].upper() in _SEEN:
            yield match[1].upper(), match[3].strip()
