"""Find: one message, many by page, and a message's journal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from outtray.door import Door, MailboxName
from outtray.plan import Plan, Row, rows
from outtray.sent_ids import known_ids, missing_ids
from outtray_schema.address import Address
from outtray_schema.content import Head, open_head
from outtray_schema.errors import NotFound, Problem, Refused

ENDED = frozenset({"sent", "drafted", "failed", "cancelled", "expired"})
STATES = ENDED | {"queued", "handing_over", "unknown"}
MOST = 500
"""Messages on a page, at most."""

_COLUMNS = """m.id, m.mailbox_id, m.state, m.due_at, m.priority, m.attempt, m.handover, m.created_at, m.ended_at,
    m.handed_at, m.handover_until, m.expires_at, m.may_have_left, m.cancel_asked_at, m.reason, m.evidence, m.tags,
    m.provider_id, m.rfc_message_id, m.conversation_id, m.size, m.only_draft, m.continues, m.follows, m.template,
    (SELECT c.id FROM outtray.message c WHERE c.continues = m.id) AS continued_in,
    ARRAY(SELECT r.result FROM outtray.recipient r WHERE r.message_id = m.id AND r.result IS NOT NULL ORDER BY r.n)
        AS results,
    (SELECT b.provider FROM outtray.mailbox b WHERE b.id = m.mailbox_id) AS provider,
    (SELECT c.head FROM outtray.content c WHERE c.message_id = m.id) AS head"""

# Reads one message of an app with its head; locks nothing.
GET = f"SELECT {_COLUMNS} FROM outtray.message m WHERE m.id = %(id)s AND m.app_id = %(app)s"

# Reads one message's journal, oldest first; locks nothing.
JOURNAL = """
SELECT j.at, j.kind, j.handover, j.actor, j.detail FROM outtray.journal j
WHERE j.message_id = %(id)s ORDER BY j.id
"""

# The ways into an app's messages, newest first: each follows an index, so a page costs what it shows.
_FILTER = """m.app_id = %(app)s AND (%(state)s::text IS NULL OR m.state = %(state)s)
    AND (%(mailbox)s::uuid IS NULL OR m.mailbox_id = %(mailbox)s)
    AND (%(tag)s::text IS NULL OR %(tag)s = ANY(m.tags))"""
# By a provider's own id, and by a Message-ID: as delivered, or ours, which holds the message's id.
_BY_PROVIDER_ID = f"""
SELECT {_COLUMNS} FROM outtray.message m
WHERE m.provider_id = %(provider_id)s AND m.id < %(before)s AND {_FILTER} ORDER BY m.id DESC LIMIT %(limit)s
"""
_BY_MESSAGE_ID = f"""
SELECT {_COLUMNS} FROM outtray.message m
WHERE (m.id = %(own_id)s::uuid OR m.rfc_message_id = %(rfc_message_id)s AND strpos(m.rfc_message_id, m.id::text) = 0)
    AND m.id < %(before)s AND {_FILTER} ORDER BY m.id DESC LIMIT %(limit)s
"""
_BY_RECIPIENT = f"""
SELECT {_COLUMNS} FROM (
    SELECT DISTINCT r.message_id FROM outtray.recipient r
    WHERE r.address_index = %(index)s AND r.message_id < %(before)s) AS r
JOIN outtray.message m ON m.id = r.message_id WHERE {_FILTER} ORDER BY m.id DESC LIMIT %(limit)s
"""
_BY_TAG = f"""
SELECT {_COLUMNS} FROM outtray.message_tag t JOIN outtray.message m ON m.id = t.message_id
WHERE t.app_id = %(app)s AND t.tag = %(tag)s AND t.message_id < %(before)s AND {_FILTER}
ORDER BY t.message_id DESC LIMIT %(limit)s
"""
_BY_STATE = f"""
SELECT {_COLUMNS} FROM outtray.message m
WHERE m.state = %(state)s AND m.state IN ('unknown', 'failed') AND m.id < %(before)s AND {_FILTER}
ORDER BY m.id DESC LIMIT %(limit)s
"""
_BY_MAILBOX = f"""
SELECT {_COLUMNS} FROM outtray.mailbox b CROSS JOIN LATERAL (
    SELECT * FROM outtray.message m
    WHERE m.mailbox_id = b.id AND m.id < %(before)s AND {_FILTER} ORDER BY m.id DESC LIMIT %(limit)s) AS m
