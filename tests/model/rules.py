"""The protocol's rules, one function for each statement that is built; each names the code that it stands for. Those
about looks for evidence stand in `looks.py`.

A rule can be taken out: `p.has("4 fence")` is false then, and what the rule prevents can happen. `SWITCHES` says of
each what goes; the number is that of the protocol's rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from model.states import (
    ATTEMPTS,
    BEGIN,
    CANCELLED,
    ENDED,
    EXPIRED,
    FAILED,
    HANDOVER,
    LEASE,
    OPEN,
    OVER,
    POISON,
    QUEUED,
    SENT,
    SETTLE,
    UNKNOWN,
    WINDOW,
    Item,
    Pending,
    Read,
    Usage,
    Worker,
    World,
    earliest_due,
    ghost,
    least,
    ledger,
    not_before,
    with_box,
    with_worker,
    write,
)

SWITCHES = {
    "3 row": "a claim decides by what it saw, without asking the locked row again",
    "3 snapshot": "a claim reads messages and ledger in its own statement, before it waits for the lock",
    "4 fence": "a gate does not ask for the fence and the lease",
    "4 hold": "a gate does not hold the mailbox's row until its COMMIT",
    "4 live": "a gate trusts what the turn read of the message",
    "4 version": "a gate asks for the message's state, not for its version",
    "4 pause": "a gate does not ask whether the mailbox is paused",
    "4 suppressed": "a gate does not ask for suppression",
    "5 before": "the deadline is computed when the gate has answered",
    "5 look": "nobody looks at the deadline before the first byte",
    "5 boottime": "the deadline's clock stands still while the process is frozen",
    "6 same draft": "a second draft is made although one is bound",
    "6 gate binds": "a gate binds no draft",
    "6 404 is unknown": "404 on a bound draft counts as a refusal",
    "6 ours": "a worker whose gate was refused deletes its draft, though a later turn may have adopted it",
    "7 number": "an outcome is written by state, not by handover number",
    "7 ids": "an answer to an earlier handover is dropped",
    "7 any": "a copy that was found counts for the handover alone that was looked at",
    "7 newer": "when an earlier handover made it sent, the newer open one is not kept in usage",
    "7 wait": "an outcome whose COMMIT failed is dropped",
    "8 least": "the end of a turn overwrites next_at with what the turn saw",
    "9 dead turns": "nobody ends a turn whose lease is over",
    "9 own time": "a dead turn's open handover goes back to the queue with it",
    "9 overdue": "nobody marks an overdue handover unknown",
    "9 poison": "preparations after a dead turn are not counted",
    "9 cap": "the lease of a hung turn is renewed for ever",
    "10 back": "a lost COMMIT of a gate is not read back",
    "10 number": "a lost COMMIT is read back by state, not by handover number and fence",
    "10 again": "a second try that found nothing to do is not read back",
    "10 unknown": "not begun brings a message back from handing_over only, not from unknown",
    "10 snapshot": "pause and suppression are read before the wait for the lock",
    "11 began": "a look counts if it ended late, however early it began",
    "11 settle": "absence counts from the deadline, without the settling time",
    "11 readable": "not found counts where the provider files no copy",
    "11 missing draft": "a missing draft counts as sent",
    "11 current": "a look writes though its message has moved on since it began",
    "11 lock": "a look decides before it has locked the message",
    "12 usage": "what is sent again, by policy or decision, leaves no usage behind",
    "12 left": "what is sent again, by policy or decision, is not marked as possibly left",
    "12 usage by evidence": "what is sent again by evidence leaves no usage behind",
    "12 left by evidence": "what is sent again by evidence is not marked as possibly left",
    "12 draft": "the draft of a message that has ended is not deleted",
    "12 attempts": "a policy sends again without end",
    "13 record": "an outcome that comes after its turn does not arm the mailbox",
    "13 resend": "what is sent again, by policy or decision, does not arm the mailbox",
    "13 arm by evidence": "what is sent again by evidence does not arm the mailbox",
    "13 resume": "a resumed mailbox is not armed",
    "13 switch": "a resumed tag's mailboxes are not armed",
    "13 expire": "nobody expires messages but a turn",
    "14 end": "a handover counts from its beginning",
    "16 sweep": "nobody looks for lost wakes",
    "16 later": "the sweep looks only where next_at is empty",
}


@dataclass(frozen=True)
class Protocol:
    """The rules that stand, and the surroundings in which they are tried."""

    out: frozenset[str] = frozenset()
    quota: int | None = 1
    resend: bool = False
    """The policy for unknown: send again, else hold."""
    drafts: bool = False
    """The provider sends drafts; else it is handed the mail itself."""
    may_look: bool = True
    """Somebody can look, and the provider files the copy."""
    killers: frozenset[int] = frozenset()
    """Messages whose preparation kills the worker."""
    faults: frozenset[str] = frozenset()
    acts: frozenset[str] = frozenset()

    def has(self, rule: str) -> bool:
        return rule not in self.out


class Locks(NamedTuple):
    """Rows that a transaction on its way still holds."""

    box: bool = False
    messages: frozenset[int] = frozenset()


def locks(w: World, p: Protocol) -> Locks:
    looked = frozenset(one.i for one in w.lookers if one.at == "committing")
    if w.pending is None:
        return Locks(bool(looked), looked)
    items = w.pending.items
    gates = p.has("4 hold") and any(item.kind == "gate" for item in items)
    moves = any(item.kind == "end" or item.outcome in ("retry", "not begun") for item in items)
    held = frozenset(item.i for item in items if item.kind != "end")
    return Locks(gates or moves or bool(looked), held | looked)


# ── claim.py ────────────────────────────────────────────────────────────────────────────────────────────────────────


def claimable(w: World) -> bool:
    """The condition of `claim.CLAIM`."""
    return not w.box.paused and w.box.next_at == 0 and not w.box.lease


def claim(w: World, k: int) -> World:
    """`claim.CLAIM`: a new fence, so that no other turn carries the mailbox's any more."""
    if w.box.lease:
        w = w._replace(bad="a claim took a turn whose lease still runs")
    dead = min(1, w.box.dead + (w.box.lease is not None))
    workers = tuple(one._replace(mine=False) for one in w.workers)
    w = forget_gates(with_box(w._replace(workers=workers), lease=LEASE, next_at=None, dead=dead), k)
    return with_worker(w, k, at="claimed", mine=True, suspect=dead > 0)


