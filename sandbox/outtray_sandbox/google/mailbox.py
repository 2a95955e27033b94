"""One user's mailbox at the fake Gmail: messages, drafts, conversations, and the JSON in which Gmail shows them."""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import getaddresses
from typing import Any

_MESSAGE_ID = re.compile(rb"^message-id:[ \t]*(?:\r\n[ \t]+)?[^\r\n]*\r\n", re.IGNORECASE | re.MULTILINE)
_REPLY = re.compile(r"^(?:(?:re|fwd?|aw|wg)\s*:\s*)+", re.IGNORECASE)


@dataclass
class Stored:
    """A message or a draft's message. `parsed` holds its text only where its size allowed to keep it."""

    id: str
    thread_id: str
    labels: set[str]
    at: float
    size: int
    parsed: EmailMessage
    raw: bytes | None = field(repr=False, default=None)
    attachments: dict[str, bytes] = field(default_factory=dict, repr=False)

    def header(self, name: str) -> str:
        return str(self.parsed.get(name, ""))

    @property
    def rfc_message_id(self) -> str:
        return self.header("Message-ID").strip()


class Mailbox:
    def __init__(self, now: Callable[[], float], keep: int) -> None:
        self._now = now
        self._keep = keep
        self.messages: dict[str, Stored] = {}
        self.drafts: dict[str, str] = {}
        """Draft id → id of its message. Neither is ever the other's."""

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, raw: bytes, labels: Iterable[str], thread_id: str | None, at: float | None = None) -> Stored:
        """File a message as it stands; without `thread_id` it begins a conversation."""
        message_id = new_id()
        parsed = parse(raw, self._keep)
        kept = raw if len(raw) <= self._keep or "DRAFT" in labels else None
        at = self._now() if at is None else at
        stored = Stored(message_id, thread_id or message_id, set(labels), at, len(raw), parsed, kept)
        self.messages[message_id] = stored
        return stored

    def add_draft(self, raw: bytes, thread_id: str | None) -> tuple[str, Stored]:
        stored = self.add(raw, ("DRAFT",), thread_id)
        draft_id = f"r{secrets.randbelow(9 * 10**18) + 10**18}"
        self.drafts[draft_id] = stored.id
        return draft_id, stored

    def remove(self, message_id: str) -> None:
        """Delete a message; a draft's id goes with it."""
        self.messages.pop(message_id, None)
        self.drafts = {draft: of for draft, of in self.drafts.items() if of != message_id}

    def draft(self, draft_id: str) -> Stored | None:
        return self.messages.get(self.drafts.get(draft_id, ""))

    # ── looks ───────────────────────────────────────────────────────────────────────────────────────────────────

    def newest(self, labels: Iterable[str] = ()) -> list[Stored]:
        wanted = set(labels)
        found = [each for each in self.messages.values() if wanted <= each.labels]
        return sorted(found, key=lambda each: each.at, reverse=True)

    def thread(self, thread_id: str) -> list[Stored]:
        found = [each for each in self.messages.values() if each.thread_id == thread_id]
        return sorted(found, key=lambda each: each.at)

    def joins(self, thread_id: str, raw: bytes) -> bool:
        """Whether a message may join a conversation that was asked for: References and subject must match as well."""
        new = parse(raw, 0)
        named = set(re.findall(r"<[^<>\s]+>", f"{new.get('References', '')} {new.get('In-Reply-To', '')}"))
        others = [each for each in self.thread(thread_id) if "DRAFT" not in each.labels]
        same_subject = any(
            bare_subject(each.header("Subject")) == bare_subject(str(new.get("Subject", ""))) for each in others
        )
        return same_subject and any(each.rfc_message_id in named for each in others)


def new_id() -> str:
    """16 hexadecimal digits, as Gmail's are."""
    return f"19{secrets.token_hex(7)}"


def new_rfc_message_id() -> str:
    return f"<CA{secrets.token_urlsafe(40)}@mail.gmail.com>"


def bare_subject(subject: str) -> str:
    return _REPLY.sub("", " ".join(subject.split())).casefold()


def parse(raw: bytes, keep: int) -> EmailMessage:
    """The headers always, the rest up to `keep` bytes."""
    data = raw if len(raw) <= keep else raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    parsed = message_from_bytes(data, policy=policy.default)
    assert isinstance(parsed, EmailMessage)  # noqa: S101 (what the default policy makes)
    return parsed


def with_message_id(raw: bytes, rfc_message_id: str) -> bytes:
    """The same mail under another Message-ID."""
    head, gap, rest = raw.partition(b"\r\n\r\n")
    lines = _MESSAGE_ID.sub(b"", head + b"\r\n")
    return lines + f"Message-ID: {rfc_message_id}\r\n".encode() + gap[2:] + rest


def addresses(parsed: EmailMessage, *names: str) -> tuple[str, ...]:
    values = [str(value) for name in names for value in parsed.get_all(name, [])]
    return tuple(address for _, address in getaddresses(values) if address)


# ── as Gmail shows it ───────────────────────────────────────────────────────────────────────────────────────────────


def shown(stored: Stored, form: str, only: Iterable[str] = ()) -> dict[str, Any]:
    """A message in the format `minimal`, `metadata`, `full` or `raw`; `only` names the headers of `metadata`."""
    said: dict[str, Any] = {
        "id": stored.id,
        "threadId": stored.thread_id,
        "labelIds": sorted(stored.labels),
        "snippet": "",
        "sizeEstimate": stored.size,
        "historyId": "1",
        "internalDate": str(int(stored.at * 1000)),
    }
    if form == "raw":
        said["raw"] = encoded(stored.raw or b"")
    elif form == "metadata":
        wanted = {name.lower() for name in only}
        headers = [each for each in _headers(stored.parsed) if not wanted or each["name"].lower() in wanted]
        said["payload"] = {"mimeType": stored.parsed.get_content_type(), "headers": headers}
    elif form == "full":
        said["payload"] = _part(stored, stored.parsed, "")
    return said


def _headers(part: EmailMessage) -> list[dict[str, str]]:
    return [{"name": name, "value": str(value)} for name, value in part.items()]


def _part(stored: Stored, part: EmailMessage, number: str) -> dict[str, Any]:
    said: dict[str, Any] = {
        "partId": number,
        "mimeType": part.get_content_type(),
        "filename": part.get_filename() or "",
        "headers": _headers(part),
    }
    if part.is_multipart():
        said["body"] = {"size": 0}
        said["parts"] = [
            _part(stored, each, f"{number}{'.' if number else ''}{n}") for n, each in enumerate(_inner(part))
        ]
        return said
    data = part.get_payload(decode=True)
    data = data if isinstance(data, bytes) else b""
    if said["filename"]:
        attachment_id = f"ANGjdJ{number}{stored.id}"
        stored.attachments[attachment_id] = data
        said["body"] = {"attachmentId": attachment_id, "size": len(data)}
    else:
        said["body"] = {"size": len(data), "data": encoded(data)}
    return said


def _inner(part: EmailMessage) -> Iterator[EmailMessage]:
    for each in part.iter_parts():
        assert isinstance(each, EmailMessage)  # noqa: S101 (what the default policy makes)
        yield each


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()
