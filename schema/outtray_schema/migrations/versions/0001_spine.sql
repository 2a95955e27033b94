-- The spine: apps, mailboxes, messages, what they used, and what was said about them.
-- Everything lives in the schema `outtray`, because a CRM may keep its own tables in the same database.

CREATE SCHEMA IF NOT EXISTS outtray;

-- One clock for due times, windows, leases and the ledger: the database's, plus a shift that tests move.
CREATE TABLE outtray.clock (
    one   boolean PRIMARY KEY DEFAULT true CHECK (one),
    shift interval NOT NULL DEFAULT '0'
);
INSERT INTO outtray.clock DEFAULT VALUES;

CREATE FUNCTION outtray.outtray_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE AS
    $$ SELECT clock_timestamp() + (SELECT shift FROM outtray.clock) $$;

CREATE TABLE outtray.app (
    id                 uuid PRIMARY KEY,
    name               text NOT NULL UNIQUE,
    default_mailbox_id uuid,
    on_unknown         text NOT NULL DEFAULT 'hold' CHECK (on_unknown IN ('hold', 'resend')),
    created_at         timestamptz NOT NULL DEFAULT outtray.outtray_now()
);

CREATE TABLE outtray.provider_app (
    name       text PRIMARY KEY,
    provider   text NOT NULL,
    per_minute integer CHECK (per_minute > 0),
    created_at timestamptz NOT NULL DEFAULT outtray.outtray_now()
);

CREATE TABLE outtray.mailbox (
    id                  uuid PRIMARY KEY,
    app_id              uuid NOT NULL REFERENCES outtray.app,
    provider            text NOT NULL,
    provider_app        text REFERENCES outtray.provider_app,
    host                text NOT NULL,              -- the provider's host, for the bound per host: no personal data
    address             bytea NOT NULL,             -- address ring: {"address", "name", "aliases"}
    address_index       bytea NOT NULL,
    plan                text NOT NULL,
    limits              jsonb NOT NULL DEFAULT '{}',-- overrides of the plan, the reserve and the pace among them
    server              jsonb NOT NULL DEFAULT '{}',-- host, port, tls: what is no secret
    credentials         bytea,                      -- credentials ring
    credentials_version integer NOT NULL DEFAULT 1, -- compare-and-set on rotation
    status              text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'paused', 'reconnect', 'disabled')),
    status_reason       text,
    status_at           timestamptz,
    parked_until        timestamptz,
    parked_reason       text,
    parks               integer NOT NULL DEFAULT 0, -- parks in a row without a send: the exponent of the backoff
    next_at             timestamptz,
    round_at            timestamptz,
    turn_fence          bigint NOT NULL DEFAULT 0,
    turn_until          timestamptz,
    turn_worker         text,
    dead_turns          smallint NOT NULL DEFAULT 0,-- turns in a row whose worker died
    created_at          timestamptz NOT NULL DEFAULT outtray.outtray_now(),
    UNIQUE (app_id, address_index),
    CHECK (turn_until IS NULL OR turn_fence > 0)
) WITH (fillfactor = 70);
CREATE INDEX mailbox_due ON outtray.mailbox (app_id, next_at) WHERE next_at IS NOT NULL AND status = 'active';
CREATE INDEX mailbox_turn ON outtray.mailbox (turn_until) WHERE turn_until IS NOT NULL;

