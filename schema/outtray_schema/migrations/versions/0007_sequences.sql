-- Sequences: messages that follow others. A follower is `queued` with no `due_at`; the transaction that ends the message
-- before it sets one and arms its mailbox, or cancels it, whoever ends that message and however.
-- New columns are nullable or have constant defaults; the release before neither reads nor writes them, and claims no
-- message without a `due_at`. Its dispatcher leaves `following` alone, so while no other runs, what is in it waits.
ALTER TABLE outtray.message
    ADD COLUMN follows       uuid,        -- the message before it; no foreign key: a producer locks no row of a worker's
    ADD COLUMN follow_after  interval,    -- from that one's end to this one's due time
    ADD COLUMN follow_from   timestamptz, -- its send_at: due then at the earliest
    ADD COLUMN go_on         text[],      -- the ends of that one after which this one goes on; after any other it is cancelled
    ADD COLUMN has_followers boolean NOT NULL DEFAULT false;

-- Only followers pay for it.
CREATE INDEX message_follows ON outtray.message (follows) WHERE follows IS NOT NULL;

-- Followers that the dispatcher has to look at: those accepted after the message before them, which no producer's (long)
-- transaction may lock, and those that somebody had locked just when that message ended.
CREATE TABLE outtray.following (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id uuid NOT NULL
);

