"""Enqueue: accept messages durably, in one statement, idempotently.

A message is judged and frozen here, before PostgreSQL sees it (but for what follows from a message that it answers and
that is not known yet); then one statement inserts messages, recipients, tags, content, journal and events from `unnest`
arrays. What stood there already under the same idempotency key is looked up and answered with. Content above 1 MiB
follows in chunks, in the same transaction, one chunk in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from outtray import refusals, sequences, windows
from outtray.attachments import File, Files, files_of, find_files, hold_files, refer_to_files
from outtray.door import Door, MailboxFacts, is_external, problems_of, size_problems
from outtray.originals import Answered, Originals, answer, find_originals
from outtray.plan import Begin, Commit, Plan, Rollback, Row, Statement, Wake, Wakes, add_wakes
from outtray.raws import raw_problems, refuse_taken
from outtray_schema import bindings
from outtray_schema.answering import asked_of
from outtray_schema.content import Head, sealed_content
from outtray_schema.errors import IdempotencyConflict, InvalidMessage, Problem, Refused
from outtray_schema.ids import new_id
from outtray_schema.message import PRIORITIES, Message, Recipient
from outtray_schema.mime import MIB, freeze, new_rfc_message_id
from outtray_schema.quoting import MOST
from outtray_schema.raw import headers_of
from outtray_schema.request_hash import differing_fields, request_hash

# Inserts messages and all that belongs to them; locks nothing but what it inserts. A key that another transaction is
# just inserting is waited for. The mailbox is only read: a long transaction of a producer's blocks no turn.
INSERT = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
asked AS MATERIALIZED (
    SELECT * FROM unnest(
        %(id)b::uuid[], %(mailbox_id)b::uuid[], %(idempotency)b::bytea[], %(request_hash)b::bytea[],
        %(due_at)b::timestamptz[], %(priority)b::smallint[], %(give_up_after)b::interval[],
        %(expires_at)b::timestamptz[], %(on_unknown)b::text[], %(recipients)b::int[], %(external)b::int[],
        %(size)b::bigint[], %(rfc_message_id)b::text[], %(tags)b::text[], %(head)b::bytea[], %(body)b::bytea[],
        %(body_hash)b::bytea[], %(only_draft)b::bool[], %(times)b::jsonb[],
        %(more)b::jsonb[])
    AS a (id, mailbox_id, idempotency, request_hash, due_at, priority, give_up_after, expires_at, on_unknown,
        recipients, external, size, rfc_message_id, tags, head, body, body_hash, only_draft, times, more)),
accepted AS (
    INSERT INTO outtray.message (id, app_id, mailbox_id, idempotency, request_hash, due_at, priority, give_up_after,
        expires_at, on_unknown, recipients, external, size, rfc_message_id, tags, created_at, only_draft, times,
        follows, follow_after, follow_from, go_on, has_followers, template)
    SELECT a.id, %(app)b, a.mailbox_id, a.idempotency, a.request_hash,
        CASE WHEN a.more->>'follows' IS NULL THEN coalesce(a.due_at, t.now) END, a.priority,
        a.give_up_after, a.expires_at, a.on_unknown, a.recipients, a.external, a.size, a.rfc_message_id,
        string_to_array(a.tags, E'\\x1f'), t.now, a.only_draft, a.times,
        (a.more->>'follows')::uuid, (a.more->>'after')::interval, (a.more->>'from')::timestamptz,
        string_to_array(a.more->>'go_on', ','), coalesce((a.more->>'has')::bool, false),
        a.more->>'template'
    FROM asked a, t
    WHERE EXISTS (
        SELECT FROM outtray.mailbox b WHERE b.id = a.mailbox_id AND b.app_id = %(app)b AND b.status <> 'disabled')
    ON CONFLICT (app_id, idempotency) WHERE idempotency IS NOT NULL DO NOTHING
    RETURNING id, mailbox_id, state, due_at, tags),
addressed AS (
    INSERT INTO outtray.recipient (message_id, n, role, address, address_index, external)
    SELECT r.message_id, r.n, r.role, r.address, r.address_index, r.external
    FROM unnest(
        %(to_id)b::uuid[], %(to_n)b::smallint[], %(to_role)b::text[], %(to_address)b::bytea[], %(to_index)b::bytea[],
        %(to_external)b::bool[]) AS r (message_id, n, role, address, address_index, external)
    JOIN accepted ON accepted.id = r.message_id),
filled AS (
    INSERT INTO outtray.content (message_id, head, body, body_hash)
    SELECT a.id, a.head, a.body, a.body_hash FROM asked a JOIN accepted USING (id)),
tagged AS (
    INSERT INTO outtray.message_tag (app_id, tag, message_id)
    SELECT %(app)b, tag, id FROM accepted, unnest(accepted.tags) AS tag),
noted AS (
    INSERT INTO outtray.journal (at, message_id, mailbox_id, kind, actor)
    SELECT t.now, id, mailbox_id, 'enqueued', %(actor)b::text FROM accepted, t),
told AS (
    INSERT INTO outtray.event (at, app_id, mailbox_id, message_id, kind)
    SELECT t.now, %(app)b, mailbox_id, id, 'queued' FROM accepted, t)
SELECT id, mailbox_id, state, due_at FROM accepted
"""

