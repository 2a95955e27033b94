"""The group's one transaction: lock the mailboxes, pass gates and write outcomes, move the mailboxes.

    LOCK    takes the mailboxes' rows in the order of their ids, with fence and status in the condition (rule 4).
            A claim waits for it, and so the claim's ledger sees what is gated here.
    WRITE   a second statement and hence a snapshot taken *after* the lock wait, so that a pause or a suppression
            committed during that wait is seen (rule 10). One conditional write per message; journal and events with it.
    MOVE    parks, holds and ends of turns (rule 8), seeing what WRITE did.

Every write names its handover by number, never by state alone: attempts can be given back, the number only rises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from outtray_worker.items import Gate, Item, MailboxMove, Record, Refusal, Stopped
from outtray_worker.quotas.budgets import Exceeded, lock_budgets

LOCK = """
SELECT m.id, m.turn_fence, m.status = 'active' AND m.turn_until > (SELECT outtray.outtray_now()) AS open
FROM outtray.mailbox m WHERE m.id = ANY(%b::uuid[]) ORDER BY m.id FOR NO KEY UPDATE
"""

# `gated`: the live message, and everything that may have changed since the turn read it. The wait that follows a
#   passed gate is counted in the ledger from its end (rule 14), so `counted_at` begins at its latest possible end.
# `recorded`: by handover number, while it is open (or was only inferred to be unknown: a definite answer is evidence).
#   The state stands in a CASE so that the row is found by its primary key: through the partial indexes on open and
#   unknown messages, dead entries would be walked under an old snapshot, and every unknown message at all times.
# `refused`: what ended in preparation, before any handover: by version.
# What stops a message seldom stands first as a cheap question (is there any switch at all? any tag?): a call of an SQL
# function costs 6 to 10 µs, a fifth of the whole statement's CPU for each of the three (measured on 18.4, 2026-11).
WRITE = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now, EXISTS (SELECT FROM outtray.switch) AS switches),
gated AS (
    UPDATE outtray.message m
    SET state = 'handing_over', version = m.version + 1, attempt = m.attempt + 1, prepares = 0,
        handover = m.handover + 1, handed_at = t.now, handover_until = t.now + g.within, handover_end = NULL,
        handover_fence = g.fence, counted_at = CASE WHEN NOT m.only_draft THEN t.now + g.within END, reason = NULL,
        draft = coalesce(m.draft, g.draft)
    FROM unnest(%(gate_id)b::uuid[], %(gate_fence)b::bigint[], %(gate_version)b::int[], %(gate_provider)b::text[],
                %(gate_within)b::interval[], %(gate_draft)b::jsonb[])
         AS g (id, fence, version, provider, within, draft), t
    WHERE m.id = g.id AND m.state = 'queued' AND m.version = g.version AND m.due_at <= t.now
      AND (m.expires_at IS NULL OR m.expires_at > t.now) AND m.cancel_asked_at IS NULL
      AND NOT (t.switches AND (outtray.switched_off(m.app_id, g.provider) OR outtray.tag_paused(m.app_id, m.tags)))
      AND CASE WHEN EXISTS (
            SELECT FROM outtray.recipient r JOIN outtray.suppression s USING (address_index)
            WHERE r.message_id = m.id AND s.app_id = m.app_id) THEN false ELSE true END
    RETURNING m.id, m.mailbox_id, m.app_id, m.handover),
recorded AS (
    UPDATE outtray.message m
    SET state = CASE WHEN r.state = 'queued' AND m.cancel_asked_at IS NOT NULL THEN 'cancelled' ELSE r.state END,
        version = m.version + 1, attempt = m.attempt - (NOT r.spends)::int,
        due_at = coalesce(t.now + r.again, m.due_at),
        failing_since = CASE WHEN r.spends AND r.state NOT IN ('sent', 'drafted') THEN coalesce(m.failing_since, t.now)
                        ELSE m.failing_since END,
        handover_end = CASE WHEN r.state <> 'unknown' THEN t.now END,
        counted_at = CASE r.state WHEN 'sent' THEN t.now WHEN 'unknown' THEN m.counted_at END,
        ended_at = CASE WHEN r.state IN ('sent', 'drafted', 'failed')
                   OR r.state = 'queued' AND m.cancel_asked_at IS NOT NULL THEN t.now END,
        provider_id = coalesce(r.provider_id, m.provider_id),
        rfc_message_id = coalesce(r.rfc_message_id, m.rfc_message_id),
        conversation_id = coalesce(r.conversation_id, m.conversation_id), reason = r.reason, evidence = r.evidence
    FROM unnest(%(rec_id)b::uuid[], %(rec_handover)b::int[], %(rec_state)b::text[], %(rec_spends)b::bool[],
                %(rec_again)b::interval[], %(rec_reason)b::text[], %(rec_provider_id)b::text[],
                %(rec_rfc_message_id)b::text[], %(rec_conversation_id)b::text[], %(rec_evidence)b::jsonb[],
                %(rec_kind)b::text[])
         AS r (id, handover, state, spends, again, reason, provider_id, rfc_message_id, conversation_id, evidence,
               kind), t
    WHERE m.id = r.id AND m.handover = r.handover
      AND CASE m.state WHEN 'handing_over' THEN true WHEN 'unknown' THEN r.state <> 'unknown' ELSE false END
    RETURNING m.id, m.mailbox_id, m.app_id, m.handover, m.state, m.reason, m.evidence, r.kind),
refused AS (
    UPDATE outtray.message m
    SET state = r.state, version = m.version + 1, attempt = m.attempt + r.spends::int,
        prepares = CASE WHEN r.counts THEN m.prepares + 1 ELSE 0 END,
        due_at = coalesce(t.now + r.again, m.due_at),
        failing_since = CASE WHEN r.spends THEN coalesce(m.failing_since, t.now) ELSE m.failing_since END,
        ended_at = CASE WHEN r.state <> 'queued' THEN t.now END,
        reason = coalesce(r.reason, m.reason), evidence = coalesce(r.evidence, m.evidence)
    FROM unnest(%(ref_id)b::uuid[], %(ref_version)b::int[], %(ref_state)b::text[], %(ref_spends)b::bool[],
                %(ref_counts)b::bool[], %(ref_again)b::interval[], %(ref_reason)b::text[], %(ref_evidence)b::jsonb[],
                %(ref_kind)b::text[])
         AS r (id, version, state, spends, counts, again, reason, evidence, kind), t
    WHERE m.id = r.id AND m.state = 'queued' AND m.version = r.version
    RETURNING m.id, m.mailbox_id, m.app_id, m.version, m.state, m.reason, m.evidence, r.kind),
changed AS (
    SELECT id, mailbox_id, app_id, kind, handover, state, reason, evidence FROM recorded
    UNION ALL
    SELECT id, mailbox_id, app_id, kind, NULL, state, reason, evidence FROM refused WHERE kind <> 'preparing'),
noted AS (
    INSERT INTO outtray.journal (at, message_id, mailbox_id, kind, handover, detail)
    SELECT t.now, id, mailbox_id, 'gate', handover, NULL FROM gated, t
    UNION ALL
    SELECT t.now, id, mailbox_id, kind, handover,
        jsonb_strip_nulls(jsonb_build_object('state', state, 'reason', reason, 'evidence', evidence)) FROM changed, t),
told AS (
    INSERT INTO outtray.event (at, app_id, mailbox_id, message_id, kind, data)
    SELECT t.now, app_id, mailbox_id, id, state, jsonb_strip_nulls(jsonb_build_object('reason', reason))
    FROM changed, t WHERE state <> 'queued' OR kind = 'retry')
SELECT 'gate' AS what, id, handover AS number FROM gated
UNION ALL SELECT 'record', id, handover FROM recorded
UNION ALL SELECT 'refused', id, version FROM refused
"""

