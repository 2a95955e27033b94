"""The copy of a mail in its mailbox: what proves that it was sent, and how its final ids are learned.

Graph files every mail of ours in Sent Items, late: after transport took it (learn.microsoft.com/graph/
outlook-things-to-know-about-send-mail, 2026-11). Whether a draft's immutable id outlives its sending is disputed: the
guide says so (outlook-immutable-id), threads of 2019 and 2021 show other ids. So it is looked for by id, then by
Message-ID and by our key, and only what carries one of them is ours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from outtray_worker.providers.microsoft.calls import Ask, Calls, Ended, garbled, literal, quoted
from outtray_worker.providers.microsoft.drafts import of_key, of_rfc_id
from outtray_worker.providers.microsoft.letter import KEY, Json

_SELECT = "$select=id,internetMessageId,conversationId,isDraft"
_EXPAND = "$expand=singleValueExtendedProperties($filter=" + quote(f"id eq '{KEY}'", safe="") + ")"
_MOST = 50


@dataclass(frozen=True, slots=True)
class Sought:
    """What a mail of ours can be known by."""

    key: str
    rfc_message_ids: tuple[str, ...]
    """Ours, and the one that Graph named for the draft, should it be another."""
    draft_id: str | None = None
    conversation_id: str | None = None


@dataclass(slots=True)
class Look:
    """One look: what was found, and where it was looked, in plain words."""

    places: list[str] = field(default_factory=list)
    copy: Json | None = None
    draft: Json | None = None
    """The bound draft, if it is a draft yet."""

    @property
    def looked(self) -> str:
        return "; ".join(self.places) or "nowhere"


async def by_id(calls: Calls, draft_id: str, look: Look) -> None:
    """The message of that id: a draft yet, or the sent copy."""
    look.places.append("the draft by its id")
    said = await calls.ask(Ask("GET", f"/messages/{quoted(draft_id)}?{_SELECT}", "message"))
    if said.status == 404 or (said.status == 400 and "ErrorInvalidIdMalformed" in str(said.json().get("error"))):
        return
    if said.status != 200:
        raise Ended(calls.outcome(said, "read"))
    message = said.json()
    if message.get("isDraft") is False:
        look.copy = message
    elif message.get("isDraft") is True:
        look.draft = message
    else:
        raise garbled(said)


async def in_sent_items(calls: Calls, sought: Sought, look: Look, keyed: bool) -> None:
    """Sent Items by Message-ID, then by our key, which a MIME sent at once does not have."""
    for rfc_message_id in sought.rfc_message_ids:
        look.places.append("Sent Items by Message-ID")
        look.copy = await _first(calls, "/mailFolders/sentitems/messages", of_rfc_id(rfc_message_id))
        if look.copy is not None:
            return
    if keyed:
        look.places.append("Sent Items by our key")
        look.copy = await _first(calls, "/mailFolders/sentitems/messages", of_key(sought.key))


async def anywhere(calls: Calls, sought: Sought, look: Look) -> None:
    """The whole mailbox: a rule or a person may have moved the copy. A conversation's other messages prove nothing."""
    for rfc_message_id in sought.rfc_message_ids:
        look.places.append("the whole mailbox by Message-ID")
        look.copy = await _first(calls, "/messages", of_rfc_id(rfc_message_id))
        if look.copy is not None:
            return
    if sought.conversation_id:
        look.places.append("the conversation, by Message-ID and our key")
        condition = f"conversationId%20eq%20{literal(sought.conversation_id)}"
        async for each in _all(calls, "/messages", condition, f"&{_EXPAND}"):
            if each.get("isDraft") is False and _is_ours(each, sought):
                look.copy = each
                return


def _is_ours(message: Json, sought: Sought) -> bool:
    properties: Any = message.get("singleValueExtendedProperties") or ()
    keys = {each.get("value") for each in properties if isinstance(each, dict)}
    return sought.key in keys or message.get("internetMessageId") in sought.rfc_message_ids


async def _first(calls: Calls, folder: str, condition: str) -> Json | None:
    async for each in _all(calls, folder, condition):
        if each.get("isDraft") is False:
            return each
    return None


async def _all(calls: Calls, folder: str, condition: str, more: str = "") -> AsyncIterator[Json]:
    """The first page: more than `_MOST` that match are not expected. Raises `Ended`, `NoAnswer`."""
    said = await calls.ask(Ask("GET", f"{folder}?$filter={condition}&{_SELECT}&$top={_MOST}{more}", "messages"))
    for each in calls.values(said, "read"):
        yield each
