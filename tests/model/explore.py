"""Every state that can be reached, breadth first, and what must be true of each; a bad one comes with its trace.

The order is that of `steps`: no seed, the same run each time.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from model.looks import sees
from model.rules import Protocol, locks
from model.states import (
    ATTEMPTS,
    CANCELLED,
    ENDED,
    EXPIRED,
    FAILED,
    NEW,
    OVER,
    QUEUED,
    SENT,
    UNKNOWN,
    Box,
    Looker,
    Message,
    Worker,
    World,
)
from model.steps import steps


@dataclass(frozen=True)
class Scenario:
    """A mailbox with some messages, what may go wrong, and how often: a bound on faults, and one on the app's acts."""

    name: str
    messages: tuple[Message, ...] = (Message(),)
    faults: int = 1
    acts: int = 0
    quota: int | None = None
    resend: bool = False
    lookers: int = 0
    drafts: bool = False
    may_look: bool = True
    killers: frozenset[int] = frozenset()
    fault_kinds: frozenset[str] = frozenset()
    act_kinds: frozenset[str] = frozenset()

    def protocol(self, *out: str) -> Protocol:
        return Protocol(
            frozenset(out), self.quota, self.resend, self.drafts, self.may_look, self.killers, self.fault_kinds,
            self.act_kinds,
        )  # fmt: skip

    def start(self) -> World:
        queued = [m.due for m in self.messages if m.state == QUEUED]
        wake = min(queued) if queued else None
        who = (Worker(), Worker()), (Looker(),) * self.lookers
        return World(Box(), self.messages, *who, wake=wake, faults=self.faults, acts=self.acts)


@dataclass
class Explored:
    """What a search found."""

    scenario: str
    states: int = 0
    steps: int = 0
    seconds: float = 0.0
    broken: str = ""
    """The property that does not hold; empty if all do."""
    trace: list[str] = field(default_factory=list)
    named: dict[str, list[str]] = field(default_factory=dict)
    """The exceptions that DESIGN names, with the shortest trace to each."""

    def __str__(self) -> str:
        counted = f"{self.scenario}: {self.states:,} states, {self.steps:,} steps, {self.seconds:.1f} s"
        verdict = self.broken or "every property holds"
        return "\n".join([f"{counted}: {verdict}", *(f"  {line}" for line in self.trace)])


class Search:
    """One breadth first search. States are numbered in the order in which they are found."""

    def __init__(self, scenario: Scenario, *out: str) -> None:
        self.protocol = scenario.protocol(*out)
        self.result = Explored(scenario.name)
        self.known: list[World] = [scenario.start()]
        self.numbers = {self.known[0]: 0}
        self.before = [-1]
        self.how = ["start"]
        self.calm: list[int] = []
        """For each state, the one that the system's own next step leads to; itself where it has come to rest."""

    def run(self, most: int | None = None) -> Explored:
        started = time.monotonic()
        with _uncollected():
            self._search(most)
        if not self.result.broken and len(self.calm) == len(self.known):
            self._come_to_rest()
        self.result.states, self.result.seconds = len(self.known), time.monotonic() - started
        return self.result

    def _search(self, most: int | None) -> None:
        open_ = deque([0])
        while open_ and not self.result.broken and (most is None or len(self.known) < most):
            number = open_.popleft()
            rest = number
            for step in steps(self.known[number], self.protocol):
                self.result.steps += 1
                found = self.numbers.get(step.to)
                if found is None:
                    found = self._add(step.to, number, step.what)
                    open_.append(found)
                if step.free and rest == number:
                    rest = found
            self.calm.append(rest)

    def _add(self, world: World, before: int, how: str) -> int:
        if world.named:
            if world.named not in self.result.named:
                self.result.named[world.named] = [*self.trace(before), how]
            world = world._replace(named="")
            if world in self.numbers:
                return self.numbers[world]
        number = self.numbers[world] = len(self.known)
        self.known.append(world)
        self.before.append(before)
        self.how.append(how)
        broken = world.bad or broken_in(world, self.protocol)
        if broken and not self.result.broken:
            self.result.broken, self.result.trace = broken, [*self.trace(number), f"→ {shown(world)}"]
        return number

    def trace(self, number: int) -> list[str]:
        """The steps from the start to a state."""
        lines: list[str] = []
        while number > 0:
            lines.append(self.how[number])
            number = self.before[number]
        return lines[::-1]

    # ── never stuck ─────────────────────────────────────────────────────────────────────────────────────────────

    def _come_to_rest(self) -> None:
        """Follow the calm run from every state: with no more faults it must come to rest, and rest well."""
        verdict: dict[int, str] = {}
        for number in range(len(self.known)):
            path, at = [number], number
            while at not in verdict and self.calm[at] != at and self.calm[at] not in path[-60:]:
                at = self.calm[at]
                path.append(at)
            if at not in verdict:
                circles = self.calm[at] != at
                verdict[at] = "it goes in circles for ever" if circles else unrest(self.known[at], self.protocol)
            verdict.update(dict.fromkeys(path, verdict[at]))
            if verdict[number]:
                self.result.broken = verdict[number]
                self.result.trace = [*self.trace(number), "→ then nothing goes wrong any more", *self._on(number)]
                return

    def _on(self, number: int) -> Iterator[str]:
        seen: set[int] = set()
        while self.calm[number] != number and number not in seen:
            seen.add(number)
            number = self.calm[number]
        yield f"→ {shown(self.known[number])}"