# Reads the messages that these idempotency keys stand for; locks nothing.
FIRST_OF_KEYS = """
SELECT m.id, m.mailbox_id, m.idempotency, m.request_hash, m.state, m.due_at FROM outtray.message m
WHERE m.app_id = %(app)s AND m.idempotency = ANY(%(keys)s::bytea[])
"""

# Reads when messages are due; locks nothing.
DUE = """
SELECT m.mailbox_id, m.due_at FROM outtray.message m
WHERE m.id = ANY(%(ids)s::uuid[]) AND m.state = 'queued' AND m.due_at IS NOT NULL
"""

# Inserts one piece of a large content.
INSERT_CHUNK = "INSERT INTO outtray.content_chunk (message_id, n, data) VALUES (%(id)b, %(n)b, %(data)b)"

TAG_SEPARATOR = "\x1f"
"""Between the tags of a message on their way into one array; no tag can hold a control character."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A message that is ours now. `created` is False if its idempotency key had brought it before."""

    id: UUID
    created: bool
    state: str
    due_at: datetime | None
    """When it may leave at the earliest; None: once the message that it follows has ended."""


@dataclass(slots=True)
class Frozen:
    """A message as it will be stored: judged, sealed, its bytes fixed."""

    id: UUID
    mailbox_id: UUID
    row: dict[str, Any] = field(repr=False)
    addresses: list[tuple[Any, ...]] = field(repr=False)
    chunks: Callable[[], Iterator[tuple[int, bytes]]] | None = field(repr=False)
    follow: sequences.Follow | None = None
    files: Sequence[File] = ()
    """Those of its files that are stored apart."""
    rfc_message_id: str | None = field(default=None, repr=False)
    """The Message-ID that its own mail brought."""

    @property
    def in_steps(self) -> bool:
        """Whether one statement alone does not store it."""
        return self.chunks is not None or self.follow is not None or bool(self.files) or self.rfc_message_id is not None

    @property
    def key(self) -> bytes | None:
        key: bytes | None = self.row["idempotency"]
        return key


Answer = Accepted | Refused
"""What became of one message of a batch."""


def enqueue(door: Door, message: Message, remember: bool = True) -> Plan[Accepted]:
    """Accept one message. Raises `InvalidMessage`, `IdempotencyConflict` or `NotFound`."""
    (answer,) = yield from enqueue_batch(door, [message], remember)
    if isinstance(answer, Refused):
        if remember:
            yield from refusals.remember(door, (yield from door.app()), [(message, answer)])
        raise answer
    return answer


