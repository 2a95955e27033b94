-- Care: refusals, erasure, breakers.

-- ── refusals and erasure ──────────────────────────────────────────────────────────────────────────────────────────────
-- What was refused at the door, for a week: which fields, by which codes, and for whom, as keyed blind indexes alone. No
-- clear text, not even the reason's: it may quote what the caller wrote. The release before neither reads nor writes it,
-- and its dispatcher leaves it to the newer one's to prune.
CREATE TABLE outtray.refusal (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    app_id          uuid NOT NULL,
    at              timestamptz NOT NULL DEFAULT outtray.outtray_now(),
    problems        jsonb NOT NULL,               -- [{"field", "code"}]
    address_indexes bytea[] NOT NULL DEFAULT '{}',-- its recipients
    mailbox_index   bytea                         -- the mailbox that it named, by its address
);
CREATE INDEX refusal_address ON outtray.refusal USING gin (address_indexes);
CREATE INDEX refusal_at ON outtray.refusal (at);

-- All that is known of whom it was to and what it said is erased once it has ended. NULL: nobody asked.
ALTER TABLE outtray.message ADD COLUMN erase_asked_at timestamptz;
CREATE INDEX message_erase ON outtray.message (id) WHERE erase_asked_at IS NOT NULL;
-- ── end of refusals and erasure ───────────────────────────────────────────────────────────────────────────────────────

-- ── breakers ──────────────────────────────────────────────────────────────────────────────────────────────────────
-- A provider host that fails for most mailboxes of one provider app ('' where a mailbox names none) is asked by one
-- probe at a time; `worker/outtray_worker/breaker.py` says when. Open as long as `closed_at` is NULL; a row that was
-- closed is kept, so that a host which fails again soon goes on with the interval that it had reached. The release
-- before does not read it: its workers go on asking, as they did.
CREATE TABLE outtray.breaker (
    provider_app text NOT NULL,
    host text NOT NULL,
    opened_at timestamptz NOT NULL,
    closed_at timestamptz,
    reason text NOT NULL,
    probes integer NOT NULL DEFAULT 0 CHECK (probes >= 0),
    probe_at timestamptz NOT NULL,
    PRIMARY KEY (provider_app, host));
-- ── end of breakers ───────────────────────────────────────────────────────────────────────────────────────────────