def forget_gates(w: World, k: int) -> World:
    """The fence of this worker's last turn is nobody's any more."""
    return w._replace(messages=tuple(m._replace(gater=-1) if m.gater == k else m for m in w.messages))


def read(w: World, p: Protocol, k: int) -> World:
    """`claim.DUE` and `ledger.USED`: what is due, and how much may leave."""
    due = tuple(
        Read(i, True, m.handover, m.attempt, m.prepares, m.draft)
        for i, m in enumerate(w.messages)
        if m.state == QUEUED and m.due == 0 and m.expires and not m.held
    )
    return with_worker(w, k, todo=due, allowance=len(due) if p.quota is None else p.quota - len(ledger(w)))


# ── group.py ────────────────────────────────────────────────────────────────────────────────────────────────────────


def stops(w: World, i: int) -> bool:
    """What pause and suppression say now."""
    return w.box.paused or w.messages[i].suppressed or w.messages[i].held


def open_for(w: World, p: Protocol, k: int) -> bool:
    """`group.CALL`, its LOCK: fence, status and lease, on the locked row."""
    fenced = w.workers[k].mine and bool(w.box.lease)
    return (fenced or not p.has("4 fence")) and (not w.box.paused or not (p.has("4 pause") and p.has("10 snapshot")))


def passes(w: World, p: Protocol, k: int, item: Item) -> bool:
    """`group.CALL`, its WRITE, the conditions of `gated`."""
    m = w.messages[item.i]
    listed = (m.suppressed and p.has("4 suppressed")) or (m.held and p.has("4 pause"))
    if not open_for(w, p, k) or (listed and p.has("10 snapshot")) or item.seen:
        return False
    live = m.state == QUEUED and m.due == 0 and bool(m.expires) and not m.cancel_asked
    return (live or not p.has("4 live")) and (item.fresh or not (p.has("4 version") and p.has("4 live")))


