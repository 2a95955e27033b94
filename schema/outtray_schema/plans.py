"""Plans as data: what a mailbox may send, where each figure comes from, and how an owner overrides it.

A plan holds the *documented* maxima of a provider. `effective_limits` lays a mailbox's overrides over its plan, and
`with_learned` what the provider's refusals taught over both; the result is what the ledger and the bucket go by. The
door goes by the first alone, because what was learned recovers. `docs/plans.md` says the same for owners.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import date, datetime
from types import MappingProxyType
from typing import Any

from outtray_schema.errors import InvalidMailbox, Problem
from outtray_schema.learned import Learned, recovered

DAILY = ("messages", "recipients", "external", "unique_external")
"""The limits of a rolling 24 hours, in the order in which they are reported when several bind."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one mailbox may send. `None` is no limit; the daily ones count over a rolling 24 hours.

    `reserve` is kept free for the mail that the person sends by hand, which we cannot see: so many messages, each
    counted as one external recipient. It is taken off every daily limit that is set. `learned` is what the provider's
    refusals taught: it counts what we send alone, so nothing is taken off it.
    """

    messages: int | None = None
    recipients: int | None = None
    external: int | None = None
    unique_external: int | None = None
    recipients_per_message: int | None = None
    per_minute: int | None = None
    burst: int = 1
    reserve: int = 0
    learned: tuple[Learned, ...] = ()

    def allowed(self, measure: str) -> int | None:
        """What we may use of a daily limit in 24 hours. `measure` is one of `DAILY`."""
        if not self.learned:
            return self.planned(measure)
        bounds = [self.planned(measure), *(each.limit for each in self.learned if each.measure == measure)]
        return min((bound for bound in bounds if bound is not None), default=None)

    def planned(self, measure: str) -> int | None:
        """What the plan and its owner allow us of a daily limit: the limit less the reserve."""
        limit: int | None = getattr(self, measure)
        return None if limit is None else max(0, limit - self.reserve)

    def lesson(self, measure: str | None) -> Learned | None:
        """What the provider taught about this limit, while it binds."""
        return next((each for each in self.learned if each.measure == measure), None)

    @property
    def daily(self) -> dict[str, int]:
        """The daily limits that are set or learned, less the reserve."""
        return {measure: allowed for measure in DAILY if (allowed := self.allowed(measure)) is not None}


@dataclass(frozen=True, slots=True)
class Plan:
    """A provider's documented limits, with their source and the date at which they were read there.

    `over_smtp` is what differs when the same account is reached by SMTP instead of by the provider's API.
    """

    name: str
    providers: tuple[str, ...]
    limits: Limits
    source: str
    date: date
    note: str = ""
    over_smtp: Mapping[str, int | None] = field(default_factory=dict)


_GOOGLE_TABLE = "knowledge.workspace.google.com/admin/gmail/gmail-sending-limits-in-google-workspace"
_GOOGLE_SMTP = MappingProxyType({"recipients_per_message": 100})

PLANS: Mapping[str, Plan] = MappingProxyType(
    {
        plan.name: plan
        for plan in (
            Plan(
                "gmail",
                ("gmail", "smtp", "memory"),
                Limits(messages=500, recipients_per_message=500),
                "support.google.com/mail/answer/22839",
                date(2026, 9, 1),
                "A consumer account; beyond it Google locks sending for 1 to 24 hours. 100 recipients by SMTP.",
                _GOOGLE_SMTP,
            ),
            Plan(
                "workspace",
                ("gmail", "smtp", "memory"),
                Limits(messages=2_000, recipients=10_000, external=3_000, recipients_per_message=500),
                _GOOGLE_TABLE,
                date(2026, 9, 1),
                "Trial accounts have 500 messages until their billing history has grown. Google also counts unique"
                " recipients (3,000, of them 2,000 external): set unique_external to 2000 for cold mail."
                " 100 recipients a message by SMTP.",
                _GOOGLE_SMTP,
            ),
            Plan(
                "microsoft",
                ("microsoft", "smtp", "memory"),
                Limits(recipients=10_000, recipients_per_message=500, per_minute=30),
                "learn.microsoft.com .../exchange-online-limits#sending-limits-1",
                date(2026, 9, 9),
                "Exchange Online. Recipients a message can be set from 1 to 1,000 by its administrator. The tenant's"
                " own limit on external recipients is a shared budget, not a limit of one mailbox.",
            ),
            Plan(
                "outlook",
                ("microsoft", "smtp", "memory"),
                Limits(recipients=5_000, recipients_per_message=500),
                "support.microsoft.com, sending limits in Outlook.com (for subscribers)",
                date(2026, 11, 1),
                "A personal Microsoft account. These are a subscriber's; other and new accounts have far less, by"
                " reputation, and nobody publishes how much. Of the recipients 1,000 a day may be new to the sender.",
            ),
            Plan(
                "smtp",
                ("smtp", "memory"),
                Limits(messages=500, recipients_per_message=100),
                "no document speaks for every server: 500 a day is our caution, 100 recipients are RFC 5321 4.5.3.1.8",
                date(2026, 11, 1),
                "Set by the owner: ask your provider what it allows, then set messages and whatever else it counts;"
                " null lifts a limit.",
            ),
        )
    }
)

TRIAL_TENANT_EXTERNALS = 5_000
"""External recipients of a trial tenant in 24 hours (techcommunity 4372797, 2026-11; some copies of it say 500)."""


def tenant_externals(licences: int) -> int:
    """External recipients of a Microsoft tenant in 24 hours, by its licences (TERRL; techcommunity 4372797, 2026-11).

    1 licence: 10,000; 10: 12,006; 100: 22,059. Quotas of new, trial and education tenants changed in September 2026, so
    that what the Exchange admin centre reports goes before it.
    """
    return round(500 * math.pow(licences, 0.7) + 9_500)


_LEAST = {"external": 0, "unique_external": 0, "reserve": 0}
_NAMES = tuple(item.name for item in fields(Limits) if item.name != "learned")


def plan_named(name: str) -> Plan:
    """The preset of that name. Raises `InvalidMailbox` that names those there are."""
    try:
        return PLANS[name]
    except KeyError:
        raise InvalidMailbox(Problem("plan", f"{name!r} is no plan; choose one of {', '.join(PLANS)}")) from None


def effective_limits(plan: Plan | str, overrides: Mapping[str, Any], provider: str | None = None) -> Limits:
    """A plan's limits with a mailbox's overrides over them; `{"messages": None}` lifts a limit.

    `provider="smtp"` takes in what differs over SMTP. Raises `InvalidMailbox` with every field that is wrong and its
    cure: an unknown name, no whole number, a burst above the pace, a reserve that leaves nothing.
    """
    base = plan_named(plan) if isinstance(plan, str) else plan
    problems = [problem for name, value in overrides.items() if (problem := _problem(name, value)) is not None]
    if problems:
        raise InvalidMailbox(problems)
    over_smtp = base.over_smtp if provider == "smtp" else {}
    limits = replace(base.limits, **{**over_smtp, **overrides})
    if problems := _contradictions(limits):
        raise InvalidMailbox(problems)
    return limits


def with_learned(limits: Limits, learned: Mapping[str, Any], now: datetime) -> Limits:
    """A mailbox's limits with what its provider's refusals taught over them, as far as that has recovered by `now`."""
    if not learned:
        return limits
    plan = {measure: limits.planned(measure) for measure in ("messages", "recipients")}
    return replace(limits, learned=recovered(learned, plan, now))


def beyond_documented(plan: Plan | str, limits: Limits) -> list[str]:
    """The limits that stand above what the provider documents, each as a sentence for whoever sets them."""
    base = plan_named(plan) if isinstance(plan, str) else plan
    if base.name == "smtp":
        return []
    names = (*DAILY, "recipients_per_message", "per_minute")
    return [
        f"{name} is {'unlimited' if ours is None else ours}, but {base.name} documents {documented} ({base.source})"
        for name in names
        if (documented := getattr(base.limits, name)) is not None
        and ((ours := getattr(limits, name)) is None or ours > documented)
    ]


def _problem(name: str, value: Any) -> Problem | None:
    if name not in _NAMES:
        return Problem(f"limits.{name}", f"is no limit; there are {', '.join(_NAMES)}")
    if value is None and name not in ("burst", "reserve"):
        return None
    least = _LEAST.get(name, 1)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1_000_000_000:
        lifted = "" if name in ("burst", "reserve") else ", or null for no limit"
        return Problem(f"limits.{name}", f"must be a whole number from {least}{lifted}")
    return None


def _contradictions(limits: Limits) -> list[Problem]:
    problems = [
        Problem("limits.reserve", f"leaves nothing of {name} ({limit}); make it less than that")
        for name in DAILY
        if (limit := getattr(limits, name)) and limits.reserve >= limit
    ]
    # A bucket deeper than a minute's pace could not be rebuilt from what was handed over in the last minute.
    if limits.per_minute is not None and limits.burst > limits.per_minute:
        problems.append(Problem("limits.burst", f"must not be above per_minute ({limits.per_minute})"))
    return problems
