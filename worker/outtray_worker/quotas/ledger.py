"""Reading the ledger for turns: what claimed mailboxes may still send, and when a message that does not fit will."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import dict_row

from outtray_schema import ledger
from outtray_schema.ledger import Allowance, Counted, Frees
from outtray_schema.plans import Limits

__all__ = ["Allowance", "Frees", "allowances_of", "ask_used", "frees_at", "read_externals"]


async def ask_used(
    connection: AsyncConnection[Any], boxes: Sequence[tuple[UUID, Limits]]
) -> AsyncCursor[Mapping[str, Any]] | None:
    """Ask what these mailboxes used, by one statement, in a pipeline if there is one; None: none has a daily limit.

    Ask in a later statement than the claim, hence in a later snapshot: it must see the last gate of the fence before
    (protocol, rule 3).
    """
    parameters = ledger.used_parameters(boxes)
    if parameters is None:
        return None
    cursor = connection.cursor(row_factory=dict_row, binary=True)
    return await cursor.execute(ledger.USED, parameters, prepare=True)


async def allowances_of(
    cursor: AsyncCursor[Mapping[str, Any]] | None, boxes: Sequence[tuple[UUID, Limits]]
) -> dict[UUID, Allowance]:
    """What each mailbox may still send, by what `ask_used` was answered."""
    return ledger.allowances(boxes, await cursor.fetchall() if cursor is not None else ())


async def read_externals(connection: AsyncConnection[Any], message_id: UUID) -> frozenset[bytes]:
    """One message's distinct external recipients, as blind indexes."""
    cursor = await connection.execute(ledger.EXTERNALS, {"id": message_id}, prepare=True, binary=True)
    return frozenset(row[0] for row in await cursor.fetchall())


async def frees_at(
    connection: AsyncConnection[Any],
    mailbox_id: UUID,
    limits: Limits,
    message: Counted,
    externals: Collection[bytes] = (),
) -> Frees:
    """The earliest time at which this message fits all limits, by what is handed over until now."""
    need = ledger.needs(message, externals)
    async with connection.cursor(row_factory=dict_row, binary=True) as cursor:
        await cursor.execute(ledger.FREES, ledger.frees_parameters(mailbox_id, limits, need, externals))
        row = await cursor.fetchone()
    if row is None:
        raise LookupError("the ledger answered with no row")
    most = limits.recipients_per_message
    if most is not None and message.recipients > most:
        return Frees(row["now"], None, "recipients_per_message", message.recipients, most)
    return ledger.frees(row, limits, need)
