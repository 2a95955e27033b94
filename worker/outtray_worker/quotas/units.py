"""What one handover costs where a provider counts its calls in units, by the route that the scopes allow.

Google counts for each user and for the whole project of the OAuth client (Gmail API, "Usage limits", table of May 2026;
the reading calls were cheaper before). Reading to answer a mail, or to look for evidence, comes on top: it is rare.
"""

from __future__ import annotations

from collections.abc import Sequence

from outtray_worker.providers.gmail.scopes import grants_of

CREATE_DRAFT, SEND, READ_BACK = 10, 100, 20
"""drafts.create; messages.send and drafts.send each; messages.get, by which the Message-ID is read back."""

DEAREST = CREATE_DRAFT + SEND + READ_BACK


def units_of_handover(provider: str, scopes: Sequence[str]) -> int | None:
    """The units of one mail: its calls before, at and after the handover. None: this provider counts none."""
    if provider != "gmail":
        return None
    grants = grants_of(frozenset(scopes))
    return SEND + (CREATE_DRAFT if grants.drafts else 0) + (READ_BACK if grants.see_messages else 0)
