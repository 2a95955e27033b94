-- An app that has few mailboxes due or in their turns is served first: the dispatcher counts both, app by app.
DROP INDEX outtray.mailbox_turn;
CREATE INDEX mailbox_turn ON outtray.mailbox (app_id, turn_until) WHERE turn_until IS NOT NULL;

-- What turns asked of the registrar, in one call and so in one transaction: lock the mailboxes, pass gates and write
-- outcomes, move the mailboxes. `worker/outtray_worker/group.py` calls it. Its number rises when it changes: during a
-- deploy, workers of two releases call two functions.
--
-- One call instead of five statements, because each costs a worker some 150 µs of CPU (psycopg 3.3, measured 2026-11).
-- In a VOLATILE function of PL/pgSQL every statement has a snapshot of its own (PostgreSQL 18, 36.7 "Function
-- Volatility Categories"), and the protocol needs just that:
--
--   LOCK    takes the mailboxes' rows in the order of their ids. A claim waits for it, and so the claim's ledger sees
--           what is gated here (rule 4).
--   WRITE   has a snapshot taken *after* the lock wait: a pause, a suppression or a lost fence committed during that
--           wait is seen (rule 10). One conditional write per message; journal and events with it.
--   MOVE    parks, holds and ends turns (rule 8), seeing what WRITE did.
--
-- Every write names its handover by number, never by state alone: attempts can be given back, the number only rises.
--
-- Returns what was done, row by row: ('gate' | 'record', message, handover), ('refused', message, version),
-- ('closed', mailbox, 0) for a gate whose fence is lost or whose mailbox is not active or whose lease ran out, and
-- ('ended', mailbox, 1 if it is due again at once, else 0).
CREATE FUNCTION outtray.write_group_1(
    lock_id uuid[],
    gate_id uuid[], gate_mailbox uuid[], gate_fence bigint[], gate_version int[], gate_provider text[],
    gate_within interval[], gate_draft jsonb[],
    rec_id uuid[], rec_handover int[], rec_state text[], rec_spends bool[], rec_again interval[], rec_reason text[],
    rec_provider_id text[], rec_rfc_message_id text[], rec_conversation_id text[], rec_evidence jsonb[],
    rec_kind text[],
    ref_id uuid[], ref_version int[], ref_state text[], ref_spends bool[], ref_counts bool[], ref_again interval[],
    ref_reason text[], ref_evidence jsonb[], ref_kind text[],
    move_id uuid[], move_fence bigint[], move_ends bool[], move_park interval[], move_park_reason text[],
    move_counts bool[], move_resets bool[], move_hold text[], move_hold_reason text[], move_credentials int[])
RETURNS TABLE (what text, id uuid, number bigint) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN

PERFORM FROM outtray.mailbox m WHERE m.id = ANY(lock_id) ORDER BY m.id FOR NO KEY UPDATE;

-- `gated`: the live message and its mailbox, and everything that may have changed since the turn read them. The wait
--   that follows a passed gate is counted in the ledger from its end (rule 14), so `counted_at` begins at its latest
--   possible end. It binds the draft if none is bound yet (rule 6).
-- `recorded`: by handover number, while it is open (or was only inferred to be unknown: a definite answer is evidence).
--   The state stands in a CASE so that the row is found by its primary key: through the partial indexes on open and
--   unknown messages, dead entries would be walked under an old snapshot, and every unknown message at all times.
-- `refused`: what ended in preparation, before any handover: by version.
-- What stops a message seldom stands first as a cheap question (is there any switch at all? any tag?): a call of an SQL
-- function costs 6 to 10 µs, a fifth of the whole statement's CPU for each of the three (measured on 18.4, 2026-11).
IF cardinality(gate_id) + cardinality(rec_id) + cardinality(ref_id) > 0 THEN RETURN QUERY
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now, EXISTS (SELECT FROM outtray.switch) AS switches),
open AS MATERIALIZED (
    SELECT b.id, b.turn_fence FROM outtray.mailbox b, t
    WHERE b.id = ANY(gate_mailbox) AND b.status = 'active' AND b.turn_until > t.now),
