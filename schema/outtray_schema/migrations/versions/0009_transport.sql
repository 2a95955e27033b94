-- SMTP and IMAP as people have them: partial delivery, copies in Sent, a guard against lock-outs.
-- New columns are nullable or have constant defaults, and the release before neither reads nor writes them: its workers
-- deliver a message of `recipients="accepted"` to all or none, file no copies, and count no logins.

-- Refused logins in a row, by door: {"smtp" | "imap": {"version", "refused", "later", "after"}}. NULL: none was. On the
-- mailbox, since the claim reads its row anyway: a turn that finds nothing here logs in without a statement.
ALTER TABLE outtray.mailbox ADD COLUMN logins jsonb;

ALTER TABLE outtray.message
    ADD COLUMN continues   uuid,        -- the message whose recipients, refused for now, this one goes on for
    ADD COLUMN copy_at     timestamptz, -- when its copy for Sent is tried next; NULL: not tried yet
    ADD COLUMN copy_tries  smallint NOT NULL DEFAULT 0,
    ADD COLUMN copy_end    text CHECK (copy_end IN ('filed', 'found', 'given up'));

-- One message goes on for another at most: whoever writes it a second time finds this.
CREATE UNIQUE INDEX message_continues ON outtray.message (continues) WHERE continues IS NOT NULL;

-- Sent messages that want a copy in Sent, as their evidence says. A condition on the row, not a mark that somebody sets.
CREATE INDEX message_copy ON outtray.message (copy_at NULLS FIRST) WHERE
    state = 'sent' AND evidence ? 'sent_copy' AND copy_end IS NULL;

-- Whom the server refused in a handover that went to the others: written before the gate, so that a worker's death right
-- after the final dot loses none of it. What it means is decided once its message has ended (worker/.../partial.py).
CREATE TABLE outtray.refused_recipient (
    message_id uuid NOT NULL REFERENCES outtray.message ON DELETE CASCADE,
    handover   integer NOT NULL,        -- the number that the handover has if its gate is passed
    n          smallint NOT NULL,       -- outtray.recipient.n
    again      boolean NOT NULL,        -- refused for now; false: for good
    reason     text NOT NULL,
    settled    boolean NOT NULL DEFAULT false,
    PRIMARY KEY (message_id, handover, n)
);
CREATE INDEX refused_recipient_open ON outtray.refused_recipient (message_id) WHERE NOT settled;
