"""Making the draft that a handover sends: as JSON, as MIME, or as the answer that Graph derives from an original.

A draft carries our key from the moment it can be complete, so one that nobody bound is found again. It is adopted only
if nothing of it is missing; any other is deleted, and a new one made.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from outtray_schema.outcome import Failed
from outtray_worker.providers import Draft, Mail, Original, Removed, Trace
from outtray_worker.providers.microsoft.calls import ASIDE, MIME, Ask, Calls, Ended, literal, quoted, with_json
from outtray_worker.providers.microsoft.files import attach, keep_those_of, listed
from outtray_worker.providers.microsoft.letter import (
    KEY,
    REQUEST,
    Contents,
    File,
    Json,
    as_base64,
    beside_the_loop,
    encoded,
    hidden,
    key_of,
    message_of,
    slim_base64,
    take_apart,
    without_files,
)
from outtray_worker.providers.microsoft.parts import Headers
from outtray_worker.providers.microsoft.routes import Route
from outtray_worker.providers.web import ContentLost, NoAnswer, Stream

_SELECT = "id,internetMessageId,conversationId,isDraft"
_MOST = 10
"""Drafts with our key that are looked at; there is hardly ever one."""


@dataclass(slots=True)
class Workshop:
    """Makes one mail's draft. `made` is its id as soon as there is one, so that whoever fails can take it away."""

    calls: Calls
    mail: Mail
    own: str
    suspect: bool = False
    """Whether an earlier preparation may have left a draft."""
    made: str | None = None
    doubtful: bool = False
    """Whether a draft may exist whose id nobody knows."""

    async def draft(self, route: Route, headers: Headers) -> Draft:
        """The complete draft. Raises `Ended`, `NoAnswer`, and what reading the mail raises."""
        if self.suspect and (adopted := await self._adopted(route)):
            return adopted
        if route == "mime":
            return await self._from_mime(headers)
        if route == "slim":
            return await self._from_slim_mime(headers)
        contents = await take_apart(self.mail, keep=self.mail.size <= REQUEST)
        if route == "answer" and self.mail.original is not None:
            return await self._as_answer(contents, self.mail.original)
        return await self._from_json(contents)

    # ── the three ways ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _from_json(self, contents: Contents) -> Draft:
        message = message_of(self.mail, self.own, contents)
        whole = await beside_the_loop(self.mail.size, lambda: _whole(message, contents.files))
        body = whole or encoded(message)
        expect_fits(len(body))
        if whole is None:
            self.calls.expect_room(sum(file.size for file in contents.files))
        draft = await self._create(Ask("POST", "/messages", "create", body))
        if whole is None:
            await attach(self.calls, draft.id, self.mail, contents.files)
        return draft

    async def _from_mime(self, headers: Headers) -> Draft:
        """MIME has no place for our key: it follows in a request of its own (field practice, 2026-11)."""
        length, pieces = as_base64(self.mail, hidden(self.mail, headers))
        draft = await self._create(Ask("POST", "/messages", "create", Stream(length, pieces), MIME))
        return await self._patch(draft, {"singleValueExtendedProperties": [key_of(self.mail)]})

    async def _from_slim_mime(self, headers: Headers) -> Draft:
        """The files follow; images that the html shows are in the MIME itself."""
        body = slim_base64(await without_files(self.mail), hidden(self.mail, headers))
        expect_fits(len(body))
        contents = await take_apart(self.mail, keep=False)
        files = [file for file in contents.files if file.part.content_id is None]
        self.calls.expect_room(sum(file.size for file in files))
        draft = await self._create(Ask("POST", "/messages", "create", body, MIME))
        draft = await self._patch(draft, {"singleValueExtendedProperties": [key_of(self.mail)]})
        await attach(self.calls, draft.id, self.mail, files, set(contents.files) - set(files))
        return draft

    async def _as_answer(self, contents: Contents, original: Original) -> Draft:
        """Graph makes the draft in the original's conversation (Thread-Index); then all of it becomes ours."""
        action = {"reply": "createReply", "reply_all": "createReplyAll", "forward": "createForward"}[original.answering]
        message = message_of(self.mail, self.own, contents, answers=True)
        expect_fits(len(encoded(message)))
        path = f"/messages/{quoted(original.message_id or '')}/{action}"
        ask = Ask("POST", path, action)
        if original.answering == "forward":
            # A forward without recipients is refused (learn.microsoft.com/graph/api/message-createforward, 2026-11).
            ask = with_json("POST", path, action, {"toRecipients": _everybody(message)})
        draft = await self._patch(await self._create(ask), message)
        left = await keep_those_of(self.calls, draft.id, contents.files)
        self.calls.expect_room(sum(file.size for file in left))
        there = [file for file in contents.files if file not in left]
        await attach(self.calls, draft.id, self.mail, left, there)
        return draft

    async def _create(self, ask: Ask) -> Draft:
        try:
            said = await self.calls.ask(ask)
        except NoAnswer as none:
            self.doubtful = none.begun
            raise
        except ContentLost:
            raise
        except BaseException:
            self.doubtful = True
            raise
        self.doubtful = said.status >= 500
        draft = draft_of(self.calls.expect(said, 200, 201))
        self.made = draft.id
        self.calls.crash_point("draft made")
        return draft

    async def _patch(self, draft: Draft, message: Json) -> Draft:
        said = await self.calls.ask(with_json("PATCH", f"/messages/{quoted(draft.id)}", "patch", message))
        now = self.calls.expect(said, 200)
        return Draft(
            draft.id,
            draft.message_id,
            now.get("conversationId") or draft.conversation_id,
            now.get("internetMessageId") or draft.rfc_message_id,
        )

    # ── those that an earlier preparation left ──────────────────────────────────────────────────────────────────────

    async def _adopted(self, route: Route) -> Draft | None:
        """The one left draft that is complete. All others with our key, or our Message-ID, are deleted."""
        kept = None
        for each in await self._left():
            draft = draft_of(each)
            if kept is None and await self._is_complete(draft, route):
                kept = draft
            else:
                await delete(self.calls, draft.id)
        self.made = kept.id if kept else None
        return kept

    async def _left(self) -> list[Json]:
        return await left_of(self.calls, str(self.mail.message_id), self.mail.rfc_message_id)

    async def _is_complete(self, draft: Draft, route: Route) -> bool:
        """A MIME draft is whole, but may lack its key; a JSON one may lack files; of the others nobody can tell."""
        if route == "mime":
            with suppress(Ended):
                await self._patch(draft, {"singleValueExtendedProperties": [key_of(self.mail)]})
                return True
            return False
        if route in ("answer", "slim"):
            return False
        contents = await take_apart(self.mail, keep=False)
        return sorted(file.name for file in contents.files) == sorted(
            str(each.get("name", "")) for each in await listed(self.calls, draft.id)
        )


