"""Looking for evidence: the rules of reconciliation, each with the code that it stands for, and the steps of a look.

A look begins (it reads the message), sees (the provider shows something), and writes. It holds nothing meanwhile and
has no deadline that a rule relies on: time passes between its steps, its process dies or stands still, and another
look at the same message begins and ends.
"""

from __future__ import annotations

from collections.abc import Iterator

from model import rules
from model.rules import Protocol, locks
from model.states import (
    ATTEMPTS,
    CANCELLED,
    EXPIRED,
    FAILED,
    QUEUED,
    SENT,
    SETTLE,
    UNKNOWN,
    Item,
    Looker,
    Step,
    World,
    bad_luck,
    ghost,
    least,
    not_before,
    with_box,
    with_looker,
    write,
)

IDLE = Looker()
LEFT_BEHIND = (CANCELLED, EXPIRED, FAILED)

# ── what there is to see ────────────────────────────────────────────────────────────────────────────────────────────


def sees(w: World, p: Protocol, i: int) -> str:
    """What a look at this moment shows: `evidence.look` for Gmail; Graph's and IMAP's say it alike."""
    m = w.messages[i]
    if not p.may_look:
        return "no_way" if p.has("11 readable") else "absent"
    if m.draft >= 0 and m.drafts[m.draft] in "DT":
        return "still_draft"
    if m.copy == 0:
        return "sent"
    if m.draft >= 0:
        return "nothing" if p.has("11 missing draft") else "sent"
    return "absent"


def began(w: World, i: int) -> int:
    """What of a handover's time is over by now: 1 its deadline, 2 the settling time too."""
    until = w.messages[i].until
    return 2 if until == 0 else 1 if until <= SETTLE else 0


def proves_absence(w: World, i: int, finding: str) -> bool:
    """`decide._proves_absence`."""
    return finding == "still_draft" or (finding == "absent" and w.messages[i].draft < 0)


def counts(w: World, p: Protocol, look: Looker) -> bool:
    """`decide._counts_from`: the look itself began after the deadline and the settling time of what it is about."""
    at = look.began if p.has("11 began") else began(w, look.i)
    if look.handover != w.messages[look.i].handover:  # a newer one, whose deadline is yet later
        at = 0 if p.has("11 began") else at
    return at >= (2 if p.has("11 settle") else 1)


# ── which looks there are ───────────────────────────────────────────────────────────────────────────────────────────


def wants_look(w: World, p: Protocol, i: int) -> bool:
    """`read.WANTS_LOOKS`. A look that would show what the last one did, and proves no more by now, is left out."""
    m = w.messages[i]
    if m.state == UNKNOWN:
        shows = sees(w, p, i)
        about = Looker("begun", i, m.state, m.handover, began(w, i), shows)
        return shows != m.looked or (proves_absence(w, i, shows) and counts(w, p, about))
    left = m.state in LEFT_BEHIND and (m.draft >= 0 or m.prepares > 0) and not m.tidy and p.has("12 draft")
    return left and not m.ids and (sees(w, p, i) != m.looked or removable(w, p, i))


def removable(w: World, p: Protocol, i: int) -> bool:
    """`look._remove`: is there a draft to take away?"""
    m = w.messages[i]
    return p.may_look and ("D" in m.drafts if m.draft < 0 else m.drafts[m.draft] == "D")


# ── what it proves ──────────────────────────────────────────────────────────────────────────────────────────────────


def decide(w: World, p: Protocol, look: Looker) -> str:
    """`decide.decide`: the verdict about the message as it stands now."""
    m = w.messages[look.i]
    current = (m.state, m.handover) == (look.state, look.handover)
    if look.finding == "sent":
        return found(w, p, look, current)
    if not current and p.has("11 current"):
        return "ignore"
    if look.state == UNKNOWN:
        if proves_absence(w, look.i, look.finding) and counts(w, p, look):
            return absent(w, look.i)
        return "look again"
    return "tidied" if look.finding in ("deleted", "gone") else "look again"


def found(w: World, p: Protocol, look: Looker, current: bool) -> str:
    """`decide._found`: ids for any handover make it sent, and nobody has to write that twice."""
    m = w.messages[look.i]
    if m.state == SENT or m.ids:
        return "ignore"
    return "believe" if current or p.has("7 any") else "overlook"


def absent(w: World, i: int) -> str:
    """`decide._absent`."""
    m = w.messages[i]
    if m.cancel_asked:
        return "cancelled"
    return "failed" if m.attempt >= ATTEMPTS else "send again"


# ── what is written ─────────────────────────────────────────────────────────────────────────────────────────────────


def carry_out(w: World, p: Protocol, look: Looker, verdict: str) -> World:
    """`write.write_look`: the verdict, in one transaction with the rows locked."""
    i = look.i
    if verdict == "believe":
        return believe(w, p, look)
    if verdict == "overlook":
        return ghost(w, i, told=True)
    if verdict == "send again":
        return queue_again(w, p, i)
    if verdict in ("cancelled", "failed"):
        return write(w, i, state=CANCELLED if verdict == "cancelled" else FAILED, may_have_left=True)
    if verdict == "tidied":
        return write(w, i, tidy=True)
    return ghost(w, i, looked=look.finding) if verdict == "look again" else w


