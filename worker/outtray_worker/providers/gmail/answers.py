"""What Gmail's answers mean, as data, and how an answer is read: codes, text, and the time that it names in words.

The same reason code (`rateLimitExceeded`) stands for limits of the user, of the project and of sending, so the text
decides among them. Order matters: the first row that matches is the answer's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from outtray_worker.providers.gmail.api import reason_of
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
)  # fmt: skip

ERRORS = "developers.google.com/workspace/gmail/api/guides/handle-errors"
DISCOVERY = "discovery document of gmail v1, revision 20261005"
DRAFTS = "developers.google.com/workspace/gmail/api/guides/drafts"
UPLOADS = "developers.google.com/workspace/gmail/api/guides/uploads"
FIELD = "field reports (issue threads)"
RFC_9110 = "RFC 9110 section 15"

MINUTE, QUARTER, HOUR = timedelta(minutes=1), timedelta(minutes=15), timedelta(hours=1)
OK = range(200, 300)
PREPARE: tuple[Step, ...] = ("prepare",)
READ: tuple[Step, ...] = ("read",)

TABLE = Table("gmail", (
    # ── taken ───────────────────────────────────────────────────────────────────────────────────────────────────
    Row("accepted", COMMIT, OK, "sent", "Gmail took the message", ERRORS, "2026-04", codes="id"),
    Row("accepted-unreadable", COMMIT, OK, "unknown", "Gmail answered 200, but without the message's id", ERRORS,
        "2026-04"),
    Row("created-unreadable", PREPARE, OK, "retry", "Gmail answered without what was asked for", ERRORS, "2026-04"),
    Row("read-unreadable", READ, OK, "parked", "Gmail answered without what was asked for", ERRORS, "2026-04",
        scope="connection"),
    # ── quotas and rates: never the message's fault ─────────────────────────────────────────────────────────────
    # 15 minutes at least, then 30, 60 and 120, up to 6 hours: shorter waits only burn requests (field reports).
    Row("mail-quota", ANYWHERE, (429,), "parked", "the mailbox's sending limit is reached", ERRORS, "2026-04",
        text=r"user-rate limit exceeded.*\(mail sending\)", scope="mailbox", after=QUARTER, teaches=True),
    Row("user-rate-until", ANYWHERE, (403, 429), "parked", "Gmail limits this mailbox for a while", FIELD, "2026-11",
        text=r"user-rate limit exceeded", scope="mailbox", after=MINUTE),
    Row("too-many-at-once", ANYWHERE, (403, 429), "parked", "too many requests of this mailbox at once", ERRORS,
        "2026-04", text=r"too many concurrent requests", scope="mailbox"),
    Row("user-rate", ANYWHERE, (403, 429), "parked", "too many requests of this mailbox in a minute", ERRORS, "2026-04",
        codes="userRateLimitExceeded", scope="mailbox", after=MINUTE),
    Row("user-rate-quota", ANYWHERE, (403, 429), "parked", "too many requests of this mailbox in a minute", ERRORS,
        "2026-04", text=r"quota exceeded for .*per minute per user", scope="mailbox", after=MINUTE),
    Row("project-rate", ANYWHERE, (403, 429), "parked", "too many requests of this OAuth client's project in a minute",
        ERRORS, "2026-04", text=r"per minute(?! per user)", scope="app", after=MINUTE),
    Row("exhausted", ANYWHERE, (429,), "parked", "Gmail says that a quota is used up, not which", FIELD, "2026-11",
        text=r"resource has been exhausted", scope="mailbox", after=MINUTE),
    Row("project-day", ANYWHERE, (403, 429), "parked",
        "the day's limit of this OAuth client's project is reached: its owner set or pays it in the Google console",
        ERRORS, "2026-04", codes="dailyLimitExceeded|quotaExceeded", scope="app", after=HOUR),
    # ── the OAuth client, the organisation, the account ─────────────────────────────────────────────────────────
    Row("api-disabled", ANYWHERE, (403,), "parked",
        "the Gmail API is off in this OAuth client's project: its owner must enable it in the Google console", ERRORS,
        "2026-04", codes="accessNotConfigured|SERVICE_DISABLED", scope="app", after=QUARTER),
    Row("token-refused", ANYWHERE, (401,), "reconnect", "Gmail refuses the access token, and a new one too", ERRORS,
        "2026-04"),
    Row("scope-missing", ANYWHERE, (403,), "reconnect", "a permission was not granted, or has been withdrawn", ERRORS,
        "2026-04", codes="insufficientPermissions|ACCESS_TOKEN_SCOPE_INSUFFICIENT|insufficient_scope"),
    Row("domain-policy", ANYWHERE, (403,), "disabled",
        "the organisation's policy forbids this app: an administrator must allow it", ERRORS, "2026-04",
        codes="domainPolicy"),
    Row("delegation-denied", ANYWHERE, (403,), "disabled",
        "the token may not act for this mailbox: check the service account's subject", FIELD, "2026-11",
        text=r"delegation denied"),
    Row("no-mailbox", ANYWHERE, (400,), "disabled",
        "this Google account has no Gmail mailbox, or it is suspended", FIELD, "2026-11",
        codes="failedPrecondition|FAILED_PRECONDITION", text=r"mail service not enabled"),
    Row("precondition", ANYWHERE, (400,), "parked",
        "Gmail's precondition failed, as for a service account without a subject", FIELD, "2026-11",
        codes="failedPrecondition|FAILED_PRECONDITION", text=r"precondition check failed", scope="mailbox"),
    # ── uploads ─────────────────────────────────────────────────────────────────────────────────────────────────
    Row("upload-gone", ANYWHERE, (404, 410), "retry", "the upload's session is gone; it is begun anew", UPLOADS,
        "2026-11", about="upload.*"),
    Row("upload-incomplete", ANYWHERE, (308,), "retry", "Gmail did not get the whole upload; it is begun anew", UPLOADS,
        "2026-11", about="upload.*"),
    # ── the message ─────────────────────────────────────────────────────────────────────────────────────────────
    Row("invalid-field", ("prepare", "commit"), (400,), "failed", "Gmail refuses a part of the message", FIELD,
        "2026-11", text=r"invalid \S+|recipient address required"),
    Row("too-large", ("prepare", "commit"), (413,), "failed", "larger than Gmail takes", ERRORS, "2026-04"),
    Row("too-large-said", ("prepare", "commit"), (400,), "failed", "larger than Gmail takes", FIELD, "2026-11",
        text=r"too large|size (limit|exceed)|exceeds.*(size|limit)|request entity|payload size"),
    Row("bad-request", ANYWHERE, (400,), "failed", "Gmail refuses the message", ERRORS, "2026-04"),
    Row("thread-gone", ("prepare", "commit"), (404,), "failed",
        "the conversation that this message answers is not in the mailbox any more", ERRORS, "2026-04",
        about=".* in a thread"),
    # A draft is consumed by its sending: gone means sent, or deleted by its person. Neither is a refusal.
    Row("draft-gone", COMMIT, (404,), "unknown", "the draft is gone: sent already, or deleted by its person", DRAFTS,
        "2026-11", about=r"drafts\.send"),
    Row("not-found", READ, (404,), "failed", "it is not in the mailbox", ERRORS, "2026-04"),
    # ── Gmail's own trouble ─────────────────────────────────────────────────────────────────────────────────────
    # Google's advice is to try again; for a sending that is how mails are doubled.
    Row("server-error", COMMIT, (500, 502, 503, 504), "unknown", "Gmail failed after it had the request", ERRORS,
        "2026-04"),
    Row("server-error-early", BEFORE, (500, 502, 503, 504), "parked", "Gmail has trouble of its own", ERRORS, "2026-04",
        scope="connection"),
    # ── unknown answers, last ───────────────────────────────────────────────────────────────────────────────────
    Row("unknown-throttle", ANYWHERE, (429,), "parked", "Gmail asks to wait", RFC_9110, "2026-11", scope="mailbox",
        after=MINUTE),
    Row("unknown-forbidden", ANYWHERE, (403,), "parked", "Gmail forbids it, for a reason that we do not know", RFC_9110,
        "2026-11", scope="mailbox", after=QUARTER),
    Row("unknown-refusal", ANYWHERE, REFUSED, "retry", "Gmail refuses it, for a reason that we do not know", RFC_9110,
        "2026-11"),
    Row("unknown-broken", COMMIT, BROKEN, "unknown", "Gmail failed after it had the request", RFC_9110, "2026-11"),
    Row("unknown-broken-early", BEFORE, BROKEN, "parked", "Gmail has trouble of its own", RFC_9110, "2026-11",
        scope="connection"),
    Row("unknown-answer", COMMIT, ANY_STATUS, "unknown", "Gmail gave an answer that says nothing of the message",
        RFC_9110, "2026-11"),
    Row("unknown-answer-early", BEFORE, ANY_STATUS, "retry", "Gmail gave an answer that fits nowhere", RFC_9110,
        "2026-11"),
))  # fmt: skip

LONGER_EACH_TIME = frozenset({"mail-quota"})
"""Rows whose wait doubles with each answer in a row, up to `LONGEST_GUESS`."""
LONGEST_GUESS = timedelta(hours=6)
AS_NAMED = frozenset({"user-rate-until"})
"""Rows whose named time holds as it stands; the row's own wait is for an answer that names none."""
AGAIN: dict[str, tuple[int, str]] = {"exhausted": (3, "mail-quota"), "precondition": (3, "no-mailbox")}
"""So many of the one in a row are the other."""
BY_ID = {row.id: row for row in TABLE.rows}

