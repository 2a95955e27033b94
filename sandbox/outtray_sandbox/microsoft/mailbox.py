"""One mailbox of the fake Graph: its messages, and under which ids they are known."""

from __future__ import annotations

import itertools
import secrets
from dataclasses import dataclass, field
from typing import Any

FOLDERS = ("drafts", "sentitems", "inbox", "deleteditems")
_numbers = itertools.count(1)


def new_id(kind: str) -> str:
    """An id as Graph's look: long, case-sensitive, with characters that a URL must quote."""
    return f"{kind}{secrets.token_urlsafe(24)}{next(_numbers):06d}="


@dataclass
class Attachment:
    """A file of a message. `content` is kept as it came."""

    told: dict[str, Any]
    content: bytes = field(repr=False)
    id: str = field(default_factory=lambda: new_id("AAMkAT"))

    def shown(self) -> dict[str, Any]:
        """Its metadata. Graph's size counts more than the bytes (seen 2026-11)."""
        told = {name: self.told.get(name) for name in ("name", "contentType", "contentId")}
        inline = bool(self.told.get("isInline"))
        kind = "#microsoft.graph.fileAttachment"
        return {"@odata.type": kind, "id": self.id, **told, "isInline": inline, "size": len(self.content) + 230}


@dataclass
class Item:
    """A message in a folder. `properties` are those of the resource, as they were written or made."""

    folder: str
    properties: dict[str, Any]
    mime: bytes | None = field(default=None, repr=False)
    """Where it came as MIME: what Exchange keeps of it, "more or less"."""
    attachments: list[Attachment] = field(default_factory=list)
    mutable: str = field(default_factory=lambda: new_id("AAMkAG"))
    immutable: str = field(default_factory=lambda: new_id("AAkALg"))
    is_draft: bool = True
    visible_at: float = 0.0
    """On the server's clock: from when on looks find it where it is."""
    replaces: Item | None = None
    """The draft that this sent copy was: until it is visible, looks see that."""

    def shown(self, immutable: bool) -> dict[str, Any]:
        return {
            **self.properties,
            "id": self.immutable if immutable else self.mutable,
            "isDraft": self.is_draft,
            "parentFolderId": f"folder-{self.folder}",
            "hasAttachments": any(not each.told.get("isInline") for each in self.attachments),
        }

    def is_known_as(self, identifier: str) -> bool:
        return identifier in (self.mutable, self.immutable)


@dataclass
class Mailbox:
    """A user's. `aliases` are addresses it may send from besides its own."""

    address: str
    aliases: set[str] = field(default_factory=set)
    items: list[Item] = field(default_factory=list)
    busy: int = 0
    """Requests under way."""

    def at(self, now: float, folder: str | None = None) -> list[Item]:
        """What a look sees now, newest first."""
        seen: list[Item] = []
        for item in reversed(self.items):
            shown = item if item.visible_at <= now else item.replaces
            if shown is not None and (folder is None or shown.folder == folder):
                seen.append(shown)
        return seen

    def find(self, identifier: str, now: float) -> Item | None:
        """The message of that id as a look sees it now."""
        return next((item for item in self.at(now) if item.is_known_as(identifier)), None)

    def draft(self, identifier: str) -> Item | None:
        """The draft of that id, whatever looks see: a draft that was sent is none any more."""
        return next((item for item in self.items if item.is_draft and item.is_known_as(identifier)), None)

    def remove(self, item: Item) -> None:
        self.items = [each for each in self.items if each is not item]