# The rows are locked already, so what `step` reads of them stands. `parked_until` is only ever moved forward here. A
# hold takes only a mailbox that is active and whose credentials are still those that were refused: it falls once and
# never undoes a new consent. Only the holder of the fence ends the turn; what a wake wrote meanwhile stays (rule 8).
# What comes late, after its turn, arms the mailbox: it may have put a message back that nobody looks for (rule 13).
MOVE = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
step AS MATERIALIZED (
    SELECT s.*, t.now + s.park AS park_until, s.ends AND m.turn_fence = s.fence AS over,
        m.turn_fence <> s.fence OR m.turn_until IS NULL AS late,
        s.hold IS NOT NULL AND m.status = 'active' AND m.credentials_version = s.credentials AS holds,
        s.park IS NOT NULL AND coalesce(m.parked_until < t.now + s.park, true) AS parks_longer
    FROM unnest(%(id)b::uuid[], %(fence)b::bigint[], %(ends)b::bool[], %(park)b::interval[], %(park_reason)b::text[],
                %(counts)b::bool[], %(resets)b::bool[], %(hold)b::text[], %(hold_reason)b::text[],
                %(credentials)b::int[])
         AS s (id, fence, ends, park, park_reason, counts, resets, hold, hold_reason, credentials)
    JOIN outtray.mailbox m USING (id), t),
