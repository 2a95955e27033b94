"""Retry: put back into the queue what has failed, by a person's decision; and nothing that may have left.

A failed message was refused for good, or was tried too often. Where an earlier handover of it has no known outcome,
or its draft may have been sent by its person, it stays as it is: sent again it might arrive twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from outtray.door import Door, MailboxName
from outtray.find import mailbox_id_of
from outtray.plan import Plan, Row, Wake, Wakes, add_wakes, rows
from outtray_schema.errors import NotFound, Problem, Refused, WrongState

HINDERED = """CASE
    WHEN m.may_have_left OR m.counted_at IS NOT NULL THEN 'may have left'
    WHEN m.erase_asked_at IS NOT NULL OR NOT EXISTS (SELECT FROM outtray.content c WHERE c.message_id = m.id)
        THEN 'content erased'
    WHEN m.draft IS NOT NULL AND m.draft_end IS DISTINCT FROM 'deleted' THEN 'draft not deleted'
    WHEN m.expires_at <= t.now THEN 'expired'
    WHEN b.status = 'disabled' THEN 'mailbox disabled' END"""
"""Why a failed message is not tried again; NULL: it is."""

# Reads the next failed messages that a filter names, by id; locks nothing.
FAILED = f"""
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now)
SELECT m.id, {HINDERED} AS hindered
FROM t, outtray.message m JOIN outtray.mailbox b ON b.id = m.mailbox_id
WHERE m.app_id = %(app)s AND m.state = 'failed' AND m.id > %(after)s
  AND (%(ids)s::uuid[] IS NULL OR m.id = ANY(%(ids)s::uuid[]))
  AND (%(mailbox)s::uuid IS NULL OR m.mailbox_id = %(mailbox)s) AND (%(tag)s::text IS NULL OR %(tag)s = ANY(m.tags))
  AND (%(reason)s::text IS NULL OR strpos(lower(m.reason), lower(%(reason)s)) > 0)
ORDER BY m.id LIMIT %(limit)s
"""

# Puts failed messages back as if they had just come in; locks them. A draft that was deleted is a draft no more: the
# next attempt makes its own. What is not hindered is judged on the locked rows.
RETRY = f"""
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
failed AS MATERIALIZED (
    SELECT m.id FROM t, outtray.message m JOIN outtray.mailbox b ON b.id = m.mailbox_id
    WHERE m.id = ANY(%(ids)s) AND m.app_id = %(app)s AND m.state = 'failed' AND {HINDERED} IS NULL
    ORDER BY m.id FOR NO KEY UPDATE OF m),
again AS (
    UPDATE outtray.message m
    SET state = 'queued', version = m.version + 1, attempt = 0, prepares = 0, failing_since = NULL, ended_at = NULL,
        due_at = t.now, cancel_asked_at = NULL, draft = NULL, draft_end = NULL, look_at = NULL, looks = 0,
        look_handover = NULL, looked = NULL
    FROM failed, t WHERE m.id = failed.id
    RETURNING m.id, m.mailbox_id, m.due_at),
noted AS (
    INSERT INTO outtray.journal (at, message_id, mailbox_id, kind, actor, detail)
    SELECT t.now, id, mailbox_id, 'retried', %(actor)s::text, '{{"state": "queued"}}' FROM again, t),
told AS (
    INSERT INTO outtray.event (at, app_id, mailbox_id, message_id, kind, data)
    SELECT t.now, %(app)s, mailbox_id, id, 'queued', '{{"reason": "retried"}}' FROM again, t)
SELECT id, mailbox_id, due_at FROM again
"""

STATE = "SELECT m.state FROM outtray.message m WHERE m.id = %(id)s AND m.app_id = %(app)s"

WHY = {
    "may have left": "an earlier handover of it may have left: sent again it might arrive twice",
    "content erased": "its content was erased; enqueue a new message",
    "draft not deleted": "its draft is not known to be deleted: it may be sent, or be about to be deleted",
    "expired": "its expires_at is past; enqueue a new message",
    "mailbox disabled": "its mailbox is removed or disabled; connect it, then try again",
}
"""What is said of each reason."""

BATCH = 500


@dataclass(frozen=True, slots=True)
class Retried:
    """What a retry of many did, or would do: how many go again, and of the others how many for which reason."""

    retried: int = 0
    left: Mapping[str, int] = field(default_factory=dict)


def retry_one(door: Door, message_id: UUID) -> Plan[None]:
    """Try one failed message again. Raises `NotFound`, `WrongState` with the reason."""
    app_id = yield from door.app()
    page = yield from _page(app_id, {"ids": [message_id]}, UUID(int=0))
    if not page:
        states = yield from rows(STATE, id=message_id, app=app_id)
        if not states:
            raise NotFound(f"there is no message {message_id} in the app {door.app_name!r}")
        raise WrongState(f"message {message_id} is {states[0]['state']}; only one that failed is tried again")
    if page[0]["hindered"]:
        raise WrongState(f"message {message_id}: {WHY[page[0]['hindered']]}")
    if not (yield from _again(door, app_id, [message_id])):
        raise WrongState(f"message {message_id} has just moved on")


def retry_where(
    door: Door,
    tag: str | None = None,
    reason: str | None = None,
    mailbox: MailboxName = None,
    *,
    dry_run: bool = False,
) -> Plan[Retried]:
    """Try again what failed with this tag, for a reason that contains this text, or from this mailbox; or all of these.

    Each batch commits by itself. Raises `Refused` if no filter is given, `NotFound` for a mailbox.
    """
    if tag is None and reason is None and mailbox is None:
        raise Refused(Problem("retry", "name a tag, a reason or a mailbox; everything at once is never meant"))
    app_id = yield from door.app()
    mailbox_id = (yield from mailbox_id_of(door, app_id, mailbox)) if mailbox is not None else None
    filters = {"tag": tag, "reason": reason, "mailbox": mailbox_id}
    retried, left, after = 0, Counter[str](), UUID(int=0)
    while True:
        page = yield from _page(app_id, filters, after)
        ids = [row["id"] for row in page if not row["hindered"]]
        left.update(row["hindered"] for row in page if row["hindered"])
        retried += len(ids) if dry_run else (yield from _again(door, app_id, ids))
        if len(page) < BATCH:
            return Retried(retried, dict(left))
        after = page[-1]["id"]


def _page(app_id: UUID, filters: Mapping[str, object], after: UUID) -> Plan[list[Row]]:
    named: dict[str, object] = {"ids": None, "tag": None, "reason": None, "mailbox": None, **filters}
    return (yield from rows(FAILED, app=app_id, after=after, limit=BATCH, **named))


def _again(door: Door, app_id: UUID, ids: Sequence[UUID]) -> Plan[int]:
    again = yield from rows(RETRY, app=app_id, ids=list(ids), actor=door.actor)
    wakes: Wakes = {}
    for row in again:
        add_wakes(wakes, {row["mailbox_id"]: row["due_at"]})
    yield Wake(wakes)
    return len(again)
