-- The journal's chain: each entry is linked by a hash to the one before it in its chain (a message, or a mailbox), and
-- each day's links are sealed in one digest. What that proves, and what it cannot: docs/journal.md.
--
-- Next to nothing of it is paid for where messages move: the dispatcher links what is some seconds old, in chunks, at
-- 11 us of CPU an entry. A trigger on the journal's INSERT would cost 17 us an entry, some 50 us a message, in the midst
-- of the group call (measured on 18.4, 2026-11).
--
-- The release before knows none of these tables and writes its entries as ever; one of its dispatchers may still drop a
-- day of the journal without asking for its seal. Building `journal_order` keeps writers of the journal waiting: some
-- seconds for ten million entries.

-- One row per entry of the journal that is linked. `at` is the entry's: both lie in partitions of the same day, and go
-- together.
CREATE TABLE outtray.journal_link (
    id      bigint NOT NULL,
    at      timestamptz NOT NULL,
    chain   uuid NOT NULL,      -- the message; else the mailbox; else nobody, for switches
    hash    bytea NOT NULL,     -- SHA-256 of the hash before it and the entry as text
    carried bytea               -- the hash before it, where that is of an earlier day: earlier days may be gone
) PARTITION BY RANGE (at);
CREATE INDEX journal_link_chain ON outtray.journal_link (chain, id);
CREATE INDEX journal_link_number ON outtray.journal_link USING brin (id) WITH (autosummarize = true);
CREATE TABLE outtray.journal_link_default PARTITION OF outtray.journal_link DEFAULT;

-- What is to be linked is found by its number. All that a message pays for its chain is this: 1.2 us of CPU and 66 bytes
-- of WAL an entry (measured on 18.4, 2026-11). A BRIN index costs nothing, but what it has not summarised yet is read
-- whole, again and again, and what summarises it is autovacuum.
CREATE INDEX journal_order ON outtray.journal (id);

-- Every link from one number to another in one digest, which the next one continues.
CREATE TABLE outtray.journal_seal (
    day        date PRIMARY KEY,        -- the last UTC day of which nothing is missing in it
    after_id   bigint NOT NULL,
    to_id      bigint NOT NULL CHECK (to_id >= after_id),
    links      bigint NOT NULL,
    previous   bytea NOT NULL,
    digest     bytea NOT NULL,
    sealed_at  timestamptz NOT NULL DEFAULT outtray.outtray_now(),
    dropped_at timestamptz              -- entries of it are older than they are kept: it can no longer be counted up
);

-- How far it has come: one row, which only dispatchers touch. Entries up to `seen_to` had their numbers at `seen_at`;
-- those up to `next_to` had them in the look before, and have been written or never will be once every transaction
-- before `next_before` has ended. So an entry that commits late is waited for, and none is linked twice.
CREATE TABLE outtray.journal_sealing (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    sealed_to   bigint NOT NULL DEFAULT 0,
    sealed_at   timestamptz NOT NULL DEFAULT 'epoch',
    next_to     bigint NOT NULL DEFAULT 0,
    next_at     timestamptz NOT NULL DEFAULT 'epoch',
    next_before xid8 NOT NULL DEFAULT '0',
    seen_to     bigint NOT NULL DEFAULT 0,
    seen_at     timestamptz NOT NULL DEFAULT 'epoch',
    links       bigint NOT NULL DEFAULT 0,                  -- since the last seal
    digest      bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex')
);
INSERT INTO outtray.journal_sealing DEFAULT VALUES;

CREATE FUNCTION outtray.chain_step(before bytea, start bytea, entry bytea) RETURNS bytea
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$ BEGIN RETURN sha256(coalesce(before, start) || entry); END $$;
CREATE AGGREGATE outtray.chain_hash(bytea, bytea) (SFUNC = outtray.chain_step, STYPE = bytea);

-- An entry as the text that is hashed; outtray_schema/journal.py writes the same one.
CREATE FUNCTION outtray.journal_text(
    id bigint, at timestamptz, message_id uuid, mailbox_id uuid, kind text, handover int, actor text, detail jsonb)
RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT convert_to(jsonb_build_array(id, (extract(epoch FROM at) * 1000000)::bigint, message_id, mailbox_id, kind,
        handover, actor, detail)::text, 'UTF8')
$$;

-- Looks how far the journal is, once all that was seen before is linked. Locks the one row.
CREATE FUNCTION outtray.look_at_journal_1() RETURNS void LANGUAGE sql AS $$
    UPDATE outtray.journal_sealing s
    SET next_to = s.seen_to, next_at = s.seen_at, next_before = pg_snapshot_xmax(pg_current_snapshot()),
        seen_to = (SELECT last_value FROM outtray.journal_id), seen_at = outtray.outtray_now()
    WHERE s.one AND s.sealed_to = s.next_to
$$;

