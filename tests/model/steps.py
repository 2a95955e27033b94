"""Who may do what next: the workers, their registrars, the provider, the dispatcher, the app, time, and bad luck.

A step that is `free` is the system's own progress; the others are somebody's wish or a fault, and are bounded.
Time passes only while no living worker has anything to do; one that is frozen has nothing to do for as long as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from model import looks, rules
from model.rules import Protocol, locks
from model.states import (
    EXPIRED,
    FAILED,
    FAR,
    HANDOVER,
    LAG,
    LEASE,
    NEW,
    OPEN,
    OVER,
    QUEUED,
    SENT,
    UNKNOWN,
    WINDOW,
    Item,
    Orphan,
    Pending,
    Step,
    Worker,
    World,
    bad_luck,
    earliest_due,
    ghost,
    with_box,
    with_worker,
    write,
)


def steps(w: World, p: Protocol) -> list[Step]:
    """Everything that can happen now; the system's own progress in the order in which a calm run takes it."""
    working = [step for k in range(len(w.workers)) for step in worker_steps(w, p, k)]
    busy = any(step.free for step in working)
    found = [*working, *provider_steps(w, p), *late_commits(w, p), *thaws(w), *dispatcher_steps(w, p)]
    found += looks.look_steps(w, p)
    found += [step for k in range(len(w.workers)) for step in claims(w, p, k)]
    if w.faults:
        found += faults(w, p)
    if w.acts:
        found += acts(w, p)
    found += enqueues(w, p)
    if not busy and not _provider_must_decide(w):
        found.append(Step("time passes", tick(w, p)))
    return [step for step in found if step.to != w]


# ── workers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def worker_steps(w: World, p: Protocol, k: int) -> Iterator[Step]:
    one = w.workers[k]
    if one.frozen or one.at == "idle":
        return
    yield from turn_steps(w, p, k)
    if one.queue:
        yield from registrar_steps(w, p, k)
    if one.mine and one.at != "hung" and w.box.lease == 0 and not locks(w, p).box:
        yield Step(f"w{k} renews its lease", with_box(w, lease=LEASE))


def turn_steps(w: World, p: Protocol, k: int) -> Iterator[Step]:
    one = w.workers[k]
    if one.at == "claimed":
        yield Step(f"w{k} reads what is due", rules.advance(rules.read(w, p, k), p, k))
    elif one.at == "preparing":
        yield Step(f"w{k} is killed by the message that it prepares", rules.dies(w, k))
    elif one.at == "gated":
        yield look(w, p, k)
    elif one.at == "looked":
        in_time = one.clock < (HANDOVER if w.lookers else OPEN)  # its copy may take the settling time to show
        late = 0 if in_time or not one.late else 1 + max(0, HANDOVER + WINDOW - one.clock)
        ttl = max(0, HANDOVER - 1 - one.clock)
        yield Step(f"w{k} writes the byte that commits", with_worker(w, k, at="waiting", ttl=ttl, late=late))
    elif one.at == "answered":
        yield from hear(w, p, k)


def look(w: World, p: Protocol, k: int) -> Step:
    """`Prepared.hand_over`: the last look at the clock. `late` says meanwhile that it was in time."""
    if not p.has("5 before"):
        w = with_worker(w, k, clock=0)
    one = w.workers[k]
    if rules.too_late(one) and p.has("5 look"):
        return Step(f"w{k} looks: too late to begin", rules.settle(w, p, k, "not begun"))
    return Step(f"w{k} looks: in time", with_worker(w, k, at="looked", late=int(not rules.too_late(one))))


def hear(w: World, p: Protocol, k: int) -> Iterator[Step]:
    one = w.workers[k]
    if one.outcome == "sent":
        heard = ghost(w, one.i, heard=True)
        yield Step(f"w{k} hears: taken", rules.settle(heard, p, k, "sent"))
    else:
        yield Step(f"w{k} hears: {one.outcome}", rules.settle(w, p, k, one.outcome))
    if one.clock >= HANDOVER and one.outcome == "sent":
        lost = ghost(w, one.i, cause=True)
        yield Step(f"w{k} no longer waits for its answer", rules.settle(lost, p, k, "unknown"))


# ── registrar.py ────────────────────────────────────────────────────────────────────────────────────────────────────