def enqueue_batch(door: Door, messages: Sequence[Message], remember: bool = True) -> Plan[list[Answer]]:
    """Accept messages in one transaction; answers for each, in their order. Those refused do not hinder the others."""
    app_id, judged = yield from _judge(door, messages, remember)
    frozen = [each for each in judged if isinstance(each, Frozen)]
    if any(each.in_steps for each in frozen):
        yield Begin()
        stored = yield from _store_in_order(door, app_id, frozen)
        yield Commit()
    else:
        stored = yield from _store(door, app_id, frozen)
    return [stored[each.id] if isinstance(each, Frozen) else each for each in judged]


def enqueue_all_or_none(door: Door, messages: Sequence[Message], remember: bool = True) -> Plan[list[Answer | None]]:
    """Accept all of them, or refuse some and store none: `None` stands for those that were not stored for the others'
    sake."""
    app_id, judged = yield from _judge(door, messages, remember)
    frozen = [each for each in judged if isinstance(each, Frozen)]
    if len(frozen) < len(judged):
        return [each if isinstance(each, Refused) else None for each in judged]
    yield Begin()
    stored = yield from _store_in_order(door, app_id, frozen)
    answers = [stored[each.id] for each in frozen]
    if any(isinstance(answer, Refused) for answer in answers):
        yield Rollback()
        return [answer if isinstance(answer, Refused) else None for answer in answers]
    yield Commit()
    return list(answers)


def wakes_of(_door: Door, ids: Iterable[UUID]) -> Plan[None]:
    """Publish the wakes of messages that were enqueued in a transaction of the caller's, after its commit.

    Forgetting it costs one sweep: at most a minute.
    """
    rows = yield Statement(DUE, {"ids": list(ids)})
    yield Wake(_wakes(rows))


def _judge(door: Door, messages: Sequence[Message], remember: bool) -> Plan[tuple[UUID, list[Frozen | InvalidMessage]]]:
    app_id = yield from door.app(remember)
    boxes = yield from door.mailboxes(app_id, {message.mailbox for message in messages}, remember)
    originals = yield from find_originals(door, app_id, messages, boxes)
    family = yield from sequences.find_family(door, app_id, messages)
    files = yield from find_files(door, app_id, messages)
    return app_id, [
        freeze_at_the_door(door, app_id, message, boxes.get(message.mailbox), originals, family, files)
        for message in messages
    ]


def freeze_at_the_door(
    door: Door,
    app_id: UUID,
    message: Message,
    box: MailboxFacts | None,
    originals: Originals,
    family: sequences.Family,
    files: Files,
) -> Frozen | InvalidMessage:
    """Judge a message for its mailbox and fix its bytes; an error as a value, since a batch goes on."""
    problems = problems_of(message, box)
    if problems or box is None:
        return InvalidMessage(problems)
    try:
        if problems := raw_problems(message, box, door.settings):
            return InvalidMessage(problems)
        follow = family.follow(message, box)
        answered = answer(door, sequences.completed(message, follow), box, originals)
        if problems := problems_of(answered.message, box):
            return InvalidMessage(problems)
        frozen = _frozen(door, app_id, message, answered, box, follow, files)
        family.add(answered.message, frozen.id, frozen.row)
    except InvalidMessage as error:
        return error
    except OSError as error:
        return InvalidMessage(Problem("attachments", f"a file cannot be read: {error.strerror}"))
    problems = size_problems(frozen.row["size"], box, door.settings)
    if not problems and answered.waits_for is not None and message.answering == "forward" and frozen.row["size"] > MOST:
        problems = [Problem("attachments", f"a forward brings at most {MOST // MIB} MiB of its own; send them apart")]
    return InvalidMessage(problems) if problems else frozen