_UNTIL = re.compile(r"retry after\s+(\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d))", re.IGNORECASE)
_HEADER = re.compile(r"(?i:invalid) ([A-Z][A-Za-z-]{1,40})(?: header|\b)")
_PACIFIC = "America/Los_Angeles"
SHORTEST, LONGEST = timedelta(seconds=1), timedelta(hours=24)


def signal_of(answer: Answer, step: Step, about: str) -> Signal:
    """An answer as the rows see it. Its text is as the provider wrote it: not to be shown."""
    said = answer.json() or {}
    if 200 <= answer.status < 300:
        return Signal(step, answer.status, ("id",) if _named(said) else (), about=about)
    codes = tuple(dict.fromkeys(_codes(said.get("error"))))
    return Signal(step, answer.status, codes, reason_of(answer), "retry-after" in answer.headers, about)


def _named(said: dict[str, Any]) -> bool:
    return isinstance(said.get("id"), str) and bool(said["id"])


def _codes(error: Any) -> Iterator[str]:
    """Reasons first, then the status, then those of `details`."""
    if isinstance(error, str):
        yield error  # the OAuth layer's own shape
    if not isinstance(error, dict):
        return
    for group in ("errors", "details"):
        for each in error[group] if isinstance(error.get(group), list) else ():
            if isinstance(each, dict) and isinstance(each.get("reason"), str):
                yield each["reason"]
    if isinstance(error.get("status"), str):
        yield error["status"]