def registrar_steps(w: World, p: Protocol, k: int) -> Iterator[Step]:
    queue = w.workers[k].queue
    late = next((item for item in queue if item.kind == "gate" and not item.doubt), None)
    if late and rules.too_late(w.workers[k]):  # Registrar._drop_late_gates
        yield Step(f"w{k}: too late for its gate", rules.stopped(without(w, k, late), p, k, late, True))
    elif any(item.doubt == 1 for item in queue):
        yield Step(f"w{k} reads its doubtful gate back", settle_doubts(w, p, k))
    elif not p.has("10 snapshot") and any(item.kind == "gate" and item.seen is None for item in queue):
        seen = tuple(i._replace(seen=rules.stops(w, i.i)) if i.kind == "gate" else i for i in queue)
        yield Step(f"w{k} reads pause and suppression", with_worker(w, k, queue=seen))
    else:
        for most in sorted({1, len(queue)}):
            yield from commits(w, p, k, queue[:most])


def without(w: World, k: int, item: Item) -> World:
    return with_worker(w, k, queue=tuple(other for other in w.workers[k].queue if other is not item))


def settle_doubts(w: World, p: Protocol, k: int) -> World:
    """`Registrar._settle_doubts`."""
    gate = next((item for item in w.workers[k].queue if item.kind == "gate"), None)
    if gate and p.has("10 back") and rules.read_back(w, p, k, gate):
        w = rules.passed(without(w, k, gate), p, k, gate.number)
    queue = tuple(item._replace(doubt=2 if item.doubt else 0) for item in w.workers[k].queue)
    return with_worker(w, k, queue=queue)


def commits(w: World, p: Protocol, k: int, group: tuple[Item, ...]) -> Iterator[Step]:
    """`Registrar._commit`, with each fate that its COMMIT can have."""
    if blocked(w, p, group):
        return
    names = ", ".join(name(item) for item in group)
    done, answers = write_group(w, p, k, group)
    yield Step(f"w{k} commits {names}", answer(done, p, k, group, answers))
    if not w.faults:
        return
    if "not written" in p.faults:
        yield Step(f"w{k}'s COMMIT of {names} never arrives", doubt(bad_luck(w), p, k, len(group)), False)
    if "answer lost" in p.faults and any(answers):
        yield Step(f"w{k}'s COMMIT of {names}: the answer is lost", doubt(bad_luck(done), p, k, len(group)), False)
    if "written late" in p.faults and w.pending is None and any(answers):
        took = tuple(item for item, did in zip(group, answers, strict=True) if did)
        waits = bad_luck(w)._replace(pending=Pending(k, w.workers[k].mine, took))
        yield Step(f"w{k}'s COMMIT of {names} is on its way", doubt(waits, p, k, len(group)), False)


def name(item: Item) -> str:
    what = "its end" if item.kind == "end" else f"{item.kind} of m{item.i}"
    return what + (f" h{item.number}" if item.number else "") + (f": {item.outcome}" if item.outcome else "")


def blocked(w: World, p: Protocol, group: tuple[Item, ...]) -> bool:
    held = locks(w, p)
    needs_box = any(i.kind in ("gate", "end") or i.outcome in ("retry", "not begun") for i in group)
    return (held.box and needs_box) or any(item.i in held.messages for item in group)


def write_group(w: World, p: Protocol, k: int, group: tuple[Item, ...]) -> tuple[World, list[bool]]:
    """`group.write_group`: which items found their row, and the state once they are written."""
    found = [rules.does(w, p, k, item) for item in group]
    turn = Pending(k, w.workers[k].mine, group)
    for item, did in zip(group, found, strict=True):
        if did and item.kind == "gate" and rules.stops(w, item.i):
            w = w._replace(bad="a gate passed what was paused or suppressed")
        w = rules.written(w, p, turn, item) if did else w
    return w, found


def doubt(w: World, p: Protocol, k: int, most: int) -> World:
    """`Registrar._after_outage`: what has no answer stays in the queue, in its order."""
    queue = w.workers[k].queue
    kept = [item._replace(doubt=1) for item in queue[:most] if item.kind != "record" or p.has("7 wait")]
    return with_worker(w, k, queue=(*kept, *queue[most:]))


def answer(w: World, p: Protocol, k: int, group: tuple[Item, ...], answers: list[bool]) -> World:
    """`Registrar._answer`."""
    w = with_worker(w, k, queue=w.workers[k].queue[len(group) :])
    for item, did in zip(group, answers, strict=True):
        if item.kind == "gate":
            w = answer_gate(w, p, k, item, did)
        elif item.kind == "record" and not did:
            w = rules.record_late(w, p, item)
        elif item.kind == "count":
            w = rules.prepare(w, p, k, item.i, True, item.number, item.draft) if did else rules.advance(w, p, k)
        elif item.kind == "end":
            w = with_worker(rules.forget_gates(w, k), k, **Worker()._asdict())
    return w