WHERE b.app_id = %(app)s AND (%(mailbox)s::uuid IS NULL OR b.id = %(mailbox)s)
ORDER BY m.id DESC LIMIT %(limit)s
"""

_OWN_MESSAGE_ID = re.compile(r"<([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})@[^<>]+>")
_LAST = UUID(int=(1 << 128) - 1)
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class RecipientView:
    """One address of a message."""

    role: str
    address: str = field(repr=False)
    result: str | None = None
    """What became of it, where its server took some recipients and refused others; None: as the message."""


@dataclass(frozen=True, slots=True)
class MessageView:
    """A message as it stands. What it says and to whom is not in its repr, so that no log shows it.

    `may_have_left`: an earlier handover of it has no known outcome, so it may be with its recipients already.
    `reason` says why it is in its state, where there is more to say. Subject, recipients and metadata are empty once
    its content has been erased.
    """

    id: UUID
    mailbox_id: UUID
    state: str
    due_at: datetime | None
    priority: str
    attempt: int
    handover: int
    created_at: datetime
    ended_at: datetime | None
    handed_at: datetime | None
    handover_until: datetime | None
    expires_at: datetime | None
    may_have_left: bool
    cancel_asked_at: datetime | None
    reason: str | None
    evidence: Mapping[str, Any]
    tags: tuple[str, ...]
    provider_id: str | None
    rfc_message_id: str | None
    conversation_id: str | None
    missing_ids: Mapping[str, str]
    """Of a message that left: for each of the three ids that cannot be had, why."""
    provider: str | None
    mode: str
    """`send`, or `draft`: it ends as a draft for its person."""
    size: int
    sender: Address | None = field(repr=False)
    recipients: tuple[RecipientView, ...] = field(repr=False)
    subject: str = field(repr=False)
    metadata: Mapping[str, Any] = field(repr=False)
    continues: UUID | None = None
    """The message whose recipients, refused for now, this one goes on for."""
    follows: UUID | None = None
    """The message before it in its sequence."""
    template: str | None = None
    """The template that it was made from, as name@version."""
    continued_in: UUID | None = None
    """The message that goes on for recipients of this one."""

    @property
    def is_ended(self) -> bool:
        """Whether nothing will happen to it any more by itself."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One line of a message's history."""

    at: datetime
    kind: str
    handover: int | None
    actor: str | None
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some of many. `next_cursor` asks for the following page; `None`: this was the last."""

    items: Sequence[Item]
    next_cursor: str | None


def get(door: Door, message_id: UUID) -> Plan[MessageView]:
    """One message. Raises `NotFound`."""
    app_id = yield from door.app()
    found = yield from rows(GET, id=message_id, app=app_id)
    if not found:
        raise NotFound(f"there is no message {message_id} in the app {door.app_name!r}")
    return _view(door, found[0])


def journal(door: Door, message_id: UUID) -> Plan[list[JournalEntry]]:
    """All that happened to one message, oldest first. Raises `NotFound`."""
    yield from get(door, message_id)
    found = yield from rows(JOURNAL, id=message_id)
    return [JournalEntry(row["at"], row["kind"], row["handover"], row["actor"], row["detail"] or {}) for row in found]


def list_messages(
    door: Door,
    mailbox: MailboxName = None,
    state: str | None = None,
    tag: str | None = None,
    recipient: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
    provider_id: str | None = None,
    rfc_message_id: str | None = None,
) -> Plan[Page[MessageView]]:
    """A page of the app's messages, newest first. Raises `Refused` for a wrong filter, `NotFound` for a mailbox.

    `provider_id` and `rfc_message_id` (with its angle brackets) are compared exactly; a Message-ID that we gave finds
    its message even where the provider has replaced it.
    """
    _check_filters(state, limit)
    app_id = yield from door.app()
    parameters = {
        "app": app_id,
        "mailbox": (yield from mailbox_id_of(door, app_id, mailbox)) if mailbox is not None else None,
        "state": state,
        "tag": tag,
        "index": door.vault.blind_index(app_id, recipient) if recipient is not None else None,
        "before": _before(cursor),
        "limit": limit,
        "provider_id": provider_id,
        "rfc_message_id": rfc_message_id,
        "own_id": own_id_in(rfc_message_id) if rfc_message_id is not None else None,
    }
    sql = _way(state, tag, recipient)
    if provider_id is not None or rfc_message_id is not None:
        _refuse_both(provider_id, rfc_message_id, recipient)
        sql = _BY_PROVIDER_ID if provider_id is not None else _BY_MESSAGE_ID
    found = yield from rows(sql, **parameters)
    next_cursor = found[-1]["id"].hex if len(found) == limit else None
    return Page([_view(door, row) for row in found], next_cursor)


def mailbox_id_of(door: Door, app_id: UUID, name: MailboxName) -> Plan[UUID]:
    """The id of the mailbox that a name stands for. Raises `NotFound`."""
    found = yield from door.mailboxes(app_id, [name])
    if name not in found:
        raise NotFound("there is no such mailbox in this app; see `outtray mailbox list`")
    return found[name].id


def _way(state: str | None, tag: str | None, recipient: str | None) -> str:
    if recipient is not None:
        return _BY_RECIPIENT
    if tag is not None:
        return _BY_TAG
    return _BY_STATE if state in ("unknown", "failed") else _BY_MAILBOX


def _refuse_both(provider_id: str | None, rfc_message_id: str | None, recipient: str | None) -> None:
    if (provider_id is not None and rfc_message_id is not None) or recipient is not None:
        raise Refused(Problem("rfc_message_id", "give one of rfc_message_id, provider_id and recipient"))


def own_id_in(rfc_message_id: str) -> UUID | None:
    """The message's id in a Message-ID that we gave."""
    own = _OWN_MESSAGE_ID.fullmatch(rfc_message_id)
    return UUID(own[1]) if own else None


