"""Retention: what is old goes. Append-only tables are partitioned by day and dropped, never deleted row by row."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any

import structlog
from psycopg import AsyncConnection, sql
from psycopg.errors import CheckViolation

from outtray_schema.settings import Settings
from outtray_worker.erasing import erase
from outtray_worker.journal_days import drop_sealed

log = structlog.get_logger()

DAYS_AHEAD = 7
CHUNK = 500
PARTITIONED = ("event", "journal", "journal_link")

# What a follower still waits for, or answers, stays. A message younger than its window may still count: it moves to
# `usage` before its row goes (rule 14). Its history stays for as long as the journal is kept.
DELETE_MESSAGES = """
WITH old AS (
    SELECT m.id FROM outtray.message m WHERE m.ended_at <= outtray.outtray_now() - %(keep)s
      AND NOT (m.has_followers AND outtray.is_followed(m.id)) LIMIT %(chunk)s
    FOR UPDATE SKIP LOCKED),
kept AS (
    INSERT INTO outtray.usage (mailbox_id, counted_at, recipients, external, externals, message_id, handover, source)
    SELECT m.mailbox_id, m.counted_at, m.recipients, m.external,
        ARRAY(SELECT DISTINCT r.address_index FROM outtray.recipient r WHERE r.message_id = m.id AND r.external),
        m.id, m.handover, 'deleted'
    FROM outtray.message m JOIN old ON old.id = m.id WHERE m.counted_at > outtray.outtray_now() - interval '25 hours'
    ON CONFLICT (message_id, handover) WHERE message_id IS NOT NULL DO NOTHING),
gone AS (DELETE FROM outtray.message m USING old WHERE m.id = old.id RETURNING m.id, m.mailbox_id)
INSERT INTO outtray.journal (message_id, mailbox_id, kind, detail)
SELECT id, mailbox_id, 'deleted', '{"reason": "older than messages are kept"}' FROM gone
"""

DELETE_USAGE = "DELETE FROM outtray.usage WHERE counted_at <= outtray.outtray_now() - interval '25 hours'"
DELETE_BUDGET_HOURS = "DELETE FROM outtray.budget_hour WHERE hour <= outtray.outtray_now() - interval '26 hours'"
DELETE_PROCESSES = "DELETE FROM outtray.process WHERE beat_at <= outtray.outtray_now() - interval '1 day'"

# Files that no content needs any more. What a transaction holds that is just about to need it is passed over.
UNNEEDED = """
SELECT a.id FROM outtray.attachment a
WHERE NOT EXISTS (SELECT FROM outtray.content_attachment c WHERE c.attachment_id = a.id)
LIMIT %(chunk)s FOR UPDATE SKIP LOCKED
"""
# In a later statement, hence a later snapshot, than the lock: who came to need it before the lock is seen now.
DELETE_UNNEEDED = """
DELETE FROM outtray.attachment a WHERE a.id = ANY(%(ids)s)
    AND NOT EXISTS (SELECT FROM outtray.content_attachment c WHERE c.attachment_id = a.id)
"""

PARTITIONS = """
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = %s::regclass AND c.relname ~ '_[0-9]{8}$'
"""


async def prune(connection: AsyncConnection[Any], settings: Settings) -> dict[str, int]:
    """Create the partitions of the coming days, drop those that are too old, delete what has ended long ago."""
    now = await _now(connection)
    counts = {}
    for table in PARTITIONED:
        await _create_ahead(connection, table, now.date())
    counts["event days"] = await _drop_old(connection, "event", (now - settings.keep_events).date())
    days, before = await _days(connection, "journal"), (now - settings.keep_journal).date()
    counts["journal days"] = await drop_sealed(connection, days, before)
    counts["messages"] = await _delete_messages(connection, settings.keep_messages)
    counts["contents"] = await erase(connection, settings)
    counts["attachments"] = await _delete_unneeded(connection)
    for statement in (DELETE_USAGE, DELETE_BUDGET_HOURS, DELETE_PROCESSES):
        await connection.execute(statement)
    return counts


async def _now(connection: AsyncConnection[Any]) -> datetime:
    row = await (await connection.execute("SELECT outtray.outtray_now() AT TIME ZONE 'UTC'")).fetchone()
    if row is None:
        raise RuntimeError("PostgreSQL returned no time")
    now: datetime = row[0]
    return now


async def _days(connection: AsyncConnection[Any], table: str) -> set[date]:
    cursor = await connection.execute(PARTITIONS, [f"outtray.{table}"])
    return {datetime.strptime(row[0][-8:], "%Y%m%d").date() for row in await cursor.fetchall()}  # noqa: DTZ007 - a date


async def _create_ahead(connection: AsyncConnection[Any], table: str, today: date) -> None:
    wanted = {today + timedelta(days=ahead) for ahead in range(1, DAYS_AHEAD + 1)}
    for day in sorted(wanted - await _days(connection, table)):
        create = sql.SQL("CREATE TABLE IF NOT EXISTS {} PARTITION OF {} FOR VALUES FROM ({}) TO ({})").format(
            sql.Identifier("outtray", f"{table}_{day:%Y%m%d}"),
            sql.Identifier("outtray", table),
            sql.Literal(f"{day} 00:00:00+00"),
            sql.Literal(f"{day + timedelta(days=1)} 00:00:00+00"),
        )
        try:
            await connection.execute(create)
        except CheckViolation:  # a moved clock has put rows of that day into the default partition: they stay there
            log.info("no partition for a day that has rows already", table=table, day=str(day))


async def _drop_old(connection: AsyncConnection[Any], table: str, before: date) -> int:
    old = [day for day in await _days(connection, table) if day < before]
    for day in old:
        await connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier("outtray", f"{table}_{day:%Y%m%d}")))
    delete = sql.SQL("DELETE FROM {} WHERE at < {}").format(
        sql.Identifier("outtray", f"{table}_default"), sql.Literal(f"{before} 00:00:00+00")
    )
    await connection.execute(delete)
    return len(old)


async def _delete_messages(connection: AsyncConnection[Any], keep: timedelta) -> int:
    total = 0
    while True:
        deleted = (await connection.execute(DELETE_MESSAGES, {"keep": keep, "chunk": CHUNK})).rowcount
        total += deleted
        if deleted < CHUNK:
            return total


async def _delete_unneeded(connection: AsyncConnection[Any]) -> int:
    total = 0
    while True:
        async with connection.transaction():
            rows = await (await connection.execute(UNNEEDED, {"chunk": CHUNK})).fetchall()
            deleted = await connection.execute(DELETE_UNNEEDED, {"ids": [row[0] for row in rows]})
        total += deleted.rowcount
        if len(rows) < CHUNK:
            return total