def answer_gate(w: World, p: Protocol, k: int, gate: Item, did: bool) -> World:
    """`Registrar._answer` and `_explain` for a gate."""
    if did:
        return rules.passed(w, p, k, w.messages[gate.i].handover)
    if p.has("10 back") and p.has("10 again") and rules.read_back(w, p, k, gate):
        return rules.passed(w, p, k, gate.number)
    return rules.stopped(w, p, k, gate, over=not rules.open_for(w, p, k))


def late_commits(w: World, p: Protocol) -> Iterator[Step]:
    if w.pending is None:
        return
    turn, w = w.pending, w._replace(pending=None)
    after = w
    for item in turn.items:
        after = rules.written(after, p, turn, item)
    yield Step("the late COMMIT arrives", after)
    yield Step("the late COMMIT never arrives", w)


# ── claims ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def claims(w: World, p: Protocol, k: int) -> Iterator[Step]:
    """Rounds are hints: any idle worker may come with any of them at any time, and the claim decides."""
    one, held = w.workers[k], locks(w, p).box
    first = all(other.at != "idle" for other in w.workers[:k])  # workers are alike: the first idle one will do
    if one.frozen or one.at not in ("idle", "saw free", "has read") or (one.at == "idle" and not first):
        return
    if one.at == "saw free":
        if not held:
            yield Step(f"w{k} claims what it saw free", rules.claim(w, k))
    elif one.at == "has read":
        if not held:
            yield Step(f"w{k} claims after it has read", _claim_after_reading(w, p, k))
    elif rules.claimable(w):
        if not p.has("3 row"):
            yield Step(f"w{k} sees the mailbox free", with_worker(w, k, at="saw free"))
        elif not p.has("3 snapshot"):
            yield Step(f"w{k} reads what is due", with_worker(rules.read(w, p, k), k, at="has read"))
        elif not held:
            yield Step(f"w{k} claims", rules.claim(w, k))


def _claim_after_reading(w: World, p: Protocol, k: int) -> World:
    if not rules.claimable(w):
        return with_worker(w, k, **Worker()._asdict())
    return rules.advance(rules.claim(w, k), p, k)


# ── the provider ────────────────────────────────────────────────────────────────────────────────────────────────────


def provider_steps(w: World, p: Protocol) -> Iterator[Step]:
    """It takes the mail at once or later, or refuses; its answer arrives or is lost. A dead sender hears nothing."""
    for k, one in enumerate(w.workers):
        if one.at != "waiting":
            continue
        if is_gone(w, one):
            yield Step(f"the provider knows no draft {one.draft} of m{one.i}", decided(w, k, rules.not_found(p)))
            continue
        yield Step(f"the provider takes m{one.i}", decided(take(w, p, one), k, "sent"))
        if w.faults:
            yield from unlucky_answers(bad_luck(w), p, k)
    for orphan in w.orphans:
        rest = w._replace(orphans=tuple(other for other in w.orphans if other is not orphan))
        if not is_gone(w, orphan):
            yield Step(f"the provider takes m{orphan.i}, whose sender is dead", take(rest, p, orphan))
        yield Step(f"the provider does not take m{orphan.i}, whose sender is dead", rest)


def unlucky_answers(w: World, p: Protocol, k: int) -> Iterator[Step]:
    i = w.workers[k].i
    if "refuse" in p.faults:
        yield Step(f"the provider refuses m{i}", decided(w, k, "retry"), False)
    if "drop" in p.faults:
        lost = ghost(w, i, cause=True)
        yield Step(
            f"the provider takes m{i}, its answer is lost", decided(take(lost, p, w.workers[k]), k, "unknown"), False
        )
        yield Step(f"the provider does not take m{i}, its answer is lost", decided(lost, k, "unknown"), False)


def decided(w: World, k: int, outcome: str) -> World:
    return with_worker(w, k, at="answered", outcome=outcome, ttl=0)


def is_gone(w: World, bytes_: Worker | Orphan) -> bool:
    """A draft is consumed once: is the one that is to be sent no draft any more?"""
    return bytes_.draft >= 0 and w.messages[bytes_.i].drafts[bytes_.draft] != "D"


