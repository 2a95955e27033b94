"""What the model remembers: one mailbox, its messages, two workers, who looks, and who holds what. All of it hashable.

Time is ticks that are counted down and stop at nought, so that states an hour and a year later are one state:

    LEASE 1      a lease that nobody renews is over after one tick
    BEGIN 2      the last tick in which the first byte that commits may be written
    HANDOVER 3   `handover_until`, from when on an open handover is unknown
    SETTLE 1     after it, what the provider has not taken it will not take
    WINDOW 5     what stands for 24 hours
    LAG 2        a mail taken at the last moment shows in Sent when its handover is settled, and not before

Versions and fences are only ever compared with what somebody read, so the model keeps the answers to that question
(`fresh`, `mine`) in place of numbers that rise for ever. Fields marked *ghost* exist for the properties alone: no rule
reads them.
"""

from __future__ import annotations

from typing import NamedTuple

LEASE, BEGIN, HANDOVER, SETTLE, WINDOW = 1, 2, 3, 1, 5
LAG = HANDOVER + SETTLE - (HANDOVER - 1)
OPEN = HANDOVER + SETTLE
"""Ticks from a gate until its handover is settled; `until` and `clock` count along it."""

FAR = 99
"""A time that the model never reaches: next month."""

ATTEMPTS, POISON = 2, 3
NEW, QUEUED, OVER, UNKNOWN, SENT, FAILED, CANCELLED, EXPIRED = "NQHUSFCX"
ENDED = frozenset((SENT, FAILED, CANCELLED, EXPIRED))


class Box(NamedTuple):
    """The mailbox's row."""

    paused: bool = False
    lease: int | None = None
    next_at: int | None = None
    parked: int = 0
    dead: int = 0


class Message(NamedTuple):
    """A message's row, and what is true of it beyond the row."""

    state: str = QUEUED
    due: int = 0
    attempt: int = 0
    prepares: int = 0
    handover: int = 0
    gater: int = -1
    """The worker whose present turn passed its gate: what `handover_fence` is compared for."""
    until: int = 0
    """Ticks until its handover is settled; at most SETTLE: past `handover_until`."""
    counts: int = 0
    """Ticks for which the ledger still counts it."""
    may_have_left: bool = False
    cancel_asked: bool = False
    suppressed: bool = False
    held: bool = False
    """A switch on its tag is off."""
    expires: int = FAR
    ids: bool = False
    draft: int = -1
    """The draft that is bound; -1: none."""
    looked: str = ""
    """What the last look at this handover showed."""
    tidy: bool = False
    """`draft_end`: its draft is needed no more, and somebody has seen to that."""
    drafts: str = ""
    """At the provider: its drafts, each (D)raft, in (T)ransport and still shown as one, (S)ent, or gone (X)."""
    copy: int = -1
    """At the provider: ticks until its copy shows among what was sent; -1: there is none."""
    taken: int = 0
    """Ghost: how often the provider took it, bytes frozen past the settling time left out (but never a draft's)."""
    left: bool = False
    """Ghost: the provider has it."""
    licences: int = 0
    """Ghost: times that it was sent again by policy, or by a decision that did not look first."""
    promised: bool = False
    """Ghost: an app was told *cancelled*."""
    heard: bool = False
    """Ghost: a process that lives has heard that it was taken."""
    told: bool = False
    """Ghost: that answer reached the database."""
    cause: bool = False
    """Ghost: its process died, or the provider's answer was lost: it may rightly be unknown."""
    decided: bool = False
    """Ghost: a person decided what became of it."""


class Item(NamedTuple):
    """What a turn asked its registrar to write: `gate`, `record`, `count`, `refuse` or `end`."""

    kind: str
    i: int = -1
    fresh: bool = True
    """The message still has the version that was read."""
    number: int = 0
    outcome: str = ""
    draft: int = -1
    """The draft that this gate is to bind; -1: none, or one is bound already."""
    park: int = 0
    doubt: int = 0
    """1: its COMMIT got no answer. 2: and it was not there when it was looked for."""
    seen: bool | None = None
    """What a statement that reads before it waits for the lock believes about pause and suppression."""
    saw: int | None = None
    """The earliest due time when the turn asked for its end."""


class Read(NamedTuple):
    """A due message as the turn read it."""

    i: int
    fresh: bool
    handover: int
    attempt: int
    prepares: int
    draft: int = -1


class Worker(NamedTuple):
    """A worker process: its turn (`at` a step), and the items that wait for its registrar."""

    at: str = "idle"
    frozen: int = 0
    """1: since this tick. 2: for longer; a freeze in which no time passes is none."""
    mine: bool = False
    """The mailbox still carries the fence of this turn."""
    suspect: bool = False
    todo: tuple[Read, ...] = ()
    allowance: int = 0
    i: int = -1
    number: int = 0
    attempt: int = 0
    draft: int = -1
    """The draft that it sends; -1: it sends no draft."""
    clock: int = 0
    """Ticks since the gate was submitted."""
    ttl: int = 0
    """Ticks that the provider may still take to decide."""
    late: int = 0
    """Ghost: its first byte left after the handover had settled: one more than the ticks that this still counts."""
    outcome: str = ""
    queue: tuple[Item, ...] = ()


