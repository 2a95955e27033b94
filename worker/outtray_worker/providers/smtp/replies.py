"""What SMTP servers answer, as data: one row per kind of reply; the first that matches decides.

A row says in which phases and for which code, enhanced code (RFC 3463) and text it holds, what the attempt becomes, who
is affected, how long to wait, and where that is known from. Only failures of the message or of a recipient spend an
attempt; everything else parks the mailbox or waits for a person. Enhanced codes alone decide nothing: Exchange uses
5.2.0 for a dozen different things. The unknown rows stand last, and their replies keep their text as evidence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from outtray_schema.outcome import Evidence, Failed, Held, Outcome, Parked, Retry, Scope

Phase = Literal["connect", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "dot"]
"""Where in the dialogue a reply was given: `data` from the DATA command to the body's last byte, `dot` after it."""

Becomes = Literal["retry", "parked", "reconnect", "disabled", "failed"]

GMAIL = "support.google.com/a/answer/3726730"
EXCHANGE_LIMITS = "learn.microsoft.com, Exchange Online limits, sending limits"
EXCHANGE_THROTTLE = "Exchange documentation, continuous error throttling for SMTP AUTH submissions"
BASIC_AUTH = "techcommunity, Exchange Online SMTP AUTH basic authentication deprecation timeline"
BULK = "support.google.com/mail/answer/81126; Microsoft's rules for high volume senders"
FIELD = "field reports (issue threads)"
STOREDRV = "field reports of STOREDRV.Submission.Exception replies"
RFC_5321 = "RFC 5321 4.2.1, 4.2.3"
RFC_4954 = "RFC 4954 section 6"

ANYWHERE: tuple[Phase, ...] = ("connect", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "dot")
ENVELOPE: tuple[Phase, ...] = ("mail", "rcpt", "data", "dot")
CONTENT: tuple[Phase, ...] = ("mail", "data", "dot")
BEFORE_LOGIN: tuple[Phase, ...] = ("connect", "ehlo", "starttls")
AROUND_LOGIN: tuple[Phase, ...] = (*BEFORE_LOGIN, "auth")
TEMPORARY = range(400, 500)
PERMANENT = range(500, 600)


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of reply. `enhanced` must match whole, `text` anywhere in the reply, both regardless of case."""

    id: str
    phases: tuple[Phase, ...]
    codes: tuple[int, ...] | range
    becomes: Becomes
    reason: str
    source: str
    as_of: str
    enhanced: str = ""
    text: str = ""
    scope: Scope = "message"
    after: timedelta | None = None
    teaches: bool = False
    """The mailbox's own limit of a day is reached: we learn where it is."""

    def matches(self, phase: Phase, code: int, enhanced: str, text: str) -> bool:
        return (
            phase in self.phases
            and code in self.codes
            and (not self.enhanced or re.fullmatch(self.enhanced, enhanced) is not None)
            and (not self.text or re.search(self.text, text, re.IGNORECASE) is not None)
        )


HALF_MINUTE, QUARTER, HOUR = timedelta(seconds=30), timedelta(minutes=15), timedelta(hours=1)