def _frozen(
    door: Door,
    app_id: UUID,
    request: Message,
    answered: Answered,
    box: MailboxFacts,
    follow: sequences.Follow | None,
    files: Files,
) -> Frozen:
    """What is stored of a request: the message that it makes, or, until its original is known, as much as there is."""
    vault, message_id, message = door.vault, new_id(), answered.message
    sender = message.from_ or box.sender
    brought = headers_of(message.raw).rfc_message_id if message.raw is not None else None
    rfc_message_id = brought or new_rfc_message_id(message_id, sender.domain)
    date = message.send_at or datetime.now(UTC)
    apart = files_of(message, files)
    stored = {index: (file.id, file.size) for index, file in apart.items()}
    mime = freeze(message, sender=sender, rfc_message_id=rfc_message_id, date=date, stored=stored)
    waits_for = answered.waits_for
    asked = None if waits_for is None else asked_of(message, waits_for, mime.headers, date)
    if follow is not None and request.reply_to_message is None and message.raw is None:
        # In a thread its subject follows from what was sent by then, not from what is known of it now.
        asked = follow.asked(message.model_copy(update={"subject": request.subject}), mime.headers, date)
    content = sealed_content(vault, message_id, Head.of(message, sender, answered.answers, asked, mime.apart), mime)
    external = [is_external(recipient.address, box) for recipient in message.recipients]
    key = message.idempotency_key
    row = {
        "id": message_id,
        "mailbox_id": box.id,
        "idempotency": vault.keyed_hash(app_id, "idempotency", key.encode()) if key is not None else None,
        "request_hash": request_hash(vault, app_id, request),
        "due_at": windows.due_at(message, box, box.now),
        "priority": PRIORITIES[message.priority],
        "give_up_after": message.give_up_after,
        "expires_at": message.expires_at,
        "on_unknown": message.on_unknown,
        # Whom an answer goes to may not be known yet; it is by the time that it counts.
        "recipients": max(1, len(external)),
        "external": sum(external),
        "size": mime.size,
        "rfc_message_id": rfc_message_id,
        "tags": TAG_SEPARATOR.join(message.tags),
        "head": content.head,
        "body": content.body,
        "body_hash": content.body_hash,
        "only_draft": message.mode == "draft",
        "times": windows.stored(message),
        "more": sequences.columns(message, follow, request.rendered_from),
    }
    addresses = list(_address_rows(door, app_id, message_id, message.recipients, external))
    chunks = content.chunks if content.body is None else None
    return Frozen(message_id, box.id, row, addresses, chunks, follow, tuple(apart.values()), brought)


def _address_rows(
    door: Door, app_id: UUID, message_id: UUID, recipients: Iterable[Recipient], external: Iterable[bool]
) -> Iterator[tuple[Any, ...]]:
    seal, index = door.vault.addresses.encrypt, door.vault.blind_index
    for n, (recipient, is_outside) in enumerate(zip(recipients, external, strict=True)):
        email = recipient.address.email
        sealed = seal(email.encode(), bindings.recipient(message_id, n))
        yield message_id, n, recipient.role, sealed, index(app_id, email), is_outside


def _store_in_order(door: Door, app_id: UUID, frozen: Sequence[Frozen]) -> Plan[dict[UUID, Answer]]:
    """Store what follows others of the batch after them: by then it is known which of them are stored, and as what."""
    answers: dict[UUID, Answer] = {}
    for generation in sequences.generations(frozen):
        attached = {each.id: sequences.attach(each, answers) for each in generation}
        answers |= {id: error for id, error in attached.items() if isinstance(error, InvalidMessage)}
        answers |= yield from _store(door, app_id, [each for each in generation if each.id not in answers])
        yield from sequences.enter([id for id, late in attached.items() if late is True and _is_created(answers[id])])
    return answers


def _is_created(answer: Answer) -> bool:
    return isinstance(answer, Accepted) and answer.created


