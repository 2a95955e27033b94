"""Did this handover send its mail? One look, by what the scopes allow to see.

| granted | looked at |
|---|---|
| reading, and a draft was bound | the draft by its id; then Sent Items by Message-ID and our key; then all folders |
| reading, sent at once | Sent Items by Message-ID, then all folders |
| Mail.Send only | nothing: `no_way` |

A draft that is a draft yet proves nothing while transport may still be at work, nor does a copy that is not there:
when such a look counts is the queue's matter.
"""

from __future__ import annotations

import asyncio

from outtray_schema.outcome import Held, Outcome, Parked, Sent
from outtray_worker.providers import Finding, Trace
from outtray_worker.providers.microsoft.calls import Calls, Ended, unanswered
from outtray_worker.providers.microsoft.letter import Json
from outtray_worker.providers.microsoft.scopes import Grant
from outtray_worker.providers.microsoft.sent_copy import Look, Sought, anywhere, by_id, in_sent_items
from outtray_worker.providers.web import NoAnswer


async def find_evidence(calls: Calls, grant: Grant, trace: Trace, limit: float) -> Finding:
    """Within `limit` seconds. Never sends, never raises for what Graph answers."""
    if not grant.read:
        return Finding("no_way", "Mail.Send alone lets nobody look; Mail.Read or Mail.ReadWrite would")
    look = Look()
    try:
        async with asyncio.timeout(limit):
            return await _look(calls, trace, look)
    except Ended as end:
        return _failed(look, end.outcome)
    except NoAnswer as none:
        return _failed(look, unanswered(none, loads=False))
    except TimeoutError:
        return _failed(look, Parked("looking took too long", scope="connection"))


async def _look(calls: Calls, trace: Trace, look: Look) -> Finding:
    sought = _sought(trace)
    if sought.draft_id:
        await by_id(calls, sought.draft_id, look)
        if look.draft is not None:
            return Finding("still_draft", look.looked)
    if look.copy is None:
        await in_sent_items(calls, sought, look, keyed=sought.draft_id is not None)
    if look.copy is None:
        await anywhere(calls, sought, look)
    if look.copy is not None:
        return Finding("sent", look.looked, _sent(look.copy, look, trace))
    # A bound draft that is nowhere may as well have been deleted by its owner: only a mail sent at once is filed.
    return Finding("nothing" if sought.draft_id else "absent", look.looked)


def _sought(trace: Trace) -> Sought:
    draft = trace.draft
    theirs = draft.rfc_message_id if draft else None
    ids = tuple(dict.fromkeys(each for each in (theirs, trace.rfc_message_id) if each))
    conversation = trace.conversation_id or (draft.conversation_id if draft else None)
    return Sought(str(trace.message_id), ids, draft.id if draft else None, conversation)


def _sent(copy: Json, look: Look, trace: Trace) -> Sent:
    return Sent(
        copy.get("id"),
        copy.get("internetMessageId") or trace.rfc_message_id,
        copy.get("conversationId") or trace.conversation_id,
        {"rule": "found", "found": look.places[-1]},
    )


def _failed(look: Look, outcome: Outcome) -> Finding:
    return Finding("failed", look.looked, outcome=outcome if isinstance(outcome, (Parked, Held)) else None)
