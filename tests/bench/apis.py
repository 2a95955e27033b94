"""What the HTTP sink speaks of the two APIs: enough for a mail to leave and be seen again, by hand, and nothing more.

    /<ledger>/gmail/v1/users/me/…    drafts, drafts/send, messages/send, messages/{id}
    /<ledger>/v1.0/me/…              messages (JSON or MIME), messages/{id}, messages/{id}/send, sendMail

Any token will do. A draft is consumed once: sent or asked for again, there is none. What leaves is counted by its
message's id, which is read out of the mail itself; every request is counted by its operation. Graph shows its copy at
once, sooner than the real one ever does.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import count
from typing import Any

GMAIL, GRAPH = b"gmail/v1/users/me/", b"v1.0/me/"

Reply = tuple[int, bytes]
NOT_FOUND: Reply = (404, b'{"error":{"code":"NotFound","message":"Not Found"}}')

_NUMBERS = count(0x18C0_0000_0000_0000)
_RAW = b'"raw": "'
_FRONT = 72
"""Characters of base64 that hold the first line of what Gmail gets: our key's header."""
_MIME_HEAD = 4096
"""Characters of base64 within which a frozen mail names its Message-ID."""
_UUID = rb"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
_GMAIL_KEY = re.compile(rb"(?i)^x-outtray-key: " + _UUID)
_GRAPH_KEY = re.compile(rb'OutboxKey","value":"' + _UUID)
_MESSAGE_ID = re.compile(rb"(?im)^message-id:\s*<" + _UUID)


class Mailboxes:
    """What one ledger's run left at both providers. `taken`: the ledger, key by key."""

    def __init__(self, taken: Counter[bytes]) -> None:
        self.requests: Counter[str] = Counter()
        self._taken = taken
        self._drafts: dict[bytes, bytes] = {}
        self._sent: set[bytes] = set()

    def answer(self, method: bytes, path: bytes, head_key: bytes, body: bytes) -> Reply:
        """`path` below the ledger. `head_key`: the baseline's, whose mails have no key in them."""
        path = path.partition(b"?")[0]
        gmail = path.startswith(GMAIL)
        *_, before, last = (b"", *path.removeprefix(GMAIL if gmail else GRAPH).split(b"/"))
        if gmail:
            return self._gmail(method, before, last, head_key, body)
        return self._graph(method, before, last, body)

    # ── Gmail ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _gmail(self, method: bytes, before: bytes, last: bytes, head_key: bytes, body: bytes) -> Reply:
        answer: Callable[[], Reply]
        match method, before, last:
            case b"POST", _, b"drafts":
                operation, answer = "drafts.create", lambda: self._gmail_draft(_of_gmail(body))
            case b"POST", b"drafts", b"send":
                operation, answer = "drafts.send", lambda: self._gmail_send_draft(json.loads(body)["id"].encode())
            case b"POST", b"messages", b"send":
                operation, answer = "messages.send", lambda: self._gmail_sent(head_key or _of_gmail(body))
            case b"GET", b"messages", number:
                operation, answer = "messages.get", lambda: self._gmail_message(number)
            case b"DELETE", b"drafts", number:
                operation, answer = "drafts.delete", lambda: self._deleted(number)
            case _:
                return NOT_FOUND
        return self._counted(operation, answer)

    def _gmail_draft(self, key: bytes) -> Reply:
        number = self._new_draft(key)
        return 200, b'{"id":"%b","message":{"id":"%b","threadId":"%b"}}' % (number, number, number)

    def _gmail_send_draft(self, number: bytes) -> Reply:
        key = self._drafts.pop(number, None)
        return NOT_FOUND if key is None else self._gmail_sent(key)

    def _gmail_sent(self, key: bytes) -> Reply:
        number = self._left(key, b"%x" % next(_NUMBERS))
        return 200, b'{"id":"%b","threadId":"%b","labelIds":["SENT"]}' % (number, number)

    def _gmail_message(self, number: bytes) -> Reply:
        if number not in self._sent:
            return NOT_FOUND
        header = b'{"name":"Message-ID","value":"<CA%b@mail.gmail.com>"}' % number
        shown = (number, number, header)
        return 200, b'{"id":"%b","threadId":"%b","labelIds":["SENT"],"payload":{"headers":[%b]}}' % shown

    # ── Graph ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _graph(self, method: bytes, before: bytes, last: bytes, body: bytes) -> Reply:
        answer: Callable[[], Reply]
        match method, before, last:
            case b"POST", _, b"sendMail":
                operation, answer = "sendMail", lambda: self._graph_sent(_of_graph(body))
            case b"POST", _, b"messages":
                operation, answer = "create", lambda: self._graph_draft(_of_graph(body))
            case b"POST", number, b"send":
                operation, answer = "send", lambda: self._graph_send_draft(number)
            case b"PATCH", b"messages", number:
                operation, answer = "patch", lambda: self._graph_message(200, number)
            case b"GET", b"messages", number:
                operation, answer = "message", lambda: self._graph_message(200, number)
            case b"DELETE", b"messages", number:
                operation, answer = "delete", lambda: self._deleted(number)
            case _:
                return NOT_FOUND
        return self._counted(operation, answer)

    def _graph_draft(self, key: bytes) -> Reply:
        return self._graph_message(201, self._new_draft(key))

    def _graph_send_draft(self, number: bytes) -> Reply:
        key = self._drafts.pop(number, None)
        if key is None:
            return NOT_FOUND
        self._left(key, number)
        return 202, b""

    def _graph_sent(self, key: bytes) -> Reply:
        self._left(key, b"%x" % next(_NUMBERS))
        return 202, b""

    def _graph_message(self, status: int, number: bytes) -> Reply:
        if number not in self._drafts and number not in self._sent:
            return NOT_FOUND
        is_draft = b"true" if number in self._drafts else b"false"
        return status, b'{"id":"%b","conversationId":"c%b","isDraft":%b}' % (number, number, is_draft)

    # ── both ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _counted(self, operation: str, answer: Callable[[], Reply]) -> Reply:
        self.requests[operation] += 1
        return answer()

    def _new_draft(self, key: bytes) -> bytes:
        number = b"r%x" % next(_NUMBERS)
        self._drafts[number] = key
        return number

    def _left(self, key: bytes, number: bytes) -> bytes:
        """A mail has left: into the ledger."""
        self._taken[key] += 1
        self._sent.add(number)
        return number

    def _deleted(self, number: bytes) -> Reply:
        return NOT_FOUND if self._drafts.pop(number, None) is None else (204, b"")


