"""Arming: what resumes a mailbox brings its `next_at` forward, in the same transaction (protocol, rule 13).

The mailbox's row is always locked by a statement of its own first. The one that arms it then has a snapshot taken after
the lock wait, so it sees what the turn that just ended wrote (rule 10).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from outtray.plan import Plan, Row, rows

# Locks one mailbox of an app until the end of the transaction.
LOCK = """
SELECT m.id, m.status, m.status_reason, m.credentials_version FROM outtray.mailbox m
WHERE m.id = %(mailbox)s AND m.app_id = %(app)s FOR NO KEY UPDATE
"""

NEXT_AT = "least(m.next_at, outtray.not_before(outtray.earliest_due(m.id), m.parked_until))"
"""When the mailbox `m` next has something to do; what a wake wrote meanwhile stays."""

# Locks a chunk of mailboxes in the order of their ids, and arms those that have mail waiting with no time set for it.
ARM_CHUNK = """
WITH chunk AS MATERIALIZED (
    SELECT m.id FROM outtray.mailbox m
    WHERE m.id > %(after)s AND m.status = 'active'
      AND (%(app)s::uuid IS NULL OR m.app_id = %(app)s) AND (%(provider)s::text IS NULL OR m.provider = %(provider)s)
    ORDER BY m.id LIMIT %(limit)s),
late AS MATERIALIZED (
    SELECT m.id FROM outtray.mailbox m JOIN chunk USING (id)
    WHERE m.next_at IS NULL AND outtray.earliest_due(m.id) IS NOT NULL
       OR m.next_at > outtray.not_before(outtray.earliest_due(m.id), m.parked_until)
    ORDER BY m.id FOR NO KEY UPDATE OF m),
armed AS (
    UPDATE outtray.mailbox m
    SET next_at = least(m.next_at, outtray.not_before(outtray.earliest_due(m.id), m.parked_until))
    FROM late WHERE m.id = late.id RETURNING m.id)
SELECT (SELECT id FROM chunk ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM chunk) AS looked_at,
    (SELECT count(*) FROM armed) AS armed
"""

# Inserts into the mailbox's journal and the events.
NOTE = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
noted AS (
    INSERT INTO outtray.journal (at, mailbox_id, kind, actor, detail)
    SELECT t.now, %(mailbox)s::uuid, %(kind)s::text, %(actor)s::text, %(detail)s::jsonb FROM t)
INSERT INTO outtray.event (at, app_id, mailbox_id, kind, data)
SELECT t.now, %(app)s::uuid, %(mailbox)s::uuid, 'mailbox.' || %(kind)s::text, %(detail)s::jsonb FROM t
"""

CHUNK = 1000
NOBODY = UUID(int=0)


def lock(app_id: UUID, mailbox_id: UUID) -> Plan[Row | None]:
    """Lock one mailbox's row; `None` if the app has no such mailbox."""
    found = yield from rows(LOCK, app=app_id, mailbox=mailbox_id)
    return found[0] if found else None


def arm_all(app_id: UUID | None = None, provider: str | None = None) -> Plan[int]:
    """Arm every active mailbox of an app, of a provider, or of all, in chunks in the order of their ids.

    Answers with how many were armed. Only rows that change are locked.
    """
    armed, after = 0, NOBODY
    while True:
        chunk = yield from rows(ARM_CHUNK, after=after, app=app_id, provider=provider, limit=CHUNK)
        armed += int(chunk[0]["armed"])
        if chunk[0]["looked_at"] < CHUNK:
            return armed
        after = chunk[0]["last"]


def note_mailbox(
    app_id: UUID, mailbox_id: UUID, kind: str, actor: str, detail: Mapping[str, Any] | None = None
) -> Plan[None]:
    """Write what was done to a mailbox into its journal, and tell of it."""
    yield from rows(NOTE, app=app_id, mailbox=mailbox_id, kind=kind, actor=actor, detail=Jsonb(dict(detail or {})))
