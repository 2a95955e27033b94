"""The safeguards, as data: where each stands, what it looks like without, and the tests that must notice.

The model takes out whole rules (`tests/model/rules.py`); this takes out the code itself. A unit test keeps the table
honest: every text stands where it is said to stand, and every test exists.
"""

from __future__ import annotations

from dataclasses import dataclass

WORKER = "worker/outtray_worker/"
GROUP = "schema/outtray_schema/migrations/versions/0003_write_group.sql"
GATES = "integration/test_claim_and_gate.py::"
DEATHS = "integration/test_turn_deaths.py::"
REGISTRAR = "integration/test_registrar.py::"
RECONCILE = "integration/test_reconcile.py::"
DISPATCHING = "integration/test_dispatching.py::"
TOKENS = "integration/test_tokens.py::"


@dataclass(frozen=True, slots=True)
class Safeguard:
    """One safeguard: `text` in `file` becomes `without`, and at least one of `tests` has to fail."""

    name: str
    rule: str
    file: str
    text: str
    without: str
    tests: tuple[str, ...]


SAFEGUARDS = (
    Safeguard(
        "a claim takes no mailbox whose turn runs",
        "3",
        WORKER + "claim.py",
        "    ORDER BY m.id FOR NO KEY UPDATE OF m)\n"
        "UPDATE outtray.mailbox m\n"
        "SET turn_fence = m.turn_fence + 1, turn_until = t.now + %(lease)s, turn_worker = %(worker)s,\n"
        "    dead_turns = m.dead_turns + (m.turn_until IS NOT NULL)::int, next_at = NULL, round_at = NULL\n"
        "FROM free, t\n"
        "WHERE m.id = free.id AND m.status = 'active' AND m.next_at <= t.now\n"
        "  AND (m.turn_until IS NULL OR m.turn_until <= t.now)\n",
        "    ORDER BY m.id)\n"
        "UPDATE outtray.mailbox m\n"
        "SET turn_fence = m.turn_fence + 1, turn_until = t.now + %(lease)s, turn_worker = %(worker)s,\n"
        "    dead_turns = m.dead_turns + (m.turn_until IS NOT NULL)::int, next_at = NULL, round_at = NULL\n"
        "FROM free, t\n"
        "WHERE m.id = free.id\n",
        (GATES + "test_two_claims_of_one_mailbox_never_both_succeed",),
    ),
    Safeguard(
        "a claim waits for the gate that holds its mailbox",
        "3",
        GROUP,
        "PERFORM FROM outtray.mailbox m WHERE m.id = ANY(lock_id) ORDER BY m.id FOR NO KEY UPDATE;",
        "PERFORM FROM outtray.mailbox m WHERE m.id = ANY(lock_id);",
        (GATES + "test_a_claim_waits_for_the_gate_and_then_sees_its_handover",),
    ),
    Safeguard(
        "the gate asks for the fence",
        "4",
        GROUP,
        "WHERE open.id = g.mailbox AND open.turn_fence = g.fence\n",
        "WHERE open.id = g.mailbox\n",
        (
            GATES + "test_an_old_fence_passes_no_gate",
            DEATHS + "test_a_turn_whose_fence_was_taken_cannot_begin_a_handover_nor_end_the_new_turn",
        ),
    ),
    Safeguard(
        "the gate asks for the lease",
        "4",
        GROUP,
        " AND b.status = 'active' AND b.turn_until > t.now),",
        " AND b.status = 'active'),",
        (GATES + "test_a_lease_that_ran_out_passes_no_gate_though_nobody_claimed",),
    ),
    Safeguard(
        "the gate asks whether the mailbox is paused",
        "4",
        GROUP,
        " AND b.status = 'active' AND b.turn_until > t.now),",
        " AND b.turn_until > t.now),",
        (GATES + "test_a_pause_committed_while_the_gate_waits_stops_it",),
    ),
    Safeguard(
        "the gate asks for the version that was read",
        "4",
        GROUP,
        "m.state = 'queued' AND m.version = g.version AND m.due_at <= t.now",
        "m.state = 'queued'",
        (GATES + "test_a_message_that_changed_since_it_was_read_is_not_gated",),
    ),
    Safeguard(
        "the gate asks for switches",
        "4",
        GROUP,
        "AND NOT (t.switches AND (outtray.switched_off(m.app_id, g.provider) OR outtray.tag_paused(m.app_id, m.tags)))",
        "",
        (GATES + "test_a_switch_or_suppression_committed_while_the_gate_waits_is_seen",),
    ),
    Safeguard(
        "the gate asks for suppression",
        "4",
        GROUP,
        "WHERE r.message_id = m.id AND s.app_id = m.app_id) THEN false ELSE true END",
        "WHERE r.message_id = m.id AND s.app_id = m.app_id) THEN true ELSE true END",
        (
            GATES + "test_a_switch_or_suppression_committed_while_the_gate_waits_is_seen",
            "integration/test_turn_outcomes.py::test_a_suppressed_message_is_cancelled_at_the_gate_and_says_so",
        ),
    ),
    Safeguard(
        "the last look at the deadline, over HTTP",
        "5",
        WORKER + "providers/web/client.py",
        "            if begin_by.passed:\n                raise _TooLate\n",
        "",
        ("contracts/test_web_client.py", "contracts/test_provider_contract.py"),
    ),
    Safeguard(
        "the last look at the deadline, before the dot",
        "5",
        WORKER + "providers/smtp/__init__.py",
        "        if begin_by.passed:\n            self._session.drop()\n",
        "        if False:\n            self._session.drop()\n",
        ("contracts/test_smtp_phases.py", "contracts/test_provider_contract.py"),
    ),
    Safeguard(
        "the deadline's clock runs on while a process is frozen",
        "5",
        WORKER + "turn.py",
        "        begin_by = Deadline.after(settings.handover_begin)\n"
        "        answer_by = Deadline(begin_by.at + settings.handover_answer.total_seconds())\n",
        "        begin_by = Deadline(float('inf'))\n        answer_by = Deadline.after(settings.handover_answer)\n",
        (
            "integration/test_turn_outcomes.py::test_a_handover_that_comes_too_late_has_not_begun_and_gives_its_attempt_back",
        ),
    ),
    Safeguard(
        "the same draft at every attempt",
        "6",
        WORKER + "turn.py",
        "draft=Draft(**message.draft) if message.draft else None,",
        "draft=None,",
        ("integration/test_drafts.py",),
    ),
    Safeguard(
        "a stale worker leaves an adopted draft alone",
        "6",
        WORKER + "abandon.py",
        "if draft is None or not stopped.turn_over or await _is_ours(process, attempt, draft):",
        "if True:",
        ("integration/test_adopted_drafts.py",),
    ),
    Safeguard(
        "an outcome is written by handover number",
        "7",
        GROUP,
        "WHERE m.id = r.id AND m.handover = r.handover\n",
        "WHERE m.id = r.id\n",
        (REGISTRAR + "test_a_late_refusal_of_an_old_handover_changes_nothing_but_the_journal",),
    ),
    Safeguard(
        "ids of any handover make the message sent",
        "7",
        WORKER + "late.py",
        'taken = record.state == "sent" and row["state"] != "sent"',
        "taken = False",
        (REGISTRAR + "test_provider_ids_of_any_handover_make_the_message_sent",),
    ),
    Safeguard(
        "the newer open handover goes to usage",
        "7",
        WORKER + "late.py",
        'if row["handover"] > record.handover:',
        "if False:",
        (REGISTRAR + "test_provider_ids_of_any_handover_make_the_message_sent",),
    ),
    Safeguard(
        "the spool",
        "7",
        WORKER + "registrar.py",
        "waiting.spooled = self._spool.keep(waiting.item)",
        "waiting.spooled = True",
        (REGISTRAR + "test_an_outcome_outlives_an_outage_of_postgresql_and_a_crash",),
    ),
    Safeguard(
        "what a wake wrote during the turn stays",
        "8",
        GROUP,
        "least(m.next_at, outtray.earliest_due(m.id))",
        "outtray.earliest_due(m.id)",
        (GATES + "test_a_wake_written_while_the_turn_ends_stays",),
    ),
    Safeguard(
        "only the holder of the fence ends the turn",
        "8",
        GROUP,
        "s.ends AND m.turn_fence = s.fence AS over",
        "s.ends AS over",
        (GATES + "test_only_the_holder_of_the_fence_ends_a_turn",),
    ),
    Safeguard(
        "preparations after a dead turn are counted",
        "9",
        WORKER + "turn.py",
        "if message.prepares >= settings.poison_after:",
        "if False:",
        (DEATHS + "test_a_message_that_kills_its_worker_fails_as_poison_and_the_others_of_its_mailbox_go_on",),
    ),
    Safeguard(
        "dead turns are ended",
        "9",
        WORKER + "tend.py",
        "WHERE turn_until <= outtray.outtray_now() ORDER BY id",
        "WHERE false ORDER BY id",
        (DISPATCHING + "test_an_expired_lease_frees_the_mailbox_for_its_other_messages",),
    ),
    Safeguard(
        "an overdue handover becomes unknown",
        "9",
        WORKER + "tend.py",
        "m.state = 'handing_over' AND m.handover_until <= t.now",
        "false",
        (DISPATCHING + "test_an_overdue_handover_becomes_unknown_and_goes_on_counting",),
    ),
    Safeguard(
        "a lost COMMIT of a gate is read back",
        "10",
        WORKER + "group.py",
        "found.get(gate.message_id) == (gate.handover, gate.fence)",
        "False",
        (REGISTRAR + "test_a_lost_commit_answer_of_a_gate_is_read_back_by_its_handover_number",),
    ),
    Safeguard(
        "one bad item does not fail its group",
        "10",
        WORKER + "registrar.py",
        "            await self._write([waiting])\n",
        "            self._reject(waiting, error)\n",
        (REGISTRAR + "test_one_bad_item_does_not_fail_its_group",),
    ),
    Safeguard(
        "the settling time",
        "11",
        WORKER + "reconcile/decide.py",
        "return (end or stands.now) + rules.settle",
        "return end or stands.now",
        (
            "unit/test_reconcile_decide.py",
            RECONCILE + "test_absence_counts_only_after_the_deadline_and_the_settling_time",
        ),
    ),
    Safeguard(
        "absence counts by the look's beginning",
        "11",
        WORKER + "reconcile/decide.py",
        "if _proves_absence(finding, stands) and case.began >= _counts_from(stands.handover_until, stands, rules):\n"
        "        return _absent",
        "if _proves_absence(finding, stands) and stands.now >= _counts_from(stands.handover_until, stands, rules):\n"
        "        return _absent",
        (RECONCILE + "test_a_look_that_began_early_counts_nothing_although_it_ends_late",),
    ),
    Safeguard(
        "a look is about the message's current handover",
        "11",
        WORKER + "reconcile/decide.py",
        "    if (stands.state, stands.handover, stands.look_handover) != (case.state, case.handover, case.about):\n"
        "        return Ignore()\n",
        "",
        (RECONCILE + "test_an_old_look_writes_nothing_about_a_handover_that_has_moved_on",),
    ),
    Safeguard(
        "a missing draft proves nothing",
        "11",
        WORKER + "reconcile/decide.py",
        '(finding.kind == "absent" and not stands.has_draft)',
        'finding.kind == "absent"',
        ("unit/test_reconcile_decide.py", RECONCILE + "test_a_draft_that_is_missing_is_no_absence"),
    ),
    Safeguard(
        "what is sent again by evidence leaves its usage",
        "12",
        WORKER + "reconcile/write.py",
        "FROM outtray.message m WHERE m.id = %(id)s AND m.counted_at IS NOT NULL\nON CONFLICT",
        "FROM outtray.message m WHERE false AND m.id = %(id)s AND m.counted_at IS NOT NULL\nON CONFLICT",
        ("integration/test_reconcile.py",),
    ),
    Safeguard(
        "what is sent again by policy leaves its usage",
        "12",
        WORKER + "tend.py",
        "FROM outtray.message u JOIN again ON again.id = u.id WHERE u.counted_at IS NOT NULL",
        "FROM outtray.message u JOIN again ON again.id = u.id WHERE false",
        (DISPATCHING + "test_an_unknown_whose_policy_is_resend_goes_back_once_absence_may_count",),
    ),
    Safeguard(
        "what was sent again may have left",
        "12",
        WORKER + "reconcile/write.py",
        "counted_at = NULL,\n    may_have_left = true,",
        "counted_at = NULL,",
        ("integration/test_reconcile.py", "integration/test_reconcile_drafts.py"),
    ),
    Safeguard(
        "evidence arms the mailbox",
        "13",
        WORKER + "reconcile/write.py",
        "SET next_at = outtray.not_before(least(m.next_at, outtray.outtray_now()), m.parked_until)\n"
        "WHERE m.id = %(mailbox)s",
        "SET next_at = m.next_at\nWHERE m.id = %(mailbox)s",
        ("integration/test_reconcile.py",),
    ),
    Safeguard(
        "a late record arms the mailbox",
        "13",
        GROUP,
        "CASE WHEN s.over OR s.late THEN",
        "CASE WHEN s.over THEN",
        (DEATHS + "test_a_handover_found_too_late_comes_back_even_from_unknown_and_arms_its_mailbox",),
    ),
    Safeguard(
        "the dispatcher expires messages",
        "13",
        WORKER + "tend.py",
        "m.state = 'queued' AND m.expires_at <= t.now",
        "false",
        (DISPATCHING + "test_the_dispatcher_expires_messages_of_a_paused_mailbox",),
    ),
    Safeguard(
        "a handover counts from its end",
        "14",
        GROUP,
        "counted_at = CASE WHEN NOT m.only_draft THEN t.now + g.within END",
        "counted_at = CASE WHEN NOT m.only_draft THEN t.now END",
        ("integration/test_ledger.py",),
    ),
    Safeguard(
        "a deleted young message keeps what it used",
        "14",
        WORKER + "prune.py",
        "WHERE m.counted_at > outtray.outtray_now() - interval '25 hours'\n    ON CONFLICT",
        "WHERE false\n    ON CONFLICT",
        (DISPATCHING + "test_deleting_a_young_message_keeps_what_it_used",),
    ),
    Safeguard(
        "a shared budget is locked while it is spent",
        "15",
        WORKER + "quotas/budgets.py",
        "ORDER BY b.id FOR NO KEY UPDATE\n",
        "ORDER BY b.id\n",
        ("integration/test_budgets_in_the_gate.py::test_two_workers_cannot_overrun_a_shared_budget",),
    ),
    Safeguard(
        "the sweep",
        "16",
        WORKER + "sweep.py",
        "WHERE a.due IS NOT NULL AND",
        "WHERE false AND",
        (DISPATCHING + "test_the_sweep_finds_a_lost_wake_even_behind_a_far_one",),
    ),
    Safeguard(
        "the sweep looks behind a far wake",
        "16",
        WORKER + "sweep.py",
        "(m.next_at IS NULL OR m.next_at > a.due)",
        "m.next_at IS NULL",
        (DISPATCHING + "test_the_sweep_finds_a_lost_wake_even_behind_a_far_one",),
    ),
    Safeguard(
        "a round that never began is published again",
        "2",
        WORKER + "pick.py",
        "t.now - %(again)s)\n    ORDER BY m.id FOR NO KEY UPDATE OF m SKIP LOCKED)\n"
        "UPDATE outtray.mailbox m SET round_at = t.now\nFROM",
        "t.now - interval '1 day')\n    ORDER BY m.id FOR NO KEY UPDATE OF m SKIP LOCKED)\n"
        "UPDATE outtray.mailbox m SET round_at = t.now\nFROM",
        (DISPATCHING + "test_a_round_that_never_began_is_published_again",),
    ),
    Safeguard(
        "a rotated token is saved by compare-and-set",
        "tokens",
        WORKER + "auth/store.py",
        "m.id = %(mailbox)s AND m.credentials_version = %(credentials_version)s\n    FOR NO KEY UPDATE),",
        "m.id = %(mailbox)s FOR NO KEY UPDATE),",
        (
            TOKENS + "test_a_newer_refresh_token_is_never_overwritten_by_an_older_one",
            TOKENS + "test_a_new_consent_during_a_refresh_wins",
            TOKENS + "test_a_lost_commit_of_a_save_is_read_back",
        ),
    ),
)