def believe(w: World, p: Protocol, look: Looker) -> World:
    """`write._believe`: as a worker records an answer, else as one that comes late."""
    item = Item("record", look.i, number=look.handover, outcome="sent")
    if rules.takes(w, p, item):
        return rules.recorded(w, p, True, item)
    return rules.record_late(w, p, item)


def queue_again(w: World, p: Protocol, i: int) -> World:
    """`write.KEEP_USAGE`, `write.QUEUE` and `write.ARM`."""
    m = w.messages[i]
    if p.has("12 usage by evidence"):
        w = rules.keep_in_usage(w, i)
    left = m.may_have_left or p.has("12 left by evidence")
    w = write(w, i, state=QUEUED, due=0, counts=0, until=0, may_have_left=left, prepares=0)
    if not p.has("13 arm by evidence"):
        return w
    return with_box(w, next_at=not_before(least(w.box.next_at, 0), w.box.parked))


def remove(w: World, i: int) -> World:
    """`orphans.remove`: the draft that is named, or else the one with our key."""
    m = w.messages[i]
    return ghost(w, i, drafts=m.drafts.replace("D", "X") if m.draft < 0 else gone(m.drafts, m.draft))


def gone(drafts: str, draft: int, to: str = "X") -> str:
    return drafts[:draft] + to + drafts[draft + 1 :]


# ── the steps of a look ─────────────────────────────────────────────────────────────────────────────────────────────


def look_steps(w: World, p: Protocol) -> Iterator[Step]:
    """Whoever looks may do so at any time and take as long as it likes."""
    for n, one in enumerate(w.lookers):
        if one.at == "idle":
            if all(other.at != "idle" for other in w.lookers[:n]):  # lookers are alike: the first idle one will do
                yield from begins(w, p, n)
        elif one.at == "begun":
            yield see(w, p, n)
        elif one.at == "seen":
            yield from writes(w, p, n)
        elif one.at == "decided":
            if not blocked(w, p, one.i):
                yield Step(
                    f"r{n} writes what it decided before", carry_out(with_looker(w, n, IDLE), p, one, one.verdict)
                )
        else:
            rest = with_looker(w, n, IDLE)
            yield Step(f"r{n}'s late COMMIT arrives", carry_out(rest, p, one, one.verdict))
            yield Step(f"r{n}'s late COMMIT never arrives", rest)
        if one.at != "idle" and w.faults and "crash" in p.faults:
            yield Step(f"r{n} dies", with_looker(bad_luck(w), n, IDLE), False)


def begins(w: World, p: Protocol, n: int) -> Iterator[Step]:
    """`read.READ`: the look begins."""
    for i, m in enumerate(w.messages):
        if wants_look(w, p, i):
            look = Looker("begun", i, m.state, m.handover, began(w, i))
            yield Step(f"r{n} begins to look for m{i} h{m.handover}", with_looker(w, n, look))


def see(w: World, p: Protocol, n: int) -> Step:
    """`look.Looks` asks the provider; `look._remove` takes the draft of a message that has ended away in passing."""
    look, finding = w.lookers[n], sees(w, p, w.lookers[n].i)
    if look.state in LEFT_BEHIND and removable(w, p, look.i):
        w, finding = remove(w, look.i), "deleted"
    elif look.state in LEFT_BEHIND and finding in ("absent", "nothing"):
        finding = finding if w.messages[look.i].may_have_left else "gone"
    return Step(f"r{n} sees m{look.i}: {finding}", with_looker(w, n, look._replace(at="seen", finding=finding)))


def writes(w: World, p: Protocol, n: int) -> Iterator[Step]:
    """`write.write_look`, with each fate that its COMMIT can have."""
    look, idle = w.lookers[n], with_looker(w, n, IDLE)
    verdict = decide(w, p, look)
    if not p.has("11 lock"):
        yield Step(f"r{n} decides: {verdict}", with_looker(w, n, look._replace(at="decided", verdict=verdict)))
        return
    if blocked(w, p, look.i):
        return
    yield Step(f"r{n} writes about m{look.i} h{look.handover}: {verdict}", carry_out(idle, p, look, verdict))
    if w.faults and "not written" in p.faults:
        yield Step(f"r{n}'s COMMIT never arrives", bad_luck(idle), False)
    if w.faults and "written late" in p.faults and verdict not in ("ignore", "look again"):
        on_its_way = look._replace(at="committing", verdict=verdict)
        yield Step(f"r{n}'s COMMIT is on its way", with_looker(bad_luck(w), n, on_its_way), False)


def blocked(w: World, p: Protocol, i: int) -> bool:
    """Does somebody else hold the mailbox or the message?"""
    held = locks(w, p)
    return held.box or i in held.messages