gated AS (
    UPDATE outtray.message m
    SET state = 'handing_over', version = m.version + 1, attempt = m.attempt + 1, prepares = 0,
        handover = m.handover + 1, handed_at = t.now, handover_until = t.now + g.within, handover_end = NULL,
        handover_fence = g.fence, counted_at = CASE WHEN NOT m.only_draft THEN t.now + g.within END, reason = NULL,
        draft = coalesce(m.draft, g.draft)
    FROM unnest(gate_id, gate_mailbox, gate_fence, gate_version, gate_provider, gate_within, gate_draft)
         AS g (id, mailbox, fence, version, provider, within, draft), open, t
    WHERE open.id = g.mailbox AND open.turn_fence = g.fence
      AND m.id = g.id AND m.state = 'queued' AND m.version = g.version AND m.due_at <= t.now
      AND (m.expires_at IS NULL OR m.expires_at > t.now) AND m.cancel_asked_at IS NULL
      AND NOT (t.switches AND (outtray.switched_off(m.app_id, g.provider) OR outtray.tag_paused(m.app_id, m.tags)))
      AND CASE WHEN EXISTS (
            SELECT FROM outtray.recipient r JOIN outtray.suppression s USING (address_index)
            WHERE r.message_id = m.id AND s.app_id = m.app_id) THEN false ELSE true END
    RETURNING m.id, m.mailbox_id, m.app_id, m.handover),
recorded AS (
    UPDATE outtray.message m
    SET state = CASE WHEN r.state = 'queued' AND m.cancel_asked_at IS NOT NULL THEN 'cancelled' ELSE r.state END,
        version = m.version + 1, attempt = m.attempt - (NOT r.spends)::int,
        due_at = coalesce(t.now + r.again, m.due_at),
        failing_since = CASE WHEN r.spends AND r.state NOT IN ('sent', 'drafted') THEN coalesce(m.failing_since, t.now)
                        ELSE m.failing_since END,
        handover_end = CASE WHEN r.state <> 'unknown' THEN t.now END,
        counted_at = CASE r.state WHEN 'sent' THEN t.now WHEN 'unknown' THEN m.counted_at END,
        ended_at = CASE WHEN r.state IN ('sent', 'drafted', 'failed')
                   OR r.state = 'queued' AND m.cancel_asked_at IS NOT NULL THEN t.now END,
        provider_id = coalesce(r.provider_id, m.provider_id),
        rfc_message_id = coalesce(r.rfc_message_id, m.rfc_message_id),
        conversation_id = coalesce(r.conversation_id, m.conversation_id), reason = r.reason, evidence = r.evidence
    FROM unnest(rec_id, rec_handover, rec_state, rec_spends, rec_again, rec_reason, rec_provider_id,
                rec_rfc_message_id, rec_conversation_id, rec_evidence, rec_kind)
         AS r (id, handover, state, spends, again, reason, provider_id, rfc_message_id, conversation_id, evidence,
               kind), t
    WHERE m.id = r.id AND m.handover = r.handover
      AND CASE m.state WHEN 'handing_over' THEN true WHEN 'unknown' THEN r.state <> 'unknown' ELSE false END
    RETURNING m.id, m.mailbox_id, m.app_id, m.handover, m.state, m.reason, m.evidence, r.kind),
refused AS (
    UPDATE outtray.message m
    SET state = r.state, version = m.version + 1, attempt = m.attempt + r.spends::int,
        prepares = CASE WHEN r.counts THEN m.prepares + 1 ELSE 0 END,
        due_at = coalesce(t.now + r.again, m.due_at),
        failing_since = CASE WHEN r.spends THEN coalesce(m.failing_since, t.now) ELSE m.failing_since END,
        ended_at = CASE WHEN r.state <> 'queued' THEN t.now END,
        reason = coalesce(r.reason, m.reason), evidence = coalesce(r.evidence, m.evidence)
    FROM unnest(ref_id, ref_version, ref_state, ref_spends, ref_counts, ref_again, ref_reason, ref_evidence, ref_kind)
         AS r (id, version, state, spends, counts, again, reason, evidence, kind), t
    WHERE m.id = r.id AND m.state = 'queued' AND m.version = r.version
    RETURNING m.id, m.mailbox_id, m.app_id, m.version, m.state, m.reason, m.evidence, r.kind),
changed AS (
    SELECT id, mailbox_id, app_id, kind, handover, state, reason, evidence FROM recorded
    UNION ALL
    SELECT id, mailbox_id, app_id, kind, NULL, state, reason, evidence FROM refused WHERE kind <> 'preparing'),
noted AS (
    INSERT INTO outtray.journal (at, message_id, mailbox_id, kind, handover, detail)
    SELECT t.now, id, mailbox_id, 'gate', handover, NULL FROM gated, t
    UNION ALL
    SELECT t.now, id, mailbox_id, kind, handover,
        jsonb_strip_nulls(jsonb_build_object('state', state, 'reason', reason, 'evidence', evidence)) FROM changed, t),