def gated(w: World, p: Protocol, k: int, item: Item, age: int = 0) -> World:
    """`group.CALL`, its WRITE, what `gated` writes; `age` ticks ago if its COMMIT was on its way that long."""
    m = w.messages[item.i]
    counts = 0 if p.quota is None else WINDOW + (HANDOVER if p.has("14 end") else 0)
    draft = m.draft if m.draft >= 0 or not p.has("6 gate binds") else item.draft
    return write(
        w, item.i, state=OVER, attempt=m.attempt + 1, prepares=0, handover=m.handover + 1, gater=k, draft=draft,
        until=max(0, OPEN - age), counts=max(0, counts - age), looked="",
    )  # fmt: skip


def takes(w: World, p: Protocol, item: Item) -> bool:
    """`group.CALL`, its WRITE, the conditions of `recorded`."""
    m = w.messages[item.i]
    if item.number != m.handover and p.has("7 number"):
        return False
    return m.state == OVER or (m.state == UNKNOWN and item.outcome != "unknown" and p.has("10 unknown"))


def recorded(w: World, p: Protocol, mine: bool, item: Item, age: int = 0) -> World:
    """`group.CALL`, its WRITE, what `recorded` writes, and `record._arming` through `group.CALL`, its MOVE."""
    m = w.messages[item.i]
    if item.outcome == "sent":
        counts = m.counts if p.quota is None or not p.has("14 end") else max(0, WINDOW - age)
        return write(w, item.i, state=SENT, counts=counts, ids=True, told=True)
    if item.outcome == "unknown":
        return write(w, item.i, state=UNKNOWN)
    if item.outcome == "failed":
        return write(w, item.i, state=FAILED, counts=0)
    state = CANCELLED if m.cancel_asked else QUEUED
    attempt = m.attempt - (item.outcome == "not begun")
    return arm_late(write(w, item.i, state=state, counts=0, until=0, attempt=attempt), p, mine)


def arm_late(w: World, p: Protocol, mine: bool) -> World:
    """`group.CALL`, its MOVE for an outcome whose turn is over (`late`)."""
    if not p.has("13 record") or (mine and w.box.lease is not None):
        return w
    return with_box(w, next_at=not_before(least(w.box.next_at, earliest_due(w)), w.box.parked))


def refused(w: World, item: Item) -> World:
    """`group.CALL`, its WRITE, what `refused` writes: a preparation counted, poison, a suppressed message."""
    if item.outcome == "preparing":
        return write(w, item.i, prepares=min(POISON, w.messages[item.i].prepares + 1))
    return write(w, item.i, state=CANCELLED if item.outcome == "cancelled" else FAILED)


def ended(w: World, p: Protocol, mine: bool, item: Item) -> World:
    """`group.CALL`, its MOVE for the end of a turn."""
    due = least(w.box.next_at, earliest_due(w)) if p.has("8 least") else item.saw
    if not mine:
        return with_box(w, next_at=not_before(least(w.box.next_at, earliest_due(w)), w.box.parked))
    parked = max(w.box.parked, item.park)
    return with_box(w, lease=None, dead=0, parked=parked, next_at=not_before(due, parked))


def read_back(w: World, p: Protocol, k: int, item: Item) -> bool:
    """`group.read_back`: is this gate written, whatever became of the answer to its COMMIT?"""
    m = w.messages[item.i]
    if not p.has("10 number"):
        return m.state == OVER
    return m.handover == item.number and m.gater == k


