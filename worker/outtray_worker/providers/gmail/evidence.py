"""What Gmail shows of a handover without an outcome: the draft, its conversation, what was sent. Never the search.

The listing of the SENT label is consistent right after a sending, the search lags by minutes (field measurements,
2026-08). Our key is a header of the mail; Gmail's own Message-ID tells nothing, for we never knew it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from outtray_schema.outcome import Failed, Sent
from outtray_worker.providers import Finding, Trace
from outtray_worker.providers.gmail.caller import Ended
from outtray_worker.providers.gmail.reading import header_of, rfc_message_id_of

if TYPE_CHECKING:
    from outtray_worker.providers.gmail.session import GmailSession

PAGE, PAGES = 25, 4
"""Sent messages looked at, 20 units each: at most a third of a minute's 6,000 (2026-05)."""
BEFORE = timedelta(minutes=5)
"""How far before the handover the look goes back: the two clocks need not agree."""
NOT_FOUND = "not-found"
Kind = Literal["sent", "still_draft", "absent", "nothing", "no_way"]


@dataclass(slots=True)
class _Look:
    session: GmailSession
    trace: Trace
    looked: list[str]

    @property
    def headers(self) -> tuple[str, str]:
        return self.session.provider.settings.key_header, "Message-ID"

    def is_ours(self, message: Mapping[str, Any]) -> bool:
        labels = message.get("labelIds") or []
        key = header_of(message, self.headers[0])
        return key == str(self.trace.message_id) and "SENT" in labels and "DRAFT" not in labels

    def sent(self, message: Mapping[str, Any], by: str) -> Finding:
        sent = Sent(message["id"], rfc_message_id_of(message), message.get("threadId"), {"found": by})
        return self.finding("sent", sent)

    def finding(self, kind: Kind, sent: Sent | None = None) -> Finding:
        return Finding(kind, "; ".join(self.looked), sent)


async def look(session: GmailSession, trace: Trace) -> Finding:
    """Raises `Ended` where Gmail could not be asked."""
    here = _Look(session, trace, [])
    if trace.draft is not None and session.grants.see_drafts and await _is_draft(here, trace.draft.id):
        return here.finding("still_draft")
    if not session.grants.see_messages:
        here.looked.append("what was sent cannot be read with these scopes")
        return here.finding("nothing" if trace.draft is not None and session.grants.see_drafts else "no_way")
    found = await _in_conversation(here) or await _among_sent(here)
    return found or here.finding("nothing" if trace.draft is not None else "absent")


async def _is_draft(here: _Look, draft_id: str) -> bool:
    try:
        await here.session.caller.call(here.session.api.get_draft(draft_id), "read", "drafts.get")
    except Ended as end:
        if not gone(end):
            raise
        here.looked.append("the draft is gone: sent, or deleted by its person")
        return False
    here.looked.append("the draft is a draft yet")
    return True


async def _in_conversation(here: _Look) -> Finding | None:
    trace = here.trace
    thread = (trace.draft.conversation_id if trace.draft else None) or trace.conversation_id
    if thread is None:
        return None
    try:
        request = here.session.api.headers_of_thread(thread, *here.headers)
        said = await here.session.caller.call(request, "read", "threads.get")
    except Ended as end:
        if not gone(end):
            raise
        here.looked.append("the conversation is gone")
        return None
    here.looked.append("the conversation, by our key")
    copy = next((each for each in said.get("messages") or [] if here.is_ours(each)), None)
    return here.sent(copy, "in its conversation, by our key") if copy else None


async def _among_sent(here: _Look) -> Finding | None:
    """Newest first, until one is older than the handover. More than the bound: this look proves nothing."""
    session, page, looked_at = here.session, None, 0
    for _ in range(PAGES):
        listed = await session.caller.call(session.api.list_sent(PAGE, page), "read", "messages.list")
        for each in listed.get("messages") or []:
            message = await _headers(here, each["id"])
            looked_at += 1
            if here.is_ours(message):
                here.looked.append(f"the newest {looked_at} of what was sent, by our key")
                return here.sent(message, "among what was sent, by our key")
            if _older(message, here.trace.handed_at):
                here.looked.append(f"the newest {looked_at} of what was sent, back to before the handover, by our key")
                return None
        page = listed.get("nextPageToken")
        if page is None:
            here.looked.append(f"all {looked_at} of what was sent, by our key")
            return None
    here.looked.append(f"the newest {looked_at} of what was sent, by our key: not back to the handover")
    return here.finding("nothing")


async def _headers(here: _Look, message_id: str) -> dict[str, Any]:
    """One message's headers; nothing where it was deleted meanwhile."""
    try:
        request = here.session.api.headers_of(message_id, *here.headers)
        return await here.session.caller.call(request, "read", "messages.get")
    except Ended as end:
        if not gone(end):
            raise
        return {}


def _older(message: Mapping[str, Any], handed_at: datetime) -> bool:
    at = message.get("internalDate")
    return at is not None and datetime.fromtimestamp(int(at) / 1000, UTC) < handed_at - BEFORE


def gone(end: Ended) -> bool:
    """Whether what was looked for is not there, as opposed to a look that failed."""
    return isinstance(end.outcome, Failed) and end.outcome.evidence.get("rule") == NOT_FOUND
