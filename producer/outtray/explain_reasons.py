"""The reasons that `explain` knows: each is a question about one message and its mailbox, answered or passed on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from outtray.evidence import Sought, lines, sought
from outtray.explain_facts import Ahead
from outtray.plan import Row
from outtray_schema.breaking import BREAKER
from outtray_schema.consent import APP_REFUSED
from outtray_schema.errors import InvalidMailbox
from outtray_schema.learned import Learned
from outtray_schema.ledger import Frees
from outtray_schema.plans import Limits, effective_limits, with_learned
from outtray_schema.times import Gap, read_times

Who = Literal["nobody", "owner", "operator", "app developer"]

SILENT_AFTER = timedelta(seconds=30)
"""A process that did not beat for this long counts as gone."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why something is as it is.

    `code` is for machines and does not change; `reason` is one sentence. `limit`, `used` and `allowed` are the binding
    limit, where one binds. `earliest` is the first time at which it can go on by itself; None: it cannot, or it has
    ended. `who` has to act: nobody, where time alone helps. `details` are more lines, without addresses or content.
    """

    state: str
    code: str
    reason: str
    earliest: datetime | None = None
    who: Who = "nobody"
    limit: str | None = None
    used: int | None = None
    allowed: int | None = None
    details: tuple[str, ...] = ()


Question = Callable[[Row], Explanation | None]


def first(row: Row, questions: tuple[Question, ...]) -> Explanation | None:
    """The first of these questions that has an answer."""
    return next((answer for question in questions if (answer := question(row)) is not None), None)


# ── what has ended, and what is with the provider ─────────────────────────────────────────────────────────────────


def ended(row: Row) -> Explanation | None:
    """It has ended."""
    why = f": {row['reason']}" if row["reason"] else ""
    match row["state"]:
        case "sent":
            return Explanation("sent", "sent", f"the provider took it at {_clock(row['ended_at'])}{why}")
        case "drafted":
            return Explanation("drafted", "drafted", f"it was left as a draft at {_clock(row['ended_at'])}, as asked")
        case "failed":
            return Explanation("failed", "failed", f"it failed{why}", who="app developer")
        case "cancelled" | "expired" as state:
            return Explanation(state, state, f"it was {state}{why}" if state == "cancelled" else f"it has expired{why}")
    return None


def handing_over(row: Row) -> Explanation | None:
    """It is with the provider."""
    if row["state"] != "handing_over":
        return None
    reason = f"a worker is handing it over to the provider since {_clock(row['handed_at'])}"
    if row["handover_until"] <= row["now"]:
        reason = "its worker gave no answer in time; the dispatcher is about to mark it unknown"
        return _unless_gone(row, Explanation("handing_over", "handover_overdue", reason, row["now"]))
    return Explanation("handing_over", "handing_over", reason, row["handover_until"])


def unknown(row: Row, settle: timedelta, attempts: int) -> Explanation | None:
    """Its handover has no outcome."""
    if row["state"] != "unknown":
        return None
    reason = f"nobody can tell whether the provider took it: {row['reason'] or 'its handover got no answer'}"
    seen = sought(row)
    shown = lines(seen)
    if not seen.is_planned:
        planning = Explanation("unknown", "unknown", f"{reason}; it is about to be looked for", row["now"])
        return _unless_gone(row, planning)
    if seen.finding == "no_way" and row["on_unknown"] == "resend" and row["cancel_asked_at"] is None:
        if row["attempt"] >= attempts:
            return _sought(row, seen, f"{reason}; it was sent {attempts} times, and its policy stops there", shown)
        again_at = max(row["handover_until"] + settle, row["now"])
        return Explanation("unknown", "unknown", f"{reason}; by its policy it is sent again", again_at, details=shown)
    return _sought(row, seen, f"{reason}; evidence is looked for" if seen.next_at else reason, shown)


def _sought(row: Row, seen: Sought, reason: str, shown: tuple[str, ...]) -> Explanation:
    """What a look may still show; a person is asked where looks have shown nothing, or cannot be."""
    at = max(seen.next_at, row["now"]) if seen.next_at else None
    if seen.finding not in ("no_way", "nothing"):
        return Explanation("unknown", "unknown", reason, at, details=shown)
    cure = "look into the mailbox's Sent folder, then decide: outtray resolve ID --sent, --resend or --fail"
    return Explanation("unknown", "unknown", reason, at, "operator", details=(*shown, cure))


def expired(row: Row) -> Explanation | None:
    """Its time is over, and the dispatcher is about to end it."""
    if row["expires_at"] is None or row["expires_at"] > row["now"]:
        return None
    reason = f"it expired at {_clock(row['expires_at'])}; the dispatcher is about to end it"
    return _unless_gone(row, Explanation(row["state"], "expiring", reason))


# ── what a person holds ───────────────────────────────────────────────────────────────────────────────────────────


def switched_off(row: Row) -> Explanation | None:
    """A switch above the mailbox holds it."""
    if not row["switches"]:
        return None
    switch, *others = row["switches"]
    name = {"all": "everything", "app": "its app", "provider": f"the provider {row['provider']}"}
    what = name.get(switch["kind"], f"the tag {switch['target'].partition(':')[2]!r}")
    since = _clock(datetime.fromisoformat(switch["since"]))
    why = f": {switch['why']}" if switch["why"] else ""
    reason = f"{what} is paused since {since} by {switch['actor']}{why}"
    details = tuple(f"also paused: {other['kind']} since {other['since']} by {other['actor']}" for other in others)
    who: Who = "operator" if switch["kind"] in ("all", "provider") else "app developer"
    return Explanation("queued", f"paused_{switch['kind']}", reason, who=who, details=details)


_AGAIN = {"gmail": "connect google", "microsoft": "connect microsoft"}
"""How a mailbox is connected again, where not by a password."""


def mailbox_status(row: Row) -> Explanation | None:
    """Its mailbox waits for a person."""
    why = f": {row['status_reason']}" if row["status_reason"] else ""
    since = f" since {_clock(row['status_at'])}" if row["status_at"] else ""
    cure = {
        "paused": "outtray resume --mailbox MAILBOX",
        "reconnect": f"its owner connects it again: outtray mailbox {_AGAIN.get(row['provider'], 'reconnect MAILBOX')}",
        "disabled": "its owner adds or connects it again; its queue is kept",
    }.get(row["status"])
    if cure is None:
        return None
    words = {"reconnect": "waits for its owner to connect it again"}.get(row["status"], f"is {row['status']}")
    reason = f"its mailbox {words}{since}{why}"
    return Explanation("queued", f"mailbox_{row['status']}", reason, who="owner", details=(cure,))


def suppressed(row: Row) -> Explanation | None:
    """A recipient asked not to be written to."""
    if not row["suppressed"]:
        return None
    return Explanation("queued", "suppressed", "one of its recipients is suppressed; its turn will cancel it")


def follows(row: Row, before: Row | None, theirs: Explanation | None) -> Explanation:
    """It is due once the message before it has ended; `theirs` is why that one has not."""
    if before is None or before["ended_at"] is not None:
        reason = "the message before it has ended; the dispatcher is about to say when it is due"
        return _unless_gone(row, Explanation("queued", "follows", reason))
    states = {"handing_over": "is with the provider", "unknown": "is unknown: nobody can tell whether it left"}
    doing = states.get(before["state"], "has not left yet")
    reason = f"it follows message {row['follows']}, which {doing}"
    then = f"then it waits {_span(row['follow_after'])}" if row["follow_after"] else "then it is due at once"
    if theirs is None:
        return Explanation("queued", "follows", reason, details=(then, f"outtray explain {row['follows']}"))
    at = theirs.earliest and max(theirs.earliest + row["follow_after"], row["follow_from"] or theirs.earliest)
    told = (f"that one: {theirs.reason}", *theirs.details, then)
    return replace(theirs, state="queued", code="follows", reason=reason, earliest=at, details=told)


def unreadable(row: Row) -> Explanation:
    """Its mailbox's limits were written by another version."""
    reason = "the plan or limits of its mailbox cannot be read by this version; it waits rather than guess"
    cure = "update Outtray here, or set the mailbox's plan and limits anew: outtray mailbox set"
    return Explanation("queued", "limits_unreadable", reason, who="operator", details=(cure,))


