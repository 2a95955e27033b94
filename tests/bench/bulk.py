"""Many rows at once, where what is measured is not how they came in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from tests.bench.stand import Stand

from outtray_schema import bindings
from outtray_schema.ids import new_id

# Message rows without content: they are claimed and counted, never sent.
SCHEDULE = """
INSERT INTO outtray.message (id, app_id, mailbox_id, request_hash, due_at, recipients, external, size, rfc_message_id)
SELECT uuidv7(), m.app_id, m.id, '', outtray.outtray_now() + %s, 1, 1, 10000, '<' || m.id || '.' || n || '@bench.test>'
FROM outtray.mailbox m, generate_series(1, %s) AS n
"""
ARM_ALL = "UPDATE outtray.mailbox SET next_at = outtray.earliest_due(id)"

HEAD = b'["writer@bench.test","",[["to","reader@example.net"]],"Letter",{}]'
BODY = b"From: writer@bench.test\r\nTo: reader@example.net\r\nSubject: Letter\r\n\r\n" + b"A short letter.\r\n" * 20


def schedule(stand: Stand, per_mailbox: int, due_in: timedelta) -> None:
    """`per_mailbox` messages for every mailbox, due at one time."""
    stand.database.execute(SCHEDULE, [due_in, per_mailbox])
    stand.database.execute(ARM_ALL)
    stand.settle()


def deliverable(stand: Stand, wanted: Iterable[tuple[UUID, datetime]]) -> list[UUID]:
    """A short letter for each (mailbox, due time), sealed as the producer seals it. Returns the messages' ids."""
    app_of = dict(stand.database.execute("SELECT id, app_id FROM outtray.mailbox").fetchall())
    letters = [(new_id(), mailbox_id, due) for mailbox_id, due in wanted]
    _copy(stand, "message (id, app_id, mailbox_id, request_hash, due_at, recipients, external, size, rfc_message_id)", (
        (message_id, app_of[box], box, b"", due, 1, 1, len(BODY), f"<{message_id}@bench.test>")
        for message_id, box, due in letters
    ))  # fmt: skip
    _copy(stand, "content (message_id, head, body, body_hash)", (_sealed(stand, each[0]) for each in letters))
    _copy(stand, "recipient (message_id, n, role, address, address_index, external)", (
        (message_id, 0, "to", b"", b"", True) for message_id, _, _ in letters
    ))  # fmt: skip
    return [message_id for message_id, _, _ in letters]


def arm(stand: Stand) -> None:
    """Every mailbox is due as its messages say; statistics as in a database that runs for a while."""
    stand.database.execute(ARM_ALL)
    stand.settle()


def _sealed(stand: Stand, message_id: UUID) -> tuple[Any, ...]:
    content = stand.vault.content
    digest = stand.vault.keyed_hash(message_id, "body", b"")
    return (
        message_id,
        content.encrypt(HEAD, bindings.head(message_id)),
        content.encrypt(BODY, bindings.body(message_id)),
        digest,
    )


def _copy(stand: Stand, target: str, rows: Iterator[tuple[Any, ...]]) -> None:
    with stand.database.cursor() as cursor, cursor.copy(f"COPY outtray.{target} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
