"""Every row of Gmail's table, driven by a real server that answers so: at the row's step, as whole outcomes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from gmail_rig import COMPOSE, MODIFY, SEND, GmailRig
from provider_rigs import deliver, large_mail, mail_of, new_mail, soon

from outtray_sandbox.google.errors import shape
from outtray_schema.outcome import Failed, Held, Outcome, Parked, Retry, Sent, Unknown
from outtray_worker.providers import Original
from outtray_worker.providers.gmail import Sizes
from outtray_worker.providers.gmail.answers import TABLE

MINUTE, QUARTER, HOUR, DAY = timedelta(minutes=1), timedelta(minutes=15), timedelta(hours=1), timedelta(days=1)
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
DATED = {"Date": format_datetime(NOW, usegmt=True)}
SMALL = Sizes(json=2000, multipart=4000)
"""So that an upload needs no large mail."""
UPLOAD = b"Message-ID: <upload@sender.example>\r\nTo: canary-to@first.example\r\n\r\n" + b"0123456789abcde\r\n" * 40_000


@dataclass(frozen=True)
class Example:
    """What the server answers at a stage, and the outcome without reason and evidence."""

    row: str
    stage: str
    status: int
    body: Any
    outcome: Outcome
    scopes: tuple[str, ...] = (COMPOSE,)
    skip: int = 0
    times: int | None = 1
    headers: dict[str, str] = field(default_factory=dict)


def error(status: int, reason: str, message: str, **more: Any) -> dict[str, Any]:
    return shape(status, reason, message, "usageLimits", **more)


def mailbox_waits(after: timedelta | None) -> Parked:
    return Parked("", scope="mailbox", after=after)


def app_waits(after: timedelta) -> Parked:
    return Parked("", scope="app", after=after)


QUOTA = "User-rate limit exceeded.  Retry after 2026-11-21T12:40:00.000Z (Mail sending)"
PER_USER = (
    "Quota exceeded for quota metric 'Queries' and limit 'Queries per minute per user' of service "
    "'gmail.googleapis.com' for consumer 'project_number:1'."
)
PER_PROJECT = PER_USER.replace(" per user", "")
DISABLED_API = "Gmail API has not been used in project 1 before or it is disabled."
EXHAUSTED = "Resource has been exhausted (e.g. check quota)."
CONNECTION, RETRY, FAILED, UNKNOWN = Parked("", scope="connection"), Retry(""), Failed(""), Unknown("")
RECONNECT, DISABLED = Held("", status="reconnect"), Held("", status="disabled")
SCOPES = error(403, "insufficientPermissions", "Request had insufficient authentication scopes.")
DIRECT = (SEND,)

EXAMPLES = [
    Example("accepted", "drafts.send", 200, {"id": "18c", "threadId": "18d"}, Sent("18c", None, "18d")),
    Example("accepted", "messages.send", 200, {"id": "18c", "threadId": "18d"}, Sent("18c", None, "18d"), DIRECT),
    Example("accepted-unreadable", "drafts.send", 200, {"threadId": "18d"}, UNKNOWN),
    Example("accepted-unreadable", "messages.send", 200, "<html>", UNKNOWN, DIRECT),
    Example("accepted-unreadable", "drafts.send", 200, [1], UNKNOWN),
    Example("created-unreadable", "drafts.create", 200, {"message": {}}, RETRY),
    Example("created-unreadable", "drafts.create", 200, "no JSON", RETRY),
    Example("read-unreadable", "messages.get", 200, "no JSON", CONNECTION, (MODIFY,)),
    Example("mail-quota", "drafts.send", 429, error(429, "rateLimitExceeded", QUOTA), mailbox_waits(40 * MINUTE)),
    Example("mail-quota", "drafts.create", 429, error(429, "rateLimitExceeded", QUOTA), mailbox_waits(40 * MINUTE)),
    Example(
        "user-rate-until", "messages.send", 429,
        error(429, "rateLimitExceeded", "User-rate limit exceeded.  Retry after 2026-11-21T12:03:00.000Z"),
        mailbox_waits(3 * MINUTE), DIRECT,
    ),
    Example(
        "user-rate-until", "drafts.send", 429,
        error(429, "rateLimitExceeded", "User-rate limit exceeded.  Retry after 2026-11-21T12:00:20.000Z"),
        mailbox_waits(MINUTE / 3),
    ),
    Example(
        "user-rate-until", "drafts.send", 403, error(403, "rateLimitExceeded", "User-rate limit exceeded."),
        mailbox_waits(MINUTE),
    ),
    Example(
        "too-many-at-once", "drafts.send", 429,
        error(429, "rateLimitExceeded", "Too many concurrent requests for user"), mailbox_waits(None),
    ),
    Example(
        "user-rate", "drafts.send", 403, error(403, "userRateLimitExceeded", "User Rate Limit Exceeded"),
        mailbox_waits(MINUTE),
    ),
    Example("user-rate-quota", "drafts.send", 429, error(429, "rateLimitExceeded", PER_USER), mailbox_waits(MINUTE)),
    Example("project-rate", "drafts.send", 403, error(403, "rateLimitExceeded", PER_PROJECT), app_waits(MINUTE)),
    Example("exhausted", "drafts.send", 429, error(429, "rateLimitExceeded", EXHAUSTED), mailbox_waits(MINUTE)),
    # Noon in Greenwich is four in the morning in California: 20 hours to midnight.
    Example(
        "project-day", "drafts.send", 403, error(403, "dailyLimitExceeded", "Daily Limit Exceeded"),
        app_waits(20 * HOUR),
    ),
    Example("project-day", "drafts.send", 403, error(403, "quotaExceeded", "Quota exceeded"), app_waits(20 * HOUR)),
    Example("api-disabled", "drafts.create", 403, error(403, "accessNotConfigured", DISABLED_API), app_waits(QUARTER)),
    Example(
        "api-disabled", "drafts.send", 403,
        error(403, "forbidden", DISABLED_API, details=[{"reason": "SERVICE_DISABLED"}]), app_waits(QUARTER),
    ),
    Example("token-refused", "drafts.send", 401, error(401, "authError", "Invalid Credentials"), RECONNECT, times=2),
    Example("token-refused", "drafts.create", 401, "", RECONNECT, times=2),
    Example("scope-missing", "drafts.send", 403, SCOPES, RECONNECT),
    Example(
        "scope-missing", "drafts.create", 403,
        error(403, "forbidden", "", details=[{"reason": "ACCESS_TOKEN_SCOPE_INSUFFICIENT"}]), RECONNECT,
    ),
    Example("domain-policy", "drafts.send", 403, error(403, "domainPolicy", "The domain administrators"), DISABLED),
    Example("delegation-denied", "drafts.send", 403, error(403, "forbidden", "Delegation denied for x"), DISABLED),
    Example("no-mailbox", "drafts.create", 400, error(400, "failedPrecondition", "Mail service not enabled"), DISABLED),
    Example(
        "precondition", "drafts.create", 400, error(400, "failedPrecondition", "Precondition check failed."),
        mailbox_waits(None),
    ),
    Example("invalid-field", "drafts.create", 400, error(400, "invalidArgument", "Invalid To header"), FAILED),
    Example("invalid-field", "messages.send", 400, error(400, "invalid", "Recipient address required"), FAILED, DIRECT),
    Example("too-large", "drafts.create", 413, error(413, "uploadTooLarge", "Media larger"), FAILED),
    Example("too-large", "messages.send", 413, "<html>Request Entity Too Large", FAILED, DIRECT),
    Example("too-large-said", "drafts.create", 400, error(400, "badRequest", "Message too large: 40 MB"), FAILED),
    Example("bad-request", "drafts.send", 400, error(400, "badRequest", "Bad Request"), FAILED),
    Example("draft-gone", "drafts.send", 404, error(404, "notFound", "Requested entity was not found."), UNKNOWN),
    Example("not-found", "messages.get", 404, error(404, "notFound", "Not Found"), FAILED, (MODIFY,)),
    Example("thread-gone", "drafts.create", 404, error(404, "notFound", "Not Found"), FAILED),
    Example("thread-gone", "messages.send", 404, error(404, "notFound", "Not Found"), FAILED, DIRECT),
    *[
        Example("server-error", stage, status, error(status, "backendError", "Backend Error"), UNKNOWN, scopes)
        for status in (500, 502, 503, 504)
        for stage, scopes in (("drafts.send", (COMPOSE,)), ("messages.send", DIRECT))
    ],
    Example("server-error-early", "drafts.create", 503, error(503, "backendError", "Backend Error"), CONNECTION),
    Example("upload-gone", "upload.put.messages.send", 404, "Not Found", RETRY, DIRECT),
    Example("upload-gone", "upload.put.messages.send", 410, "Gone", RETRY, DIRECT, skip=1),
    Example("upload-incomplete", "upload.put.messages.send", 308, "", RETRY, DIRECT, skip=1),
    Example("unknown-throttle", "drafts.send", 429, "slow down", mailbox_waits(MINUTE)),
    Example("unknown-throttle", "drafts.send", 429, error(429, "x", "y"), mailbox_waits(2 * HOUR),
            headers={"Retry-After": "7200"}),
    Example("unknown-forbidden", "drafts.send", 403, error(403, "newReason", "No."), mailbox_waits(QUARTER)),
    Example("unknown-refusal", "drafts.send", 418, "", RETRY),
    Example("unknown-refusal", "messages.send", 409, error(409, "aborted", "Conflict"), RETRY, DIRECT),
    Example("unknown-broken", "drafts.send", 520, "", UNKNOWN),
    Example("unknown-broken-early", "drafts.create", 599, "", CONNECTION),
    Example("unknown-answer", "messages.send", 302, "", UNKNOWN, DIRECT, headers={"Location": "/elsewhere"}),
    Example("unknown-answer-early", "drafts.create", 304, "", RETRY),
]  # fmt: skip


def bare(outcome: Outcome) -> Outcome:
    """An outcome without words and evidence."""
    match outcome:
        case Retry() | Parked():
            return type(outcome)("", scope=outcome.scope, after=outcome.after)
        case Failed():
            return Failed("", scope=outcome.scope)
        case Held():
            return Held("", status=outcome.status)
        case Sent():
            return replace(outcome, evidence={})
        case Unknown():
            return Unknown("")
    raise AssertionError(outcome)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: f"{each.row} at {each.stage}")
def test_an_answer_becomes_the_outcome_of_its_row(example: Example, tmp_path: Path) -> None:
    upload = example.stage.startswith("upload")
    with GmailRig(tmp_path, example.scopes, sizes=SMALL if upload else Sizes()) as rig:
        rig.server.add_rule(
            stage=example.stage.replace(".", r"\."), status=example.status, body=example.body, skip=example.skip,
            times=example.times, headers={**DATED, **example.headers}, take=False,
        )  # fmt: skip
        mail = mail_of(UPLOAD) if upload else new_mail()
        if example.row == "thread-gone":
            mail = replace(mail, original=Original("reply", None, "18aaa"))
        reading = example.stage == "messages.get"
        outcome = rig.run(rig.provider.open(rig.account).read_original("18f") if reading else deliver(rig, mail))
        assert outcome.evidence["rule"] == example.row
        assert outcome.evidence["status"] == example.status
        assert bare(outcome) == example.outcome
        assert rig.server.ledger.read() == []
        played = rig.server.seen[example.stage] - example.skip
        assert played == (example.times or 1), "one request per attempt, and one more after a 401"
        known = example.row.startswith("unknown-")
        assert bool(rig.provider.signals.take()) is known, "what no row knows is counted, and nothing else"


def test_every_row_has_an_example() -> None:
    assert {row.id for row in TABLE.rows} == {example.row for example in EXAMPLES}


@pytest.mark.parametrize(
    ("until", "waits"),
    [
        ("2026-11-21T12:00:20.000Z", QUARTER),
        ("2026-11-21T11:00:00.000Z", QUARTER),
        ("2026-11-21T14:30:00Z", timedelta(hours=2, minutes=30)),
        ("2026-11-21T14:00:00.000+01:00", HOUR),
        ("2031-01-01T00:00:00.000Z", DAY),
        ("2026-13-99T99:00:00.000Z", QUARTER),
        ("tomorrow", QUARTER),
    ],
)
def test_the_time_in_the_text_is_kept_within_its_bounds(until: str, waits: timedelta, tmp_path: Path) -> None:
    text = f"User-rate limit exceeded.  Retry after {until} (Mail sending)"
    with GmailRig(tmp_path, (COMPOSE,)) as rig:
        body = error(429, "rateLimitExceeded", text)
        rig.server.add_rule(stage="drafts.send", status=429, body=body, headers=DATED)
        assert bare(rig.run(deliver(rig, new_mail()))) == mailbox_waits(waits)


def deliver_again(rig: GmailRig, times: int) -> list[Outcome]:
    async def again() -> list[Outcome]:
        outcomes = []
        for _ in range(times):
            prepared = await rig.provider.open(rig.account).prepare(new_mail())
            outcomes.append(await prepared.hand_over(soon(), soon()) if hasattr(prepared, "hand_over") else prepared)
        return outcomes

    return rig.run(again())


def test_a_sending_limit_that_goes_on_is_waited_for_longer_each_time(tmp_path: Path) -> None:
    body = error(429, "rateLimitExceeded", "User-rate limit exceeded. (Mail sending)")
    with GmailRig(tmp_path, (COMPOSE,)) as rig:
        rig.server.add_rule(stage="drafts.send", status=429, body=body)
        waits = [outcome.after for outcome in deliver_again(rig, 7)]
    assert waits == [QUARTER, 2 * QUARTER, HOUR, 2 * HOUR, 4 * HOUR, 6 * HOUR, 6 * HOUR]


def test_a_third_exhaustion_in_a_row_is_the_mailbox_quota(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (COMPOSE,)) as rig:
        rig.server.add_rule(stage="drafts.send", status=429, body=error(429, "rateLimitExceeded", EXHAUSTED), times=2)
        rig.server.add_rule(stage="drafts.send", status=200, body={"id": "1"}, times=1)
        rig.server.add_rule(stage="drafts.send", status=429, body=error(429, "rateLimitExceeded", EXHAUSTED), times=3)
        rules = [outcome.evidence["rule"] for outcome in deliver_again(rig, 6)]
    assert rules == ["exhausted", "exhausted", "accepted", "exhausted", "exhausted", "mail-quota"]


def test_a_precondition_that_fails_thrice_needs_a_person(tmp_path: Path) -> None:
    body = error(400, "failedPrecondition", "Precondition check failed.")
    with GmailRig(tmp_path, (COMPOSE,)) as rig:
        rig.server.add_rule(stage="drafts.create", status=400, body=body)
        kinds = [type(outcome) for outcome in deliver_again(rig, 3)]
    assert kinds == [Parked, Parked, Held]


def test_a_missing_scope_is_named(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (COMPOSE,)) as rig:
        rig.house.tokens.access[rig.tokens.token].scopes = ()
        outcome = rig.run(deliver(rig, new_mail()))
    assert isinstance(outcome, Held)
    assert "drafts.create needs gmail.compose" in outcome.reason


def test_the_refused_header_is_named(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (SEND,)) as rig:
        mail = mail_of(b"To: nobody\r\n\r\nx\r\n", recipients=("nobody",))
        outcome = rig.run(deliver(rig, mail))
    assert isinstance(outcome, Failed)
    assert ": To (" in outcome.reason


def test_a_success_near_the_quota_is_flagged_for_another_look(tmp_path: Path) -> None:
    body = error(429, "rateLimitExceeded", QUOTA)
    with GmailRig(tmp_path, (COMPOSE,)) as rig:
        assert "look_again" not in rig.run(deliver(rig, new_mail())).evidence
        rig.server.add_rule(stage="drafts.send", status=429, body=body, times=1)
        rig.house.lose_next(rig.account.address)
        limited, lost = deliver_again(rig, 2)
        assert isinstance(limited, Parked)
        assert isinstance(lost, Sent)
        assert lost.evidence["look_again"] is True
        assert len(rig.taken()) == 1, "the 200 that is flagged sent nothing"


def test_an_unknown_signal_is_kept_without_what_is_private(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (COMPOSE,)) as rig:
        text = (
            f"Strange thing about canary-to@first.example and {rig.tokens.token}, see https://x.example/?upload_id=q7q7"
        )
        rig.server.add_rule(stage="drafts.send", status=418, body=error(418, "teapot", text))
        deliver_again(rig, 2)
        (((provider, signal), times),) = rig.provider.signals.take().items()
    assert (provider, times) == ("gmail", 2)
    assert signal.startswith("commit drafts.send 418 teapot, UNKNOWN: Strange thing about")
    assert "canary" not in signal and "q7q7" not in signal


def test_a_large_body_refused_early_is_a_refusal(tmp_path: Path) -> None:
    """Gmail answers before it has read everything: the answer counts, not the connection that ends with it."""
    with GmailRig(tmp_path, (COMPOSE,)) as rig:
        rig.server.add_rule(stage="upload.drafts.create", status=413, body=error(413, "uploadTooLarge", "no"), times=1)
        outcome = rig.run(deliver(rig, large_mail()))
    assert isinstance(outcome, Failed)
