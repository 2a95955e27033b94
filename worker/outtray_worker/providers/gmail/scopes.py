"""What a mailbox's granted scopes allow, from the same discovery document that names the requests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from outtray_worker.providers.gmail.discovery import scopes_of

PREFIX = "https://www.googleapis.com/auth/"
METADATA = f"{PREFIX}gmail.metadata"


@dataclass(frozen=True, slots=True)
class Grants:
    """`drafts` decides the route: a draft first where it may be made, a direct send else."""

    send: bool
    drafts: bool
    see_drafts: bool
    see_messages: bool
    """Ids, labels and headers of any message."""
    read: bool
    """Texts and files too, and the search: gmail.metadata forbids both (`q=`, format=full)."""
    see_identities: bool
    see_profile: bool


@lru_cache(maxsize=256)
def grants_of(scopes: frozenset[str]) -> Grants:
    def allows(*methods: str, but: str = "") -> bool:
        return all(scopes_of()[method] & (scopes - {but}) for method in methods)

    return Grants(
        send=allows("messages.send"),
        drafts=allows("drafts.create", "drafts.send"),
        see_drafts=allows("drafts.get", "drafts.list"),
        see_messages=allows("messages.get", "messages.list", "threads.get"),
        # Where metadata is among several, Google judges by the widest (docs of messages.get, 2026-11).
        read=allows("messages.get", "messages.list", "messages.attachments.get", but=METADATA),
        see_identities=allows("settings.sendAs.list"),
        see_profile=allows("getProfile"),
    )


def least_for(method: str) -> str:
    """The narrowest scopes that allow a method, as people know them: for a reason that names what is missing."""
    wanted = ("send", "compose", "metadata", "readonly", "settings.basic", "modify")
    names = [name for name in wanted if f"{PREFIX}gmail.{name}" in scopes_of().get(method, frozenset())]
    return " or ".join(f"gmail.{name}" for name in names[:2])