def take(w: World, p: Protocol, bytes_: Worker | Orphan) -> World:
    """The provider's own account, and with it the properties *never twice*, *never over* and *cancel true*.

    Bytes that were frozen past the settling time may send twice where no draft is sent. They may exceed the count only
    once the handover itself would no longer count (for 24 h from its deadline, rule 14).
    """
    i, m, late = bytes_.i, w.messages[bytes_.i], bytes_.late
    if m.promised:
        return w._replace(bad="the app was told cancelled, and it left")
    w, promised = filed(w, i, bytes_.draft), late - 1 if late else WINDOW
    again = m.taken > m.licences
    if again and late and bytes_.draft < 0:
        w = w._replace(named="twice")
    elif again:
        w = w._replace(bad="taken twice")
    if p.quota is not None and len(w.window) >= p.quota and promised:
        w = w._replace(bad=w.bad or "more than its quota in the window")
    elif p.quota is not None and len(w.window) >= p.quota:
        w = w._replace(named=w.named or "over")
    w = ghost(w, i, taken=m.taken + (not late or bytes_.draft >= 0), left=True)
    return w._replace(window=tuple(sorted((*w.window, promised)))) if p.quota is not None and promised else w


def filed(w: World, i: int, draft: int) -> World:
    """Its copy shows among what was sent as late as may be; until then a draft still looks like one."""
    if not w.lookers and draft < 0:
        return w
    m = w.messages[i]
    drafts = looks.gone(m.drafts, draft, "T") if draft >= 0 else m.drafts
    return ghost(w, i, drafts=drafts, copy=m.copy if m.copy >= 0 else LAG)


def _provider_must_decide(w: World) -> bool:
    return any(one.at == "waiting" and one.ttl == 0 for one in w.workers) or any(o.ttl == 0 for o in w.orphans)


# ── dispatcher ──────────────────────────────────────────────────────────────────────────────────────────────────────


def dispatcher_steps(w: World, p: Protocol) -> Iterator[Step]:
    held = locks(w, p)
    if w.wake is not None and not held.box:
        yield Step("the dispatcher arms the mailbox", rules.arm(w, w.wake)._replace(wake=None))
    if w.box.lease == 0 and not held.box and p.has("9 dead turns"):
        yield Step("the dispatcher ends the dead turn", rules.end_dead_turn(w, p))
    for i, m in enumerate(w.messages):
        if i in held.messages:
            continue
        if rules.overdue(w, i) and p.has("9 overdue"):
            yield Step(f"the dispatcher marks m{i} unknown", write(w, i, state=UNKNOWN))
        if m.state == QUEUED and m.expires == 0 and p.has("13 expire"):
            yield Step(f"the dispatcher ends m{i}: expired", write(w, i, state=EXPIRED))
        if rules.resendable(w, p, i) and not held.box:
            yield Step(f"the dispatcher sends m{i} again by policy", rules.send_again(w, p, i, True))
    if p.has("16 sweep") and not held.box and rules.asleep(w, p):
        yield Step("the sweep finds the mailbox asleep", rules.arm(w, earliest_due(w)))


# ── the app ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def acts(w: World, p: Protocol) -> Iterator[Step]:
    held, after = locks(w, p), w._replace(acts=w.acts - 1)
    if "pause" in p.acts and not held.box:
        yield Step("the app pauses the mailbox", with_box(after, paused=True), False)
        if w.box.paused:
            yield Step("the app resumes the mailbox", rules.resume(after, p), False)
    for i, m in enumerate(w.messages):
        if "tag" in p.acts and m.held and not held.box:
            yield Step(f"the app resumes m{i}'s tag", rules.resume_tag(after, p, i), False)
        elif "tag" in p.acts and m.state == QUEUED:
            yield Step(f"the app pauses m{i}'s tag", ghost(after, i, held=True), False)
        if "suppress" in p.acts:
            yield Step(f"the app suppresses m{i}'s recipient", ghost(after, i, suppressed=True), False)
        if i in held.messages:
            continue
        if "meddle" in p.acts:
            yield from meddling(after, i)
        if "cancel" in p.acts and m.state in (QUEUED, OVER, UNKNOWN) and not m.cancel_asked:
            yield Step(f"the app cancels m{i}", rules.cancel(after, i), False)
        if m.state == UNKNOWN and not held.box:
            yield from decisions(after, p, i)


def meddling(w: World, i: int) -> Iterator[Step]:
    """The mailbox's person deletes or sends the bound draft, which they see among their own."""
    m = w.messages[i]
    if m.draft >= 0 and m.drafts[m.draft] == "D":
        deleted = ghost(w, i, drafts=looks.gone(m.drafts, m.draft), cause=True)
        yield Step(f"the person deletes the draft of m{i}", deleted, False)
        sent = ghost(filed(w, i, m.draft), i, taken=m.taken + 1, left=True, cause=True)
        yield Step(f"the person sends the draft of m{i}", sent, False)


