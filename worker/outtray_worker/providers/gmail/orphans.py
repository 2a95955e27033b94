"""Drafts that an earlier preparation made and nobody bound, found by our key in a bounded look; and removing one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from outtray_worker.providers import Draft, Removed, Trace
from outtray_worker.providers.gmail.caller import Ended
from outtray_worker.providers.gmail.reading import header_of

if TYPE_CHECKING:
    from outtray_worker.providers.gmail.session import GmailSession

NEWEST = 20
"""Drafts looked at: the list is newest first, and each look costs 20 units of the 6,000 a minute (2026-05)."""


async def find_orphan(session: GmailSession, message_id: UUID) -> Draft | None:
    """The newest draft with our key; others with it are deleted. Raises `Ended`."""
    listed = await session.caller.call(session.api.list_drafts(NEWEST), "prepare", "drafts.list")
    ours: list[Draft] = []
    for each in listed.get("drafts") or []:
        said = await session.caller.call(session.api.get_draft(each["id"]), "prepare", "drafts.get")
        message: dict[str, Any] = said.get("message") or {}
        if header_of(message, session.provider.settings.key_header) == str(message_id):
            ours.append(Draft(each["id"], message.get("id"), message.get("threadId")))
    for other in ours[1:]:
        await session.delete_draft(other.id)
    return ours[0] if ours else None


async def remove(session: GmailSession, trace: Trace) -> Removed:
    """Delete the draft that is named, or else the one with our key. Raises `Ended`.

    `drafts.delete` deletes for good, and does not trash (reference of users.drafts.delete, 2026-11).
    """
    draft = trace.draft or await find_orphan(session, trace.message_id)
    if draft is None:
        return Removed("gone")
    caller, api = session.caller, session.api
    named = api.delete_draft(draft.id)
    answer = await caller.ask(lambda token: api.on_wire(named, token), "prepare", "drafts.delete")
    if answer.status == 404:
        return Removed("gone")
    if not 200 <= answer.status < 300:
        raise Ended(caller.refused(answer, "prepare", "drafts.delete"))
    return Removed("deleted")
