"""Copies of what was sent, for mailboxes whose provider files none: put into Sent after the outcome, in any worker.

    plan      a sent message whose evidence says so gets the time of its first try
    pick      due ones are taken, with a durable mark; who dies leaves them to their next time
    file      the mailbox is looked into, and a copy is filed if none is there (at most one: each try looks first)
    write     filed, found or given up; else its next time

It never touches what the message is: sent it was before, and sent it stays.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import psycopg
import structlog
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import PoolTimeout

from outtray_schema.errors import OuttrayError
from outtray_schema.outcome import Parked
from outtray_worker.claim import DueMessage
from outtray_worker.content import ContentMissing
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Filed, Filer, SentMail, Session
from outtray_worker.reconcile.read import LookedMailbox

if TYPE_CHECKING:
    from outtray_worker.process import Process

log = structlog.get_logger()

CHUNK = 500
"""Messages that one statement plans."""
AT_ONCE = 32
"""Messages that are picked at once."""
MAILBOXES = 4
"""Mailboxes that one process files copies in at once: each holds a connection, and a thread of the looks."""
TRIES = 8
AGAIN, LONGEST = timedelta(minutes=5), timedelta(hours=6)
"""Wait after the first try that failed, doubled each time; the longest. Our choice: some 13 hours in all."""

PLAN = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now), new AS (
    SELECT m.id FROM outtray.message m
    WHERE m.state = 'sent' AND m.evidence ? 'sent_copy' AND m.copy_end IS NULL AND m.copy_at IS NULL
    LIMIT %(chunk)s FOR NO KEY UPDATE OF m SKIP LOCKED)
UPDATE outtray.message m
SET copy_at = m.ended_at + CASE m.evidence->>'sent_copy' WHEN 'due' THEN interval '0' ELSE %(settle)s END
FROM new WHERE m.id = new.id
"""

# The mark is durable before anything is filed: it says when somebody else may try, who will look first.
PICK = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now), due AS (
    SELECT m.id FROM outtray.message m, t
    WHERE m.state = 'sent' AND m.evidence ? 'sent_copy' AND m.copy_end IS NULL AND m.copy_at <= t.now
    ORDER BY m.copy_at LIMIT %(limit)s FOR NO KEY UPDATE OF m SKIP LOCKED)
UPDATE outtray.message m SET copy_at = t.now + %(lease)s, copy_tries = m.copy_tries + 1
FROM due, t WHERE m.id = due.id RETURNING m.id, m.mailbox_id
"""

READ = """
SELECT m.id, m.mailbox_id, m.size, m.rfc_message_id, m.copy_tries, m.evidence,
    coalesce(m.handed_at, m.created_at) AS at, b.status, b.provider, b.host, b.server, b.address, b.credentials,
    b.credentials_version, b.scopes
FROM outtray.message m JOIN outtray.mailbox b ON b.id = m.mailbox_id
WHERE m.id = %(id)s AND m.state = 'sent' AND m.copy_end IS NULL
"""

AGAIN_AT = "UPDATE outtray.message m SET copy_at = outtray.outtray_now() + %(wait)s WHERE m.id = %(id)s"
# They were picked and not tried: a try less.
PUT_OFF = """
UPDATE outtray.message m SET copy_at = outtray.outtray_now() + %(wait)s, copy_tries = m.copy_tries - 1
WHERE m.id = ANY(%(ids)s) AND m.copy_end IS NULL
"""
# Ends it once: a second worker that looked at the same time writes nothing.
END = """
WITH ended AS (
    UPDATE outtray.message m SET copy_end = %(end)s WHERE m.id = %(id)s AND m.copy_end IS NULL
    RETURNING m.id, m.mailbox_id)