# ── late.py ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def record_late(w: World, p: Protocol, item: Item) -> World:
    """`late.record_late`: the row has moved on since this handover."""
    m = w.messages[item.i]
    if item.outcome != "sent":
        return w
    if m.state == SENT or not p.has("7 ids"):
        return ghost(w, item.i, told=True)
    row = next((row for row in w.usage if (row.i, row.number) == (item.i, item.number)), None)
    if row is not None:
        w = w._replace(usage=_sorted(w, row, WINDOW))
    if m.state in (CANCELLED, EXPIRED):
        return write(w, item.i, ids=True, may_have_left=True, told=True)
    if m.handover > item.number and p.has("7 newer"):
        w = keep_in_usage(w, item.i)
    counts = 0 if row or p.quota is None else WINDOW
    return write(w, item.i, state=SENT, counts=counts, ids=True, told=True)


def _sorted(w: World, row: Usage, counts: int) -> tuple[Usage, ...]:
    others = [other for other in w.usage if other != row]
    return tuple(sorted([*others, row._replace(counts=max(row.counts, counts))]))


def keep_in_usage(w: World, i: int) -> World:
    """`INSERT INTO outtray.usage … ON CONFLICT DO NOTHING`."""
    m = w.messages[i]
    if not m.counts or any((row.i, row.number) == (i, m.handover) for row in w.usage):
        return w
    return w._replace(usage=tuple(sorted([*w.usage, Usage(i, m.handover, m.counts)])))


# ── turn.py ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def advance(w: World, p: Protocol, k: int) -> World:
    """`Turn._deliver_all` up to the next thing that is asked of the registrar."""
    one = w.workers[k]
    if not one.todo:
        return submit_end(w, k, 0)
    if one.allowance <= 0:
        return submit_end(w, k, frees_in(w, p))
    due, w = one.todo[0], with_worker(w, k, todo=one.todo[1:])
    w = with_worker(w, k, i=due.i, number=0, attempt=due.attempt, draft=-1, clock=0, late=0)
    if not one.suspect or not p.has("9 poison"):
        return prepare(w, p, k, due.i, due.fresh, due.handover + 1, due.draft)
    if due.prepares >= POISON:
        return advance(submit(w, k, Item("refuse", due.i, due.fresh, outcome="failed")), p, k)
    counting = Item("count", due.i, due.fresh, due.handover + 1, "preparing", due.draft)
    return submit(with_worker(w, k, at="counting"), k, counting)


def prepare(w: World, p: Protocol, k: int, i: int, fresh: bool, number: int, bound: int) -> World:
    """`Turn._prepare`, then `Turn._gate_and_hand_over` submits the gate: its deadlines begin now."""
    if i in p.killers:
        return with_worker(w, k, at="preparing")
    draft = bound
    if p.drafts and (bound < 0 or not p.has("6 same draft")):
        w, draft = new_draft(w, k, i)
    gate = Item("gate", i, fresh, number, draft=-1 if draft == bound else draft)
    return submit(with_worker(w, k, at="gating", clock=0, draft=draft), k, gate)


def new_draft(w: World, k: int, i: int) -> tuple[World, int]:
    """A suspect's draft is adopted, `orphans.find_orphan`, and others with our key are deleted; else one is made."""
    drafts, used = w.messages[i].drafts, {w.messages[i].draft, *(one.draft for one in w.workers if one.i == i)}
    if w.workers[k].suspect and "D" in drafts:
        newest = drafts.rindex("D")
        return ghost(w, i, drafts=drafts[:newest].replace("D", "X") + drafts[newest:]), newest
    free = next((n for n, draft in enumerate(drafts) if draft == "X" and n not in used), len(drafts))
    return ghost(w, i, drafts=drafts[:free] + "D" + drafts[free + 1 :]), free