# ── what waits for a time ─────────────────────────────────────────────────────────────────────────────────────────


def timed(row: Row, attempts: int) -> Explanation | None:
    """Its own time, or its mailbox's park where that ends later: the later of the two is what binds."""
    own = None
    if row["due_at"] > row["now"]:
        own = _own_time(row, attempts)
    park = _parked(row)
    if own is not None and park is not None and own.earliest is not None and park.earliest is not None:
        return park if park.earliest > own.earliest else own
    return own or park


def _own_time(row: Row, attempts: int) -> Explanation:
    """Why its own time lies ahead."""
    if (row["reason"] or "").startswith("waits until message "):
        return Explanation("queued", "follows", f"it answers another one and {row['reason']}", row["due_at"])
    return _backoff(row, attempts) if row["failing_since"] is not None else _scheduled(row)


def _scheduled(row: Row) -> Explanation:
    return Explanation("queued", "scheduled", f"it is scheduled for {_clock(row['due_at'])}", row["due_at"])


def _backoff(row: Row, attempts: int) -> Explanation:
    reason = f"its attempt {row['attempt']} of {attempts} failed: {row['reason'] or 'no reason was given'}"
    return Explanation("queued", "backoff", reason, row["due_at"])


def _parked(row: Row) -> Explanation | None:
    """A park by what the provider said. Our own limits, which park as well, are asked about by themselves."""
    until, reason = row["parked_until"], row["parked_reason"] or ""
    if until is None or until <= row["now"] or reason == "pace" or reason.startswith("quota: "):
        return None
    if reason == "window":
        words = f"its mailbox's window opens at {_clock(until)}"
        return Explanation("queued", "window", words, until, limit="window")
    if reason.startswith("budget: "):
        name = reason.removeprefix("budget: ")
        words = f"the shared budget {name!r} is used up for now"
        return Explanation("queued", "budget", words, until, limit=f"budget {name}")
    if reason.startswith(BREAKER):
        cure = "nothing to do here: one message at a time probes it, and all go on once one was served"
        return Explanation("queued", "breaker", f"its mailbox is parked: {reason}", until, details=(cure,))
    if reason.startswith(APP_REFUSED):
        cure = "give it a new secret: outtray provider-app set-secret NAME; nobody has to consent again"
        words = f"its mailbox waits for its OAuth client: {reason}"
        return Explanation("queued", "provider_app", words, until, who="operator", details=(cure,))
    return Explanation("queued", "parked", f"its mailbox is parked: {reason}", until)