@contextmanager
def _uncollected() -> Iterator[None]:
    """States hold no circles: looking for some among a hundred thousand costs a third of the search."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def broken_in(w: World, p: Protocol) -> str:
    """What may not be true of any state."""
    for i, m in enumerate(w.messages):
        if m.told and not (m.state == SENT or (m.state in (CANCELLED, EXPIRED) and m.ids)):
            return f"m{i}'s ids are known, and it is not sent"
        if m.state == SENT and not m.left and not m.decided:
            return f"m{i} is sent, though it never left"
        if m.state == FAILED and m.left and not m.may_have_left and not m.decided:
            return f"m{i} has failed, though it left"
        if p.resend and m.attempt > ATTEMPTS:
            return f"m{i} is sent again without end"
        if m.state == QUEUED and m.due == 0 and not m.held and forgotten(w, p):
            return f"m{i} is due and its mailbox is not armed, though no wake was lost"
    return ""


def forgotten(w: World, p: Protocol) -> bool:
    """A free mailbox that nobody will look at before the sweep does. The sweep is for lost wakes alone."""
    if w.wake_lost or w.wake is not None or w.box.paused or w.box.lease is not None or locks(w, p).box:
        return False
    return w.box.next_at is None or w.box.next_at > w.box.parked


def unrest(w: World, p: Protocol) -> str:
    """What is wrong with a state in which nothing happens any more."""
    for i, m in enumerate(w.messages):
        waits = m.state in (NEW, UNKNOWN) or (m.state == QUEUED and m.expires and (w.box.paused or m.due or m.held))
        if m.state not in ENDED and not waits:
            return f"m{i} is stuck in {'the queue' if m.state == QUEUED else 'its handover'}"
        if m.state == UNKNOWN and not m.cause:
            return f"m{i} is unknown, though its process lived and no answer of the provider was lost"
        if m.heard and not m.told:
            return f"an answer was heard that m{i} was taken, and is lost"
    if w.box.lease is not None:
        return "the lease is never free"
    return next((wrong for i in range(len(w.messages)) if (wrong := unseen(w, p, i))), "") if w.lookers else ""


def unseen(w: World, p: Protocol, i: int) -> str:
    """What a look would have told, and did not."""
    m = w.messages[i]
    if m.state == UNKNOWN and sees(w, p, i) in ("sent", "absent", "still_draft"):
        return f"m{i} is unknown, though a look would tell"
    if m.state == FAILED and m.taken and not m.decided and p.may_look:
        return f"m{i} has failed, though it was taken"
    known = m.draft >= 0 or m.prepares  # a draft that its worker's death left before any gate: docs/evidence.md
    if m.state in (CANCELLED, EXPIRED, FAILED) and known and "D" in m.drafts and not m.tidy and p.may_look:
        return f"m{i} has ended, and its draft lies there for ever"
    return ""


STATES = {"N": "not enqueued", QUEUED: "queued", OVER: "handing over", UNKNOWN: "unknown", "S": "sent", "F": "failed",
          "C": "cancelled", "X": "expired"}  # fmt: skip


def shown(w: World) -> str:
    """A state in one line."""
    messages = ", ".join(
        f"m{i} {STATES[m.state]} h{m.handover}" + (f", taken {m.taken}×" if m.taken else "")
        for i, m in enumerate(w.messages)
    )
    box = f"lease {w.box.lease}, next_at {w.box.next_at}, parked {w.box.parked}" + ", paused" * w.box.paused
    workers = ", ".join(f"w{k} {one.at}" + " (frozen)" * bool(one.frozen) for k, one in enumerate(w.workers))
    return f"{messages}; mailbox: {box}; {workers}"
