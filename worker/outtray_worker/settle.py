"""Settle: once a partial message has ended, each of its recipients has a result, and those refused for now go on.

They go on as one message of their own, with the same content, Message-ID and tags: it names the first in `continues`,
and both journals name it. It is written in the transaction that settles the notes, on the locked row, so there is
exactly one, whenever and however often this is tried, and whoever recorded the sending.

A recipient goes on only where *every* handover that may have left refused it: nobody receives it twice.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from outtray_schema import bindings
from outtray_schema.content import Head, open_body, open_chunk, open_head
from outtray_schema.errors import CannotOpen
from outtray_schema.ids import new_id
from outtray_schema.settings import Settings
from outtray_schema.vault import Vault
from outtray_worker.backoff import message_backoff

CHUNK = 50
"""Messages that one look takes."""

# Which ended messages have notes that nobody settled; locks nothing. One that failed without a definite answer waits
# for a day: an answer that comes late may still make it sent.
OPEN = """
SELECT DISTINCT r.message_id FROM outtray.refused_recipient r JOIN outtray.message m ON m.id = r.message_id
WHERE NOT r.settled AND (m.state IN ('sent', 'drafted', 'cancelled', 'expired')
    OR m.state = 'failed' AND (m.handover_end IS NOT NULL OR m.ended_at < outtray.outtray_now() - interval '1 day'))
LIMIT %(chunk)s
"""

# The mailbox first, then the message: the order of a worker's group. Skips what another worker settles.
LOCK_MAILBOX = """
SELECT FROM outtray.mailbox b JOIN outtray.message m ON m.mailbox_id = b.id WHERE m.id = %(id)s
FOR NO KEY UPDATE OF b
"""
LOCK = """
SELECT m.*, outtray.outtray_now() AS now FROM outtray.message m
WHERE m.id = %(id)s AND EXISTS (SELECT FROM outtray.refused_recipient r WHERE r.message_id = m.id AND NOT r.settled)
FOR NO KEY UPDATE OF m SKIP LOCKED
"""

# Whom the handover that counts left out, and whether every other one that may have left did so too.
NOTES = """
SELECT r.n, r.again, r.reason,
    NOT EXISTS (
        SELECT FROM outtray.usage u WHERE u.message_id = r.message_id AND u.handover <> r.handover
          AND NOT EXISTS (SELECT FROM outtray.refused_recipient o
                          WHERE o.message_id = r.message_id AND o.handover = u.handover AND o.n = r.n)) AS left_out
FROM outtray.refused_recipient r WHERE r.message_id = %(id)s AND r.handover = %(handover)s ORDER BY r.n
"""
SETTLED = "UPDATE outtray.refused_recipient SET settled = true WHERE message_id = %(id)s AND NOT settled"
RESULTS = """
UPDATE outtray.recipient r SET result = coalesce(g.result, 'accepted')
FROM outtray.recipient q LEFT JOIN unnest(%(n)s::smallint[], %(result)s::text[]) AS g (n, result) USING (n)
WHERE q.message_id = %(id)s AND r.message_id = q.message_id AND r.n = q.n
"""

CONTENT = "SELECT c.head, c.body, c.body_hash FROM outtray.content c WHERE c.message_id = %(id)s"
READ_CHUNK = "SELECT c.data FROM outtray.content_chunk c WHERE c.message_id = %(id)s AND c.n = %(n)s"
RECIPIENTS = """
SELECT r.n, r.role, r.address_index, r.external FROM outtray.recipient r
WHERE r.message_id = %(id)s AND r.n = ANY(%(n)s::smallint[]) ORDER BY r.n
"""

# The message that goes on. It keeps what the first had spent of its attempts and of its patience.
CONTINUE = """
INSERT INTO outtray.message (id, app_id, mailbox_id, request_hash, due_at, priority, attempt, failing_since,
    give_up_after, expires_at, on_unknown, recipients, external, size, rfc_message_id, tags, times, template, continues)
SELECT %(new)s, m.app_id, m.mailbox_id, m.request_hash, outtray.outtray_now() + %(wait)s, m.priority, m.attempt,
    coalesce(m.failing_since, outtray.outtray_now()), m.give_up_after, m.expires_at, m.on_unknown, %(recipients)s,
    %(external)s, m.size, m.rfc_message_id, m.tags, m.times, m.template, m.id