def draft_of(message: Json) -> Draft:
    """A draft's ids, from Graph's message. Raises `Ended` if it has none."""
    identifier = message.get("id")
    if not isinstance(identifier, str) or not identifier:
        raise Ended(Failed("Graph made a draft and did not name it", evidence={"rule": "no-id"}))
    return Draft(identifier, identifier, message.get("conversationId"), message.get("internetMessageId"))


async def left_of(calls: Calls, key: str, rfc_message_id: str) -> list[Json]:
    """Drafts of this message. A MIME draft whose key was never written is known by its Message-ID alone."""
    found: dict[str, Json] = {}
    for condition in (of_key(key), of_rfc_id(rfc_message_id)):
        path = f"/mailFolders/drafts/messages?$filter={condition}&$select={_SELECT}&$top={_MOST}"
        for each in calls.values(await calls.ask(Ask("GET", path, "drafts")), "prepare"):
            if each.get("isDraft"):
                found.setdefault(str(each.get("id")), each)
    return list(found.values())


async def remove(calls: Calls, trace: Trace) -> Removed:
    """Take away the draft that is named, or else all with our key. Raises `Ended`, `NoAnswer`.

    A deleted message goes to Deleted Items (learn.microsoft.com/graph/api/message-delete, 2026-11), so this proves
    nothing about what a handover that is still under way may do.
    """
    named = [trace.draft.id] if trace.draft else []
    ids = named or [draft_of(each).id for each in await left_of(calls, str(trace.message_id), trace.rfc_message_id)]
    if not ids:
        return Removed("gone")
    done = [await delete(calls, each) for each in ids]
    return Removed("deleted" if all(done) else "failed")


async def delete(calls: Calls, draft_id: str) -> bool:
    """Take a draft away. False: it may still be there."""
    try:
        said = await calls.ask(Ask("DELETE", f"/messages/{quoted(draft_id)}", "delete"), ASIDE)
    except (Ended, NoAnswer):
        return False
    return said.status in (200, 204, 404)


def of_key(message_id: str) -> str:
    """A filter by our key (learn.microsoft.com/graph/api/singlevaluelegacyextendedproperty-get, 2026-11)."""
    return (
        f"singleValueExtendedProperties/Any(ep:%20ep/id%20eq%20{literal(KEY)}%20and%20ep/value%20eq%20"
        f"{literal(message_id)})"
    )


def of_rfc_id(rfc_message_id: str) -> str:
    return f"internetMessageId%20eq%20{literal(rfc_message_id)}"


def expect_fits(size: int) -> None:
    """Raises `Ended` for what is more than one request may hold."""
    if size > REQUEST:
        reason = "the text of the message is larger than the 4 MB that Graph takes in one request"
        raise Ended(Failed(reason, evidence={"rule": "size"}))


def _whole(message: Json, files: Sequence[File]) -> bytes | None:
    """The message with its files in it, if they are held and fit."""
    if not files:
        return encoded(message)
    if any(file.data is None for file in files) or sum(file.size for file in files) > REQUEST * 3 // 4:
        return None
    body = encoded({**message, "attachments": [file.with_bytes(file.data or b"") for file in files]})
    return body if len(body) <= REQUEST else None


def _everybody(message: Json) -> list[Json]:
    return [each for role in ("toRecipients", "ccRecipients", "bccRecipients") for each in message[role]][:1]
