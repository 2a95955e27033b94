"""Gmail, by its API: a draft that is sent where the scopes allow one, a message that is sent at once where not.

    drafts.create → drafts.send          gmail.compose, gmail.modify or mail.google.com; `prepare` makes the draft
    messages.send                        gmail.send alone; the whole call is the handover
    upload … last piece of messages.send gmail.send alone, large: all but the last piece is preparation

Mails up to 3.5 MB travel as JSON, larger ones as multipart, from `sizes.multipart` on as a resumable upload. Google's
client names each request from its installed discovery document (`api.py`), our transport moves the bytes once
(`providers/web`), `answers.py` says as data what answers mean, and `evidence.py` looks at what became of a handover.

Nothing is loaded by naming this package: Google's client takes 0.4 s of CPU (measured 2026-11), and a process whose
mailboxes are elsewhere only asks `scopes` what a scope allows.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outtray_worker.providers.gmail.provider import Check, GmailProvider, Identity, Sizes

__all__ = ["Check", "GmailProvider", "Identity", "Sizes"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.provider"), name)
