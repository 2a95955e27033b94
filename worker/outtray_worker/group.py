"""The group's one transaction: lock the mailboxes, pass gates and write outcomes, move the mailboxes.

All of it is one call of `outtray.write_group_1`, whose SQL and reasons stand in
`schema/outtray_schema/migrations/versions/0003_write_group.sql`. A group that spends shared budgets, or in which a
provider teaches us a limit, takes a few statements more, in the same transaction: mailboxes are locked first, then
budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from outtray_worker.items import Gate, Item, MailboxMove, Record, Refusal, Stopped
from outtray_worker.quotas.budgets import Exceeded, lock_budgets
from outtray_worker.quotas.learn import learn

# Locks the mailboxes that the group writes, in the order of their ids. The call locks them itself; this comes first
# only where budgets are locked between.
LOCK = "SELECT m.id FROM outtray.mailbox m WHERE m.id = ANY(%b::uuid[]) ORDER BY m.id FOR NO KEY UPDATE"

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
    """Write the group and commit it. The connection is in autocommit mode; an error has written nothing.

    If the connection is lost on the way, the COMMIT may have arrived or may yet arrive.
    """
    gates = [item for item in items if isinstance(item, Gate)]
    records = [item for item in items if isinstance(item, Record)]
    refusals = [item for item in items if isinstance(item, Refusal)]
    moves = [item for item in items if isinstance(item, MailboxMove)]
    moves += [item.move for item in items if isinstance(item, Record | Refusal) and item.move is not None]
    moves = _merged(moves)
    outcomes = _columns(records, RECORD) | _columns(refusals, REFUSAL) | _columns(moves, STEP)
    locked = {gate.mailbox_id for gate in gates} | {move.mailbox_id for move in moves}
    parameters = outcomes | {"lock_id": list(locked)}
    answer = GroupAnswer({}, {}, {}, {}, {}, set())
    spends = any(gate.spend is not None for gate in gates)
    lessons = {move.mailbox_id: move.learns for move in moves if move.learns is not None}
    if not spends and not lessons:
        await _write(connection, parameters | _columns(gates, GATE), answer)
        return answer
    async with connection.transaction():
        if spends:
            await _write_within_budgets(connection, gates, parameters, answer)
        else:
            await _write(connection, parameters | _columns(gates, GATE), answer)
        if lessons:
            await learn(connection, lessons)
    return answer


async def _write_within_budgets(
    connection: AsyncConnection[Any], gates: Sequence[Gate], parameters: Mapping[str, Any], answer: GroupAnswer
) -> None:
    """Spend shared budgets for the gates that pass, in their own transaction: one write per budget (rule 15)."""
    await connection.execute(LOCK, [parameters["lock_id"]], prepare=True)
    spends = {gate.message_id: (gate.mailbox_id, gate.spend) for gate in gates if gate.spend is not None}
    budgets = await lock_budgets(connection, {mailbox_id for mailbox_id, _ in spends.values()})
    for message_id, (mailbox_id, spend) in spends.items():
        exceeded = budgets.spend(mailbox_id, spend)
        if exceeded is not None:
            answer.exceeded[message_id] = exceeded
    allowed = [gate for gate in gates if gate.message_id not in answer.exceeded]
    await _write(connection, {**parameters, **_columns(allowed, GATE)}, answer)
    for message_id, (mailbox_id, spend) in spends.items():
        if message_id not in answer.passed and message_id not in answer.exceeded:
            budgets.give_back(mailbox_id, spend)
    await budgets.write(connection)


async def _write(connection: AsyncConnection[Any], parameters: Mapping[str, Any], answer: GroupAnswer) -> None:
    cursor = await connection.execute(CALL, parameters, prepare=True, binary=True)
    for what, row_id, number in await cursor.fetchall():
        match what:
            case "gate":
                answer.passed[row_id] = number
            case "record":
                answer.recorded[row_id] = number
            case "refused":
                answer.refused[row_id] = number
            case "ended":
                answer.ended[row_id] = bool(number)
            case _:
                answer.closed.add(row_id)


def _merged(moves: Sequence[MailboxMove]) -> list[MailboxMove]:
    """One move per mailbox: an UPDATE touches a row once, so what several items ask of one mailbox is joined."""
    merged: dict[UUID, MailboxMove] = {}
    for move in moves:
        other = merged.get(move.mailbox_id)
        merged[move.mailbox_id] = move if other is None else _join(other, move)
    return list(merged.values())


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
        learns=second.learns if second.learns is not None else first.learns,
    )


GATE = {
    "gate_id": ("uuid", "message_id"), "gate_mailbox": ("uuid", "mailbox_id"), "gate_fence": ("bigint", "fence"),
    "gate_version": ("int", "version"), "gate_provider": ("text", "provider"), "gate_within": ("interval", "within"),
    "gate_draft": ("jsonb", "draft"),
}  # fmt: skip
RECORD = {
    "rec_id": ("uuid", "message_id"), "rec_handover": ("int", "handover"), "rec_state": ("text", "state"),
    "rec_spends": ("bool", "spends"), "rec_again": ("interval", "again"), "rec_reason": ("text", "reason"),
    "rec_provider_id": ("text", "provider_id"), "rec_rfc_message_id": ("text", "rfc_message_id"),
    "rec_conversation_id": ("text", "conversation_id"), "rec_evidence": ("jsonb", "evidence"),
    "rec_kind": ("text", "kind"),
}  # fmt: skip
REFUSAL = {
    "ref_id": ("uuid", "message_id"), "ref_version": ("int", "version"), "ref_state": ("text", "state"),
    "ref_spends": ("bool", "spends"), "ref_counts": ("bool", "counts"), "ref_again": ("interval", "again"),
    "ref_reason": ("text", "reason"), "ref_evidence": ("jsonb", "evidence"), "ref_kind": ("text", "kind"),
}  # fmt: skip
STEP = {
    "move_id": ("uuid", "mailbox_id"), "move_fence": ("bigint", "fence"), "move_ends": ("bool", "ends"),
    "move_park": ("interval", "park"), "move_park_reason": ("text", "park_reason"), "move_counts": ("bool", "counts"),
    "move_resets": ("bool", "resets"), "move_hold": ("text", "hold"), "move_hold_reason": ("text", "hold_reason"),
    "move_credentials": ("int", "credentials_version"),
}  # fmt: skip
"""The call's parameters, in their order: the type of each array's elements, and the field of the items in it."""

CALL = "SELECT * FROM outtray.write_group_1(%(lock_id)b::uuid[], {})".format(
    ", ".join(f"%({name})b::{kind}[]" for name, (kind, _) in (GATE | RECORD | REFUSAL | STEP).items())
)


def _columns(items: Sequence[Item], parameters: Mapping[str, tuple[str, str]]) -> dict[str, list[Any]]:
    """The items as one array per column: what `unnest` takes."""
    columns = {name: [getattr(item, field) for item in items] for name, (_, field) in parameters.items()}
    for name, (kind, field) in parameters.items():
        if kind == "jsonb":
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