moved AS (
    UPDATE outtray.mailbox m
    SET parked_until = CASE WHEN s.parks_longer THEN s.park_until ELSE m.parked_until END,
        parked_reason = CASE WHEN s.parks_longer THEN s.park_reason ELSE m.parked_reason END,
        parks = CASE WHEN s.counts THEN m.parks + 1 WHEN s.resets THEN 0 ELSE m.parks END,
        status = CASE WHEN s.holds THEN s.hold ELSE m.status END,
        status_reason = CASE WHEN s.holds THEN s.hold_reason ELSE m.status_reason END,
        status_at = CASE WHEN s.holds THEN t.now ELSE m.status_at END,
        turn_until = CASE WHEN NOT s.over THEN m.turn_until END,
        turn_worker = CASE WHEN NOT s.over THEN m.turn_worker END,
        dead_turns = CASE WHEN s.over THEN 0 ELSE m.dead_turns END,
        next_at = outtray.not_before(
            CASE WHEN s.over OR s.late THEN least(m.next_at, outtray.earliest_due(m.id)) ELSE m.next_at END,
            greatest(m.parked_until, s.park_until))
    FROM step s, t
    WHERE m.id = s.id
    RETURNING m.id, m.app_id, m.next_at <= t.now AS due_now, s.ends, s.holds, m.status,
        s.parks_longer AND s.park_reason <> 'pace' AS parked,
        CASE WHEN s.holds THEN m.status_reason ELSE m.parked_reason END AS reason,
        CASE WHEN NOT s.holds THEN m.parked_until END AS until),
noted AS (
    INSERT INTO outtray.journal (at, mailbox_id, kind, detail)
    SELECT t.now, id, CASE WHEN holds THEN status ELSE 'parked' END,
        jsonb_strip_nulls(jsonb_build_object('reason', reason, 'until', until))
    FROM moved, t WHERE holds OR parked),
told AS (
    INSERT INTO outtray.event (at, app_id, mailbox_id, kind, data)
    SELECT t.now, app_id, id, 'mailbox.' || CASE WHEN holds THEN status ELSE 'parked' END,
        jsonb_strip_nulls(jsonb_build_object('reason', reason, 'until', until))
    FROM moved, t WHERE holds OR parked)
SELECT id, due_now FROM moved WHERE ends
"""

# What a gate whose COMMIT was in doubt really did: by handover number and fence, on a new connection (rule 10).
READ_BACK = """
SELECT m.id, m.handover, m.handover_fence FROM outtray.message m WHERE m.id = ANY(%s)
"""

WHY = """
SELECT m.id, m.state, m.cancel_asked_at IS NOT NULL AS cancelled, m.expires_at <= outtray.outtray_now() AS expired,
    outtray.suppressed(m.app_id, m.id) AS suppressed
