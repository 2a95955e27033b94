"""What a mailbox may send, and as whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from psycopg.types.json import Jsonb

from outtray import arming, budgets
from outtray.door import Door, MailboxName
from outtray.mailboxes.storing import ARM, sealed_address
from outtray.mailboxes.view import Mailbox, get
from outtray.plan import Begin, Commit, Plan, rows
from outtray_schema.address import Address
from outtray_schema.errors import InvalidMailbox, Problem
from outtray_schema.plans import DAILY, effective_limits

# The following write one mailbox whose row is locked already. A wait for a limit or for pace is over when the limits
# change; one that the provider asked for is not.
SET = """
UPDATE outtray.mailbox m SET plan = %(plan)s, limits = %(limits)s, address = %(address)s, on_unknown = %(on_unknown)s,
    learned = m.learned - %(forgotten)s::text[],
    parked_until = CASE WHEN m.parked_reason ~ '^(pace|quota|budget)' THEN NULL ELSE m.parked_until END,
    parked_reason = CASE WHEN m.parked_reason ~ '^(pace|quota|budget)' THEN NULL ELSE m.parked_reason END
WHERE m.id = %(mailbox)s
"""


def change(
    door: Door,
    mailbox: MailboxName,
    *,
    plan: str | None = None,
    limits: Mapping[str, Any] | None = None,
    reserve: int | None = None,
    pace: int | None = None,
    name: str | None = None,
    aliases: Iterable[str] | None = None,
    on_unknown: Literal["hold", "resend", "app"] | None = None,
    forget_learned: bool = False,
    budget: str | None = None,
    leave_budget: str | None = None,
) -> Plan[Mailbox]:
    """Change a mailbox's plan, single limits (`None` lifts one), reserve, pace (messages a minute), name or aliases.

    `on_unknown`: what becomes of its messages of which nobody can tell whether they left; `app`: as its app has it.
    `forget_learned`: the plan holds again where the provider's refusals had taught less. `budget`, `leave_budget`: the
    name of one to share, or to share no more. What is not named stays. A wait for a limit ends, and the next turn
    judges anew. Raises `InvalidMailbox`, `NotFound`.
    """
    before = yield from get(door, mailbox)
    named = {"reserve": reserve, "per_minute": pace}
    overrides = {
        **before.overrides,
        **(limits or {}),
        **{key: value for key, value in named.items() if value is not None},
    }
    effective_limits(plan or before.plan, overrides, before.provider)
    sender = Address(before.address, before.name if name is None else name)
    known = sealed_address(door, before.id, sender, before.aliases if aliases is None else aliases)
    policy = before.on_unknown if on_unknown is None else _policy(on_unknown)
    row = {
        "plan": plan or before.plan, "limits": Jsonb(overrides), "address": known, "on_unknown": policy,
        "forgotten": _forgotten(before, forget_learned),
    }  # fmt: skip
    app_id = yield from door.app()
    yield Begin()
    yield from arming.lock(app_id, before.id)
    yield from rows(SET, mailbox=before.id, **row)
    if budget is not None:
        yield from budgets.join(before.id, budget)
    if leave_budget is not None:
        yield from budgets.leave(before.id, leave_budget)
    yield from rows(ARM, mailbox=before.id)
    told = {"plan": plan or before.plan, "limits": overrides, "on_unknown": policy}
    told |= _more(forget_learned, budget, leave_budget)
    yield from arming.note_mailbox(app_id, before.id, "changed", door.actor, told)
    yield Commit()
    door.forget()
    return (yield from get(door, before.id))


def _policy(on_unknown: str) -> str | None:
    if on_unknown not in ("hold", "resend", "app"):
        raise InvalidMailbox(Problem("on_unknown", f"{on_unknown!r} is none; it is hold, resend or app"))
    return None if on_unknown == "app" else on_unknown


def _forgotten(before: Mailbox, all_of_it: bool) -> list[str]:
    """The measures of which nothing learned is kept: all, or those that had recovered under the plan of before.

    Those must go now, or they would bind anew under a plan that allows more.
    """
    binding = {each.measure for each in before.limits.learned}
    return [measure for measure in DAILY if all_of_it or measure not in binding]


def _more(forget_learned: bool, budget: str | None, leave_budget: str | None) -> dict[str, Any]:
    named = {"forget_learned": forget_learned, "budget": budget, "leave_budget": leave_budget}
    return {name: value for name, value in named.items() if value}
