-- Reconciliation: looking for evidence about handovers without an outcome, and for drafts that nobody needs any more.
-- New columns are nullable, and the release before neither reads nor writes them; its `resend` policy acts without a
-- look for as long as one of its dispatchers runs.
ALTER TABLE outtray.message
    ADD COLUMN look_handover integer, -- the handover that look_at, looks and looked are about; -1: what an end left behind
    ADD COLUMN looked        jsonb,   -- what the last look showed: finding, looked, at, since when it shows the same
    ADD COLUMN draft_end     text     -- what became of a draft that its ended message needs no more
                             CHECK (draft_end IN ('deleted', 'gone', 'kept'));

-- Due looks, app by app: one that has ten thousand of them does not delay another's.
DROP INDEX outtray.message_look;
CREATE INDEX message_look ON outtray.message (app_id, look_at) WHERE look_at IS NOT NULL;

-- What wants looks and has no time for one yet. A condition on the row, not a mark that somebody sets: so it does not
-- matter who made a message unknown, or how late, and a handover's looks begin anew by its number alone.
CREATE INDEX message_unlooked ON outtray.message (id) WHERE
    (state = 'unknown' OR state = 'sent' AND evidence ? 'look_again') AND look_handover IS DISTINCT FROM handover
    OR state IN ('cancelled', 'expired', 'failed') AND (draft IS NOT NULL OR prepares > 0)
        AND draft_end IS NULL AND look_handover IS DISTINCT FROM -1;
