"""The three handovers: a draft is sent, a message is sent, the last piece of an uploaded message is sent.

Each is one request. What follows it (reading the Message-ID that Gmail assigned) is best effort and short.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from outtray_schema.outcome import Drafted, Evidence, NotBegun, Outcome, Sent
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Draft, Mail
from outtray_worker.providers.gmail.reading import read_back
from outtray_worker.providers.gmail.upload import Upload
from outtray_worker.providers.web import Answer, Request

if TYPE_CHECKING:
    from outtray_worker.providers.gmail.session import GmailSession

READ_BACK = timedelta(seconds=5)
"""What the assigned Message-ID may cost a handover that is answered: nothing of it is recorded before."""


class GmailPrepared(ABC):
    """A mail that lacks only its handover."""

    about = ""

    def __init__(self, session: GmailSession, mail: Mail) -> None:
        self._session = session
        self._mail = mail
        self._spent = False

    @property
    def draft(self) -> Draft | None:
        return None

    async def hand_over(self, begin_by: Deadline, answer_by: Deadline) -> Outcome:
        """Commit, then read what Gmail assigned."""
        if self._spent:
            return NotBegun("this mail was handed over or given up before", evidence={"rule": "spent"})
        self._spent = True
        if begin_by.passed:
            return NotBegun("the time to begin the handover had passed", evidence={"rule": "too-late"})
        answer = await self._commit(begin_by, answer_by)
        if not isinstance(answer, Answer):
            return answer
        outcome = self._outcome(answer)
        if not isinstance(outcome, Sent):
            return outcome
        return await read_back(self._session, outcome, Deadline.after(READ_BACK).earlier(answer_by))

    @abstractmethod
    async def _commit(self, begin_by: Deadline, answer_by: Deadline) -> Answer | Outcome:
        """The one request, once; its answer, or the outcome without one."""

    async def abandon(self) -> None:
        self._spent = True

    def _outcome(self, answer: Answer) -> Outcome:
        caller = self._session.caller
        near_quota = caller.recent.near_quota
        row, signal = caller.judge(answer, "commit", self.about)
        if row.becomes != "sent":
            return caller.refused(answer, "commit", self.about)
        caller.recent.clear()
        said: dict[str, Any] = answer.json() or {}
        thread = said.get("threadId")
        evidence: dict[str, Any] = dict(caller.evidence(row, signal))
        if near_quota:
            evidence["look_again"] = True
        asked = self._asked_thread()
        if asked and thread != asked:
            evidence["conversation"] = "Gmail began a new conversation instead of joining the one that was answered"
        return Sent(said["id"], None, thread if isinstance(thread, str) else None, _short(evidence))

    def _asked_thread(self) -> str | None:
        original = self._mail.original
        return original.conversation_id if original and original.answering != "forward" else None


class ByDraft(GmailPrepared):
    """`drafts.send`. A draft is consumed once, so the same one can be sent again without sending twice."""

    about = "drafts.send"

    def __init__(self, session: GmailSession, mail: Mail, draft: Draft) -> None:
        super().__init__(session, mail)
        self._draft = draft

    @property
    def draft(self) -> Draft:
        return self._draft

    async def hand_over(self, begin_by: Deadline, answer_by: Deadline) -> Outcome:
        if self._mail.only_draft and not self._spent:
            self._spent = True
            draft = self._draft
            return Drafted(draft.id, None, draft.conversation_id, {"rfc_message_id": "Gmail assigns it on sending"})
        return await super().hand_over(begin_by, answer_by)

    async def _commit(self, begin_by: Deadline, answer_by: Deadline) -> Answer | Outcome:
        api, named = self._session.api, self._session.api.send_draft(self._draft.id)
        return await self._session.caller.commit(lambda token: api.on_wire(named, token), begin_by, answer_by)

    async def abandon(self) -> None:
        """Delete a draft that no gate bound; a bound one stays."""
        if self._spent:
            return
        self._spent = True
        if self._mail.draft is None:
            await self._session.delete_draft(self._draft.id)


class BySend(GmailPrepared):
    """`messages.send`, as JSON or multipart."""

    about = "messages.send"

    def __init__(self, session: GmailSession, mail: Mail, make: Callable[[str], Request]) -> None:
        super().__init__(session, mail)
        self._make = make

    async def _commit(self, begin_by: Deadline, answer_by: Deadline) -> Answer | Outcome:
        return await self._session.caller.commit(self._make, begin_by, answer_by)

    def _outcome(self, answer: Answer) -> Outcome:
        if answer.status == 404 and self._asked_thread():
            return self._session.caller.refused(answer, "commit", f"{self.about} in a thread")
        return super()._outcome(answer)


class BySendUpload(GmailPrepared):
    """The last piece of a resumable upload to `messages.send`: a PUT, on a connection of its own."""

    def __init__(self, session: GmailSession, mail: Mail, upload: Upload, last: bytes, start: int, end: int) -> None:
        super().__init__(session, mail)
        self.about = upload.about
        self._upload, self._last, self._start, self._end = upload, last, start, end

    async def _commit(self, begin_by: Deadline, answer_by: Deadline) -> Answer | Outcome:
        def make(token: str) -> Request:
            return self._upload.piece(token, self._last, self._start, self._end)

        return await self._session.caller.commit(make, begin_by, answer_by, fresh=True)


def _short(evidence: dict[str, Any]) -> Evidence:
    """A success's evidence: nothing empty."""
    return {name: value for name, value in evidence.items() if value not in ("", None)}