def decisions(w: World, p: Protocol, i: int) -> Iterator[Step]:
    """`resolve.resolve`. Who has looked first, once all has settled, needs no licence to send it again."""
    m = w.messages[i]
    if "resend" in p.acts:
        yield Step(f"somebody decides to send m{i} again, unseen", rules.send_again(w, p, i, True), False)
    if "look" in p.acts and m.until == 0 and not m.left:
        yield Step(f"somebody sees that m{i} never left and sends it again", rules.send_again(w, p, i, False), False)
    if "decide" in p.acts:
        sent, failed = (write(w, i, state=state, may_have_left=True, decided=True) for state in (SENT, FAILED))
        yield Step(f"somebody decides that m{i} was sent", sent, False)
        yield Step(f"somebody gives m{i} up", failed, False)


def enqueues(w: World, p: Protocol) -> Iterator[Step]:
    for i, m in enumerate(w.messages):
        if m.state == NEW and all(other.state != NEW for other in w.messages[:i]):
            stored = write(w, i, state=QUEUED)
            wake = m.due if w.wake is None else min(w.wake, m.due)
            yield Step(f"the app enqueues m{i}", stored._replace(wake=wake), False)
            if w.faults and "wake" in p.faults:
                lost = bad_luck(stored)._replace(wake_lost=True)
                yield Step(f"the app enqueues m{i}, its wake is lost", lost, False)


# ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def faults(w: World, p: Protocol) -> Iterator[Step]:
    after = bad_luck(w)
    for k, one in enumerate(w.workers):
        if one.at in ("idle", "hung"):
            continue
        if "crash" in p.faults:
            yield Step(f"w{k} dies", crash(after, k), False)
        if "freeze" in p.faults and not one.frozen:
            yield Step(f"w{k} freezes", with_worker(after, k, frozen=1), False)
        if "hang" in p.faults and one.at == "gating" and not any(item.doubt for item in one.queue):
            rest = tuple(item for item in one.queue if item.kind != "gate")
            yield Step(f"w{k} hangs in preparation", with_worker(after, k, at="hung", queue=rest, i=-1), False)
    if "wake" in p.faults and w.wake is not None:
        yield Step("Redis is flushed", after._replace(wake=None, wake_lost=True), False)


def crash(w: World, k: int) -> World:
    one = w.workers[k]
    if one.at == "waiting":
        w = w._replace(orphans=(*w.orphans, Orphan(one.i, one.ttl, one.late, one.draft)))
    return rules.dies(w, k)


def thaws(w: World) -> Iterator[Step]:
    for k, one in enumerate(w.workers):
        if one.frozen == 2:
            yield Step(f"w{k} thaws", with_worker(w, k, frozen=0))


# ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def down(ticks: int) -> int:
    return ticks - 1 if 0 < ticks < FAR else ticks


def tick(w: World, p: Protocol) -> World:
    box, pending = w.box, w.pending
    lease = box.lease if box.lease is None or renewed(w, p) else down(box.lease)
    next_at = box.next_at if box.next_at is None else down(box.next_at)
    messages = tuple(
        m._replace(due=down(m.due), until=down(m.until), counts=down(m.counts), expires=down(m.expires),
                   copy=down(m.copy), drafts=m.drafts.replace("T", "S") if m.copy <= 1 else m.drafts)
        for m in w.messages
    )  # fmt: skip
    usage = (row._replace(counts=row.counts - 1) for row in w.usage)
    return w._replace(
        box=box._replace(lease=lease, next_at=next_at, parked=down(box.parked)),
        messages=messages,
        workers=tuple(_aged(one, p) for one in w.workers),
        usage=tuple(row for row in usage if row.counts),
        orphans=tuple(orphan._replace(ttl=orphan.ttl - 1) for orphan in w.orphans),
        pending=pending and pending._replace(age=min(OPEN, pending.age + 1)),
        window=tuple(left - 1 for left in w.window if left > 1),
    )


def renewed(w: World, p: Protocol) -> bool:
    """`Leases.renew`: living processes renew the leases of their turns, a hung one's up to a bound.

    Time passes only where a living registrar has nothing that it can write: what waits in its queue is blocked.
    """
    if locks(w, p).box or not w.box.lease:
        return False
    return any(
        one.mine and one.at != "idle" and not one.queue and not one.frozen and (one.at != "hung" or not p.has("9 cap"))
        for one in w.workers
    )


def _aged(one: Worker, p: Protocol) -> Worker:
    stands = one.frozen and not p.has("5 boottime")
    clocked = one.at in ("gating", "gated", "looked", "waiting", "answered")
    longest = OPEN if p.quota is None else HANDOVER + WINDOW
    clock = min(longest, one.clock + 1) if clocked and not stands else one.clock
    return one._replace(clock=clock, ttl=down(one.ttl), frozen=2 if one.frozen else 0)
