"""Reading the ledger for turns: what claimed mailboxes may still send, and when a message that does not fit will."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from outtray_schema import ledger
from outtray_schema.ledger import Allowance, Counted, Frees
from outtray_schema.plans import Limits

__all__ = ["Allowance", "Frees", "frees_at", "read_allowances", "read_externals"]


async def read_allowances(
    connection: AsyncConnection[Any], boxes: Sequence[tuple[UUID, Limits]]
) -> dict[UUID, Allowance]:
    """What each of a round's mailboxes may still send, by one statement; none at all if none has a daily limit.

    Call it in a later statement than the claim, hence in a later snapshot: it must see the last gate of the fence
    before (protocol, rule 3).
    """
    parameters = ledger.used_parameters(boxes)
    if parameters is None:
        return ledger.allowances(boxes, ())
    async with connection.cursor(row_factory=dict_row, binary=True) as cursor:
        await cursor.execute(ledger.USED, parameters, prepare=True)
        return ledger.allowances(boxes, await cursor.fetchall())


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