def wish_of(answer: Answer, text: str, row: Row) -> timedelta | None:
    """How long Gmail wants us to wait: named in the *text*, no header is documented (2026-04). 1 s to 24 h; else None.

    Counted from the answer's own Date, so that our clock need not be right. A time in the past is no wish.
    """
    now = _date_of(answer)
    if row.id == "project-day":
        return _to_pacific_midnight(now)
    found = _UNTIL.search(text)
    if found:
        return _clamped(_moment(found[1]), now)
    seconds = answer.headers.get("retry-after", "")
    return min(max(timedelta(seconds=int(seconds[:9])), SHORTEST), LONGEST) if seconds.isdecimal() else None


def _clamped(until: datetime | None, now: datetime) -> timedelta | None:
    if until is None or until <= now:
        return None
    return min(max(until - now, SHORTEST), LONGEST)


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _date_of(answer: Answer) -> datetime:
    try:
        return parsedate_to_datetime(answer.headers.get("date", ""))
    except ValueError:
        return datetime.now(UTC)


def _to_pacific_midnight(now: datetime) -> timedelta | None:
    # Second-hand: the console's day is said to be Pacific time (field reports, 2026-11). None: no time zones here.
    try:
        here = now.astimezone(ZoneInfo(_PACIFIC))
    except ZoneInfoNotFoundError:
        return None
    midnight = datetime.combine(here.date() + timedelta(days=1), time(), here.tzinfo)
    return midnight - here


def header_in(text: str) -> str | None:
    """The header that Gmail names as invalid."""
    found = _HEADER.search(text)
    return found[1] if found else None
