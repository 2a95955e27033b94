"""Freeing: mailboxes that waited for their OAuth client go on, whoever found out that it works again (rule 13).

The command line frees them with a new secret, a worker after a try that was not refused. Rows are locked by a statement
of its own first, in the order of their ids; the one that arms them sees what the turn that just ended wrote.
"""

from __future__ import annotations

from outtray_schema.consent import APP_REFUSED

# Locks a chunk of the mailboxes that wait for one OAuth client.
LOCK_WAITING = f"""
SELECT m.id FROM outtray.mailbox m
WHERE m.provider_app = %(name)s AND m.id > %(after)s AND m.parked_reason LIKE '{APP_REFUSED}%%'
ORDER BY m.id LIMIT %(chunk)s FOR NO KEY UPDATE
"""

# Writes the chunk that is locked already.
FREE = """
UPDATE outtray.mailbox m
SET parked_until = NULL, parked_reason = NULL, parks = 0, next_at = least(m.next_at, outtray.earliest_due(m.id))
WHERE m.id = ANY(%(ids)s)
"""

CHUNK = 500
"""Mailboxes that are freed in one transaction."""
