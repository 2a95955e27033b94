"""The table of Graph's answers as data, what is read out of an answer, and the bounds of one mailbox."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outtray_schema.outcome import Failed, Held, Outcome, Parked, Retry, Unknown
from outtray_worker.providers.microsoft.answers import (
    ROWS,
    TABLE,
    claims_of,
    evidence_of,
    refusal,
    retry_after,
    signal_of,
)
from outtray_worker.providers.microsoft.limits import UPLOAD_WINDOW, UPLOADS, Lanes
from outtray_worker.providers.microsoft.scopes import Grant
from outtray_worker.providers.redact import Redactor
from outtray_worker.providers.web import Answer
from outtray_worker.providers.web.rows import Signal, Step
from outtray_worker.providers.web.signals import Signals

STEPS: tuple[Step, ...] = ("prepare", "commit", "read")


def answer(status: int, code: str = "", message: str = "", **headers: str) -> Answer:
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def outcome(said: Answer, step: Step = "commit", about: str = "send", signals: Signals | None = None) -> Outcome:
    return refusal(said, step, about, "mine", Redactor("canary@x.example"), signals or Signals())


def test_row_ids_are_unique_and_every_row_says_where_it_is_known_from() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.source and re.fullmatch(r"20\d\d-\d\d", row.as_of), row.id
    known = [not row.unknown_signal or row.id == "unknown-error" for row in ROWS]
    assert known == sorted(known, reverse=True)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_only_failures_of_the_message_spend_its_attempts(row) -> None:
    if row.becomes == "parked":
        assert row.scope in ("mailbox", "tenant", "app", "connection")
    if row.becomes in ("retry", "failed"):
        assert row.scope in ("message", "recipient")
    if row.becomes == "unknown":
        assert row.steps == ("commit",)


@given(st.sampled_from(STEPS), st.integers(100, 999), st.text(max_size=40), st.text(max_size=60), st.booleans())
def test_every_answer_at_every_step_has_a_verdict(step: Step, status: int, code: str, text: str, hinted: bool) -> None:
    row = TABLE.classify(Signal(step, status, (code,), text, hinted, "send"))
    assert row in TABLE.rows and row.reason, "whoever waits for it is told why"


@given(st.integers(100, 999).filter(lambda status: not 400 <= status < 500 and status != 202), st.text(max_size=20))
def test_at_the_handover_only_a_4xx_a_throttle_or_a_quota_is_a_refusal(status: int, text: str) -> None:
    found = outcome(answer(status, "SomethingElse", text.replace("5.7.23", "")))
    assert isinstance(found, Unknown)


@given(st.integers(200, 399))
def test_no_refusal_is_made_of_a_success(status: int) -> None:
    assert isinstance(outcome(answer(status)), Unknown)


def test_the_longer_of_graphs_wait_and_the_rows_counts() -> None:
    short = outcome(answer(429, "ErrorExceededMessageLimit", retry_after="5"))
    long = outcome(answer(429, "ErrorExceededMessageLimit", retry_after="7200"))
    assert isinstance(short, Parked) and short.after == timedelta(hours=1)
    assert isinstance(long, Parked) and long.after == timedelta(hours=2)
    plain = outcome(answer(429, "TooManyRequests"))
    assert isinstance(plain, Parked) and plain.after is None


@pytest.mark.parametrize(
    ("text", "wait"),
    [("0", 1), ("17", 17), ("99999999999999999999", 86_400), ("", None), ("-3", None), ("soon", None),
     ("Wed, 21 Oct 2026 07:28:00 GMT", None)],
)  # fmt: skip
def test_retry_after_is_read_in_seconds_and_clamped(text: str, wait: int | None) -> None:
    found = retry_after(answer(429, retry_after=text))
    assert found == (None if wait is None else timedelta(seconds=wait))


def test_claims_are_taken_as_they_stand_in_the_challenge() -> None:
    challenge = 'Bearer realm="", error="insufficient_claims", claims="eyJhIjoxfQ=="'
    assert claims_of(answer(401, www_authenticate=challenge)) == '{"a":1}'
    assert claims_of(answer(401, www_authenticate='Bearer claims="not base64"')) == "not base64"
    assert claims_of(answer(401, www_authenticate='Bearer realm=""')) is None
    assert claims_of(answer(401)) is None


def test_evidence_has_the_ids_and_no_address() -> None:
    request_id = "0f0a7e2c-93a3-4ec3-a7c5-0b4f0e3b6c11"
    said = answer(400, "ErrorInvalidRecipients", "canary@x.example and other@y.example", request_id=request_id)
    row = TABLE.classify(signal_of(said, "commit", "send"))
    evidence = evidence_of(said, row, "commit", "mine", Redactor("canary@x.example"))
    assert (evidence["request_id"], evidence["client_request_id"]) == (request_id, "mine")
    assert (evidence["rule"], evidence["code"]) == ("invalid-recipients", "ErrorInvalidRecipients")
    assert "@" not in str(evidence) and "said" not in evidence
    assert "request_id" not in evidence_of(answer(400, request_id="a token?"), row, "commit", "m", Redactor())


def test_an_unknown_signal_is_counted_redacted_and_a_known_one_is_not() -> None:
    signals = Signals()
    assert isinstance(outcome(answer(418, "Teapot", "for canary@x.example"), signals=signals), Retry)
    assert isinstance(outcome(answer(400, "ErrorInvalidRecipients"), signals=signals), Failed)
    assert list(signals.take().items()) == [(("microsoft", "send 418 Teapot for <…>"), 1)]


def test_a_denial_of_an_application_is_an_administrators_matter() -> None:
    delegated = outcome(answer(403, "ErrorAccessDenied"))
    app_only = outcome(answer(403, "ErrorAccessDenied"), about="send app-only")
    assert isinstance(delegated, Held) and delegated.status == "reconnect"
    assert isinstance(app_only, Held) and app_only.status == "disabled"


# ── the bounds of one mailbox ───────────────────────────────────────────────────────────────────────────────────────


def test_uploads_of_five_minutes_are_bounded_and_become_free_again() -> None:
    now = [0.0]
    lanes = Lanes(lambda: now[0])
    lane = lanes.enter(UUID(int=1))
    lanes.spend(lane, UPLOADS - 1_000_000)
    now[0] = 100.0
    lanes.spend(lane, 900_000)
    assert lanes.wait_for(lane, 100_000) == 0
    assert lanes.wait_for(lane, 200_000) == UPLOAD_WINDOW - 100
    now[0] = 350.0
    assert lanes.wait_for(lane, 200_000) == 0
    assert lanes.wait_for(lane, UPLOADS) == UPLOAD_WINDOW - 250


def test_what_never_fits_waits_for_an_empty_window_and_then_goes() -> None:
    lanes = Lanes(lambda: 0.0)
    lane = lanes.enter(UUID(int=1))
    assert lanes.wait_for(lane, 2 * UPLOADS) == 0
    lanes.spend(lane, 100_000)
    assert lanes.wait_for(lane, 2 * UPLOADS) == UPLOAD_WINDOW


def test_a_lane_outlives_its_session_as_long_as_its_uploads_count() -> None:
    now = [0.0]
    lanes = Lanes(lambda: now[0])
    lanes.spend(lanes.enter(UUID(int=1)), 100_000)
    lanes.leave(UUID(int=1))
    assert lanes.wait_for(lanes.enter(UUID(int=1)), 2 * UPLOADS) == UPLOAD_WINDOW
    lanes.leave(UUID(int=1))
    now[0] = UPLOAD_WINDOW
    assert lanes.wait_for(lanes.enter(UUID(int=1)), 2 * UPLOADS) == 0


def test_two_sessions_of_a_mailbox_share_its_lane() -> None:
    lanes = Lanes(lambda: 0.0)
    one, two, other = lanes.enter(UUID(int=1)), lanes.enter(UUID(int=1)), lanes.enter(UUID(int=2))
    assert one is two and one is not other


# ── scopes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("scopes", "drafts", "send", "read"),
    [
        ("Mail.Send", False, True, False),
        ("https://graph.microsoft.com/Mail.Send Mail.Read", False, True, True),
        ("mail.send mail.readwrite", True, True, True),
        ("Mail.Send.Shared Mail.ReadWrite.Shared", True, True, True),
        ("Mail.ReadWrite", True, False, True),
        ("https://graph.microsoft.com/.default", True, True, True),
        ("User.Read", False, False, False),
    ],
)
def test_what_was_granted_decides_what_can_be_done(scopes: str, drafts: bool, send: bool, read: bool) -> None:
    grant = Grant.of(scopes.split(), {})
    assert (grant.drafts, grant.send, grant.read) == (drafts, send, read)
