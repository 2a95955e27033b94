"""What a token endpoint answers, as data: one row per kind of answer; the first that matches decides.

Rows act on OAuth's `error` alone. Entra's AADSTS numbers and Google's descriptions are no API (Entra says so itself:
reference-error-codes), so they only choose the words in which a person is told, never what is done.

    reconnect  the mailbox's owner has to consent again; its queue is kept
    app        the OAuth client itself is refused: the operator has to mend it, and nobody is asked to reconnect
    tenant     the organisation has not let this client in; its administrator has to
    bug        our request is wrong: the operator is told, the mailbox waits
    wait       nobody's fault; the present access token is used until it expires
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from outtray_schema.consent import Issuer
from outtray_schema.outcome import Evidence
from outtray_worker.auth.wire import Answered, NoAnswer, said_by

Becomes = Literal["reconnect", "app", "tenant", "bug", "wait"]
Bearer = Literal["person", "app"]
"""Whose token it is: a person's by their consent, or the app's own (service account, client credentials)."""

GOOGLE_EXPIRY = "developers.google.com/identity/protocols/oauth2#expiration"
GOOGLE_OAUTH = "developers.google.com/identity/protocols/oauth2/web-server"
GOOGLE_SERVICE = "developers.google.com/identity/protocols/oauth2/service-account#error-codes"
ENTRA = "learn.microsoft.com/entra/identity-platform/reference-error-codes"
RFC_6749 = "RFC 6749 5.2"
RFC_9110 = "RFC 9110 15"

ANY: tuple[int, ...] | range = range(200, 600)
BOTH: tuple[Issuer, ...] = ("google", "microsoft")
G: tuple[Issuer, ...] = ("google",)
M: tuple[Issuer, ...] = ("microsoft",)
PERSON: tuple[Bearer, ...] = ("person",)
APP: tuple[Bearer, ...] = ("app",)
ALL: tuple[Bearer, ...] = ("person", "app")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of answer. `errors` is empty where any fits; `hint` must match anywhere in the numbers and the text."""

    id: str
    issuers: tuple[Issuer, ...]
    bearers: tuple[Bearer, ...]
    errors: tuple[str, ...]
    becomes: Becomes
    reason: str
    source: str
    as_of: str
    hint: str = ""
    statuses: tuple[int, ...] | range = ANY
    after: timedelta | None = None

    def matches(self, issuer: Issuer, bearer: Bearer, said: Said) -> bool:
        return (
            issuer in self.issuers
            and bearer in self.bearers
            and said.status in self.statuses
            and (not self.errors or said.error in self.errors)
            and (not self.hint or re.search(self.hint, said.hints, re.IGNORECASE) is not None)
        )


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, taken apart. `hints` may quote anything, and is never shown."""

    status: int
    error: str
    hints: str
    evidence: Evidence
    wait: timedelta | None


INTERACTION = ("interaction_required", "consent_required", "login_required")

ROWS: tuple[Row, ...] = (
    # ── a person has to consent again ───────────────────────────────────────────────────────────────────────────
    Row("session-policy", G, PERSON, ("invalid_grant",), "reconnect",
        "the organisation's session policy asks its people to log in again", GOOGLE_EXPIRY, "2026-11",
        hint=r"invalid_rapt|rapt_required"),
    Row("policy-enforced", G, PERSON, ("admin_policy_enforced", "org_internal"), "reconnect",
        "the organisation's administrator does not allow this app: they must allow it, then connect again",
        GOOGLE_OAUTH, "2026-11"),
    Row("consent-ended", G, PERSON, ("invalid_grant",), "reconnect",
        "the consent has ended: it was withdrawn, the password was changed, or it was not used for six months",
        GOOGLE_EXPIRY, "2026-11"),
    Row("consent-expired", M, PERSON, ("invalid_grant",), "reconnect",
        "the consent has expired, or was not used for too long", ENTRA, "2026-11", hint=r"\b(700082|70008|700084)\b"),
    Row("consent-revoked", M, PERSON, ("invalid_grant",), "reconnect",
        "the consent was revoked, or the password was changed", ENTRA, "2026-11", hint=r"\b50173\b"),
    Row("account-disabled", M, PERSON, ("invalid_grant",), "reconnect",
        "the account is disabled: its administrator must enable it, then connect again", ENTRA, "2026-11",
        hint=r"\b50057\b"),
    Row("account-gone", M, PERSON, ("invalid_grant",), "reconnect",
        "the account does not exist any more in its organisation", ENTRA, "2026-11", hint=r"\b50034\b"),
    Row("consent-missing", M, PERSON, ("invalid_grant", "consent_required"), "reconnect",
        "the consent for some of the permissions is missing or was withdrawn", ENTRA, "2026-11", hint=r"\b65001\b"),
    Row("second-factor", M, PERSON, ("invalid_grant", *INTERACTION), "reconnect",
        "the organisation asks for a second factor: log in once, by connecting again", ENTRA, "2026-11",
        hint=r"\b(50076|50079)\b"),
    Row("conditional-access", M, PERSON, ("invalid_grant", *INTERACTION), "reconnect",
        "a rule of conditional access blocks this app: the administrator must look at it, then connect again", ENTRA,
        "2026-11", hint=r"\b(53003|530003)\b"),
    Row("consent-refused", M, PERSON, ("invalid_grant",), "reconnect", "the consent is no longer accepted", ENTRA,
        "2026-11"),
    Row("interaction-required", M, PERSON, INTERACTION, "reconnect",
        "the provider wants the person to log in or consent again", ENTRA, "2026-11"),
    # ── the OAuth client: never the people's matter ─────────────────────────────────────────────────────────────
    Row("app-secret-expired", M, ALL, ("invalid_client",), "app", "its secret has expired", ENTRA, "2026-11",
        hint=r"\b7000222\b"),
    Row("app-secret-wrong", M, ALL, ("invalid_client",), "app", "its secret is wrong", ENTRA, "2026-11",
        hint=r"\b7000215\b"),
    Row("app-refused", M, ALL, ("invalid_client",), "app", "Microsoft refuses its secret or certificate", ENTRA,
        "2026-11"),
    Row("client-refused", G, ALL, ("invalid_client",), "app", "Google refuses its client id or secret", RFC_6749,
        "2026-11"),
    Row("client-gone", G, ALL, ("deleted_client", "disabled_client"), "app",
        "it was deleted or disabled in the Google console", GOOGLE_OAUTH, "2026-11"),
    Row("client-unauthorized", G, PERSON, ("unauthorized_client",), "app",
        "Google does not let it use this kind of login", GOOGLE_OAUTH, "2026-11"),
    Row("account-key-refused", G, APP, ("invalid_grant",), "app",
        "Google refuses its service account key: it was deleted, or this machine's clock is wrong", GOOGLE_SERVICE,
        "2026-11", hint=r"signature|short-lived|account not found"),
    # ── the organisation has to let the client in ───────────────────────────────────────────────────────────────
    Row("not-delegated", G, APP, ("unauthorized_client", "access_denied", "admin_policy_enforced"), "tenant",
        "the organisation has not delegated these scopes to the service account: its administrator must",
        GOOGLE_SERVICE, "2026-11", after=HOUR),
    Row("not-installed", M, ALL, ("unauthorized_client",), "tenant",
        "the OAuth client is not installed in this organisation: its administrator must allow it", ENTRA, "2026-11",
        after=HOUR),
    Row("resource-missing", M, ALL, ("invalid_resource",), "tenant",
        "the organisation does not have the service that is asked for", ENTRA, "2026-11", after=HOUR),
    Row("app-grant-refused", M, APP, ("invalid_grant", *INTERACTION), "tenant",
        "the organisation's policy refuses the OAuth client a token of its own", ENTRA, "2026-11", after=HOUR),
    # ── one mailbox of a service account ────────────────────────────────────────────────────────────────────────
    Row("subject-unknown", G, APP, ("invalid_grant",), "reconnect",
        "the organisation has no such person any more", GOOGLE_SERVICE, "2026-11"),
    # ── our own fault ───────────────────────────────────────────────────────────────────────────────────────────
    Row("scope-refused", BOTH, ALL, ("invalid_scope",), "bug", "the provider knows no such scope", RFC_6749, "2026-11",
        after=HOUR),
    Row("tenant-unknown", M, ALL, ("invalid_tenant",), "app", "there is no organisation of that name: set its tenant",
        ENTRA, "2026-11"),
    Row("request-refused", BOTH, ALL, ("invalid_request", "unsupported_grant_type"), "bug",
        "the provider cannot read the request for a token", RFC_6749, "2026-11", after=HOUR),
    # ── nobody's fault ──────────────────────────────────────────────────────────────────────────────────────────
    Row("too-many", BOTH, ALL, (), "wait", "the provider asks for fewer token requests", RFC_9110, "2026-11",
        statuses=(429,)),
    Row("unavailable", BOTH, ALL, ("temporarily_unavailable", "server_error", "internal_failure"), "wait",
        "the provider's login has trouble of its own", RFC_6749, "2026-11"),
    Row("server-trouble", BOTH, ALL, (), "wait", "the provider's login has trouble of its own", RFC_9110, "2026-11",
        statuses=range(500, 600)),
    # ── unknown, last ───────────────────────────────────────────────────────────────────────────────────────────
    # A portal's page, half an answer, an error that nobody has met: waiting harms nobody, a needless consent does.
    Row("unknown-refusal", BOTH, ALL, (), "wait", "the provider gave no token, with an answer that is not known",
        RFC_6749, "2026-11", statuses=range(400, 500)),
    Row("unknown-answer", BOTH, ALL, (), "wait", "the provider's login gave no proper answer", RFC_6749, "2026-11"),
)  # fmt: skip

NO_ANSWER = {
    "timeout": "the provider's login gave no answer in time",
    "dns": "the name of the provider's login is not found; check the DNS",
    "tls": "no TLS that can be trusted with the provider's login",
    "garbled": "the provider's login gave no proper answer",
    "closed": "the provider's login closed the connection, or cannot be reached",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means: the row's id, what becomes of the mailbox, plain words, and redacted evidence."""

    id: str
    becomes: Becomes
    reason: str
    after: timedelta | None
    evidence: Evidence

    @property
    def unknown(self) -> bool:
        """No row knew this answer: it is to be counted and kept for the operator."""
        return self.id.startswith("unknown-")


