"""The few query options that the fake Graph understands. Any other filter is refused, as there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from outtray_sandbox.microsoft.properties import Wrong

_TEXT = r"'((?:[^']|'')*)'"
_EQUAL = re.compile(rf"(internetMessageId|conversationId) eq {_TEXT}")
_KEYED = re.compile(
    rf"singleValueExtendedProperties/Any\(ep: ep/id eq {_TEXT} and ep/value eq {_TEXT}\)", re.IGNORECASE
)
_EXPANDED = re.compile(rf"singleValueExtendedProperties\(\$filter=id eq {_TEXT}\)")

Condition = tuple[str, str, str]
"""(property, its id where it is an extended one, value)."""


def parse(text: str | None) -> Condition | None:
    """A filter. Raises `Wrong` for one that is none of ours."""
    if text is None:
        return None
    if found := _EQUAL.fullmatch(text):
        return found[1], "", _unquoted(found[2])
    if found := _KEYED.fullmatch(text):
        return "singleValueExtendedProperties", _unquoted(found[1]), _unquoted(found[2])
    raise Wrong("The query filter contains one or more invalid nodes.", "ErrorInvalidUrlQueryFilter")


def _unquoted(text: str) -> str:
    return text.replace("''", "'")


def matches(properties: Mapping[str, Any], condition: Condition | None) -> bool:
    if condition is None:
        return True
    name, key, value = condition
    if not key:
        return bool(properties.get(name) == value)
    return any(each.get("id") == key and each.get("value") == value for each in properties.get(name) or ())


def selected(message: Mapping[str, Any], query: Mapping[str, str]) -> dict[str, Any]:
    """What `$select` names, and extended properties only where `$expand` asks for them."""
    wanted = [name for name in query.get("$select", "").split(",") if name]
    hidden = {"singleValueExtendedProperties", "in-reply-to"}
    if "internetMessageHeaders" not in wanted:
        hidden.add("internetMessageHeaders")
    shown = {
        name: value for name, value in message.items() if name not in hidden and (not wanted or name in {*wanted, "id"})
    }
    if found := _EXPANDED.fullmatch(query.get("$expand", "")):
        key = _unquoted(found[1])
        properties = [each for each in message.get("singleValueExtendedProperties") or () if each["id"] == key]
        if properties:
            shown["singleValueExtendedProperties"] = properties
    return shown