FROM outtray.message m WHERE m.id = %(id)s
"""
ADDRESS = """
INSERT INTO outtray.recipient (message_id, n, role, address, address_index, external)
VALUES (%(new)s, %(n)s, %(role)s, %(address)s, %(address_index)s, %(external)s)
"""
WRITE_CHUNK = "INSERT INTO outtray.content_chunk (message_id, n, data) VALUES (%(new)s, %(n)s, %(data)s)"
FILL = """
INSERT INTO outtray.content (message_id, head, body, body_hash) VALUES (%(new)s, %(head)s, %(body)s, %(body_hash)s)
"""
FILES = """
INSERT INTO outtray.content_attachment (message_id, attachment_id)
SELECT %(new)s, f.attachment_id FROM outtray.content_attachment f WHERE f.message_id = %(id)s
"""
TAG = """
INSERT INTO outtray.message_tag (app_id, tag, message_id)
SELECT m.app_id, tag, m.id FROM outtray.message m, unnest(m.tags) AS tag WHERE m.id = %(new)s
"""
ARM = """
UPDATE outtray.mailbox b SET next_at = outtray.not_before(least(b.next_at, m.due_at), b.parked_until)
FROM outtray.message m WHERE m.id = %(new)s AND b.id = m.mailbox_id AND b.status <> 'disabled'
"""
JOURNAL = """
INSERT INTO outtray.journal (message_id, mailbox_id, kind, handover, detail)
VALUES (%(of)s, %(mailbox)s, %(kind)s, %(handover)s, %(detail)s)
"""
TELL = """
INSERT INTO outtray.event (app_id, mailbox_id, message_id, kind, data)
VALUES (%(app)s, %(mailbox)s, %(of)s, %(kind)s, %(data)s)
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of those refused: `ends` says it of each that does not go on, by its number."""

    goes_on: tuple[int, ...]
    ends: dict[int, str]


async def settle_all(connection: AsyncConnection[Any], vault: Vault, settings: Settings) -> int:
    """Settle every partial message that has ended; returns how many there were. The connection is in autocommit."""
    cursor = await connection.execute(OPEN, {"chunk": CHUNK})
    found = [row[0] for row in await cursor.fetchall()]
    for message_id in found:
        await settle(connection, vault, settings, message_id)
    return len(found)


async def settle(connection: AsyncConnection[Any], vault: Vault, settings: Settings, message_id: UUID) -> UUID | None:
    """Settle one message; returns the one that goes on for it, if any does."""
    async with connection.transaction():
        await connection.execute(LOCK_MAILBOX, {"id": message_id})
        row = await _one(connection, LOCK, id=message_id)
        if row is None:
            return None
        await connection.execute(SETTLED, {"id": message_id})
        if row["state"] != "sent":
            return None
        plan = _planned(row, await _all(connection, NOTES, id=message_id, handover=row["handover"]), settings)
        new = await _go_on(connection, vault, settings, row, plan) if plan.goes_on else None
        going_on = {n: f"refused for now: goes on as {new}" if new else LOST for n in plan.goes_on}
        await _write_results(connection, message_id, plan.ends | going_on)
        return new


LOST = "refused for now; its content was erased before it could go on"


def _planned(row: dict[str, Any], notes: Sequence[dict[str, Any]], settings: Settings) -> Plan:
    over = _over(row, settings)
    ends: dict[int, str] = {}
    goes_on = []
    for each in notes:
        if not each["again"]:
            ends[each["n"]] = f"refused: {each['reason']}"
        elif not each["left_out"]:
            ends[each["n"]] = f"refused for now: {each['reason']}; an earlier handover may have reached it"
        elif over:
            ends[each["n"]] = f"refused for now: {each['reason']}; {over}"
        else:
            goes_on.append(each["n"])
    return Plan(tuple(goes_on), ends)


def _over(row: dict[str, Any], settings: Settings) -> str | None:
    """Why nothing goes on: its own failures are counted on as if it had been one message."""
    if row["cancel_asked_at"] is not None:
        return "not tried again: cancelled"
    if row["erase_asked_at"] is not None:
        return "not tried again: its content was to be erased"
    if row["attempt"] >= settings.attempts:
        return f"gave up after {row['attempt']} attempts"
    patience = row["give_up_after"] or settings.give_up_after
    if row["failing_since"] is not None and row["now"] - row["failing_since"] >= patience:
        return "gave up: its time for trying again is over"
    return None


async def _write_results(connection: AsyncConnection[Any], message_id: UUID, results: dict[int, str]) -> None:
    parameters = {"id": message_id, "n": list(results), "result": list(results.values())}
    await connection.execute(RESULTS, parameters)


# ── the message that goes on ──────────────────────────────────────────────────────────────────────────────────────


async def _go_on(
    connection: AsyncConnection[Any], vault: Vault, settings: Settings, row: dict[str, Any], plan: Plan
) -> UUID | None:
    """None: its content was erased, or cannot be read, and so nothing can."""
    content = await _one(connection, CONTENT, id=row["id"])
    if content is None:
        return None
    try:
        head = _only(open_head(vault, row["id"], content["head"]), plan.goes_on)
    except CannotOpen:
        return None
    people = await _all(connection, RECIPIENTS, id=row["id"], n=list(plan.goes_on))
    new = new_id()
    counts = {"recipients": len(people), "external": sum(each["external"] for each in people)}
    wait = message_backoff(settings, row["attempt"])
    await connection.execute(CONTINUE, {"new": new, "id": row["id"], "wait": wait, **counts})
    await _address(connection, vault, new, head, people)
    await _copy_content(connection, vault, row["id"], new, head, content)
    for statement in (FILES, TAG, ARM):
        await connection.execute(statement, {"new": new, "id": row["id"]})
    await _say(connection, row, new, plan)
    return new


def _only(head: Head, numbers: Sequence[int]) -> Head:
    """The head with these recipients alone."""
    names = tuple(head.names[n] for n in numbers) if head.names else ()
    return replace(head, recipients=tuple(head.recipients[n] for n in numbers), names=names)


async def _address(
    connection: AsyncConnection[Any], vault: Vault, new: UUID, head: Head, people: Sequence[dict[str, Any]]
) -> None:
    for n, (each, (_, email)) in enumerate(zip(people, head.recipients, strict=True)):
        sealed = vault.addresses.encrypt(email.encode(), bindings.recipient(new, n))
        await connection.execute(ADDRESS, {**each, "new": new, "n": n, "address": sealed})


async def _copy_content(
    connection: AsyncConnection[Any], vault: Vault, old: UUID, new: UUID, head: Head, content: dict[str, Any]
) -> None:
    """The same bytes, sealed for the new row, where alone they open then. Files that are stored apart stay there."""
    digest, body = hashlib.sha256(), None
    if content["body"] is not None:
        plain = await asyncio.to_thread(open_body, vault, old, content["body"])
        digest.update(plain)
        body = await asyncio.to_thread(vault.content.encrypt, plain, bindings.body(new))
    else:
        await _copy_chunks(connection, vault, old, new, digest)
    sealed_head = vault.content.encrypt(head.to_json(), bindings.head(new))
    body_hash = vault.keyed_hash(new, "body", digest.digest())
    await connection.execute(FILL, {"new": new, "head": sealed_head, "body": body, "body_hash": body_hash})


async def _copy_chunks(connection: AsyncConnection[Any], vault: Vault, old: UUID, new: UUID, digest: Any) -> None:
    n = 0
    while (row := await _one(connection, READ_CHUNK, id=old, n=n)) is not None:
        plain = await asyncio.to_thread(open_chunk, vault, old, n, row["data"])
        digest.update(plain)
        data = await asyncio.to_thread(vault.content.encrypt, plain, bindings.chunk(new, n))
        await connection.execute(WRITE_CHUNK, {"new": new, "n": n, "data": data})
        n += 1


async def _say(connection: AsyncConnection[Any], row: dict[str, Any], new: UUID, plan: Plan) -> None:
    """In both journals, and to who listens."""
    both = {"app": row["app_id"], "mailbox": row["mailbox_id"]}
    first = {"in": str(new), "recipients": len(plan.goes_on)}
    second = {"continues": str(row["id"])}
    for of, kind, event, said in (
        (row["id"], "continued", "continued", first),
        (new, "enqueued", "queued", second),
    ):
        detail = Jsonb(said)
        await connection.execute(JOURNAL, {**both, "of": of, "kind": kind, "handover": None, "detail": detail})
        await connection.execute(TELL, {**both, "of": of, "kind": event, "data": detail})


async def _one(connection: AsyncConnection[Any], statement: str, **parameters: Any) -> dict[str, Any] | None:
    async with connection.cursor(row_factory=dict_row, binary=True) as cursor:
        await cursor.execute(statement, parameters)
        return await cursor.fetchone()


async def _all(connection: AsyncConnection[Any], statement: str, **parameters: Any) -> list[dict[str, Any]]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(statement, parameters)
        return await cursor.fetchall()