def abandon(w: World, p: Protocol, k: int, item: Item) -> World:
    """`abandon.abandon`: a draft that no gate bound is deleted, unless another turn may have adopted it."""
    m = w.messages[item.i]
    if item.draft < 0 or (p.has("6 ours") and not is_ours(w, k, item)):
        return w
    if m.drafts[item.draft] in "TS":  # what Graph deletes by that id is the copy of what was sent
        return w._replace(bad=f"the copy of m{item.i} was deleted")
    return ghost(w, item.i, drafts=m.drafts[: item.draft] + "X" + m.drafts[item.draft + 1 :])


def is_ours(w: World, k: int, item: Item) -> bool:
    """`abandon.IS_OURS`: nobody else has that draft, and nobody will."""
    m, goes_on = w.messages[item.i], w.workers[k].mine and bool(w.box.lease)
    return m.draft != item.draft and (goes_on or m.draft >= 0 or m.state in ENDED)


def submit(w: World, k: int, item: Item) -> World:
    """`Registrar._submit`."""
    return with_worker(w, k, queue=(*w.workers[k].queue, item))


def submit_end(w: World, k: int, park: int) -> World:
    """`Turn._end`."""
    end = Item("end", park=park, saw=earliest_due(w))
    return submit(with_worker(w, k, at="ending", todo=(), i=-1, number=0, attempt=0, draft=-1, clock=0, late=0), k, end)


def frees_in(w: World, p: Protocol) -> int:
    """`ledger.FREES`: ticks until one more fits."""
    counts = ledger(w)
    return counts[p.quota - 1] if p.quota is not None and len(counts) >= p.quota else 0


def passed(w: World, p: Protocol, k: int, number: int) -> World:
    """The gate let it pass: `Turn._gate_and_hand_over` goes on."""
    return with_worker(w, k, at="gated", number=number, allowance=w.workers[k].allowance - 1)


def stopped(w: World, p: Protocol, k: int, item: Item, over: bool) -> World:
    """The gate did not: `Registrar._explain` and `Turn._stop`."""
    w = abandon(w, p, k, item)
    if over:
        return submit_end(w, k, 0)
    m = w.messages[item.i]
    if m.state == QUEUED and m.suppressed:
        w = submit(w, k, Item("refuse", item.i, item.fresh, outcome="cancelled"))
    return advance(w, p, k)


def settle(w: World, p: Protocol, k: int, outcome: str) -> World:
    """`Turn._settle`: the outcome goes to the registrar, the turn goes on."""
    one = w.workers[k]
    if outcome == "retry" and one.attempt + 1 >= ATTEMPTS:  # record.give_up
        outcome = "failed"
    back = outcome not in ("sent", "unknown")
    w = with_worker(w, k, allowance=one.allowance + back, at="next", outcome="", draft=-1)
    return advance(submit(w, k, Item("record", one.i, number=one.number, outcome=outcome)), p, k)


def not_found(p: Protocol) -> str:
    """What 404 on a draft means: it is gone, sent or deleted, and nobody knows which."""
    return "unknown" if p.has("6 404 is unknown") else "retry"


# ── tend.py, sweep.py, pick.py ──────────────────────────────────────────────────────────────────────────────────────


def end_dead_turn(w: World, p: Protocol) -> World:
    """`tend.END_DEAD_TURNS`."""
    next_at = not_before(least(w.box.next_at, 0), w.box.parked)
    w = with_box(w, lease=None, dead=1, next_at=next_at)
    for i, m in enumerate(w.messages):
        if m.state == OVER and not p.has("9 own time"):
            w = write(w, i, state=QUEUED)
    return w


def overdue(w: World, i: int) -> bool:
    """The condition of `tend.MARK_UNKNOWN`."""
    return w.messages[i].state == OVER and w.messages[i].until <= SETTLE


