"""Notes in the journal of what was changed and by whom, where it belongs to no message: in the change's transaction.

A detail names no person: what is said in it stays for as long as the journal is kept.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from outtray.plan import Plan, rows

# Inserts into the journal.
NOTE = """
INSERT INTO outtray.journal (mailbox_id, kind, actor, detail)
VALUES (%(mailbox)s::uuid, %(kind)s, %(actor)s, %(detail)s)
"""


def note(actor: str, kind: str, mailbox: UUID | None = None, /, **detail: Any) -> Plan[None]:
    """Write who did what."""
    told = {name: value for name, value in detail.items() if value is not None}
    yield from rows(NOTE, mailbox=mailbox, kind=kind, actor=actor, detail=Jsonb(told))
