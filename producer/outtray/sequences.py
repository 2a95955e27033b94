"""Sequences at the door: the message that each follows, in the tables or before it in the same batch.

A producer locks no row that a worker writes: a follower of a message that is stored already is entered in
`outtray.following`, and the dispatcher marks that message. What comes in one batch is marked in the insert itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeVar
from uuid import UUID

from outtray.door import Door, MailboxFacts
from outtray.plan import Plan, Row, rows
from outtray_schema.address import Address
from outtray_schema.answering import answered_subject, asked_of
from outtray_schema.content import Head, open_head
from outtray_schema.errors import InvalidMessage, Problem
from outtray_schema.message import Message
from outtray_schema.sequence import goes_on_after, is_threaded, possible_id

# Reads messages of an app by id or idempotency key, with their heads; locks nothing.
FIND = """
SELECT m.id, m.idempotency, m.mailbox_id, m.only_draft,
    (SELECT c.head FROM outtray.content c WHERE c.message_id = m.id) AS head
FROM outtray.message m
WHERE m.app_id = %(app)s AND (m.id = ANY(%(ids)s::uuid[]) OR m.idempotency = ANY(%(keys)s::bytea[]))
"""

# Enters followers for the dispatcher to look at; locks nothing but what it inserts.
ENTER = "INSERT INTO outtray.following (message_id) SELECT unnest(%(ids)s::uuid[])"

BEFORE_REFUSED = Problem("follows", "the message before it was refused")
NO_PREDECESSOR = "is no message of this app, nor one before it in the same call; enqueue that one first"


@dataclass(frozen=True, slots=True)
class Before:
    """The message that another one follows, as far as the door must know it."""

    id: UUID
    mailbox_id: UUID
    only_draft: bool
    to: tuple[Address, ...] = field(repr=False)
    cc: tuple[Address, ...] = field(repr=False)
    bcc: tuple[Address, ...] = field(repr=False)
    subject: str = field(repr=False)
    row: dict[str, Any] | None = field(default=None, repr=False)
    """Its row, where it comes in the same batch."""


@dataclass(frozen=True, slots=True)
class Follow:
    """That a message follows another one, and whether in its thread."""

    before: Before
    threaded: bool

    def asked(self, message: Message, headers: int, date: datetime) -> dict[str, Any]:
        """What is stored of the message until its place in the thread, and its Date, are known."""
        asked = asked_of(message, self.before.id, headers, date)
        if message.in_reply_to or message.references:
            asked["fields"] |= {"in_reply_to": message.in_reply_to, "references": message.references}
        return asked | {"follows": self.threaded}


class Family:
    """What the messages of a batch can follow: those that are stored, and those that came before them in the batch."""

    def __init__(self, door: Door, app_id: UUID, found: Iterable[Row] = ()) -> None:
        self._vault, self._app_id = door.vault, app_id
        self._stored: dict[UUID | bytes, Row] = {}
        for row in found:
            self._stored[row["id"]] = row
            if row["idempotency"] is not None:
                self._stored[bytes(row["idempotency"])] = row
        self._here: dict[str, Before] = {}

    def add(self, message: Message, message_id: UUID, row: dict[str, Any]) -> None:
        """Let later messages of the batch follow this one."""
        if message.idempotency_key is not None:
            people = message.to, message.cc, message.bcc
            draft = message.mode == "draft"
            self._here[message.idempotency_key] = Before(
                message_id, row["mailbox_id"], draft, *people, message.subject, row
            )

    def follow(self, message: Message, box: MailboxFacts) -> Follow | None:
        """What this message follows. Raises `InvalidMessage` if that cannot be."""
        if message.follows is None:
            return None
        before = self._before(message.follows)
        if before is None:
            raise InvalidMessage(Problem("follows", NO_PREDECESSOR))
        hinders = _why_no_thread(before, box)
        if message.thread and hinders is not None:
            raise InvalidMessage(Problem("thread", hinders))
        return Follow(before, is_threaded(message) and hinders is None)

    def _before(self, name: UUID | str) -> Before | None:
        if isinstance(name, str) and name in self._here:
            return self._here[name]
        own_id = possible_id(name)
        row = self._stored.get(own_id) if own_id is not None else None
        if row is None and isinstance(name, str):
            row = self._stored.get(_key(self._vault, self._app_id, name))
        return self._of_row(row) if row is not None else None

    def _of_row(self, row: Row) -> Before:
        head = open_head(self._vault, row["id"], row["head"]) if row["head"] is not None else None
        people = _people(head) if head is not None else ((), (), ())
        return Before(row["id"], row["mailbox_id"], row["only_draft"], *people, head.subject if head else "")


def _key(vault: Any, app_id: UUID, key: str) -> bytes:
    hashed: bytes = vault.keyed_hash(app_id, "idempotency", key.encode())
    return hashed


def _people(head: Head) -> tuple[tuple[Address, ...], tuple[Address, ...], tuple[Address, ...]]:
    return head.addresses("to"), head.addresses("cc"), head.addresses("bcc")


def _why_no_thread(before: Before, box: MailboxFacts) -> str | None:
    if before.mailbox_id != box.id:
        return "the message before it leaves from another mailbox, so it begins a thread of its own; leave thread out"
    if before.only_draft:
        return "the message before it becomes a draft, which may never be sent; leave thread out"
    return None


def find_family(door: Door, app_id: UUID, messages: Sequence[Message]) -> Plan[Family]:
    """What these messages can follow. No statement where none follows any."""
    names = {message.follows for message in messages if message.follows is not None}
    names -= {message.idempotency_key for message in messages}
    if not names:
        return Family(door, app_id)
    found = yield from rows(
        FIND,
        app=app_id,
        ids=[own_id for name in names if (own_id := possible_id(name)) is not None],
        keys=[_key(door.vault, app_id, name) for name in names if isinstance(name, str)],
    )
    return Family(door, app_id, found)


def completed(message: Message, follow: Follow | None) -> Message:
    """The message with what it takes from the one before it: who receives it, and in its thread the subject.

    Raises `InvalidMessage` if nobody is known to receive it.
    """
    if follow is None:
        return message
    before = follow.before
    changes: dict[str, Any] = {}
    if not message.recipients:
        changes |= {"to": before.to, "cc": before.cc, "bcc": before.bcc}
        if not (before.to or before.cc or before.bcc):
            raise InvalidMessage(Problem("to", "does not follow from the message before it; give it"))
    if follow.threaded and not message.subject and before.subject:
        changes |= {"subject": answered_subject(before.subject, forward=False)}
    fields = {name: getattr(message, name) for name in Message.model_fields}
    return Message(**(fields | changes)) if changes else message


def columns(message: Message, follow: Follow | None, template: str | None) -> dict[str, Any] | None:
    """What most messages have nothing of, as JSON: what a follower follows; and the message before it is marked."""
    made_from = {"template": template} if template is not None else None
    if follow is None:
        return made_from
    if (row := follow.before.row) is not None:
        row["more"] = {**(row["more"] or {}), "has": True}
    return {
        **(made_from or {}),
        "follows": str(follow.before.id),
        "after": f"{message.after.total_seconds()} s",
        "from": message.send_at.isoformat() if message.send_at else None,
        "go_on": ",".join(goes_on_after(message.on_predecessor)),
    }


# ── the order in which a batch is stored ────────────────────────────────────────────────────────────────────────────


class Follower(Protocol):
    """A message as it will be stored."""

    id: UUID
    row: dict[str, Any]
    follow: Follow | None


F = TypeVar("F", bound=Follower)


def generations(batch: Sequence[F]) -> list[list[F]]:
    """The batch in the order in which it is stored: first what follows none of it. A message names an earlier one."""
    depths: dict[UUID, int] = {}
    found: list[list[F]] = []
    for each in batch:
        inside = each.follow is not None and each.follow.before.row is not None
        depth = depths.get(each.follow.before.id, -1) + 1 if inside and each.follow is not None else 0
        depths[each.id] = depth
        if depth == len(found):
            found.append([])
        found[depth].append(each)
    return found


def attach(each: Follower, stored: Mapping[UUID, Any]) -> InvalidMessage | bool:
    """Name the message before it as it is stored: an earlier call may have brought that one, under another id.

    True: that message does not know of this one yet. An error: it was refused, and so is this one.
    """
    if each.follow is None:
        return False
    before = each.follow.before
    if before.row is None:
        return True
    real = getattr(stored.get(before.id), "id", None)
    if real is None:
        return InvalidMessage(BEFORE_REFUSED)
    each.row["more"]["follows"] = str(real)
    return bool(real != before.id)


def enter(ids: Sequence[UUID]) -> Plan[None]:
    """Let the dispatcher look at these followers. No statement where there are none."""
    if ids:
        yield from rows(ENTER, ids=list(ids))
