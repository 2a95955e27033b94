"""What Microsoft Graph answers, as data: one row per kind of answer; the first that matches decides.

An error's body is `{"error": {"code", "message", "innerError": {"code", "request-id", …}}}`; the codes of both levels
count. A whole 4xx to a handover is a refusal, except where Graph itself cannot know (a draft that is gone); a 5xx is no
answer, for mails left after a 504 (field report, 2026-11). What arrives later as a bounce stands in no answer.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from outtray_schema.outcome import Evidence, Outcome
from outtray_worker.providers.redact import Redactor
from outtray_worker.providers.web import Answer
from outtray_worker.providers.web.rows import (
    ANY_STATUS,
    ANYWHERE,
    BEFORE,
    BROKEN,
    COMMIT,
    REFUSED,
    Row,
    Signal,
    Step,
    Table,
)
from outtray_worker.providers.web.signals import Signals

SENDMAIL = "learn.microsoft.com/graph/api/user-sendmail"
SEND = "learn.microsoft.com/graph/api/message-send"
ERRORS = "learn.microsoft.com/graph/errors"
THROTTLING = "learn.microsoft.com/graph/throttling-limits#outlook-service-limits"
SENDING = "learn.microsoft.com, Exchange Online limits, sending limits"
SEND_AS = "learn.microsoft.com/graph/outlook-send-mail-from-other-user"
MIME = "learn.microsoft.com/graph/outlook-send-mime-message"
CAE = "learn.microsoft.com/entra/identity-platform/claims-challenge"
TERRL = "techcommunity, Exchange Online tenant outbound email limits (4372797)"
EWS_CODES = "learn.microsoft.com, EWS response codes (Graph passes them on)"
FIELD = "field reports (issue threads)"
FIELD_504 = "learn.microsoft.com/answers/questions/2286986 (four copies after four 504)"
FIELD_202 = "github.com/microsoftgraph/msgraph-sdk-java/issues/1487"

QUARTER, HOUR = timedelta(minutes=15), timedelta(hours=1)
LONGEST_HINT = timedelta(hours=24)
MAYBE = range(400, 600)
THROTTLES = r"ApplicationThrottled|TooManyRequests|activityLimitReached|ErrorTooManyRequests"
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.]{1,60}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
APP_ONLY = "app-only"
CLAIMS = "claims challenge"

ROWS: tuple[Row, ...] = (
    # ── taken ───────────────────────────────────────────────────────────────────────────────────────────────────
    # 202 means that the draft was stored; transport runs later. With Retry-After it is still a success.
    Row("accepted-slow-down", COMMIT, (202,), "sent", "Graph took it, and asks to slow down", FIELD_202, "2026-11",
        hinted=True),
    Row("accepted", COMMIT, (202,), "sent", "Graph took it", SENDMAIL, "2026-11"),
    # ── quotas: definite, and the mailbox's matter ──────────────────────────────────────────────────────────────
    Row("tenant-external-quota", ANYWHERE, MAYBE, "parked",
        "the organisation has used up its external recipients of 24 hours (TERRL)", TERRL, "2026-11",
        text=r"5\.7\.233|TenantExternalRecipientRate|\bTERRL\b", scope="tenant", after=HOUR),
    Row("trial-domain-quota", ANYWHERE, MAYBE, "parked",
        "the organisation sends from its onmicrosoft.com domain, which has 100 external recipients a day", TERRL,
        "2026-11", text=r"5\.7\.236", scope="tenant", after=HOUR),
    Row("sending-quota", ANYWHERE, (*REFUSED, 554), "parked",
        "the mailbox has used up what Microsoft lets it send; it is asked again hourly", SENDING, "2026-11",
        codes=r"ErrorExceededMessageLimit|ErrorSubmissionQuotaExceeded|ErrorExceededHourlyMessageLimit",
        scope="mailbox", after=HOUR, teaches=True),
    Row("verdict-quota", ANYWHERE, (*REFUSED, 554), "parked",
        "Microsoft's outbound filter refuses more mail for now; the owner may have to verify the account", FIELD,
        "2026-11", text=r"\bRefuseQuota\b", scope="mailbox", after=HOUR, teaches=True),
    Row("verdict-blocked", ANYWHERE, (*REFUSED, 554), "disabled",
        "Microsoft's outbound filter has blocked the account: its owner must log in to Outlook and verify it", FIELD,
        "2026-11", text=r"verdict\W.*\b(HipSend|HipNotify|Suspend)|\b(HipSend|HipNotify)"),
    Row("verdict-throttle", ANYWHERE, REFUSED, "parked", "Microsoft's outbound filter slows the account down", FIELD,
        "2026-11", text=r"WASCL.*\bThrottle", scope="mailbox", after=QUARTER),
    Row("account-blocked", ANYWHERE, REFUSED, "disabled",
        "Microsoft has blocked the account from sending: its owner must log in to Outlook and verify it", EWS_CODES,
        "2026-11", codes=r"ErrorMessageSubmissionBlocked|ErrorAccountSuspend(ed)?"),
    # ── throttling: definite, even as a 503 ─────────────────────────────────────────────────────────────────────
    Row("mailbox-concurrency", ANYWHERE, (429,), "parked", "Graph asks for fewer requests at once for this mailbox",
        THROTTLING, "2026-11", codes=r"ApplicationThrottled|MailboxConcurrency.*", scope="mailbox"),
    Row("throttled", ANYWHERE, (429,), "parked", "Graph asks to slow down", THROTTLING, "2026-11",
        codes=r"TooManyRequests|activityLimitReached|ErrorTooManyRequests", scope="mailbox"),
    Row("throttled-503", ANYWHERE, (503,), "parked", "Graph asks to slow down", THROTTLING, "2026-11",
        codes=THROTTLES, hinted=True, scope="mailbox"),
    # ── the mailbox and its consent ─────────────────────────────────────────────────────────────────────────────
    Row("no-mailbox", ANYWHERE, (401, 403, 404), "disabled",
        "there is no mailbox behind this account that Graph can reach: unlicensed, on premises, or none", ERRORS,
        "2026-11", codes=r"MailboxNotEnabledForRESTAPI|MailboxNotSupportedForRESTAPI|ErrorMailboxNotFound"
        r"|ErrorNonExistentMailbox|Request_ResourceNotFound|ErrorInvalidUser"),
    Row("claims-challenge", ANYWHERE, (401,), "reconnect",
        "Microsoft asks the owner to log in again, even with a renewed token", CAE, "2026-11", codes=CLAIMS),
    Row("token-refused", ANYWHERE, (401,), "reconnect", "Microsoft refuses the access, even with a renewed token",
        ERRORS, "2026-11"),
    Row("send-as-denied", ANYWHERE, (403,), "disabled",
        "the mailbox may not send from this From address: an administrator must grant Send As", SEND_AS, "2026-11",
        codes=r"ErrorSendAsDenied|ErrorSendOnBehalfOfDenied"),
    Row("access-denied-app", ANYWHERE, (403,), "disabled",
        "the application may not use this mailbox: an administrator's application access policy forbids it", ERRORS,
        "2026-11", codes=r"ErrorAccessDenied|Authorization_RequestDenied|AccessDenied", about=rf".*\b{APP_ONLY}"),
    Row("access-denied", ANYWHERE, (403,), "reconnect",
        "a permission is missing: the owner (or an administrator) must grant it by connecting again", ERRORS,
        "2026-11", codes=r"ErrorAccessDenied|Authorization_RequestDenied|AccessDenied"),
    # Not a sending quota: the mailbox's storage.
    Row("mailbox-full", ANYWHERE, MAYBE, "disabled", "the mailbox is full: its owner must make room in it", EWS_CODES,
        "2026-11", codes=r"ErrorQuotaExceeded"),
    # ── the message itself ──────────────────────────────────────────────────────────────────────────────────────
    Row("too-many-recipients", ANYWHERE, REFUSED, "failed",
        "more recipients than the mailbox may have in one message: send several", SENDING, "2026-11",
        codes=r"ErrorExceededMaxRecipientLimit"),
    Row("too-large", ANYWHERE, REFUSED, "failed", "larger than the mailbox may send", ERRORS, "2026-11",
        codes=r"ErrorMessageSizeExceeded|ErrorAttachmentSizeLimitExceeded"),
    Row("request-too-large", ANYWHERE, (413,), "failed", "larger than Graph takes", ERRORS, "2026-11"),
    Row("invalid-recipients", ANYWHERE, REFUSED, "failed", "Graph refuses a recipient's address", ERRORS, "2026-11",
        codes=r"ErrorInvalidRecipients"),
    Row("invalid-mime", ANYWHERE, REFUSED, "failed", "Graph cannot read the message as MIME", MIME, "2026-11",
        codes=r"ErrorMimeContentInvalid.*"),
    Row("invalid-header", ANYWHERE, REFUSED, "failed", "Graph refuses a header of the message", ERRORS, "2026-11",
        codes=r"InvalidInternetMessageHeader.*"),
    Row("invalid-request", ANYWHERE, REFUSED, "failed", "Graph refuses the message", ERRORS, "2026-11",
        codes=r"ErrorInvalidRequest|RequestBodyRead|invalidRequest"),
    # ── the handover of a draft: what was sent before looks like this as well ───────────────────────────────────
    Row("draft-gone", COMMIT, (404,), "unknown", "the draft is gone: sent already, or deleted by somebody", SEND,
        "2026-11", about=r"send\b.*"),
    Row("not-a-draft", COMMIT, (400,), "unknown", "it is no draft any more: probably sent already", SEND, "2026-11",
        text=r"\bdraft", about=r"send\b.*"),
    # ── before the handover ─────────────────────────────────────────────────────────────────────────────────────
    Row("original-gone", BEFORE, (404,), "failed", "the message that it answers is not in the mailbox any more", ERRORS,
        "2026-11", about=r"create(Reply|ReplyAll|Forward)\b.*"),
    Row("draft-vanished", BEFORE, (404,), "retry", "the draft was deleted while it was prepared", ERRORS, "2026-11",
        codes=r"ErrorItemNotFound"),
    Row("busy", BEFORE, MAYBE, "parked", "the mailbox is busy", ERRORS, "2026-11",
        codes=r"ErrorMailboxStoreUnavailable|ErrorServerBusy", scope="mailbox"),
    Row("transient", BEFORE, MAYBE, "retry", "Graph could not do it now", ERRORS, "2026-11",
        codes=r"ErrorMessageTransientError"),
    # It may be the message itself that breaks it, so it spends an attempt: else one such message parks its mailbox.
    Row("server-error-before", BEFORE, BROKEN, "retry", "Graph has an error of its own", ERRORS, "2026-11"),
    # ── a handover that Graph did not answer for: mails have left after each of these ───────────────────────────
    Row("busy-at-handover", COMMIT, MAYBE, "unknown", "the mailbox was busy when Graph was to send", FIELD_504,
        "2026-11", codes=r"ErrorMailboxStoreUnavailable|ErrorServerBusy|ErrorMessageTransientError"),
    Row("unknown-error", COMMIT, MAYBE, "unknown", "Graph does not know what became of it", FIELD_504, "2026-11",
        codes=r"UnknownError"),
    Row("server-error", COMMIT, BROKEN, "unknown", "Graph has an error of its own, and may have sent it", FIELD_504,
        "2026-11"),
    # ── what no row knows ───────────────────────────────────────────────────────────────────────────────────────
    Row("unknown-throttle", ANYWHERE, (429,), "parked", "Graph asks to slow down", ERRORS, "2026-11",
        scope="mailbox"),
    Row("unknown-bad-request", ANYWHERE, (400,), "failed", "Graph refuses the message", ERRORS, "2026-11"),
    Row("unknown-denial", ANYWHERE, (403,), "parked", "Graph forbids it", ERRORS, "2026-11", scope="mailbox"),
    Row("unknown-refusal", ANYWHERE, REFUSED, "retry", "Graph refuses it", ERRORS, "2026-11"),
    Row("unknown-answer", COMMIT, ANY_STATUS, "unknown", "Graph gave an answer that fits nowhere", ERRORS, "2026-11"),
    Row("unknown-answer-before", BEFORE, ANY_STATUS, "retry", "Graph gave an answer that fits nowhere", ERRORS,
        "2026-11"),
)  # fmt: skip

TABLE = Table("microsoft", ROWS)


def signal_of(answer: Answer, step: Step, about: str) -> Signal:
    """An answer as the rows see it. `about`: `send`, `sendMail`, `create`, `createReply`, …, perhaps ` app-only`."""
    codes, message = said_in(answer)
    if claims_of(answer) is not None:
        codes = (*codes, CLAIMS)
    return Signal(step, answer.status, codes, " ".join((*codes, message)), retry_after(answer) is not None, about)


def said_in(answer: Answer) -> tuple[tuple[str, ...], str]:
    """The error's codes, the outer one first, and its message."""
    error = (answer.json() or {}).get("error")
    if not isinstance(error, Mapping):
        return (), ""
    inner = error.get("innerError", error.get("innererror"))
    nested = inner.get("code") if isinstance(inner, Mapping) else None
    codes = tuple(str(code) for code in (error.get("code"), nested) if code)
    return codes, str(error.get("message", ""))


