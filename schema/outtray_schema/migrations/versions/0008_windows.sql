-- Times: when a mailbox, or one message, may leave, and how far apart a mailbox's mails are. The release before neither
-- reads nor writes the columns: a mailbox whose turn one of its workers takes leaves at any hour, so set no window before
-- the last of them has ended. Messages stay right: their `due_at` is the opening already when they come in.

-- {"window": {"zone", "spans", "blackout"}, "gap": [least, most]} (schema/outtray_schema/times.py); NULL: at any time.
ALTER TABLE outtray.mailbox ADD COLUMN times jsonb;

-- {"window": ...}; NULL: whenever its mailbox may.
ALTER TABLE outtray.message ADD COLUMN times jsonb;
