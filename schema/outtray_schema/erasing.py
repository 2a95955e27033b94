"""Erasing: what a message said and to whom goes, and its row, its history and what it used stay.

Two statements for two occasions. With time, the content of what has ended goes, and the addresses in clear; the keyed
blind indexes stay as long as the message, so that it can still be found by somebody who knows the address. On request
of a person the indexes go as well. Both are written into each message's journal, which never held anything of it.
"""

from __future__ import annotations

# Erases the content of a chunk of ended messages that are old enough, those apart that a follower waits for or answers.
# Locks the messages. `before` bounds the ids, which rise with time: what was erased is not looked at again.
ERASE_OLD = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
old AS MATERIALIZED (
    SELECT m.id, m.mailbox_id FROM outtray.content c JOIN outtray.message m ON m.id = c.message_id, t
    WHERE c.message_id < %(before)s AND m.ended_at <= t.now - %(keep)s
      AND NOT outtray.is_followed(m.id)
    LIMIT %(chunk)s FOR NO KEY UPDATE OF m SKIP LOCKED),
pieces AS (DELETE FROM outtray.content_chunk c USING old WHERE c.message_id = old.id),
bodies AS (DELETE FROM outtray.content c USING old WHERE c.message_id = old.id),
names AS (UPDATE outtray.recipient r SET address = '' FROM old WHERE r.message_id = old.id),
noted AS (
    INSERT INTO outtray.journal (at, message_id, mailbox_id, kind, detail)
    SELECT t.now, id, mailbox_id, 'erased', '{"reason": "older than content is kept"}' FROM old, t)
SELECT id FROM old
"""

# Erases a chunk of messages whole that somebody asked about and that have ended: content, addresses and their indexes.
# Locks the messages. A handover that may still count moves to `usage`, and with it the indexes of whom it was to: there
# they go once the ledger's day is over (rule 14).
ERASE_ASKED = """
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
gone AS MATERIALIZED (
    SELECT m.id, m.mailbox_id, m.counted_at, m.recipients, m.external, m.handover FROM outtray.message m
    WHERE m.erase_asked_at IS NOT NULL AND m.ended_at IS NOT NULL
      AND (%(ids)s::uuid[] IS NULL OR m.id = ANY(%(ids)s::uuid[]))
    ORDER BY m.id LIMIT %(chunk)s FOR NO KEY UPDATE OF m SKIP LOCKED),
counted AS (
    INSERT INTO outtray.usage (mailbox_id, counted_at, recipients, external, externals, message_id, handover, source)
    SELECT g.mailbox_id, g.counted_at, g.recipients, g.external,
        ARRAY(SELECT DISTINCT r.address_index FROM outtray.recipient r WHERE r.message_id = g.id AND r.external),
        g.id, g.handover, 'erased'
    FROM gone g, t WHERE g.counted_at > t.now - interval '25 hours'
    ON CONFLICT (message_id, handover) WHERE message_id IS NOT NULL DO NOTHING),
pieces AS (DELETE FROM outtray.content_chunk c USING gone WHERE c.message_id = gone.id),
bodies AS (DELETE FROM outtray.content c USING gone WHERE c.message_id = gone.id),
people AS (
    UPDATE outtray.recipient r SET address = '', address_index = '' FROM gone WHERE r.message_id = gone.id),
refused AS (DELETE FROM outtray.refused_recipient r USING gone WHERE r.message_id = gone.id),
marked AS (
    UPDATE outtray.message m SET erase_asked_at = NULL, counted_at = NULL FROM gone WHERE m.id = gone.id),
noted AS (
    INSERT INTO outtray.journal (at, message_id, mailbox_id, kind, actor, detail)
    SELECT t.now, id, mailbox_id, 'erased', %(actor)s::text, '{"reason": "asked for"}' FROM gone, t)
SELECT id FROM gone
"""

FORGET_REFUSALS = "DELETE FROM outtray.refusal r WHERE r.at <= outtray.outtray_now() - %(keep)s"
"""Deletes what was refused at the door long enough ago."""

CHUNK = 500
"""Messages that one statement erases."""