def classify(issuer: Issuer, bearer: Bearer, trouble: Answered | NoAnswer) -> Verdict:
    """What it means that no token came."""
    if isinstance(trouble, NoAnswer):
        what = str(trouble)
        return Verdict(f"no-answer-{what}", "wait", NO_ANSWER[what], None, {"rule": f"no-answer-{what}"})
    said = read(trouble)
    row = next(row for row in ROWS if row.matches(issuer, bearer, said))
    # A wait that the provider names is believed only where waiting is all there is to do.
    after = said.wait if row.becomes == "wait" else row.after
    return Verdict(row.id, row.becomes, row.reason, after, {"rule": row.id, **said.evidence})


def read(answer: Answered) -> Said:
    """Take an answer apart. Only what cannot hold a secret becomes evidence: a status, codes, and ids for support."""
    said = said_by(answer.body)
    error = _word(said.get("error"))
    numbers = " ".join(str(number) for number in _list(said.get("error_codes")) if isinstance(number, int))
    text = " ".join(str(said.get(name) or "") for name in ("suberror", "error_subtype", "error_description"))
    evidence: dict[str, str | int] = {"status": answer.status}
    if error:
        evidence["error"] = error
    if found := numbers or " ".join(re.findall(r"AADSTS(\d{4,7})", text)[:3]):
        evidence["codes"] = found
    for name in ("suberror", "error_subtype"):
        if word := _word(said.get(name)):
            evidence[name] = word
    for name in ("correlation_id", "trace_id"):
        if re.fullmatch(r"[0-9a-fA-F-]{36}", str(said.get(name))):
            evidence[name] = str(said[name])
    return Said(answer.status, error, f"{numbers} {text.replace('AADSTS', '')}", evidence, _wait(answer.headers))


def _word(value: Any) -> str:
    """An error's name, if it is one: snake case, and short. Anything else may be a quotation."""
    return value if isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9_]{1,40}", value) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _wait(headers: Mapping[str, str]) -> timedelta | None:
    """Retry-After in seconds; its form as a date is not used by these endpoints (docs, 2026-11)."""
    text = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
    return timedelta(seconds=int(text)) if text.isascii() and text.isdigit() and len(text) < 7 else None