ROWS: tuple[Row, ...] = (
    # ── logging in ──────────────────────────────────────────────────────────────────────────────────────────────
    # Not a bad password: every further login makes it worse, so the whole mailbox stops.
    Row("too-many-logins", ("auth",), (454,), "parked", "the server asks for fewer logins", GMAIL, "2026-11",
        enhanced=r"4\.7\.0", text=r"too many login", scope="mailbox", after=QUARTER),
    Row("auth-temporary", ("auth",), (454,), "parked", "the server cannot check the login now", RFC_4954, "2026-11",
        scope="mailbox"),
    Row("app-password-needed", ("auth",), (534,), "reconnect",
        "the account needs an app password (or OAuth) instead of its own password", GMAIL, "2026-11",
        enhanced=r"5\.7\.9"),
    Row("web-login-needed", ("auth",), (534,), "reconnect",
        "the account's owner must log in by browser once, then connect the mailbox again", GMAIL, "2026-11",
        enhanced=r"5\.7\.14"),
    Row("smtp-auth-disabled", ("auth",), (535,), "reconnect",
        "SMTP login is off for this mailbox or its organisation: an administrator must allow it, or connect by OAuth",
        BASIC_AUTH, "2026-01", enhanced=r"5\.7\.139"),
    Row("permission-missing", ("auth",), (535,), "reconnect",
        "the access granted lacks the permission to send by SMTP: an administrator must grant it", BASIC_AUTH,
        "2026-01", enhanced=r"5\.7\.144"),
    Row("credentials-refused", ("auth",), (535,), "reconnect",
        "the server refuses the user name, password or token", RFC_4954, "2026-11"),
    Row("security-missing", ("auth", "mail"), (530, 538), "disabled",
        "the server wants TLS or a login that this mailbox's settings do not give", RFC_4954, "2026-11"),
    # ── quotas and throttles: never the message's fault ─────────────────────────────────────────────────────────
    Row("daily-limit", CONTENT, (550,), "parked", "the mailbox's daily sending limit is reached", GMAIL, "2026-11",
        enhanced=r"5\.4\.5", text=r"user sending (limit|quota)", scope="mailbox", after=HOUR, teaches=True),
    Row("relay-limit", ENVELOPE, (550,), "parked", "the organisation's daily relay limit is reached", GMAIL, "2026-11",
        enhanced=r"5\.4\.5", text=r"relay", scope="tenant", after=HOUR),
    Row("recipient-quota", ENVELOPE, (550,), "parked", "the mailbox's recipients of 24 hours are used up",
        EXCHANGE_LIMITS, "2026-09", enhanced=r"5\.1\.90", scope="mailbox", after=HOUR, teaches=True),
    Row("recipient-thread-limit", ENVELOPE, (432,), "retry", "the recipient's mailbox takes no more at once", FIELD,
        "2026-11", enhanced=r"4\.3\.2", text=r"recipient thread limit", scope="recipient", after=HALF_MINUTE),
    # Definite also after the dot: Exchange counts connections when it submits.
    Row("too-many-connections", ("connect", "auth", "mail", "dot"), (432,), "parked",
        "too many connections of this mailbox at once", FIELD, "2026-11", enhanced=r"4\.3\.2", scope="mailbox",
        after=HALF_MINUTE),
    Row("access-limited", ANYWHERE, (451,), "parked", "the server limits access for a while", FIELD, "2026-11",
        enhanced=r"4\.7\.[56]\d\d", scope="mailbox", after=QUARTER),
    Row("service-busy", ANYWHERE, (421,), "parked", "the server is busy or going down", GMAIL, "2026-11",
        enhanced=r"4\.3\.0|4\.4\.5|4\.7\.0", scope="connection"),
    Row("server-trouble", ANYWHERE, (451,), "parked", "the server has trouble of its own", GMAIL, "2026-11",
        enhanced=r"4\.3\.0|4\.4\.2", scope="connection"),
    # ── the mailbox itself ──────────────────────────────────────────────────────────────────────────────────────
    Row("send-as-denied", ("dot",), (554,), "disabled", "this mailbox may not send with this From address", FIELD,
        "2026-11", enhanced=r"5\.2\.252"),
    # Only Microsoft ends this, so anything sent meanwhile can only prolong it.
    Row("sender-throttled", ENVELOPE, (550,), "disabled",
        "Exchange throttles the mailbox for repeated errors: mend their cause, then wait until Microsoft lifts it",
        EXCHANGE_THROTTLE, "2026-11", enhanced=r"5\.2\.25[1-5]"),
    Row("sender-blocked", ENVELOPE, (550,), "disabled",
        "the provider blocks this sender: an administrator must look at send-as rights or the outbound spam block",
        FIELD, "2026-11", enhanced=r"5\.7\.60|5\.7\.708|5\.1\.8"),
    # ── Exchange's submission exceptions: their name decides, never 5.2.0 ───────────────────────────────────────
    Row("storedrv-send-as", ("dot",), (554,), "disabled", "this mailbox may not send with this From address", STOREDRV,
        "2026-11", text=r"STOREDRV\.Submission\.Exception:\s*SendAsDenied"),
    Row("storedrv-quota", ("dot",), (554,), "parked", "the mailbox's recipients of 24 hours are used up", STOREDRV,
        "2026-11", text=r"STOREDRV\.Submission\.Exception:\s*SubmissionQuotaExceeded", scope="mailbox", after=HOUR,
        teaches=True),
    Row("storedrv-spam-quota", ("dot",), (554,), "parked", "Exchange's spam guard limits this mailbox", STOREDRV,
        "2026-11", text=r"STOREDRV\.Submission\.Exception:\s*OutboundSpam.*RefuseQuota", scope="mailbox", after=HOUR,
        teaches=True),
    Row("storedrv-spam-block", ("dot",), (554,), "disabled",
        "Exchange's spam guard has suspended this mailbox: an administrator must release it", STOREDRV, "2026-11",
        text=r"STOREDRV\.Submission\.Exception:\s*OutboundSpam.*(Suspend|Hip)"),
    Row("storedrv-spam-throttle", ("dot",), (554,), "parked", "Exchange's spam guard slows this mailbox", STOREDRV,
        "2026-11", text=r"STOREDRV\.Submission\.Exception:\s*OutboundSpam.*Throttle", scope="mailbox", after=QUARTER),
    Row("storedrv-other", ("dot",), (554,), "failed", "Exchange refused the message on submission", STOREDRV, "2026-11",
        text=r"STOREDRV\.Submission\.Exception"),
    # ── recipients ──────────────────────────────────────────────────────────────────────────────────────────────
    # All or nothing: a message is never split, so the limit of one transaction is the message's own.
    Row("too-many-recipients", ("rcpt",), (452,), "failed", "more recipients than the server takes in one message",
        GMAIL, "2026-11", enhanced=r"4\.5\.3"),
    Row("too-many-recipients-permanent", ("rcpt",), (550,), "failed",
        "more recipients than the server takes in one message", GMAIL, "2026-11", enhanced=r"5\.5\.3"),
    Row("recipient-busy", ("rcpt",), (450,), "retry", "the recipient's mailbox takes no mail now", GMAIL, "2026-11",
        enhanced=r"4\.2\.1", scope="recipient"),
    Row("recipient-full", ("rcpt",), (452,), "retry", "the recipient's mailbox is full", GMAIL, "2026-11",
        enhanced=r"4\.2\.2", scope="recipient"),
    Row("recipient-unknown", ("rcpt",), (550,), "failed", "the recipient does not exist", GMAIL, "2026-11",
        enhanced=r"5\.1\.[01]", scope="recipient"),
    Row("recipient-malformed", ("rcpt",), (553,), "failed", "the recipient's address cannot exist", GMAIL, "2026-11",
        enhanced=r"5\.1\.[23]", scope="recipient"),
    Row("recipient-syntax", ("rcpt",), (501,), "failed", "the server cannot read the recipient's address", GMAIL,
        "2026-11", enhanced=r"5\.1\.\d+", scope="recipient"),
    # ── the message ─────────────────────────────────────────────────────────────────────────────────────────────
    Row("too-large", CONTENT, (552,), "failed", "larger than the server takes", GMAIL, "2026-11",
        enhanced=r"5\.2\.3|5\.3\.4"),
    Row("content-blocked", CONTENT, (552,), "failed", "the server refuses this content or attachment", GMAIL, "2026-11",
        enhanced=r"5\.7\.0"),
    Row("parameters-refused", CONTENT, (555,), "failed", "the server refuses the parameters of this message", GMAIL,
        "2026-11", enhanced=r"5\.5\.2"),
    Row("domain-unauthenticated", ENVELOPE, (421, 550), "failed",
        "the sender's domain fails SPF, DKIM or DMARC, or the rules for bulk mail: its DNS must be mended", BULK,
        "2026-11", enhanced=r"5\.7\.(2[6-9]|30|515)"),
    Row("policy-refused", CONTENT, (550,), "failed", "the server's policy refuses this message", GMAIL, "2026-11",
        enhanced=r"5\.7\.[01]"),
    # ── unknown replies, last ───────────────────────────────────────────────────────────────────────────────────
    Row("unknown-goodbye", ANYWHERE, (421,), "parked", "the server closes the connection", RFC_5321, "2026-11",
        scope="connection"),
    Row("unknown-before-login", BEFORE_LOGIN, range(400, 600), "parked", "the server takes no mail now", RFC_5321,
        "2026-11", scope="connection"),
    Row("unknown-login-wait", ("auth",), TEMPORARY, "parked", "the server cannot check the login now", RFC_4954,
        "2026-11", scope="mailbox"),
    Row("unknown-login-refusal", ("auth",), PERMANENT, "reconnect", "the server refuses the login", RFC_4954,
        "2026-11"),
    # MAIL names nothing but the mailbox itself, so every one of its messages would spend attempts on the same answer.
    Row("unknown-sender-wait", ("mail",), TEMPORARY, "parked", "the server does not take this sender now", RFC_5321,
        "2026-11", scope="mailbox"),
    Row("unknown-recipient-wait", ("rcpt",), TEMPORARY, "retry", "the server does not take a recipient now", RFC_5321,
        "2026-11", scope="recipient"),
    Row("unknown-recipient-refusal", ("rcpt",), PERMANENT, "failed", "the server refuses a recipient", RFC_5321,
        "2026-11", scope="recipient"),
    Row("unknown-wait", ("data", "dot"), TEMPORARY, "retry", "the server does not take the message now", RFC_5321,
        "2026-11"),
    Row("unknown-refusal", CONTENT, PERMANENT, "failed", "the server refuses the message", RFC_5321, "2026-11"),
)  # fmt: skip