def _check_filters(state: str | None, limit: int) -> None:
    if state is not None and state not in STATES:
        raise Refused(Problem("state", f"{state!r} is none; it is one of {', '.join(sorted(STATES))}"))
    if not 1 <= limit <= MOST:
        raise Refused(Problem("limit", f"is from 1 to {MOST}"))


def _before(cursor: str | None) -> UUID:
    try:
        return UUID(hex=cursor) if cursor is not None else _LAST
    except ValueError:
        raise Refused(Problem("cursor", "is not one that a page gave; leave it out for the first page")) from None


_PRIORITY_NAMES = ("high", "normal", "low")


def _view(door: Door, row: Row) -> MessageView:
    head = open_head(door.vault, row["id"], row["head"]) if row["head"] is not None else None
    return MessageView(
        **{name: row[name] for name in _AS_STORED},
        priority=_PRIORITY_NAMES[row["priority"]],
        evidence=row["evidence"] or {},
        tags=tuple(row["tags"]),
        **known_ids(row),
        missing_ids=missing_ids(row),
        mode="draft" if row["only_draft"] else "send",
        sender=Address(head.sender, head.sender_name) if head else None,
        recipients=_recipients(head, row["results"]),
        subject=head.subject if head else "",
        metadata=head.metadata if head else {},
    )


_AS_STORED = (
    "id", "mailbox_id", "state", "due_at", "attempt", "handover", "created_at", "ended_at", "handed_at",
    "handover_until", "expires_at", "may_have_left", "cancel_asked_at", "reason", "size", "provider", "continues",
    "continued_in", "follows", "template",
)  # fmt: skip


def _recipients(head: Head | None, results: Sequence[str]) -> tuple[RecipientView, ...]:
    """All of them have a result, or none has."""
    if head is None:
        return ()
    said: Sequence[str | None] = results or [None] * len(head.recipients)
    return tuple(RecipientView(*each, result) for each, result in zip(head.recipients, said, strict=True))
