"""Write: one look's verdict, in one transaction, on the locked row. A second look that showed the same writes nothing
of it again, and one that began before the message moved on writes nothing but positive evidence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from outtray_schema.outcome import Sent
from outtray_worker.group import write_group
from outtray_worker.items import Record
from outtray_worker.late import record_late
from outtray_worker.providers import Finding, Removed
from outtray_worker.reconcile.decide import (
    Believe,
    End,
    Ignore,
    Judge,
    LookAgain,
    Rules,
    SendAgain,
    Standing,
    Tidied,
    Verdict,
    decide,
)
from outtray_worker.reconcile.read import Case

# The mailbox first, then the message: the order of a worker's group. What follows reads in later snapshots.
LOCK_MAILBOX = "SELECT FROM outtray.mailbox WHERE id = %s FOR NO KEY UPDATE"
STANDING = """
SELECT outtray.outtray_now() AS now, m.state, m.handover, m.handover_until, m.handover_end, m.attempt,
    m.cancel_asked_at IS NOT NULL AS cancel_asked, m.only_draft, m.may_have_left, m.draft IS NOT NULL AS has_draft,
    m.looks, m.look_handover, m.looked
FROM outtray.message m WHERE m.id = %s FOR NO KEY UPDATE
"""

# What the look showed, and when the next one is. All statements below write the row that is locked.
NOTE_LOOK = """
UPDATE outtray.message m
SET looks = least(m.looks + 1, 32767), looked = %(looked)s, look_at = outtray.outtray_now() + %(wait)s::interval
WHERE m.id = %(id)s
"""
JOURNAL = """
INSERT INTO outtray.journal (message_id, mailbox_id, kind, handover, actor, detail)
VALUES (%(id)s, %(mailbox)s, %(kind)s, %(handover)s, 'evidence', %(detail)s)
"""
TELL = """
INSERT INTO outtray.event (app_id, mailbox_id, message_id, kind, data)
SELECT m.app_id, m.mailbox_id, m.id, %(kind)s, %(data)s FROM outtray.message m WHERE m.id = %(id)s
"""

# Its handover goes on counting as usage, since a frozen process may still send it (rule 12). Its draft stays bound, and
# is what the next attempt sends (rule 6). The mailbox is armed in the same transaction (rule 13).
KEEP_USAGE = """
INSERT INTO outtray.usage (mailbox_id, counted_at, recipients, external, externals, message_id, handover, source)
SELECT m.mailbox_id, m.counted_at, m.recipients, m.external,
    ARRAY(SELECT DISTINCT r.address_index FROM outtray.recipient r WHERE r.message_id = m.id AND r.external),
    m.id, m.handover, 'evidence'
FROM outtray.message m WHERE m.id = %(id)s AND m.counted_at IS NOT NULL
ON CONFLICT (message_id, handover) WHERE message_id IS NOT NULL DO NOTHING
"""
QUEUE = """
UPDATE outtray.message m
SET state = 'queued', version = m.version + 1, due_at = outtray.outtray_now(), counted_at = NULL,
    may_have_left = true, prepares = 0, reason = %(reason)s
WHERE m.id = %(id)s
"""
ARM = """
UPDATE outtray.mailbox m SET next_at = outtray.not_before(least(m.next_at, outtray.outtray_now()), m.parked_until)
WHERE m.id = %(mailbox)s
"""

# Its handover goes on counting on the row itself. Only a draft for its person is known not to have left.
END = """
UPDATE outtray.message m
SET state = %(state)s, version = m.version + 1, ended_at = outtray.outtray_now(), reason = %(reason)s,
    may_have_left = m.may_have_left OR %(state)s <> 'drafted',
    provider_id = coalesce(%(provider_id)s, m.provider_id), conversation_id = coalesce(%(conversation_id)s,
    m.conversation_id)
WHERE m.id = %(id)s
"""
JUDGE = """
UPDATE outtray.message m
SET version = m.version + 1, reason = %(reason)s, evidence = coalesce(m.evidence, '{}') || %(evidence)s,
    provider_id = coalesce(%(provider_id)s, m.provider_id),
    rfc_message_id = coalesce(%(rfc_message_id)s, m.rfc_message_id),
    conversation_id = coalesce(%(conversation_id)s, m.conversation_id)