_ENHANCED = re.compile(r"^\s*([245]\.\d{1,3}\.\d{1,3})(?=\s|$|-)")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reply means for the attempt: the row's id, and an outcome without evidence."""

    id: str
    becomes: Becomes
    scope: Scope
    reason: str
    after: timedelta | None
    teaches: bool = False

    def outcome(self, reason: str, evidence: Evidence) -> Outcome:
        """The same as an outcome that names `reason` and keeps `evidence`."""
        match self.becomes:
            case "retry":
                return Retry(reason, scope=self.scope, after=self.after, evidence=evidence)
            case "parked":
                return Parked(reason, scope=self.scope, after=self.after, evidence=evidence, teaches=self.teaches)
            case "failed":
                return Failed(reason, scope=self.scope, evidence=evidence)
            case status:
                return Held(reason, status=status, evidence=evidence)


def enhanced_code(text: str) -> str:
    """The enhanced status code (RFC 3463) that a reply's text begins with, or ""."""
    found = _ENHANCED.match(text)
    return found[1] if found else ""


def classify(phase: Phase, code: int, enhanced: str, text: str) -> Verdict:
    """What a refusal (4xx, 5xx) in this phase means. `text` is the reply without its code, lines apart by newlines.

    Raises `LookupError` for what is no refusal: a 2xx or 3xx is never classified, it is expected or out of place.
    """
    # Each line repeats the enhanced code, also in the middle of a sentence.
    flat = " ".join(" ".join(_ENHANCED.sub("", line, count=1) for line in text.split("\n")).split())
    for row in ROWS:
        if row.matches(phase, code, enhanced, flat):
            return Verdict(row.id, row.becomes, row.scope, row.reason, row.after, row.teaches)
    raise LookupError(f"{code} is no refusal")
