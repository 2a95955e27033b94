"""Erase a person: everything that was ever to be sent to an address, and what is known of the address itself.

What waits is cancelled first. What a message said and to whom goes with it; the row, its history and what it used of
the limits stay. A message to several is erased whole, since it speaks of all of them. What is with the provider just
now, or unknown, is erased once it has ended. The suppression list is not touched: it keeps the promise not to write.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from outtray.cancel import cancel_where
from outtray.door import Door
from outtray.noting import note
from outtray.plan import Begin, Commit, Plan, rows
from outtray_schema.address import parse_address
from outtray_schema.erasing import ERASE_ASKED

# Marks the next messages to an address; locks them. The mark outlives us: pruning erases what is left.
MARK = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
theirs AS MATERIALIZED (
    SELECT m.id FROM outtray.message m
    WHERE m.app_id = %(app)s AND m.id > %(after)s AND m.id IN (
        SELECT r.message_id FROM outtray.recipient r WHERE r.address_index = %(index)s AND r.message_id > %(after)s)
    ORDER BY m.id LIMIT %(limit)s FOR NO KEY UPDATE OF m),
marked AS (
    UPDATE outtray.message m SET erase_asked_at = coalesce(m.erase_asked_at, t.now) FROM theirs, t
    WHERE m.id = theirs.id RETURNING m.id, m.mailbox_id, m.ended_at),
noted AS (
    INSERT INTO outtray.journal (at, message_id, mailbox_id, kind, actor)
    SELECT t.now, id, mailbox_id, 'erase asked', %(actor)s::text FROM marked, t WHERE ended_at IS NULL)
SELECT id, ended_at IS NOT NULL AS ended FROM marked ORDER BY id
"""

# Deletes what was refused at the door for an address.
FORGET_REFUSALS = """
DELETE FROM outtray.refusal r WHERE r.address_indexes @> ARRAY[%(index)s::bytea] AND r.app_id = %(app)s RETURNING r.id
"""

BATCH = 500


@dataclass(frozen=True, slots=True)
class Erased:
    """What became of a wish to be forgotten. `later`: with the provider or unknown; erased once they have ended."""

    messages: int = 0
    cancelled: int = 0
    later: int = 0
    refusals: int = 0


def erase_recipient(door: Door, address: str) -> Plan[Erased]:
    """Erase everything to this address; can be repeated. Raises `InvalidMessage` for what is no address."""
    app_id = yield from door.app()
    email = parse_address(address).email
    index = door.vault.blind_index(app_id, email)
    counts = yield from cancel_where(door, to=email, reason="erased")
    erased = later = 0
    after = UUID(int=0)
    while True:
        yield Begin()
        marked = yield from rows(MARK, app=app_id, index=index, after=after, limit=BATCH, actor=door.actor)
        ended = [row["id"] for row in marked if row["ended"]]
        erased += len((yield from rows(ERASE_ASKED, ids=ended, chunk=BATCH, actor=door.actor)))
        yield Commit()
        later += len(marked) - len(ended)
        if len(marked) < BATCH:
            break
        after = marked[-1]["id"]
    forgotten = len((yield from rows(FORGET_REFUSALS, app=app_id, index=index)))
    told = Erased(erased, counts.cancelled, later, forgotten)
    # To whom is what must not be known any more.
    yield from note(door.actor, "erased", messages=told.messages, later=told.later, refusals=told.refusals)
    return told