-- Says to the followers of a message that has ended what that means for them, and to theirs where they are cancelled
-- with it: a loop, since a chain may be longer than triggers may be nested.
--
-- It waits for no lock, for it runs in any transaction that ends a message and so holds rows already. A follower that
-- is locked goes to `following`. A mailbox that is locked is left to its turn's end or to the sweep: a minute at most.
CREATE FUNCTION outtray.settle_followers(message uuid, state text, ended timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_variable
DECLARE
    ends uuid[] := ARRAY[message];
    how text := state;
    since timestamptz := ended;
    going uuid[];
    stopping uuid[];
BEGIN
LOOP
    SELECT coalesce(array_agg(w.id) FILTER (WHERE w.goes), '{}'), coalesce(array_agg(w.id) FILTER (WHERE NOT w.goes), '{}')
    INTO going, stopping
    FROM (
        SELECT f.id, how = ANY (f.go_on) AS goes FROM outtray.message f
        WHERE f.follows = ANY (ends) AND f.state = 'queued' AND f.due_at IS NULL
        ORDER BY f.id FOR NO KEY UPDATE SKIP LOCKED) AS w;

    INSERT INTO outtray.following (message_id)
    SELECT f.id FROM outtray.message f
    WHERE f.follows = ANY (ends) AND f.state = 'queued' AND f.due_at IS NULL AND f.id <> ALL (going || stopping);

    IF going <> '{}' THEN
        WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
        released AS (
            UPDATE outtray.message m
            SET due_at = greatest(since + m.follow_after, m.follow_from), version = m.version + 1
            WHERE m.id = ANY (going) RETURNING m.id, m.app_id, m.mailbox_id, m.follows, m.due_at),
        noted AS (
            INSERT INTO outtray.journal (at, message_id, mailbox_id, kind, detail)
            SELECT t.now, r.id, r.mailbox_id, 'released',
                jsonb_build_object('follows', r.follows, 'ended', how, 'due_at', r.due_at)
            FROM released r, t),
        told AS (
            INSERT INTO outtray.event (at, app_id, mailbox_id, message_id, kind, data)
            SELECT t.now, r.app_id, r.mailbox_id, r.id, 'released',
                jsonb_build_object('follows', r.follows, 'due_at', r.due_at)
            FROM released r, t),
        due AS MATERIALIZED (SELECT r.mailbox_id, min(r.due_at) AS at FROM released r GROUP BY r.mailbox_id),
        free AS MATERIALIZED (
            SELECT b.id FROM outtray.mailbox b WHERE b.id IN (SELECT due.mailbox_id FROM due)
            ORDER BY b.id FOR NO KEY UPDATE SKIP LOCKED)
        UPDATE outtray.mailbox b SET next_at = outtray.not_before(least(b.next_at, due.at), b.parked_until)
        FROM free, due
        WHERE b.id = free.id AND due.mailbox_id = b.id AND (b.next_at IS NULL OR b.next_at > due.at);
    END IF;

    EXIT WHEN stopping = '{}';
    WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
    stopped AS (
        UPDATE outtray.message m
        SET state = 'cancelled', version = m.version + 1, ended_at = t.now,
            cancel_asked_at = coalesce(m.cancel_asked_at, t.now),
            reason = 'message ' || m.follows || ', which it follows, is ' || how
        FROM t WHERE m.id = ANY (stopping) RETURNING m.id, m.app_id, m.mailbox_id, m.reason, m.has_followers, m.may_have_left),
    noted AS (
        INSERT INTO outtray.journal (at, message_id, mailbox_id, kind, detail)
        SELECT t.now, s.id, s.mailbox_id, 'cancel', jsonb_build_object('state', 'cancelled', 'reason', s.reason)
        FROM stopped s, t),
    told AS (
        INSERT INTO outtray.event (at, app_id, mailbox_id, message_id, kind, data)
        SELECT t.now, s.app_id, s.mailbox_id, s.id, 'cancelled',
            jsonb_build_object('reason', s.reason, 'may_have_left', s.may_have_left)
        FROM stopped s, t)
    SELECT coalesce(array_agg(s.id), '{}'), max(t.now) INTO ends, since FROM stopped s, t WHERE s.has_followers;
    how := 'cancelled';
    EXIT WHEN ends = '{}';
END LOOP;
END $$;

-- Every end is an UPDATE of the state, whoever writes it: a turn's record, a late one, a look, a decision, a cancel,
-- expiry, suppression. Messages without followers pay for one look at a boolean. Not within itself: it goes on along
-- the chain by its own loop.
CREATE FUNCTION outtray.predecessor_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM outtray.settle_followers(NEW.id, NEW.state, NEW.ended_at);
    RETURN NULL;
END $$;
CREATE TRIGGER message_ended AFTER UPDATE OF state ON outtray.message FOR EACH ROW
    WHEN (NEW.has_followers AND NEW.ended_at IS NOT NULL AND OLD.ended_at IS NULL AND pg_trigger_depth() = 0)
    EXECUTE FUNCTION outtray.predecessor_ended();

-- One that is deleted before it ended will never be sent.
CREATE FUNCTION outtray.predecessor_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM outtray.settle_followers(
        OLD.id, CASE WHEN OLD.ended_at IS NULL THEN 'cancelled' ELSE OLD.state END,
        coalesce(OLD.ended_at, outtray.outtray_now()));
    RETURN NULL;
END $$;
CREATE TRIGGER message_deleted AFTER DELETE ON outtray.message FOR EACH ROW
    WHEN (OLD.has_followers) EXECUTE FUNCTION outtray.predecessor_deleted();

-- Is a message that has not ended yet a follower of this one? Then its content is kept: their thread needs it.
CREATE FUNCTION outtray.is_followed(message uuid) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT EXISTS (SELECT FROM outtray.message f WHERE f.follows = message AND f.ended_at IS NULL)
$$;

-- Takes followers from `following`: marks the message before each, so that its end will be told, or tells it now. It
-- waits for no lock; what somebody holds stays for the next time. The name rises when it changes, as write_group_1's.
CREATE FUNCTION outtray.follow_up_1(most integer) RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    each record;
    before record;
    taken integer := 0;
BEGIN
FOR each IN
    SELECT w.id, m.follows FROM outtray.following w LEFT JOIN outtray.message m ON m.id = w.message_id
    ORDER BY w.id LIMIT most FOR UPDATE OF w SKIP LOCKED
LOOP
    SELECT m.id, m.state, m.ended_at INTO before FROM outtray.message m WHERE m.id = each.follows
    FOR NO KEY UPDATE SKIP LOCKED;
    IF before.id IS NULL AND EXISTS (SELECT FROM outtray.message m WHERE m.id = each.follows) THEN
        CONTINUE;
    END IF;
    DELETE FROM outtray.following w WHERE w.id = each.id;
    UPDATE outtray.message m SET has_followers = true WHERE m.id = before.id AND NOT m.has_followers;
    IF before.id IS NULL AND each.follows IS NOT NULL THEN
        PERFORM outtray.settle_followers(each.follows, 'cancelled', outtray.outtray_now());
    ELSIF before.ended_at IS NOT NULL THEN
        PERFORM outtray.settle_followers(before.id, before.state, before.ended_at);
    END IF;
    taken := taken + 1;
END LOOP;
RETURN taken;
END $$;
