"""Faults by name, for the command line and the page: each holds once, unless it is given as a rule with its own count.

    --fault gmail-quota                                              by name
    --fault 'google:{"stage": "drafts.send", "status": 503}'         a server, and a rule of its own as JSON

The servers are `google`, `microsoft` (each with its token endpoints) and `smtp`. Rules are `outtray_sandbox.web.Rule`
and `outtray_sandbox.smtp.Rule`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from outtray_sandbox.google.errors import sending_limit, shape

NAMED_WAIT = timedelta(seconds=30)
"""How far away the time is that a refusal names."""
GMAIL_SENDS = r"(upload\.)?(drafts|messages)\.send"
GRAPH_SENDS = r"messages\.send|sendMail"


@dataclass(frozen=True, slots=True)
class Fault:
    """A named fault: the server that has it, and what it means there."""

    name: str
    server: str
    what: str


FAULTS = (
    Fault("gmail-quota", "google", "a handover is refused with 429: the mailbox's sending limit, until a named time"),
    Fault("gmail-rate", "google", "a handover is refused with 429: too many requests of this user, until a named time"),
    Fault("gmail-503", "google", "a handover is answered with 503; Gmail did not take the mail, but nobody can know"),
    Fault("gmail-lost", "google", "Gmail takes the mail and closes the connection without an answer"),
    Fault("google-revoked", "google", "a refresh is refused with invalid_grant: the person took the consent back"),
    Fault("graph-429", "microsoft", "a handover is refused with 429 and Retry-After"),
    Fault("graph-504", "microsoft", "Graph takes the mail and answers 504"),
    Fault("graph-lost", "microsoft", "Graph takes the mail and closes the connection without an answer"),
    Fault("entra-secret", "microsoft", "a refresh is refused: the app's client secret has expired"),
    Fault("smtp-451", "smtp", "MAIL is refused for now with 451"),
    Fault("smtp-lost", "smtp", "the server takes the mail, and its answer to the closing dot is lost"),
    Fault("smtp-550", "smtp", "a recipient is refused for good with 550"),
)


class UnknownFault(ValueError):
    """No fault is called so; the text names those there are."""


def rule_of(name: str, now: datetime | None = None) -> dict[str, Any]:
    """The fields of a named fault's rule. Its refusals have the shapes of the real ones (`google.errors`; docs)."""
    until = ((now or datetime.now(UTC)) + NAMED_WAIT).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    rate = shape(429, "userRateLimitExceeded", f"User-rate limit exceeded.  Retry after {until}", "usageLimits")
    expired = "AADSTS7000222: The provided client secret keys are expired."
    throttled = {"error": {"code": "ApplicationThrottled", "message": "Application is over its rate limit."}}
    late = {"error": {"code": "UnknownError", "message": ""}}
    rules: Mapping[str, dict[str, Any]] = {
        "gmail-quota": {"stage": GMAIL_SENDS, "status": 429, "body": sending_limit(until).body},
        "gmail-rate": {"stage": GMAIL_SENDS, "status": 429, "body": rate},
        "gmail-503": {"stage": GMAIL_SENDS, "status": 503, "body": shape(503, "backendError", "Backend Error")},
        "gmail-lost": {"stage": GMAIL_SENDS, "drop": "after"},
        "google-revoked": {
            "stage": "token", "status": 400,
            "body": {"error": "invalid_grant", "error_description": "Token has been expired or revoked."},
        },
        "graph-429": {"stage": GRAPH_SENDS, "status": 429, "headers": {"Retry-After": "30"}, "body": throttled},
        "graph-504": {"stage": GRAPH_SENDS, "status": 504, "take": True, "body": late},
        "graph-lost": {"stage": GRAPH_SENDS, "drop": "after"},
        "entra-secret": {
            "stage": "token", "status": 401,
            "body": {"error": "invalid_client", "error_description": expired, "error_codes": [7000222]},
        },
        "smtp-451": {"stage": "mail", "reply": "451 4.3.0 Temporary system problem. Try again later."},
        "smtp-lost": {"stage": "dot", "drop": "after"},
        "smtp-550": {"stage": "rcpt", "reply": "550 5.1.1 The email account that you tried to reach does not exist."},
    }  # fmt: skip
    return {**rules[name], "times": 1}


def read_fault(text: str) -> tuple[str, dict[str, Any]]:
    """A fault as it is typed: server, and the fields of its rule. Raises `UnknownFault`, `ValueError`."""
    known = next((each for each in FAULTS if each.name == text), None)
    if known is not None:
        return known.server, rule_of(known.name)
    server, colon, rule = text.partition(":")
    if not colon or server not in {each.server for each in FAULTS}:
        names = ", ".join(each.name for each in FAULTS)
        raise UnknownFault(f"no fault {text!r}: take one of {names}; or a rule, as in 'google:{{\"status\": 503}}'")
    fields = json.loads(rule)
    if not isinstance(fields, dict):
        raise ValueError(f"a rule is a JSON object, not {rule!r}")
    return server, fields