def retry_after(answer: Answer) -> timedelta | None:
    """What Retry-After asks for, in seconds as Graph writes it; between 1 s and 24 h."""
    text = answer.headers.get("retry-after", "").strip()
    if not (text.isascii() and text.isdigit()):
        return None
    return min(max(timedelta(seconds=min(int(text), 10**6)), timedelta(seconds=1)), LONGEST_HINT)


def claims_of(answer: Answer) -> str | None:
    """The claims that a 401 asks for (continuous access evaluation), as JSON: WWW-Authenticate has them in base64."""
    _, found, rest = answer.headers.get("www-authenticate", "").partition('claims="')
    packed = rest.partition('"')[0] if found else ""
    if not packed:
        return None
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4)).decode()
    except ValueError:
        return packed


def evidence_of(answer: Answer, row: Row, step: Step, client_request_id: str, redact: Redactor) -> Evidence:
    """What is kept of an answer: ids by which Microsoft finds the request, codes, and its text where no row knows it.

    Redaction takes out what it knows; a text may quote more of a mail, so one that tells nothing new is not kept.
    """
    codes, message = said_in(answer)
    message = message if row.unknown_signal else ""
    return {
        "rule": row.id,
        "step": step,
        "status": answer.status,
        "client_request_id": client_request_id,
        **{name: value for name, value in (
            ("request_id", _request_id(answer)),
            ("code", redact(" ".join(code for code in codes if _CODE.fullmatch(code)))),
            ("said", redact(message)),
        ) if value},
    }  # fmt: skip


def _request_id(answer: Answer) -> str:
    """As Microsoft writes it, a UUID: nothing else of a header is kept as it came."""
    found = answer.headers.get("request-id", "")
    return found if _UUID.fullmatch(found) else ""


def refusal(
    answer: Answer, step: Step, about: str, client_request_id: str, redact: Redactor, signals: Signals
) -> Outcome:
    """What an answer means that is no success. The longer of the row's wait and Graph's own is asked for."""
    row = TABLE.classify(signal_of(answer, step, about))
    evidence = evidence_of(answer, row, step, client_request_id, redact)
    if row.unknown_signal:
        said = " ".join(str(evidence[name]) for name in ("code", "said") if name in evidence)
        signals.note(TABLE.provider, f"{about} {answer.status} {said}".strip())
    if row.becomes == "sent":
        return replace(row, becomes="unknown").outcome(row.reason, evidence)
    waits = [wait for wait in (row.after, retry_after(answer)) if wait is not None]
    words = f"{row.reason} ({answer.status}{f' {code}' if (code := evidence.get('code')) else ''})"
    return row.outcome(words, evidence, max(waits, default=None))
