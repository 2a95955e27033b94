"""Times as they are typed: `now`, `+90m`, or ISO 8601 with an offset."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from outtray.cli.exits import UsageError
from outtray_schema.settings import parse_duration


def time_of(text: str, flag: str) -> datetime:
    """The time that was typed, in UTC. Raises `UsageError` that names the flag and shows how times are written."""
    if text == "now":
        return datetime.now(UTC)
    try:
        return datetime.now(UTC) + _span(text) if text.startswith("+") else _iso(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{flag}: {error}") from None


def _span(text: str) -> Any:
    return parse_duration(text.removeprefix("+"))


def _iso(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time; write now, +2h or 2027-01-31T09:00:00+01:00") from None
    if at.utcoffset() is None:
        raise ValueError(f"{text!r} has no time zone; write {text}Z for UTC, or {text}+01:00")
    return at.astimezone(UTC)
