"""The three ids of what left: the provider's, the Message-ID as delivered, the conversation; or why one is missing.

What a provider did not tell at once, its worker asked for where it might; what it may not ask for, or what there is not
at this provider, stands in the evidence under the id's own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IDS = ("provider_id", "rfc_message_id", "conversation_id")
HAS_IDS = frozenset({"sent", "drafted"})
"""States in which a message's ids are its provider's."""

_NEVER = {
    ("smtp", "provider_id"): "its server named no queue id",
    ("smtp", "conversation_id"): "SMTP knows no conversations",
}


def known_ids(row: Mapping[str, Any]) -> dict[str, Any]:
    """The ids of a message's row. A Message-ID that its provider replaced, by one that nobody could read, is none."""
    found = {name: row[name] for name in IDS}
    if row["state"] in HAS_IDS and _replaced(row):
        found["rfc_message_id"] = None
    return found


def missing_ids(row: Mapping[str, Any]) -> dict[str, str]:
    """For each id that a message which left has not: why it cannot be had."""
    if row["state"] not in HAS_IDS:
        return {}
    known = known_ids(row)
    return {name: _why(row, name) for name in IDS if known[name] is None}


def _replaced(row: Mapping[str, Any]) -> bool:
    said, ours = (row["evidence"] or {}).get("rfc_message_id"), row["rfc_message_id"]
    return said is not None and said != ours and ours is not None and str(row["id"]) in ours


def _why(row: Mapping[str, Any], name: str) -> str:
    said = (row["evidence"] or {}).get(name)
    if isinstance(said, str):
        return said
    if (row["reason"] or "").startswith("decided: "):
        return "a person decided that it was sent; its provider said nothing"
    return _NEVER.get((row["provider"], name), "its provider gave none")