FROM outtray.message m WHERE m.id = ANY(%s)
"""


@dataclass(slots=True)
class GroupAnswer:
    """What one transaction did. Keys are message ids; a message that is missing was not written."""

    passed: dict[UUID, int]
    recorded: dict[UUID, int]
    refused: dict[UUID, int]
    ended: dict[UUID, bool]
    exceeded: dict[UUID, Exceeded]
    """Messages whose mailbox's shared budgets had no room, by message id."""
    closed: set[UUID]
    """Mailboxes whose fence is lost, or that are not active, or whose lease ran out: no gate passed for them."""


async def write_group(connection: AsyncConnection[Any], items: Sequence[Item]) -> GroupAnswer:
    """Write the group inside the transaction that the caller opened and will commit. Locks in the order of ids."""
    gates = [item for item in items if isinstance(item, Gate)]
    records = [item for item in items if isinstance(item, Record)]
    refusals = [item for item in items if isinstance(item, Refusal)]
    moves = [item for item in items if isinstance(item, MailboxMove)]
    moves += [item.move for item in items if isinstance(item, Record | Refusal) and item.move is not None]
    locked = await _lock(connection, {gate.mailbox_id for gate in gates} | {move.mailbox_id for move in moves})
    open_gates = [gate for gate in gates if locked.get(gate.mailbox_id) == (gate.fence, True)]
    closed = {gate.mailbox_id for gate in gates} - {gate.mailbox_id for gate in open_gates}
    answer = GroupAnswer({}, {}, {}, {}, {}, closed)
    spending = [gate for gate in open_gates if gate.spend is not None]
    if spending:
        await _write_within_budgets(connection, open_gates, records, refusals, answer)
    elif open_gates or records or refusals:
        await _write(connection, open_gates, records, refusals, answer)
    if moves:
        await _move(connection, moves, answer)
    return answer


async def _lock(connection: AsyncConnection[Any], mailboxes: set[UUID]) -> dict[UUID, tuple[int, bool]]:
    if not mailboxes:
        return {}
    cursor = await connection.execute(LOCK, [list(mailboxes)], prepare=True, binary=True)
    return {row[0]: (row[1], row[2]) for row in await cursor.fetchall()}


async def _write_within_budgets(
    connection: AsyncConnection[Any],
    gates: Sequence[Gate],
    records: Sequence[Record],
    refusals: Sequence[Refusal],
    answer: GroupAnswer,
) -> None:
    """Spend shared budgets for the gates that pass, in their own transaction: one write per budget (rule 15)."""
    spends = {gate.message_id: (gate.mailbox_id, gate.spend) for gate in gates if gate.spend is not None}
    budgets = await lock_budgets(connection, {mailbox_id for mailbox_id, _ in spends.values()})
    for message_id, (mailbox_id, spend) in spends.items():
        exceeded = budgets.spend(mailbox_id, spend)
        if exceeded is not None:
            answer.exceeded[message_id] = exceeded
    allowed = [gate for gate in gates if gate.message_id not in answer.exceeded]
    await _write(connection, allowed, records, refusals, answer)
    for message_id, (mailbox_id, spend) in spends.items():
        if message_id not in answer.passed and message_id not in answer.exceeded:
            budgets.give_back(mailbox_id, spend)
    await budgets.write(connection)


async def _write(
    connection: AsyncConnection[Any],
    gates: Sequence[Gate],
    records: Sequence[Record],
    refusals: Sequence[Refusal],
    answer: GroupAnswer,
) -> None:
    parameters = _columns(gates, GATE) | _columns(records, RECORD) | _columns(refusals, REFUSAL)
    cursor = await connection.execute(WRITE, parameters, prepare=True, binary=True)
    written = {"gate": answer.passed, "record": answer.recorded, "refused": answer.refused}
    for what, message_id, number in await cursor.fetchall():
        written[what][message_id] = number


async def _move(connection: AsyncConnection[Any], moves: Sequence[MailboxMove], answer: GroupAnswer) -> None:
    parameters = _columns(list(_merged(moves).values()), STEP)
    cursor = await connection.execute(MOVE, parameters, prepare=True, binary=True)
    answer.ended.update({row[0]: bool(row[1]) for row in await cursor.fetchall()})