def resendable(w: World, p: Protocol, i: int) -> bool:
    """The condition of `tend.RESEND`."""
    m = w.messages[i]
    if (m.attempt >= ATTEMPTS and p.has("12 attempts")) or (w.lookers and m.looked != "no_way"):
        return False
    return p.resend and m.state == UNKNOWN and m.until == 0 and not m.cancel_asked


def send_again(w: World, p: Protocol, i: int, licence: bool) -> World:
    """`tend.RESEND`, and `resolve.RESOLVE` with `resend`."""
    m = w.messages[i]
    if p.has("12 usage"):
        w = keep_in_usage(w, i)
    left = m.may_have_left or p.has("12 left")
    w = write(w, i, state=QUEUED, due=0, counts=0, until=0, may_have_left=left, prepares=0, cancel_asked=False,
              licences=m.licences + (licence and not p.drafts))  # fmt: skip
    return with_box(w, next_at=not_before(least(w.box.next_at, 0), w.box.parked)) if p.has("13 resend") else w


def asleep(w: World, p: Protocol) -> bool:
    """The condition of `sweep.SWEEP`."""
    due = not_before(earliest_due(w), w.box.parked)
    if w.box.paused or w.box.lease or due is None:
        return False
    return w.box.next_at is None or (w.box.next_at > due and p.has("16 later"))


def arm(w: World, due: int | None) -> World:
    """`pick.ARM`, and what the sweep writes."""
    return with_box(w, next_at=least(w.box.next_at, not_before(due, w.box.parked)))


# ── cancel.py, resolve.py, mailboxes.py ─────────────────────────────────────────────────────────────────────────────


def cancel(w: World, i: int) -> World:
    """`cancel.CANCEL` and its answer: a promise only where nothing may have left."""
    m = w.messages[i]
    if m.state != QUEUED:
        return write(w, i, cancel_asked=True)
    return write(w, i, state=CANCELLED, cancel_asked=True, promised=not m.may_have_left)


def resume(w: World, p: Protocol) -> World:
    """`mailboxes.resume`: active again, and armed in the same transaction."""
    w = with_box(w, paused=False)
    return arm(w, earliest_due(w)) if p.has("13 resume") else w


def resume_tag(w: World, p: Protocol, i: int) -> World:
    """`switches.resume` for a tag: what it held is armed in the same transaction."""
    w = ghost(w, i, held=False)
    return arm(w, earliest_due(w)) if p.has("13 switch") else w


def dies(w: World, k: int) -> World:
    """A process ends, and with it everything that it had not written."""
    one = w.workers[k]
    holds = {item.i for item in one.queue if item.kind in ("gate", "record")}
    holds |= {one.i} if one.at in ("gating", "gated", "looked", "waiting", "answered") else set()
    for i in sorted(holds - {-1}):
        w = ghost(w, i, cause=True, heard=w.messages[i].told)
    if w.pending is not None and w.pending.k == k:
        w = w._replace(pending=w.pending._replace(k=-1))
    return with_worker(forget_gates(w, k), k, **Worker()._asdict())


def too_late(one: Worker) -> bool:
    """`Deadline.passed` of `begin_by`."""
    return one.clock >= BEGIN


def does(w: World, p: Protocol, k: int, item: Item) -> bool:
    """Does this item's write find its row?"""
    if item.kind == "gate":
        return passes(w, p, k, item)
    if item.kind == "record":
        return takes(w, p, item)
    return item.kind == "end" or (item.fresh and w.messages[item.i].state == QUEUED)


def written(w: World, p: Protocol, turn: Pending, item: Item) -> World:
    """Write one item whose row was found, as it was meant `turn.age` ticks ago."""
    if item.kind == "gate":
        return gated(w, p, turn.k, item, turn.age)
    if item.kind == "record":
        return recorded(w, p, turn.mine, item, turn.age)
    return ended(w, p, turn.mine, item) if item.kind == "end" else refused(w, item)
