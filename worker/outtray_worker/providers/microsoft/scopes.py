"""What a mailbox's owner granted, and what can be done with it.

Sending needs Mail.Send; drafts, attachments and answers need Mail.ReadWrite; looking needs Mail.Read; all of them also
as `.Shared`, for mailboxes of others (learn.microsoft.com/graph/permissions-reference, 2026-11).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Grant:
    """`drafts`: make drafts. `send`: send one, or at once. `read`: look at messages. `profile`: read own addresses."""

    drafts: bool
    send: bool
    read: bool
    profile: bool
    app_only: bool

    def lacks(self, only_draft: bool) -> bool:
        """Whether nothing can be done for a mail that is to be sent, or only to become a draft."""
        return not self.send and not (only_draft and self.drafts)

    @classmethod
    def of(cls, scopes: Iterable[str], server: Mapping[str, Any]) -> Grant:
        """From scopes as Microsoft names them, bare or as URLs. `.default` is what an administrator granted an app."""
        names = {scope.rpartition("/")[2].lower().removesuffix(".shared") for scope in scopes}
        everything = ".default" in names
        return cls(
            drafts=everything or "mail.readwrite" in names,
            send=everything or "mail.send" in names,
            read=everything or bool(names & {"mail.read", "mail.readwrite"}),
            profile=bool(names & {"user.read", "user.read.all", "user.readwrite", "user.readbasic.all"}),
            app_only=everything or bool(server.get("app_only")),
        )
