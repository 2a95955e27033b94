"""What the worker asks in one pipeline, asked by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from outtray_schema.plans import Limits
from outtray_worker.claim import DueMessage, ask_due, due_of
from outtray_worker.quotas.ledger import Allowance, allowances_of, ask_used
from outtray_worker.quotas.usage import ask_last_minute, last_minute_of


async def read_due(connection: AsyncConnection[Any], ids: Sequence[UUID], limit: int) -> dict[UUID, list[DueMessage]]:
    """Each mailbox's due messages in the order of sending."""
    return await due_of(await ask_due(connection, ids, limit), limit)


async def read_allowances(
    connection: AsyncConnection[Any], boxes: Sequence[tuple[UUID, Limits]]
) -> dict[UUID, Allowance]:
    """What each mailbox may still send."""
    return await allowances_of(await ask_used(connection, boxes), boxes)


async def used_last_minute(connection: AsyncConnection[Any], ids: Sequence[UUID]) -> dict[UUID, int]:
    """Handovers that each mailbox began in the last minute."""
    return await last_minute_of(await ask_last_minute(connection, ids))
