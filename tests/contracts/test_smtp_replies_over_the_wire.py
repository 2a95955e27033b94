"""Every row of the reply table, driven by a real server that says it: in the row's phase, as whole outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pytest
from provider_rigs import SmtpRig, deliver, large_mail, new_mail, soon

from outtray_schema.outcome import Failed, Held, Outcome, Parked, Retry, Sent
from outtray_worker.providers.smtp.replies import ROWS

HALF_MINUTE, QUARTER, HOUR = timedelta(seconds=30), timedelta(minutes=15), timedelta(hours=1)
STOREDRV = "554 5.2.0 STOREDRV.Submission.Exception:"


@dataclass(frozen=True)
class Example:
    """What a server says at a stage, and the outcome without reason and evidence."""

    row: str
    stage: str
    reply: str
    outcome: Outcome


CONNECTION = Parked("", scope="connection")
MAILBOX = Parked("", scope="mailbox")
RECONNECT, DISABLED = Held("", status="reconnect"), Held("", status="disabled")
FAILED, FAILED_RECIPIENT = Failed(""), Failed("", scope="recipient")
RETRY, RETRY_RECIPIENT = Retry(""), Retry("", scope="recipient")


def mailbox_waits(after: timedelta) -> Parked:
    return Parked("", scope="mailbox", after=after)


EXAMPLES = [
    Example(
        "too-many-logins",
        "auth",
        "454 4.7.0 Too many login attempts, please try again later.",
        mailbox_waits(QUARTER),
    ),
    Example("auth-temporary", "auth", "454 4.7.0 Cannot authenticate due to temporary system problem.", MAILBOX),
    Example("app-password-needed", "auth", "534-5.7.9 Application-specific password\n534 5.7.9 required.", RECONNECT),
    Example("web-login-needed", "auth", "534 5.7.14 Please log in via your web browser.", RECONNECT),
    Example("smtp-auth-disabled", "auth", "535 5.7.139 Authentication unsuccessful, basic auth disabled.", RECONNECT),
    Example("permission-missing", "auth", "535 5.7.144 Authentication unsuccessful, API permissions.", RECONNECT),
    Example("credentials-refused", "auth", "535 5.7.3 Authentication unsuccessful", RECONNECT),
    Example("credentials-refused", "auth", "535-5.7.8 Username and Password not\n535 5.7.8 accepted.", RECONNECT),
    Example("security-missing", "mail", "530 5.7.57 Client not authenticated to send mail.", DISABLED),
    Example("security-missing", "auth", "538 5.7.11 Encryption required", DISABLED),
    Example("daily-limit", "mail", "550 5.4.5 Daily user sending limit exceeded.", mailbox_waits(HOUR)),
    Example("daily-limit", "data", "550-5.4.5 Daily user sending\n550 5.4.5 quota exceeded.", mailbox_waits(HOUR)),
    Example("daily-limit", "dot", "550 5.4.5 Daily user sending limit exceeded.", mailbox_waits(HOUR)),
    Example(
        "relay-limit",
        "mail",
        "550 5.4.5 Daily SMTP relay limit exceeded for customer.",
        Parked("", scope="tenant", after=HOUR),
    ),
    Example("recipient-quota", "dot", "550 5.1.90 Your message can't be sent: daily limit", mailbox_waits(HOUR)),
    Example(
        "recipient-thread-limit",
        "dot",
        "432 4.3.2 STOREDRV; recipient thread limit exceeded",
        Retry("", scope="recipient", after=HALF_MINUTE),
    ),
    Example("too-many-connections", "mail", "432 4.3.2 Concurrent connections limit", mailbox_waits(HALF_MINUTE)),
    Example("too-many-connections", "dot", "432 4.3.2 Concurrent connections limit", mailbox_waits(HALF_MINUTE)),
    Example("too-many-connections", "connect", "432 4.3.2 Concurrent connections", mailbox_waits(HALF_MINUTE)),
    Example("access-limited", "rcpt", "451 4.7.500 Server busy", mailbox_waits(QUARTER)),
    Example("access-limited", "mail", "451 4.7.651 Access temporarily limited", mailbox_waits(QUARTER)),
    Example("service-busy", "connect", "421 4.3.0 Temporary System Problem.", CONNECTION),
    Example("service-busy", "dot", "421 4.4.5 Server busy, try again later.", CONNECTION),
    Example("server-trouble", "mail", "451 4.3.0 Mail server temporarily rejected message.", CONNECTION),
    Example("server-trouble", "data", "451 4.4.2 Timeout - closing connection.", CONNECTION),
    Example("send-as-denied", "dot", "554 5.2.252 SendAsDenied; not allowed to send as", DISABLED),
    Example("sender-throttled", "mail", "550 5.2.253 Sender throttled due to continuous errors", DISABLED),
    Example("sender-blocked", "dot", "550 5.7.60 SMTP; Client does not have permissions to send as", DISABLED),
    Example("sender-blocked", "mail", "550 5.1.8 Access denied, bad outbound sender", DISABLED),
    Example("sender-blocked", "rcpt", "550 5.7.708 Service unavailable, traffic not accepted", DISABLED),
    Example("storedrv-send-as", "dot", f"{STOREDRV}SendAsDeniedException.MapiExceptionSendAsDenied", DISABLED),
    Example("storedrv-quota", "dot", f"{STOREDRV}SubmissionQuotaExceededException", mailbox_waits(HOUR)),
    Example("storedrv-spam-quota", "dot", f"{STOREDRV}OutboundSpamException; WASCL RefuseQuota", mailbox_waits(HOUR)),
    Example("storedrv-spam-block", "dot", f"{STOREDRV}OutboundSpamException; WASCL UserAction Suspend", DISABLED),
    Example("storedrv-spam-block", "dot", f"{STOREDRV}OutboundSpamException; HipSendLimit", DISABLED),
    Example("storedrv-spam-throttle", "dot", f"{STOREDRV}OutboundSpamException; Throttle", mailbox_waits(QUARTER)),
    Example("storedrv-other", "dot", f"{STOREDRV}CorruptDataException", FAILED),
    Example("too-many-recipients", "rcpt", "452 4.5.3 Your message has too many recipients", FAILED),
    Example("too-many-recipients-permanent", "rcpt", "550 5.5.3 Too many recipients", FAILED),
    Example("recipient-busy", "rcpt", "450 4.2.1 The user is receiving mail too quickly", RETRY_RECIPIENT),
    Example("recipient-full", "rcpt", "452 4.2.2 The email account is over quota", RETRY_RECIPIENT),
    Example("recipient-unknown", "rcpt", "550-5.1.1 The account does not\n550 5.1.1 exist", FAILED_RECIPIENT),
    Example("recipient-malformed", "rcpt", "553 5.1.3 The address is not a valid RFC 5321 address", FAILED_RECIPIENT),
    Example("recipient-syntax", "rcpt", "501 5.1.3 Bad recipient address syntax", FAILED_RECIPIENT),
    Example("too-large", "mail", "552 5.3.4 Your message exceeded Google's message size limits", FAILED),
    Example("too-large", "dot", "552 5.2.3 Message exceeds size limit", FAILED),
    Example("content-blocked", "dot", "552 5.7.0 This message was blocked because of its content", FAILED),
    Example("parameters-refused", "mail", "555 5.5.2 Syntax error", FAILED),
    Example("domain-unauthenticated", "dot", "550 5.7.26 This mail is unauthenticated", FAILED),
    Example("domain-unauthenticated", "dot", "550 5.7.515 Access denied, sending domain", FAILED),
    Example("policy-refused", "dot", "550 5.7.1 Our system has detected that this message is unsolicited", FAILED),
    Example("unknown-goodbye", "rcpt", "421 4.7.28 Gateway closing", CONNECTION),
    Example("unknown-goodbye", "body", "421 Timed out, closing", CONNECTION),
    Example("unknown-before-login", "connect", "554 5.7.1 No service for you", CONNECTION),
    Example("unknown-before-login", "ehlo", "550 Go away", CONNECTION),
    Example("unknown-login-wait", "auth", "451 later", MAILBOX),
    Example("unknown-login-refusal", "auth", "550 5.7.1 No", RECONNECT),
    Example("unknown-sender-wait", "mail", "450 4.1.8 Sender address rejected: domain not found", MAILBOX),
    Example("unknown-recipient-wait", "rcpt", "450 4.7.1 Greylisted", RETRY_RECIPIENT),
    Example("unknown-recipient-refusal", "rcpt", "554 5.7.1 Relay access denied", FAILED_RECIPIENT),
    Example("unknown-wait", "dot", "452 4.3.1 Insufficient system storage", RETRY),
    Example("unknown-wait", "data", "450 4.0.0 not yet", RETRY),
    Example("unknown-refusal", "dot", "554 Transaction failed", FAILED),
    Example("unknown-refusal", "mail", "550 5.5.4 no", FAILED),
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
    raise AssertionError(outcome)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.row} at {example.stage}")
def test_a_reply_becomes_the_outcome_of_its_row(smtp: SmtpRig, example: Example) -> None:
    smtp.server.add_rule(stage=example.stage, reply=example.reply, after_bytes=200_000)
    outcome = smtp.run(deliver(smtp, large_mail() if example.stage == "body" else new_mail()))
    assert not isinstance(outcome, Sent)
    assert outcome.evidence["rule"] == example.row
    assert outcome.evidence["code"] == int(example.reply[:3])
    assert bare(outcome) == example.outcome
    assert smtp.taken() == []
    assert smtp.server.seen["connections"] == 1
    assert smtp.handovers() == (1 if example.stage == "dot" else 0)


def test_every_row_has_an_example() -> None:
    assert {row.id for row in ROWS} == {example.row for example in EXAMPLES}


@pytest.mark.parametrize("stage", ["rcpt", "mail", "data", "dot"])
def test_the_server_still_speaks_after_a_refusal_and_the_next_mail_leaves_on_the_same_connection(
    smtp: SmtpRig, stage: str
) -> None:
    smtp.server.add_rule(stage=stage, reply="550 5.7.1 no", times=1)

    async def two() -> list[Outcome]:
        session = smtp.provider.open(smtp.account)
        outcomes: list[Outcome] = []
        for _ in range(2):
            prepared = await session.prepare(new_mail())
            ready = hasattr(prepared, "hand_over")
            outcomes.append(await prepared.hand_over(soon(), soon()) if ready else prepared)
        await session.close()
        return outcomes

    first, second = smtp.run(two())
    assert isinstance(first, Failed)
    assert isinstance(second, Sent)
    assert (smtp.server.seen["connections"], smtp.server.seen["rset"]) == (1, 1)