WHERE m.id = %(id)s
"""
TIDY = "UPDATE outtray.message m SET version = m.version + 1, draft_end = %(how)s WHERE m.id = %(id)s"

UNPROVEN = "its provider said that it took it, but no copy of it was found afterwards"


@dataclass(frozen=True, slots=True)
class Look:
    """A look that has ended."""

    case: Case
    finding: Finding
    removed: Removed | None = None


async def write_look(connection: AsyncConnection[Any], look: Look, rules: Rules) -> Verdict:
    """Decide on the locked row, and write it. The connection is in autocommit mode."""
    case = look.case
    async with connection.transaction():
        await connection.execute(LOCK_MAILBOX, [case.mailbox.id])
        stands = await _standing(connection, case)
        if stands is None:
            return Ignore()
        verdict = decide(case, look.finding, look.removed, stands, rules)
        if not isinstance(verdict, Ignore):
            await _note(connection, look, stands, verdict)
            await _carry_out(connection, look, verdict)
        return verdict


async def _standing(connection: AsyncConnection[Any], case: Case) -> Standing | None:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(STANDING, [case.message_id])
        row = await cursor.fetchone()
    return Standing(**row) if row is not None else None


async def _carry_out(connection: AsyncConnection[Any], look: Look, verdict: Verdict) -> None:
    match verdict:
        case Believe():
            await _believe(connection, look)
        case SendAgain():
            await _send_again(connection, look)
        case End(state=state, reason=reason):
            await _end(connection, look, state, reason)
        case Judge(proven=proven):
            await _judge(connection, look, proven)
        case Tidied(how=how):
            await connection.execute(TIDY, {"id": look.case.message_id, "how": how})
            await _journal(connection, look, "draft", {"draft": how})


# ── what was seen ─────────────────────────────────────────────────────────────────────────────────────────────────


async def _note(connection: AsyncConnection[Any], look: Look, stands: Standing, verdict: Verdict) -> None:
    """Keep what was seen with the message; in the journal only what differs from the last time."""
    shown = _shown(look)
    again = stands.looked is not None and _same(stands.looked, shown)
    since = stands.looked["since"] if again and stands.looked is not None else shown["at"]
    wait = verdict.wait if isinstance(verdict, LookAgain) else None
    await connection.execute(
        NOTE_LOOK, {"id": look.case.message_id, "looked": Jsonb(shown | {"since": since}), "wait": wait}
    )
    if not again:
        await _journal(connection, look, "look", shown)


def _shown(look: Look) -> dict[str, str]:
    shown = {"finding": look.finding.kind, "looked": look.finding.looked, "at": _text(look.case.began)}
    outcome = look.finding.outcome or (look.removed.outcome if look.removed else None)
    reason = getattr(outcome, "reason", None)
    return shown | {"why": reason} if reason else shown


def _text(at: datetime) -> str:
    return at.isoformat()


def _same(before: Mapping[str, Any], shown: Mapping[str, str]) -> bool:
    """Whether two findings say the same: figures within them (how many mails were looked through) do not count."""
    fields = ("finding", "looked", "why")
    return [_figureless(before.get(name)) for name in fields] == [_figureless(shown.get(name)) for name in fields]


def _figureless(text: str | None) -> str | None:
    return re.sub(r"\d+", "#", text) if text else None


async def _journal(connection: AsyncConnection[Any], look: Look, kind: str, detail: dict[str, Any]) -> None:
    case = look.case
    row = {"id": case.message_id, "mailbox": case.mailbox.id, "handover": case.handover, "kind": kind}
    await connection.execute(JOURNAL, row | {"detail": Jsonb(detail)})


async def _tell(connection: AsyncConnection[Any], look: Look, kind: str, reason: str) -> None:
    await connection.execute(TELL, {"id": look.case.message_id, "kind": kind, "data": Jsonb({"reason": reason})})


# ── what it means ─────────────────────────────────────────────────────────────────────────────────────────────────


async def _believe(connection: AsyncConnection[Any], look: Look) -> None:
    """As a worker records an answer: into an open or unknown handover, else as one that comes late (rule 7)."""
    sent = look.finding.sent or Sent()
    record = Record(
        look.case.message_id,
        look.case.mailbox.id,
        look.case.handover,
        kind="found",
        state="sent",
        spends=True,
        reason="found by a look",
        provider_id=sent.provider_id,
        rfc_message_id=sent.rfc_message_id,
        conversation_id=sent.conversation_id,
        evidence={**sent.evidence, "looked": look.finding.looked},
    )
    answer = await write_group(connection, [record])
    if record.message_id not in answer.recorded:
        await record_late(connection, record)
    if look.case.has_ended:
        await connection.execute(TIDY, {"id": look.case.message_id, "how": "gone"})


async def _send_again(connection: AsyncConnection[Any], look: Look) -> None:
    reason = "sent again: it was not found to have left"
    parameters = {"id": look.case.message_id, "mailbox": look.case.mailbox.id, "reason": reason}
    await connection.execute(KEEP_USAGE, parameters)
    await connection.execute(QUEUE, parameters)
    await connection.execute(ARM, parameters)
    await _journal(connection, look, "resend", _shown(look))
    await _tell(connection, look, "queued", "resend")


async def _end(connection: AsyncConnection[Any], look: Look, state: str, reason: str) -> None:
    draft = look.case.trace.draft if state == "drafted" else None
    parameters = {
        "id": look.case.message_id,
        "state": state,
        "reason": reason,
        "provider_id": draft.message_id or draft.id if draft else None,
        "conversation_id": draft.conversation_id if draft else None,
    }
    await connection.execute(END, parameters)
    await _journal(connection, look, state, {"reason": reason})
    await _tell(connection, look, state, reason)


async def _judge(connection: AsyncConnection[Any], look: Look, proven: bool) -> None:
    sent = look.finding.sent or Sent()
    parameters = {
        "id": look.case.message_id,
        "reason": None if proven else UNPROVEN,
        "evidence": Jsonb({**sent.evidence, "proven": proven}),
        "provider_id": sent.provider_id,
        "rfc_message_id": sent.rfc_message_id,
        "conversation_id": sent.conversation_id,
    }
    await connection.execute(JUDGE, parameters)
    if not proven:
        await _tell(connection, look, "unproven", UNPROVEN)
