"""Which way a mail takes, and what cannot be sent at all.

| granted | the mail | way |
|---|---|---|
| Mail.Send and Mail.ReadWrite | answers a message of the mailbox | `answer`: createReply and its like |
| | has headers that JSON cannot carry, is from the mailbox itself | `mime`: a draft from MIME |
| | the same, larger than 4 MB | `slim`: a draft from MIME without its files, which follow by upload |
| | any other | `json`: a draft from JSON, files by upload |
| Mail.Send | fits 4 MB | `send mime`, or `send json` from another address: sendMail |
"""

from __future__ import annotations

from typing import Literal

from outtray_schema.outcome import Failed, Held
from outtray_worker.providers import Mail
from outtray_worker.providers.microsoft.calls import Ended
from outtray_worker.providers.microsoft.letter import REQUEST, as_base64, beyond_json, hidden, same
from outtray_worker.providers.microsoft.parts import Headers
from outtray_worker.providers.microsoft.scopes import Grant

Route = Literal["answer", "mime", "slim", "json", "send mime", "send json"]


def route_of(mail: Mail, headers: Headers, own: str, grant: Grant) -> Route:
    """Raises `Ended` for a mail that no way can carry."""
    if grant.lacks(mail.only_draft):
        raise Ended(Held("the consent lacks Mail.Send: connect the mailbox again", evidence={"rule": "no-scope"}))
    itself = same(mail.sender, own)
    fits = as_base64(mail, hidden(mail, headers))[0] <= REQUEST
    if not grant.drafts:
        return _at_once(mail, headers, itself, fits)
    answers = mail.original is not None and mail.original.message_id is not None
    beyond = beyond_json(headers, answers)
    if mail.as_mime:
        beyond = beyond or ["the form of the mail"]
        if mail.unaltered and not fits:
            raise Ended(_too_large())
    if not beyond:
        return "answer" if answers else "json"
    # A MIME draft ignores a From that is not the mailbox's own (learn.microsoft.com/graph/outlook-send-mime-message).
    if itself:
        return "mime" if fits else "slim"
    raise Ended(_cannot_carry(beyond))


def _at_once(mail: Mail, headers: Headers, itself: bool, fits: bool) -> Route:
    if mail.only_draft:
        reason = "drafts need the permission Mail.ReadWrite: connect the mailbox again"
        raise Ended(Failed(reason, evidence={"rule": "no-scope"}))
    if itself and fits:
        return "send mime"
    if not itself and ((beyond := beyond_json(headers, False)) or mail.as_mime):
        raise Ended(_cannot_carry(beyond or ["the form of the mail"]))
    if itself:
        reason = "larger than the 4 MB that sendMail takes: files by upload need the permission Mail.ReadWrite"
        raise Ended(Failed(reason, evidence={"rule": "size"}))
    return "send json"


def _too_large() -> Failed:
    return Failed("a raw mail goes to Microsoft Graph whole, in one request of 4 MB", evidence={"rule": "size"})


def _cannot_carry(names: list[str]) -> Failed:
    shown = ", ".join(sorted(set(names))[:5])
    reason = f"Microsoft Graph cannot carry these headers from another address than the mailbox's own: {shown}"
    return Failed(reason, evidence={"rule": "headers"})