def limits_of(row: Row) -> Limits | None:
    """The limits of its mailbox, learned ones among them; None if this version cannot read them."""
    try:
        return with_learned(effective_limits(row["plan"], row["limits"], row["provider"]), row["learned"], row["now"])
    except InvalidMailbox:
        return None


def quota(row: Row, free: Frees) -> Explanation | None:
    """A daily limit of its mailbox has no room for it."""
    if free.limit is None:
        return None
    if free.at is None:
        most = f"{free.allowed} {_words(free.limit)}"
        reason = f"alone it is more than its mailbox's limit of {most}; its turn will fail it"
        return Explanation("queued", "never_fits", reason, None, "owner", free.limit, free.used, free.allowed)
    reason = f"its mailbox has used {free.used} of {free.allowed} {_words(free.limit)} in 24 hours"
    at = max(free.at, _park_end(row))
    return Explanation("queued", "quota", reason, at, "nobody", free.limit, free.used, free.allowed)


def taught(limits: Limits) -> tuple[str, ...]:
    """What the provider's refusals taught about the mailbox, while it binds: a line for each limit."""
    return tuple(
        f"the provider refused at {each.used} {_words(each.measure)} on {_clock(each.at)}; now {each.limit} in"
        f" 24 hours; recovers by 10 % a day without a refusal{_until(each)}"
        for each in limits.learned
    )


def _until(each: Learned) -> str:
    if each.plan is None:
        return f", until it is forgotten on {_clock(each.forgotten_at)}"
    return f", until the plan's {each.plan} on {_clock(each.forgotten_at)}"


def paced(row: Row, limits: Limits, ahead: Ahead) -> Explanation | None:
    """Its mailbox, or its provider app, keeps its pace."""
    until = _park_end(row)
    if until <= row["now"] or row["parked_reason"] != "pace":
        return None
    gap = _gap(row)
    if gap is not None:
        reason = f"its mailbox keeps {gap} between two mails; {ahead.messages} message(s) are ahead of it"
        return Explanation("queued", "gap", reason, until + ahead.messages * _apart(row, limits), limit="gap")
    own = limits.per_minute
    limit = "per_minute" if own else "the pace of its provider app"
    of = f"{own} a minute" if own else "its provider app's pace"
    reason = f"its mailbox keeps to {of}; {ahead.messages} message(s) are ahead of it"
    return Explanation("queued", "pace", reason, until + ahead.messages * _apart(row, limits), limit=limit, allowed=own)


def _apart(row: Row, limits: Limits) -> timedelta:
    """The least time between two messages of a mailbox, by its pace and its gap."""
    gap = _gap(row)
    paced = timedelta(minutes=1) / limits.per_minute if limits.per_minute else timedelta(0)
    return max(paced, gap.least) if gap is not None else paced


