"""Every row of the table of Graph's answers, driven by a real answer of the fake, as whole outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from graph_rig import GraphRig
from provider_rigs import CANARIES, USER, deliver, new_mail

from outtray_schema.outcome import Failed, Held, Outcome, Parked, Retry, Sent, Unknown
from outtray_worker.providers import Original
from outtray_worker.providers.microsoft.answers import ROWS

QUARTER, HOUR = timedelta(minutes=15), timedelta(hours=1)
CREATE, SEND, SENDMAIL, ANSWER, PATCH = "messages.create", "messages.send", "sendMail", "answer", "messages.patch"


@dataclass(frozen=True)
class Example:
    """What Graph says at a stage, and the outcome without reason and evidence."""

    row: str
    stage: str
    status: int
    code: str
    outcome: Outcome
    message: str = "for canary-to@first.example"
    headers: dict[str, str] = field(default_factory=dict)
    raw: Any = None

    @property
    def body(self) -> Any:
        if self.raw is not None:
            return self.raw
        return {"error": {"code": self.code, "message": self.message, "innerError": {"date": "2026-11-21T12:00:00"}}}


def parked(after: timedelta | None = None, scope: Any = "mailbox") -> Parked:
    return Parked("", scope=scope, after=after)


FAILED, RETRY, UNKNOWN = Failed(""), Retry(""), Unknown("")
RECONNECT, DISABLED = Held("", status="reconnect"), Held("", status="disabled")
LATER = {"Retry-After": "17"}
SOON = timedelta(seconds=17)
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="", error="insufficient_claims", claims="eyJhIjoxfQ=="'}
VERDICT = "554 5.2.0 STOREDRV; WASCL UserAction verdict is not None. Actual verdict is"

EXAMPLES = [
    Example("accepted", SEND, 202, "", Sent(), raw=""),
    Example("accepted", SENDMAIL, 202, "", Sent(), raw=""),
    Example("accepted-slow-down", SEND, 202, "", Sent(), headers=LATER, raw=""),
    Example("accepted-slow-down", SENDMAIL, 202, "", Sent(), headers=LATER, raw=""),
    Example("tenant-external-quota", SEND, 429, "ErrorExceededMessageLimit", parked(HOUR, "tenant"), "550 5.7.233 no"),
    Example("tenant-external-quota", SENDMAIL, 403, "TenantExternalRecipientRateLimitExceeded", parked(HOUR, "tenant")),
    Example("trial-domain-quota", SEND, 400, "ErrorSubmission", parked(HOUR, "tenant"), "550 5.7.236 onmicrosoft"),
    Example("sending-quota", SEND, 429, "ErrorExceededMessageLimit", parked(HOUR)),
    Example("sending-quota", SENDMAIL, 403, "ErrorSubmissionQuotaExceeded", parked(HOUR)),
    Example("sending-quota", CREATE, 400, "ErrorExceededHourlyMessageLimit", parked(HOUR)),
    Example("sending-quota", SEND, 554, "ErrorExceededMessageLimit", parked(HOUR)),
    Example("verdict-quota", SEND, 400, "ErrorMessageSubmission", parked(HOUR), f"{VERDICT} RefuseQuota"),
    Example("verdict-blocked", SEND, 403, "ErrorMessageSubmission", DISABLED, f"{VERDICT} HipSend"),
    Example("verdict-blocked", SEND, 403, "ErrorMessageSubmission", DISABLED, f"{VERDICT} Suspend"),
    Example("verdict-throttle", SEND, 429, "TooManyRequests", parked(QUARTER), f"{VERDICT} Throttle", LATER),
    Example("account-blocked", SEND, 403, "ErrorMessageSubmissionBlocked", DISABLED),
    Example("account-blocked", SENDMAIL, 403, "ErrorAccountSuspend", DISABLED),
    Example("mailbox-concurrency", SEND, 429, "ApplicationThrottled", parked(SOON), "MailboxConcurrency", LATER),
    Example("mailbox-concurrency", CREATE, 429, "ApplicationThrottled", parked(), "MailboxConcurrency"),
    Example("throttled", SEND, 429, "TooManyRequests", parked(SOON), headers=LATER),
    Example("throttled", SENDMAIL, 429, "activityLimitReached", parked(SOON), headers=LATER),
    Example("throttled-503", SEND, 503, "TooManyRequests", parked(SOON), headers=LATER),
    Example("no-mailbox", SEND, 404, "MailboxNotEnabledForRESTAPI", DISABLED),
    Example("no-mailbox", CREATE, 403, "MailboxNotSupportedForRESTAPI", DISABLED),
    Example("no-mailbox", SENDMAIL, 404, "ErrorMailboxNotFound", DISABLED),
    Example("claims-challenge", SEND, 401, "InvalidAuthenticationToken", RECONNECT, headers=CHALLENGE),
    Example("token-refused", SEND, 401, "InvalidAuthenticationToken", RECONNECT),
    Example("token-refused", CREATE, 401, "InvalidAuthenticationToken", RECONNECT),
    Example("send-as-denied", SEND, 403, "ErrorSendAsDenied", DISABLED),
    Example("access-denied", CREATE, 403, "ErrorAccessDenied", RECONNECT),
    Example("access-denied", SEND, 403, "Authorization_RequestDenied", RECONNECT),
    Example("access-denied-app", SEND, 403, "ErrorAccessDenied", DISABLED),
    Example("mailbox-full", CREATE, 507, "ErrorQuotaExceeded", DISABLED),
    Example("mailbox-full", SEND, 400, "ErrorQuotaExceeded", DISABLED),
    Example("too-many-recipients", SEND, 400, "ErrorExceededMaxRecipientLimit", FAILED),
    Example("too-large", SEND, 400, "ErrorMessageSizeExceeded", FAILED),
    Example("request-too-large", CREATE, 413, "RequestEntityTooLarge", FAILED),
    Example("request-too-large", SENDMAIL, 413, "", FAILED, raw="<html>413</html>"),
    Example("invalid-recipients", SEND, 400, "ErrorInvalidRecipients", FAILED),
    Example("invalid-mime", SENDMAIL, 400, "ErrorMimeContentInvalidBase64String", FAILED),
    Example("invalid-header", CREATE, 400, "InvalidInternetMessageHeader", FAILED),
    Example("invalid-request", SEND, 400, "ErrorInvalidRequest", FAILED),
    Example("draft-gone", SEND, 404, "ErrorItemNotFound", UNKNOWN),
    Example("not-a-draft", SEND, 400, "ErrorInvalidOperation", UNKNOWN, "only allowed on a draft message"),
    Example("original-gone", ANSWER, 404, "ErrorItemNotFound", FAILED),
    Example("draft-vanished", PATCH, 404, "ErrorItemNotFound", RETRY),
    Example("busy", CREATE, 503, "ErrorMailboxStoreUnavailable", parked()),
    Example("busy", CREATE, 503, "ErrorServerBusy", parked(SOON), headers=LATER),
    Example("transient", CREATE, 503, "ErrorMessageTransientError", RETRY),
    Example("server-error-before", CREATE, 500, "InternalServerError", RETRY),
    Example("server-error-before", CREATE, 504, "UnknownError", RETRY, raw=""),
    Example("busy-at-handover", SEND, 503, "ErrorServerBusy", UNKNOWN, headers=LATER),
    Example("busy-at-handover", SENDMAIL, 503, "ErrorMailboxStoreUnavailable", UNKNOWN),
    Example("unknown-error", SEND, 500, "UnknownError", UNKNOWN),
    Example("unknown-error", SENDMAIL, 400, "UnknownError", UNKNOWN),
    Example("server-error", SEND, 504, "", UNKNOWN, raw="<html>Gateway Timeout</html>"),
    Example("server-error", SENDMAIL, 502, "BadGateway", UNKNOWN),
    Example("unknown-throttle", SEND, 429, "SomethingNew", parked(SOON), headers=LATER),
    Example("unknown-bad-request", SEND, 400, "ErrorSomethingNew", FAILED),
    Example("unknown-denial", SEND, 403, "SomethingNew", parked()),
    Example("unknown-refusal", SENDMAIL, 418, "Teapot", RETRY),
    Example("unknown-answer", SEND, 302, "", UNKNOWN, headers={"Location": "https://x.example/"}, raw=""),
    Example("unknown-answer", SENDMAIL, 200, "", UNKNOWN, raw=""),
    Example("unknown-answer-before", CREATE, 302, "", RETRY, headers={"Location": "https://x.example/"}, raw=""),
]


def bare(outcome: Outcome) -> Outcome:
    """An outcome without words and evidence."""
    match outcome:
        case Retry() | Parked():
            return type(outcome)("", scope=outcome.scope, after=outcome.after)
        case Failed():
            return Failed("", scope=outcome.scope)
        case Held():
            return Held("", status=outcome.status)
        case Unknown():
            return UNKNOWN
        case Sent():
            return Sent()
    raise AssertionError(outcome)


@pytest.fixture(params=EXAMPLES, ids=lambda example: f"{example.row} at {example.stage} {example.status}")
def example(request: pytest.FixtureRequest) -> Example:
    return request.param


@pytest.fixture
def graph(example: Example, tmp_path: Path) -> Iterator[GraphRig]:
    with GraphRig(tmp_path, "sendMail" if example.stage == SENDMAIL else "draft") as rig:
        yield rig


def test_an_answer_becomes_the_outcome_of_its_row(
    graph: GraphRig, example: Example, caplog: pytest.LogCaptureFixture
) -> None:
    mail = new_mail()
    if example.stage in (ANSWER, PATCH):
        original = graph.server.receive(USER, "ann@first.example", "Hello", "<p>hi</p>")
        mail = replace(mail, original=Original("reply", original.immutable, None))
    if example.row.endswith("-app"):
        graph.account = graph.account_of(app_only=True)
    rule = {"stage": example.stage, "status": example.status, "body": example.body, "headers": example.headers}
    graph.server.add_rule(**rule, take=example.status == 202)
    outcome = graph.run(deliver(graph, mail))
    assert outcome.evidence["rule"] == example.row
    assert outcome.evidence["status"] == example.status
    assert bare(outcome) == example.outcome
    again = 2 if example.status == 401 else 1
    assert graph.handovers() == (again if example.stage in (SEND, SENDMAIL) else 0)
    assert len(graph.taken()) == (1 if example.status == 202 else 0)
    said = (repr(outcome) + caplog.text).replace(mail.rfc_message_id, "")
    assert [canary for canary in CANARIES if canary in said] == []


def test_every_row_has_an_example() -> None:
    assert {row.id for row in ROWS} == {example.row for example in EXAMPLES}


def test_unknown_answers_are_counted_and_known_ones_are_not(tmp_path: Path) -> None:
    with GraphRig(tmp_path) as graph:
        error = {"error": {"code": "ErrorSomethingNew", "message": "canary-to@first.example is odd"}}
        graph.server.add_rule(stage=SEND, status=400, body=error, times=1)
        graph.run(deliver(graph, new_mail()))
        graph.misbehave("refuses late")
        graph.run(deliver(graph, new_mail()))
        ((provider, signal),) = graph.signals.take()
        assert provider == "microsoft"
        assert signal.startswith("send 400 ErrorSomethingNew")
        assert "canary" not in signal
