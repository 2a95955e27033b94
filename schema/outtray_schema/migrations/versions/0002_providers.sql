-- Providers that log in by consent and that have drafts: Gmail and Microsoft Graph.
-- Every change is one that processes of the release before live with: new columns have defaults, no old one goes.

-- An OAuth client (or service account) by which mailboxes log in. An app may bring its own; NULL: everybody's.
ALTER TABLE outtray.provider_app
    ADD COLUMN app_id         uuid REFERENCES outtray.app,
    ADD COLUMN kind           text NOT NULL DEFAULT 'oauth'
                              CHECK (kind IN ('oauth', 'service_account', 'client_credentials')),
    ADD COLUMN client_id      text,
    ADD COLUMN tenant         text,                       -- Microsoft: a tenant, or common, organizations, consumers
    ADD COLUMN secret         bytea,                      -- credentials ring: client secret, certificate, service account
    ADD COLUMN secret_version integer NOT NULL DEFAULT 1,
    ADD COLUMN status         text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'refused')),
    ADD COLUMN status_reason  text,
    ADD COLUMN status_at      timestamptz;

ALTER TABLE outtray.mailbox
    ADD COLUMN scopes     text[] NOT NULL DEFAULT '{}',   -- what its owner granted, as the provider names it
    ADD COLUMN on_unknown text CHECK (on_unknown IN ('hold', 'resend')); -- NULL: the app's

-- Access tokens, shared by all workers: one refresh per expiry. `audience` is '' for the provider's own API; a second
-- one (SMTP and IMAP at Microsoft) needs a second token. The refresh token is in the mailbox's credentials.
CREATE TABLE outtray.token (
    mailbox_id    uuid NOT NULL REFERENCES outtray.mailbox ON DELETE CASCADE,
    audience      text NOT NULL DEFAULT '',
    access        bytea,                                  -- credentials ring
    version       integer NOT NULL DEFAULT 0,             -- rises with every refresh
    expires_at    timestamptz,
    refreshing    integer NOT NULL DEFAULT 0,             -- the lease's fence
    refreshing_until timestamptz,
    PRIMARY KEY (mailbox_id, audience)
) WITH (fillfactor = 70);

-- Who agreed to what, and when. Append-only; no address, no token.
CREATE TABLE outtray.consent (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mailbox_id   uuid NOT NULL REFERENCES outtray.mailbox ON DELETE CASCADE,
    at           timestamptz NOT NULL DEFAULT outtray.outtray_now(),
    actor        text NOT NULL,
    provider_app text,
    kind         text NOT NULL CHECK (kind IN ('connected', 'reconnected', 'disconnected', 'revoked')),
    scopes       text[] NOT NULL DEFAULT '{}'
);
CREATE INDEX consent_mailbox ON outtray.consent (mailbox_id);

ALTER TABLE outtray.message
    ADD COLUMN draft      jsonb,                          -- the provider's ids of the draft that a gate bound, for ever
    ADD COLUMN only_draft boolean NOT NULL DEFAULT false, -- ends as a draft for its person
    ADD COLUMN look_at    timestamptz,                    -- when evidence is looked for next
    ADD COLUMN looks      smallint NOT NULL DEFAULT 0;    -- looks so far
ALTER TABLE outtray.message
    DROP CONSTRAINT message_state_check,
    ADD CONSTRAINT message_state_check CHECK (state IN
        ('queued', 'handing_over', 'unknown', 'sent', 'drafted', 'failed', 'cancelled', 'expired'));
DO $$ DECLARE old name := (
    SELECT conname FROM pg_constraint
    WHERE conrelid = 'outtray.message'::regclass AND pg_get_constraintdef(oid) LIKE '%ended_at IS NOT NULL%');
BEGIN EXECUTE format('ALTER TABLE outtray.message DROP CONSTRAINT %I', old); END $$;
ALTER TABLE outtray.message ADD CONSTRAINT message_ended_check
    CHECK ((state IN ('sent', 'drafted', 'failed', 'cancelled', 'expired')) = (ended_at IS NOT NULL));
CREATE INDEX message_look ON outtray.message (look_at) WHERE look_at IS NOT NULL;
-- Messages are found by their provider's ids. A Message-ID that is still ours holds the id and needs no index.
CREATE INDEX message_provider_id ON outtray.message (provider_id) WHERE provider_id IS NOT NULL;
CREATE INDEX message_delivered_id ON outtray.message (rfc_message_id) WHERE strpos(rfc_message_id, id::text) = 0;

-- Answers of providers that no row of their tables knows: handled safely, counted, kept for the operator, redacted.
CREATE TABLE outtray.unknown_signal (
    provider text NOT NULL,
    signal   text NOT NULL,
    times    bigint NOT NULL DEFAULT 1,
    first_at timestamptz NOT NULL DEFAULT outtray.outtray_now(),
    last_at  timestamptz NOT NULL DEFAULT outtray.outtray_now(),
    PRIMARY KEY (provider, signal)
);