CREATE TABLE outtray.message (
    id                uuid PRIMARY KEY,
    app_id            uuid NOT NULL,
    mailbox_id        uuid NOT NULL,                -- no foreign key: producers never touch the mailbox row
    idempotency       bytea,                        -- keyed hash: apps put addresses into their keys
    request_hash      bytea NOT NULL,
    state             text NOT NULL DEFAULT 'queued' CHECK (state IN
                      ('queued', 'handing_over', 'unknown', 'sent', 'failed', 'cancelled', 'expired')),
    version           integer NOT NULL DEFAULT 0,   -- rises with every write; the gate passes only what the turn read
    due_at            timestamptz,
    priority          smallint NOT NULL DEFAULT 1 CHECK (priority IN (0, 1, 2)), -- high, normal, low
    attempt           smallint NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    prepares          smallint NOT NULL DEFAULT 0,  -- preparations since its worker last died: three are poison
    failing_since     timestamptz,                  -- its first own failure
    give_up_after     interval,
    expires_at        timestamptz,
    on_unknown        text CHECK (on_unknown IN ('hold', 'resend')),   -- NULL: the app's
    recipients        integer NOT NULL CHECK (recipients > 0),
    external          integer NOT NULL CHECK (external BETWEEN 0 AND recipients),
    size              bigint NOT NULL,              -- bytes of the frozen MIME
    handover          integer NOT NULL DEFAULT 0,   -- only ever rises; names the handover in every later write
    handed_at         timestamptz,
    handover_until    timestamptz,
    handover_end      timestamptz,
    handover_fence    bigint,
    counted_at        timestamptz,                  -- counts in the ledger for 24 h from here; NULL: does not count
    may_have_left     boolean NOT NULL DEFAULT false,
    cancel_asked_at   timestamptz,
    provider_id       text,
    rfc_message_id    text,                         -- frozen at enqueue; as delivered once it is sent
    conversation_id   text,
    reason            text,                         -- why it is in this state, where there is more to say
    evidence          jsonb,
    tags              text[] NOT NULL DEFAULT '{}',
    created_at        timestamptz NOT NULL DEFAULT outtray.outtray_now(),
    ended_at          timestamptz,
    CHECK (state <> 'handing_over' OR (handed_at IS NOT NULL AND handover_until IS NOT NULL AND handover > 0)),
    CHECK ((state IN ('sent', 'failed', 'cancelled', 'expired')) = (ended_at IS NOT NULL))
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
CREATE UNIQUE INDEX message_idempotency ON outtray.message (app_id, idempotency) WHERE idempotency IS NOT NULL;
CREATE INDEX message_due ON outtray.message (mailbox_id, priority, due_at) WHERE state = 'queued' AND due_at IS NOT NULL;
CREATE INDEX message_open ON outtray.message (handover_until) WHERE state IN ('handing_over', 'unknown');
CREATE INDEX message_ledger ON outtray.message (mailbox_id, counted_at) INCLUDE (recipients, external) WHERE counted_at IS NOT NULL;
CREATE INDEX message_expiry ON outtray.message (expires_at) WHERE state = 'queued' AND expires_at IS NOT NULL;
CREATE INDEX message_attention ON outtray.message (app_id, state, id) WHERE state IN ('unknown', 'failed');
CREATE INDEX message_mailbox ON outtray.message (mailbox_id, id);

CREATE TABLE outtray.recipient (
    message_id    uuid NOT NULL REFERENCES outtray.message ON DELETE CASCADE,
    n             smallint NOT NULL,
    role          text NOT NULL CHECK (role IN ('to', 'cc', 'bcc')),
    address       bytea NOT NULL,                   -- address ring
    address_index bytea NOT NULL,                   -- keyed, per app
    external      boolean NOT NULL,
    result        text,
    PRIMARY KEY (message_id, n)
);
CREATE INDEX recipient_address ON outtray.recipient (address_index, message_id);

CREATE TABLE outtray.message_tag (
    app_id     uuid NOT NULL,
    tag        text NOT NULL,
    message_id uuid NOT NULL REFERENCES outtray.message ON DELETE CASCADE,
    PRIMARY KEY (app_id, tag, message_id)
);
CREATE INDEX message_tag_message ON outtray.message_tag (message_id);

-- Content apart, so that the queue's rows stay small. `body` holds the frozen MIME up to 1 MiB; above that it is NULL
-- and `content_chunk` holds it in pieces of 1 MiB, each encrypted by itself.
CREATE TABLE outtray.content (
    message_id uuid PRIMARY KEY REFERENCES outtray.message ON DELETE CASCADE,
    head       bytea NOT NULL,                      -- content ring: envelope, subject, metadata as JSON
    body       bytea,
    body_hash  bytea NOT NULL                       -- SHA-256 of the frozen MIME, keyed by the content ring
);
ALTER TABLE outtray.content ALTER COLUMN body SET STORAGE EXTERNAL, ALTER COLUMN head SET STORAGE EXTERNAL;
CREATE TABLE outtray.content_chunk (
    message_id uuid NOT NULL REFERENCES outtray.message ON DELETE CASCADE,
    n          integer NOT NULL,
    data       bytea NOT NULL,
    PRIMARY KEY (message_id, n)
);
ALTER TABLE outtray.content_chunk ALTER COLUMN data SET STORAGE EXTERNAL;

-- Handovers that count but that the message rows no longer show: sent again by decision, deleted young, imported.
CREATE TABLE outtray.usage (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mailbox_id uuid NOT NULL,
    counted_at timestamptz NOT NULL,
    messages   integer NOT NULL DEFAULT 1 CHECK (messages >= 0),
    recipients integer NOT NULL CHECK (recipients >= 0),
    external   integer NOT NULL CHECK (external >= 0),
    externals  bytea[] NOT NULL DEFAULT '{}',       -- the distinct external recipients, as blind indexes
    message_id uuid,
    handover   integer,
    source     text NOT NULL
);
CREATE INDEX usage_ledger ON outtray.usage (mailbox_id, counted_at);
CREATE UNIQUE INDEX usage_handover ON outtray.usage (message_id, handover) WHERE message_id IS NOT NULL;

-- Limits that several mailboxes share (a tenant's externals per day). Raised in the gate's own transaction.
CREATE TABLE outtray.budget (
    id      uuid PRIMARY KEY,
    name    text NOT NULL UNIQUE,
    measure text NOT NULL CHECK (measure IN ('messages', 'recipients', 'external')),
    per_day integer NOT NULL CHECK (per_day >= 0)
);
CREATE TABLE outtray.budget_hour (
    budget_id uuid NOT NULL REFERENCES outtray.budget ON DELETE CASCADE,
    hour      timestamptz NOT NULL,
    used      integer NOT NULL,
    PRIMARY KEY (budget_id, hour)
) WITH (fillfactor = 50);
CREATE TABLE outtray.mailbox_budget (
    mailbox_id uuid NOT NULL REFERENCES outtray.mailbox ON DELETE CASCADE,
    budget_id  uuid NOT NULL REFERENCES outtray.budget ON DELETE CASCADE,
    PRIMARY KEY (mailbox_id, budget_id)
);

-- What is paused. target: '' for all, an app's id, a provider's name, app id + ':' + tag.
-- A paused mailbox is not here but in its own row's status, which the gate reads under its lock.
CREATE TABLE outtray.switch (
    kind   text NOT NULL CHECK (kind IN ('all', 'app', 'provider', 'tag')),
    target text NOT NULL,
    since  timestamptz NOT NULL DEFAULT outtray.outtray_now(),
    actor  text NOT NULL,
    why    text NOT NULL DEFAULT '',
    PRIMARY KEY (kind, target)
);

CREATE TABLE outtray.suppression (
    app_id        uuid NOT NULL,
    address_index bytea NOT NULL,
    address       bytea NOT NULL,
    reason        text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT outtray.outtray_now(),
    PRIMARY KEY (app_id, address_index)
);

-- Processes that said they are alive: for `status` and `doctor`, never for a decision.
CREATE TABLE outtray.process (
    id         text PRIMARY KEY,
    role       text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT outtray.outtray_now(),
    beat_at    timestamptz NOT NULL DEFAULT outtray.outtray_now(),
    info       jsonb NOT NULL DEFAULT '{}'
);

-- What others are told. `xact` lets a reader page without a gap from late commits: docs/events.md.
CREATE SEQUENCE outtray.event_id;
CREATE TABLE outtray.event (
    id         bigint NOT NULL DEFAULT nextval('outtray.event_id'),
    at         timestamptz NOT NULL DEFAULT outtray.outtray_now(),
    xact       xid8 NOT NULL DEFAULT pg_current_xact_id(),
    app_id     uuid NOT NULL,
    mailbox_id uuid,
    message_id uuid,
    kind       text NOT NULL,
    data       jsonb NOT NULL DEFAULT '{}'
) PARTITION BY RANGE (at);
CREATE INDEX event_xact ON outtray.event (xact);
CREATE INDEX event_order ON outtray.event (id);
CREATE INDEX event_message ON outtray.event (message_id) WHERE message_id IS NOT NULL;
CREATE TABLE outtray.event_default PARTITION OF outtray.event DEFAULT;

-- The append-only history of a message (or of a mailbox): enqueue, gate, handover, answer, decision.
CREATE SEQUENCE outtray.journal_id;
CREATE TABLE outtray.journal (
    id         bigint NOT NULL DEFAULT nextval('outtray.journal_id'),
    at         timestamptz NOT NULL DEFAULT outtray.outtray_now(),
    message_id uuid,
    mailbox_id uuid,
    kind       text NOT NULL,
    handover   integer,
    actor      text,
    detail     jsonb
) PARTITION BY RANGE (at);
CREATE INDEX journal_message ON outtray.journal (message_id) WHERE message_id IS NOT NULL;
CREATE INDEX journal_mailbox ON outtray.journal (mailbox_id) WHERE message_id IS NULL;
CREATE TABLE outtray.journal_default PARTITION OF outtray.journal DEFAULT;

CREATE FUNCTION outtray.tag_paused(app uuid, tags text[]) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT tags <> '{}' AND EXISTS (
        SELECT FROM outtray.switch s JOIN unnest(tags) AS t (tag) ON s.target = app::text || ':' || t.tag WHERE s.kind = 'tag')
$$;

-- Is this mailbox held by a switch above it? The mailbox's own pause is in its status.
CREATE FUNCTION outtray.switched_off(app uuid, provider text) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT EXISTS (SELECT FROM outtray.switch s WHERE (s.kind, s.target) IN (('all', ''), ('app', app::text), ('provider', provider)))
$$;

-- When this mailbox next has something to do: its earliest queued message that no tag switch holds.
CREATE FUNCTION outtray.earliest_due(box uuid) RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT min(first.due_at)
    FROM (VALUES (0::smallint), (1::smallint), (2::smallint)) AS p (priority), LATERAL (
        SELECT m.due_at FROM outtray.message m
        WHERE m.mailbox_id = box AND m.priority = p.priority AND m.state = 'queued' AND m.due_at IS NOT NULL
          AND (m.tags = '{}' OR NOT outtray.tag_paused(m.app_id, m.tags))
        ORDER BY m.due_at LIMIT 1) AS first
$$;

-- Is any recipient of this message on the app's suppression list?
CREATE FUNCTION outtray.suppressed(app uuid, message uuid) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT EXISTS (
        SELECT FROM outtray.recipient r JOIN outtray.suppression s ON s.app_id = app AND s.address_index = r.address_index
        WHERE r.message_id = message)
$$;

-- A time that may not come before another; NULL (nothing to do) stays NULL, whatever the bound.
CREATE FUNCTION outtray.not_before(at timestamptz, bound timestamptz) RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
    $$ SELECT CASE WHEN at IS NOT NULL THEN greatest(at, bound) END $$;