class Apis(defaultdict[bytes, Mailboxes]):
    """The mailboxes of every ledger."""

    def __init__(self, ledgers: defaultdict[bytes, Counter[bytes]]) -> None:
        super().__init__()
        self._ledgers = ledgers

    def __missing__(self, ledger: bytes) -> Mailboxes:
        made = self[ledger] = Mailboxes(self._ledgers[ledger])
        return made


def is_api(path: bytes) -> bool:
    """Whether a path below the ledger is one of the two APIs'."""
    return path.startswith((GMAIL, GRAPH))


def shown(mailboxes: Mailboxes) -> bytes:
    counted: dict[str, Any] = dict(mailboxes.requests)
    return json.dumps(counted).encode()


def _of_gmail(body: bytes) -> bytes:
    """The key in `{"raw": "…"}`, alone or within `{"message": …}`."""
    begin = body.index(_RAW) + len(_RAW)
    return _found(_GMAIL_KEY, base64.urlsafe_b64decode(body[begin : begin + _FRONT]))


def _of_graph(body: bytes) -> bytes:
    """The key in a message's JSON, or the local part of the Message-ID in a MIME: both are the message's id."""
    if body.startswith(b"{"):
        return _found(_GRAPH_KEY, body)
    return _found(_MESSAGE_ID, base64.b64decode(body[:_MIME_HEAD]))


def _found(pattern: re.Pattern[bytes], text: bytes) -> bytes:
    found = pattern.search(text)
    if found is None:
        raise ValueError("a mail without its key")
    return found[1]