-- Links the next entries, those of at most `span` numbers, and says whether more wait; false as well where another
-- dispatcher is at it, or an older transaction may still bring entries. Locks the one row.
CREATE FUNCTION outtray.seal_journal_1(span bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    s outtray.journal_sealing;
    upto bigint;
    wanted uuid[];
    known uuid[] := '{}';
    hashes bytea[] := '{}';
    days date[] := '{}';
    back interval;
BEGIN
SELECT * INTO s FROM outtray.journal_sealing FOR UPDATE SKIP LOCKED;
IF s.one IS NULL OR pg_snapshot_xmin(pg_current_snapshot()) < s.next_before THEN
    RETURN false;
END IF;
IF s.sealed_to >= s.next_to THEN
    UPDATE outtray.journal_sealing SET sealed_at = s.next_at WHERE sealed_at < s.next_at;
    RETURN false;
END IF;
upto := least(s.sealed_to + span, s.next_to);

-- Chains that go on: their last links are of these days, seldom of earlier ones. Each step looks into the partitions
-- of its days alone.
SELECT coalesce(array_agg(f.chain), '{}') INTO wanted FROM (
    SELECT DISTINCT ON (chain) coalesce(j.message_id, j.mailbox_id, '00000000-0000-0000-0000-000000000000') AS chain,
        j.kind
    FROM outtray.journal j WHERE j.id > s.sealed_to AND j.id <= upto ORDER BY chain, j.id) AS f
WHERE f.kind <> 'enqueued';
FOREACH back IN ARRAY ARRAY['1 day', '8 days', '40 days', '100 years']::interval[] LOOP
    EXIT WHEN wanted = '{}';
    WITH found AS (
        SELECT DISTINCT ON (l.chain) l.chain, l.hash, (l.at AT TIME ZONE 'UTC')::date AS day
        FROM outtray.journal_link l WHERE l.chain = ANY(wanted) AND l.at >= s.next_at - back ORDER BY l.chain, l.id DESC)
    SELECT known || coalesce(array_agg(chain), '{}'), hashes || coalesce(array_agg(hash), '{}'),
        days || coalesce(array_agg(day), '{}') INTO known, hashes, days FROM found;
    wanted := ARRAY(SELECT unnest(wanted) EXCEPT SELECT unnest(known));
END LOOP;

WITH entry AS MATERIALIZED (
    SELECT j.id, j.at, coalesce(j.message_id, j.mailbox_id, '00000000-0000-0000-0000-000000000000') AS chain,
        (j.at AT TIME ZONE 'UTC')::date AS day,
        outtray.journal_text(j.id, j.at, j.message_id, j.mailbox_id, j.kind, j.handover, j.actor, j.detail) AS text
    FROM outtray.journal j WHERE j.id > s.sealed_to AND j.id <= upto),
link AS MATERIALIZED (
    SELECT e.id, e.at, e.chain, e.day, lag(e.day, 1, k.day) OVER w AS day_before, k.hash AS start,
        outtray.chain_hash(coalesce(k.hash, decode(repeat('00', 32), 'hex')), e.text) OVER w AS hash
    FROM entry e LEFT JOIN unnest(known, hashes, days) AS k (chain, hash, day) USING (chain)
    WINDOW w AS (PARTITION BY e.chain ORDER BY e.id)),
made AS (
    INSERT INTO outtray.journal_link (id, at, chain, hash, carried)
    SELECT id, at, chain, hash, CASE WHEN day_before < day THEN
        coalesce(lag(hash) OVER (PARTITION BY chain ORDER BY id), start) END
    FROM link ORDER BY id)
UPDATE outtray.journal_sealing SET sealed_to = upto,
    sealed_at = CASE WHEN upto = s.next_to THEN s.next_at ELSE s.sealed_at END,
    links = s.links + (SELECT count(*) FROM link),
    digest = coalesce((SELECT outtray.chain_hash(s.digest, int8send(id) || hash ORDER BY id) FROM link), s.digest);
RETURN upto < s.next_to;
END $$;

-- Seals what is linked, once a day of which no entry can come any more has passed; answers with that day, or NULL.
-- Locks the one row. An entry has its number within `grace` of its time.
CREATE FUNCTION outtray.seal_day_1(grace interval) RETURNS date LANGUAGE plpgsql AS $$
DECLARE
    s outtray.journal_sealing;
    before outtray.journal_seal;
    past date;
BEGIN
SELECT * INTO s FROM outtray.journal_sealing FOR UPDATE SKIP LOCKED;
IF s.one IS NULL OR s.sealed_at = 'epoch' THEN
    RETURN NULL;
END IF;
past := ((s.sealed_at - grace) AT TIME ZONE 'UTC')::date - 1;
SELECT * INTO before FROM outtray.journal_seal ORDER BY day DESC LIMIT 1;
IF before.day >= past THEN
    RETURN NULL;
END IF;
s.digest := sha256(s.digest || convert_to(
    jsonb_build_array(past, coalesce(before.to_id, 0), s.sealed_to, s.links)::text, 'UTF8'));
INSERT INTO outtray.journal_seal (day, after_id, to_id, links, previous, digest)
VALUES (past, coalesce(before.to_id, 0), s.sealed_to, s.links,
    coalesce(before.digest, decode(repeat('00', 32), 'hex')), s.digest);
UPDATE outtray.journal_sealing SET links = 0, digest = s.digest;
RETURN past;
END $$;