told AS (
    INSERT INTO outtray.event (at, app_id, mailbox_id, message_id, kind, data)
    SELECT t.now, app_id, mailbox_id, id, state, jsonb_strip_nulls(jsonb_build_object('reason', reason))
    FROM changed, t WHERE state <> 'queued' OR kind = 'retry')
SELECT 'gate', gated.id, gated.handover::bigint FROM gated
UNION ALL SELECT 'record', recorded.id, recorded.handover FROM recorded
UNION ALL SELECT 'refused', refused.id, refused.version FROM refused
UNION ALL SELECT 'closed', g.mailbox, 0 FROM unnest(gate_mailbox, gate_fence) AS g (mailbox, fence)
    WHERE NOT EXISTS (SELECT FROM open WHERE open.id = g.mailbox AND open.turn_fence = g.fence);
END IF;

-- The rows are locked already, so what `step` reads of them stands. `parked_until` is only ever moved forward here. A
-- hold takes only a mailbox that is active and whose credentials are still those that were refused: it falls once and
-- never undoes a new consent. Only the holder of the fence ends the turn; what a wake wrote meanwhile stays (rule 8).
-- What comes late, after its turn, arms the mailbox: it may have put a message back that nobody looks for (rule 13).
IF cardinality(move_id) > 0 THEN RETURN QUERY
WITH t AS MATERIALIZED (SELECT outtray.outtray_now() AS now),
step AS MATERIALIZED (
    SELECT s.*, t.now + s.park AS park_until, s.ends AND m.turn_fence = s.fence AS over,
        m.turn_fence <> s.fence OR m.turn_until IS NULL AS late,
        s.hold IS NOT NULL AND m.status = 'active' AND m.credentials_version = s.credentials AS holds,
        s.park IS NOT NULL AND coalesce(m.parked_until < t.now + s.park, true) AS parks_longer
    FROM unnest(move_id, move_fence, move_ends, move_park, move_park_reason, move_counts, move_resets, move_hold,
                move_hold_reason, move_credentials)
         AS s (id, fence, ends, park, park_reason, counts, resets, hold, hold_reason, credentials)
    JOIN outtray.mailbox m USING (id), t),
moved AS (
    UPDATE outtray.mailbox m
    SET parked_until = CASE WHEN s.parks_longer THEN s.park_until ELSE m.parked_until END,
        parked_reason = CASE WHEN s.parks_longer THEN s.park_reason ELSE m.parked_reason END,
        parks = CASE WHEN s.counts THEN m.parks + 1 WHEN s.resets THEN 0 ELSE m.parks END,
        status = CASE WHEN s.holds THEN s.hold ELSE m.status END,
        status_reason = CASE WHEN s.holds THEN s.hold_reason ELSE m.status_reason END,
        status_at = CASE WHEN s.holds THEN t.now ELSE m.status_at END,
        turn_until = CASE WHEN NOT s.over THEN m.turn_until END,
        turn_worker = CASE WHEN NOT s.over THEN m.turn_worker END,
        dead_turns = CASE WHEN s.over THEN 0 ELSE m.dead_turns END,
        next_at = outtray.not_before(
            CASE WHEN s.over OR s.late THEN least(m.next_at, outtray.earliest_due(m.id)) ELSE m.next_at END,
            greatest(m.parked_until, s.park_until))
    FROM step s, t
    WHERE m.id = s.id
    RETURNING m.id, m.app_id, m.next_at <= t.now AS due_now, s.ends, s.holds, m.status,
        s.parks_longer AND s.park_reason <> 'pace' AS parked,
        CASE WHEN s.holds THEN m.status_reason ELSE m.parked_reason END AS reason,
        CASE WHEN NOT s.holds THEN m.parked_until END AS until),
noted AS (
    INSERT INTO outtray.journal (at, mailbox_id, kind, detail)
    SELECT t.now, id, CASE WHEN holds THEN status ELSE 'parked' END,
        jsonb_strip_nulls(jsonb_build_object('reason', reason, 'until', until))
    FROM moved, t WHERE holds OR parked),
told AS (
    INSERT INTO outtray.event (at, app_id, mailbox_id, kind, data)
    SELECT t.now, app_id, id, 'mailbox.' || CASE WHEN holds THEN status ELSE 'parked' END,
        jsonb_strip_nulls(jsonb_build_object('reason', reason, 'until', until))
    FROM moved, t WHERE holds OR parked)
SELECT 'ended', moved.id, coalesce(moved.due_now, false)::int::bigint FROM moved WHERE moved.ends;
END IF;

END $$;