INSERT INTO outtray.journal (message_id, mailbox_id, kind, detail)
SELECT id, mailbox_id, 'copy', %(detail)s FROM ended
"""


async def file_for_ever(process: Process, every: float) -> None:
    """File what there is to file, until cancelled."""
    while True:
        if not await file_copies(process):
            await asyncio.sleep(every)


async def file_copies(process: Process) -> int:
    """Try once what is due; returns how many copies that were."""
    try:
        picked = await _pick(process)
    except (psycopg.Error, PoolTimeout) as error:
        log.warning("copies were left to their time", error=type(error).__name__)
        return 0
    boxes: dict[UUID, list[UUID]] = {}
    for message_id, mailbox_id in picked:
        boxes.setdefault(mailbox_id, []).append(message_id)
    places = asyncio.Semaphore(MAILBOXES)
    await asyncio.gather(*(_in_one(process, places, ids) for ids in boxes.values()))
    return len(picked)


async def _pick(process: Process) -> list[tuple[UUID, UUID]]:
    settings = process.settings
    if process.draining:
        return []
    async with process.pool.connection() as connection:
        settle = process.looks.settle("smtp")
        await connection.execute(PLAN, {"chunk": CHUNK, "settle": settle})
        lease = 2 * (settings.look_limit + settings.prepare_limit)
        cursor = await connection.execute(PICK, {"limit": AT_ONCE, "lease": lease})
        return [(row[0], row[1]) for row in await cursor.fetchall()]


async def _in_one(process: Process, places: asyncio.Semaphore, ids: Sequence[UUID]) -> None:
    """One mailbox's copies, one after the other on one session; after a failure the others' time comes again."""
    session: Session | None = None
    async with places:
        try:
            for position, message_id in enumerate(ids):
                row = await _read(process, message_id)
                if row is None:
                    continue
                session = session or process.open_session(_mailbox(row))
                filed = await _file(process, session, row)
                await _write(process, row, filed)
                if filed.kind == "failed":
                    await _put_off(process, ids[position + 1 :], _wait(row, filed))
                    break
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("a copy was left to its time", error=type(error).__name__)
        except Exception as error:  # a bug of ours must not end a worker that delivers
            log.error("filing a copy ended in an error", error=type(error).__name__, exc_info=True)
        finally:
            if session is not None:
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(process.settings.connect_timeout.total_seconds()):
                        await session.close()


async def _read(process: Process, message_id: UUID) -> dict[str, Any] | None:
    async with process.pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(READ, {"id": message_id})
        return await cursor.fetchone()


def _mailbox(row: dict[str, Any]) -> LookedMailbox:
    return LookedMailbox(
        row["mailbox_id"], row["provider"], row["host"], row["server"], row["address"], row["credentials"],
        row["credentials_version"], row["scopes"],
    )  # fmt: skip


async def _file(process: Process, session: Session, row: dict[str, Any]) -> Filed:
    """Bounded, and begun before others may try: the mark of the pick holds twice as long."""
    if row["status"] == "disabled" or not isinstance(session, Filer):
        return Filed("failed", "the mailbox takes no copies any more")
    begin_by = Deadline.after(process.settings.look_limit + process.settings.prepare_limit)
    try:
        content = await process.content.load(cast(DueMessage, _Sized(row["id"], row["size"])))
    except (ContentMissing, OuttrayError) as error:
        return Filed("failed", f"its content cannot be read ({type(error).__name__})")
    try:
        shown = content.head.recipients if content.head.form != "raw" else ()
        bcc = tuple(address for role, address in shown if role == "bcc")
        mail = SentMail(row["id"], row["rfc_message_id"], row["at"], row["size"], content.body, bcc)
        return await session.file_copy(mail, begin_by)
    finally:
        content.release()


@dataclass(frozen=True, slots=True)
class _Sized:
    """What reading content needs to know of a message."""

    id: UUID
    size: int


async def _write(process: Process, row: dict[str, Any], filed: Filed) -> None:
    over = filed.kind == "failed" and (row["copy_tries"] >= TRIES or filed.outcome is None)
    async with process.pool.connection() as connection:
        if filed.kind != "failed" or over:
            end = "given up" if over else filed.kind
            detail = Jsonb({"copy": end, "said": filed.said})
            await connection.execute(END, {"id": row["id"], "end": end, "detail": detail})
        else:
            await connection.execute(AGAIN_AT, {"id": row["id"], "wait": _wait(row, filed)})
    log.info("copy", message_id=str(row["id"]), what="given up" if over else filed.kind)


def _wait(row: dict[str, Any], filed: Filed) -> timedelta:
    tries: int = row["copy_tries"]
    wait = min(AGAIN * (1 << max(0, tries - 1)), LONGEST)
    asked = filed.outcome.after if isinstance(filed.outcome, Parked) and filed.outcome.after else timedelta(0)
    return max(wait, asked)


async def _put_off(process: Process, ids: Sequence[UUID], wait: timedelta) -> None:
    async with process.pool.connection() as connection:
        await connection.execute(PUT_OFF, {"ids": list(ids), "wait": wait})