def _store(door: Door, app_id: UUID, frozen: Sequence[Frozen]) -> Plan[dict[UUID, Answer]]:
    """Insert, then answer for each: the new row, the first one of its key, or a refusal."""
    answers: dict[UUID, Answer] = {**(yield from refuse_taken(frozen))}
    waiting = [each for each in frozen if each.id not in answers]
    # A key's first message can vanish (rolled back, pruned) between the insert and the look; then it is ours after all.
    for _ in range(2):
        if waiting:
            answers |= yield from _insert(door, app_id, waiting)
            waiting = [each for each in waiting if each.id not in answers]
        if waiting:
            answers |= yield from _look_up(app_id, waiting)
            waiting = [each for each in waiting if each.id not in answers]
    return answers | {
        each.id: InvalidMessage(Problem("mailbox", "has just been removed or disabled")) for each in waiting
    }


def _insert(door: Door, app_id: UUID, frozen: Sequence[Frozen]) -> Plan[dict[UUID, Answer]]:
    yield from hold_files(door, app_id, (file for each in frozen for file in each.files))
    rows = yield Statement(INSERT, {"app": app_id, "actor": door.actor, **_columns(frozen)})
    created: dict[UUID, Answer] = {row["id"]: Accepted(row["id"], True, row["state"], row["due_at"]) for row in rows}
    for each in frozen:
        if each.id in created:
            yield from _insert_chunks(each)
    yield from refer_to_files({each.id: each.files for each in frozen if each.id in created})
    yield Wake(_wakes(rows))
    return created


def _insert_chunks(frozen: Frozen) -> Plan[None]:
    for n, data in frozen.chunks() if frozen.chunks else ():
        yield Statement(INSERT_CHUNK, {"id": frozen.id, "n": n, "data": data})


def _wakes(rows: Iterable[Mapping[str, Any]]) -> Wakes:
    wakes: Wakes = {}
    for row in rows:
        if row["due_at"] is not None:
            add_wakes(wakes, {row["mailbox_id"]: row["due_at"]})
    return wakes


_COLUMNS = (
    "id", "mailbox_id", "idempotency", "request_hash", "due_at", "priority", "give_up_after", "expires_at",
    "on_unknown", "recipients", "external", "size", "rfc_message_id", "tags", "head", "body", "body_hash",
    "only_draft", "times", "more",
)  # fmt: skip
_ADDRESS_COLUMNS = ("to_id", "to_n", "to_role", "to_address", "to_index", "to_external")


def _columns(frozen: Sequence[Frozen]) -> dict[str, list[Any]]:
    """The rows of a batch as one list per column."""
    addresses = [address for each in frozen for address in each.addresses]
    columns = {name: [each.row[name] for each in frozen] for name in _COLUMNS}
    columns["more"] = [each and Jsonb(each) for each in columns["more"]]
    return columns | {name: [address[n] for address in addresses] for n, name in enumerate(_ADDRESS_COLUMNS)}


def _look_up(app_id: UUID, waiting: Sequence[Frozen]) -> Plan[dict[UUID, Answer]]:
    """For what was not inserted: the first message of its key, if there is one."""
    keys = [each.key for each in waiting if each.key is not None]
    rows = (yield Statement(FIRST_OF_KEYS, {"app": app_id, "keys": keys})) if keys else []
    # The first one's own wake is lost where its COMMIT got no answer, and whoever repeats it is waiting for it.
    yield Wake(_wakes(row for row in rows if row["state"] == "queued"))
    firsts = {bytes(row["idempotency"]): row for row in rows}
    return {
        each.id: _repeated(firsts[each.key], each.row["request_hash"])
        for each in waiting
        if each.key is not None and each.key in firsts
    }


def _repeated(first: Row, asked: bytes) -> Answer:
    problems = [
        Problem(name, "differs from the first request with this idempotency key; use another key for another message")
        for name in differing_fields(bytes(first["request_hash"]), asked)
    ]
    if problems:
        return IdempotencyConflict(problems, str(first["id"]))
    return Accepted(first["id"], False, first["state"], first["due_at"])