def _merged(moves: Sequence[MailboxMove]) -> dict[UUID, MailboxMove]:
    """One move per mailbox: an UPDATE touches a row once, so what several items ask of one mailbox is joined."""
    merged: dict[UUID, MailboxMove] = {}
    for move in moves:
        other = merged.get(move.mailbox_id)
        merged[move.mailbox_id] = move if other is None else _join(other, move)
    return merged


def _join(first: MailboxMove, second: MailboxMove) -> MailboxMove:
    longer = max((first, second), key=lambda move: move.park or timedelta.min)
    holder = first if first.hold else second
    newer = max((first, second), key=lambda move: move.fence)
    return MailboxMove(
        first.mailbox_id,
        newer.fence,
        ends=newer.ends if first.fence != second.fence else first.ends or second.ends,
        park=longer.park,
        park_reason=longer.park_reason,
        counts=first.counts or second.counts,
        resets=first.resets or second.resets,
        hold=holder.hold,
        hold_reason=holder.hold_reason,
        credentials_version=holder.credentials_version,
    )


GATE = {
    "gate_id": "message_id", "gate_fence": "fence", "gate_version": "version", "gate_provider": "provider",
    "gate_within": "within", "gate_draft": "draft",
}  # fmt: skip
RECORD = {
    "rec_id": "message_id", "rec_handover": "handover", "rec_state": "state", "rec_spends": "spends",
    "rec_again": "again", "rec_reason": "reason", "rec_provider_id": "provider_id",
    "rec_rfc_message_id": "rfc_message_id", "rec_conversation_id": "conversation_id", "rec_evidence": "evidence",
    "rec_kind": "kind",
}  # fmt: skip
REFUSAL = {
    "ref_id": "message_id", "ref_version": "version", "ref_state": "state", "ref_spends": "spends",
    "ref_counts": "counts", "ref_again": "again", "ref_reason": "reason", "ref_evidence": "evidence",
    "ref_kind": "kind",
}  # fmt: skip
STEP = {
    "id": "mailbox_id", "fence": "fence", "ends": "ends", "park": "park", "park_reason": "park_reason",
    "counts": "counts", "resets": "resets", "hold": "hold", "hold_reason": "hold_reason",
    "credentials": "credentials_version",
}  # fmt: skip
"""Which parameter of a statement carries which field of its items."""


def _columns(items: Sequence[Item], parameters: Mapping[str, str]) -> dict[str, list[Any]]:
    """The items as one array per column: what `unnest` takes."""
    columns = {name: list(map(attrgetter(field), items)) for name, field in parameters.items()}
    for name, field in parameters.items():
        if field in AS_JSON:
            columns[name] = [AS_JSON[field](value) if value else None for value in columns[name]]
    return columns


AS_JSON: Mapping[str, Callable[[Any], Jsonb]] = {
    "evidence": lambda evidence: Jsonb(dict(evidence)),
    "draft": lambda draft: Jsonb({name: value for name, value in asdict(draft).items() if value is not None}),
}


async def read_back(connection: AsyncConnection[Any], gates: Sequence[Gate]) -> dict[UUID, int]:
    """Which of these gates are written, whatever became of the answer to their COMMIT: message id → handover."""
    cursor = await connection.execute(READ_BACK, [[gate.message_id for gate in gates]])
    found = {row[0]: (row[1], row[2]) for row in await cursor.fetchall()}
    return {
        gate.message_id: gate.handover for gate in gates if found.get(gate.message_id) == (gate.handover, gate.fence)
    }


async def why_stopped(connection: AsyncConnection[Any], gates: Sequence[Gate]) -> dict[UUID, Stopped]:
    """Why each of these messages was not let through, as far as it can be seen now."""
    cursor = await connection.execute(WHY, [[gate.message_id for gate in gates]])
    return {row[0]: _reason(*row[1:]) for row in await cursor.fetchall()}


def _reason(state: str, cancelled: bool, expired: bool | None, suppressed: bool) -> Stopped:
    if state != "queued":
        return Stopped(state)
    if suppressed:
        return Stopped("suppressed")
    if cancelled:
        return Stopped("cancelled")
    return Stopped("expired" if expired else "changed or held")