def _gap(row: Row) -> Gap | None:
    try:
        return read_times(row["mailbox_times"]).gap
    except ValueError:
        return None


def _park_end(row: Row) -> datetime:
    end: datetime = max(row["parked_until"] or row["now"], row["now"])
    return end


# ── what waits for its turn ───────────────────────────────────────────────────────────────────────────────────────


def turn(row: Row, limits: Limits, ahead: Ahead) -> Explanation:
    """It may leave, and waits for its turn; or for somebody to start what gives turns."""
    under_way = row["turn_until"] is not None and row["turn_until"] > row["now"]
    gone = None if under_way else _gone(row)
    return _behind_a_park(row) or gone or _in_line(row, limits, ahead, under_way)


def _behind_a_park(row: Row) -> Explanation | None:
    """The mailbox rests for another message's limit, or has not looked again since its own was raised."""
    until = _park_end(row)
    if until <= row["now"]:
        return None
    limit = (row["parked_reason"] or "").removeprefix("quota: ")
    reason = f"its mailbox waits for its limit of {_words(limit)} to free for another message"
    return Explanation("queued", "quota", reason, until, limit=limit)


def _in_line(row: Row, limits: Limits, ahead: Ahead, under_way: bool) -> Explanation:
    now = row["now"]
    if ahead.messages:
        at = now + max(0, ahead.messages + 1 - limits.burst) * _apart(row, limits)
        return Explanation("queued", "behind", f"{ahead.messages} message(s) of its mailbox are ahead of it", at)
    if under_way:
        return Explanation("queued", "turn", "its mailbox's turn is under way", now)
    if row["round_at"] is not None:
        return Explanation("queued", "round", "its mailbox is in a round that waits for a free worker", now)
    if row["next_at"] is not None and row["next_at"] <= now:
        return Explanation("queued", "due", "it is due; the dispatcher is about to publish its mailbox", now)
    return Explanation("queued", "wake", "it is due, and its wake was lost or is on its way; the sweep finds it", now)


def _gone(row: Row) -> Explanation | None:
    for role in ("dispatcher", "worker"):
        beat = row[f"{role}_at"]
        if beat is None or beat < row["now"] - SILENT_AFTER:
            seen = f"the last was heard of at {_clock(beat)}" if beat else "none was ever heard of"
            reason = f"no {role} is running: {seen}"
            return Explanation("queued", f"no_{role}", reason, who="operator", details=(f"start one: outtray {role}",))
    return None


def _unless_gone(row: Row, answer: Explanation) -> Explanation:
    """What only the dispatcher can do waits for an operator where none is running."""
    gone = _gone(row)
    return replace(gone, state=row["state"]) if gone is not None and gone.code == "no_dispatcher" else answer


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def idle(row: Row, counts: tuple[str, ...]) -> Explanation:
    """A mailbox without mail to send."""
    gone = () if (missing := _gone(row)) is None else (missing.reason,)
    return Explanation(row["status"], "idle", "nothing waits in this mailbox", details=(*counts, *gone))


def also(row: Row) -> tuple[str, ...]:
    """What is true besides its one reason."""
    told = []
    if row["may_have_left"]:
        told.append("an earlier handover of it has no known outcome: it may have left already")
    if row["cancel_asked_at"] is not None and row["state"] in ("queued", "handing_over", "unknown"):
        told.append(f"it was asked to be cancelled at {_clock(row['cancel_asked_at'])}")
    return (*told, *_of_draft(row))


def _of_draft(row: Row) -> tuple[str, ...]:
    """What became of a draft that an ended message needs no more."""
    if not row["has_draft"] or row["state"] not in ("cancelled", "expired", "failed"):
        return ()
    ends = {
        "deleted": "its draft was deleted",
        "gone": "its draft is a draft no more: sent, or deleted by its person",
        "kept": "its draft could not be deleted: it is left to its person",
    }
    return (ends.get(row["draft_end"] or "", "its draft is about to be deleted"),)


def _span(span: timedelta) -> str:
    """`3 d 4 h`: whole units, none that is nothing."""
    minutes, seconds = divmod(round(span.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join(f"{number} {unit}" for number, unit in units if number) or "0 s"


def _words(limit: str) -> str:
    return {
        "unique_external": "different external recipients",
        "external": "external recipients",
        "recipients_per_message": "recipients per message",
    }.get(limit, limit)


def _clock(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(" ", "seconds")