class Usage(NamedTuple):
    """A row of `usage`."""

    i: int
    number: int
    counts: int


class Orphan(NamedTuple):
    """Bytes that reached the provider from a process that has died since."""

    i: int
    ttl: int
    late: int
    draft: int = -1


class Looker(NamedTuple):
    """Who looks for evidence. A look may take as long as it likes: time passes between its steps."""

    at: str = "idle"
    """`begun`: it has read the message. `seen`: the provider has shown something. `decided`, `committing`: writing."""
    i: int = -1
    state: str = ""
    handover: int = 0
    began: int = 0
    """When it began: 1 past the deadline of that handover, 2 past the settling time as well."""
    finding: str = ""
    verdict: str = ""


class Pending(NamedTuple):
    """A transaction whose COMMIT is still on its way: it holds its locks."""

    k: int
    mine: bool
    items: tuple[Item, ...]
    age: int = 0


class World(NamedTuple):
    """One state."""

    box: Box
    messages: tuple[Message, ...]
    workers: tuple[Worker, ...]
    lookers: tuple[Looker, ...] = ()
    usage: tuple[Usage, ...] = ()
    orphans: tuple[Orphan, ...] = ()
    pending: Pending | None = None
    wake: int | None = None
    faults: int = 0
    acts: int = 0
    window: tuple[int, ...] = ()
    """Ghost: for each mail that the provider took, the ticks for which it counts it."""
    wake_lost: bool = False
    """Ghost."""
    bad: str = ""
    """Ghost: which property a step has just broken."""
    named: str = ""
    """Ghost: the freeze that DESIGN names has just shown, and as what."""


class Step(NamedTuple):
    """What happens, the state after it, and whether it is the system's own progress."""

    what: str
    to: World
    free: bool = True


def bad_luck(w: World) -> World:
    return w._replace(faults=w.faults - 1)


def with_box(w: World, **changes: object) -> World:
    return w._replace(box=w.box._replace(**changes))  # type: ignore[arg-type]


def with_worker(w: World, k: int, **changes: object) -> World:
    one = w.workers[k]._replace(**changes)  # type: ignore[arg-type]
    return w._replace(workers=(*w.workers[:k], one, *w.workers[k + 1 :]))


def with_looker(w: World, n: int, looker: Looker) -> World:
    return w._replace(lookers=(*w.lookers[:n], looker, *w.lookers[n + 1 :]))


def ghost(w: World, i: int, **changes: object) -> World:
    """Change what is true of a message without raising its row's version."""
    one = w.messages[i]._replace(**changes)  # type: ignore[arg-type]
    return w._replace(messages=(*w.messages[:i], one, *w.messages[i + 1 :]))


def write(w: World, i: int, **changes: object) -> World:
    """Write a message's row: its version rises, so whoever read it before is no longer fresh."""
    workers = tuple(_stale(one, i) if one.todo or one.queue else one for one in w.workers)
    if changes.get("state") in ENDED:  # what no rule asks of an ended message must not tell states apart
        changes |= {"due": 0, "attempt": 0, "until": 0, "expires": FAR, "held": False, "cause": False, "looked": ""}
        changes["prepares"] = min(1, w.messages[i].prepares)
    elif "state" in changes and w.messages[i].state in ENDED:
        w = w._replace(bad=f"m{i} had ended, and came back")
    return ghost(w._replace(workers=workers), i, **changes)


def _stale(one: Worker, i: int) -> Worker:
    todo = tuple(read._replace(fresh=False) if read.i == i else read for read in one.todo)
    queue = tuple(item._replace(fresh=False) if item.i == i else item for item in one.queue)
    return one._replace(todo=todo, queue=queue)


def earliest_due(w: World) -> int | None:
    """`outtray.earliest_due`."""
    return min((m.due for m in w.messages if m.state == QUEUED and not m.held), default=None)


def not_before(at: int | None, bound: int) -> int | None:
    """`outtray.not_before`."""
    return None if at is None else max(at, bound)


def least(*times: int | None) -> int | None:
    """SQL's `least`: NULLs are left out."""
    return min((time for time in times if time is not None), default=None)


def ledger(w: World) -> list[int]:
    """Ticks for which each handover still counts, longest first: `outtray_schema.ledger`."""
    counts = [m.counts for m in w.messages if m.counts] + [row.counts for row in w.usage if row.counts]
    return sorted(counts, reverse=True)
