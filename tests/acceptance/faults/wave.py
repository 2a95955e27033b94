"""A wave: many cells at once, each with a message and a mailbox of its own, from enqueue to verdict.

Their due times are spread, so that a process that dies takes few of the others with it. What is judged holds for every
message, whatever befell it: taken once at most, `sent` only if taken, nothing stuck, no lease held, no quota exceeded,
`unknown` only where nobody can look and only for what a fault has really left open.
"""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import accumulate
from uuid import UUID

import psycopg

from acceptance.faults.matrix import ANSWERS, BLIND, BY_NAME, ROUTES, Cell, by_route, cells, may_be_unknown
from acceptance.faults.strikes import STAGES, Strike, smtp_rule, web_rule
from acceptance.faults.town import Box, Town
from outtray import Message

ONE_BY_ONE = frozenset({"enqueuing", "enqueued", "woken"})
"""Steps that the messages of one transaction would all reach at once."""
LIMIT, SURPLUS = 3, 2
"""Messages that a mailbox of the quota's judge may send in a day, and how many more it has."""
PATIENCE = 6.0
"""How much longer than it should take a message may take before it counts as stuck: the machine may be a busy one."""

STATES = """
SELECT m.id, m.state, m.reason, m.looked->>'finding', m.look_at IS NULL,
    coalesce(b.parked_reason, b.status_reason), m.looks, m.look_at - outtray.outtray_now(), m.looked
FROM outtray.message m JOIN outtray.mailbox b ON b.id = m.mailbox_id
WHERE m.id = ANY(%s) AND m.state NOT IN ('sent', 'failed', 'cancelled', 'expired')
"""
ENDS = "SELECT id, state, reason FROM outtray.message WHERE id = ANY(%s)"
EXPOSED = """
SELECT m.id FROM outtray.message m JOIN judge.claim c ON c.mailbox_id = m.mailbox_id AND c.fence = m.handover_fence
WHERE m.state = 'unknown' AND c.worker = ANY(%s)
"""
HELD = "SELECT count(*) FROM outtray.mailbox WHERE turn_until IS NOT NULL"
JOURNAL = "SELECT kind FROM outtray.journal WHERE message_id = %s ORDER BY id"
BY_TO = "SELECT id FROM outtray.message WHERE mailbox_id = %s ORDER BY id DESC LIMIT 1"


@dataclass
class Letter:
    """One message of a wave."""

    id: UUID
    box: Box
    to: str
    cell: Cell | None = None
    strike: Strike | None = None


@dataclass
class Tally:
    """What many waves came to."""

    aimed: Counter[Cell] = field(default_factory=Counter)
    fell: Counter[Cell] = field(default_factory=Counter)
    beside: Counter[str] = field(default_factory=Counter)
    """By fault: messages whose handover was open in the same process as the one that a signal was aimed at."""
    unknown: Counter[Cell] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    waves: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def faulted(self) -> int:
        """Messages that a fault befell in a step of theirs: those aimed at, and those under way beside them."""
        return sum(self.fell.values()) + sum(self.beside.values())

    def missed(self, cells: Iterable[Cell]) -> list[Cell]:
        """Cells whose fault never really fell."""
        return [cell for cell in cells if not self.fell[cell]]


@dataclass
class Wave:
    """Run it once."""

    town: Town
    cells: Sequence[Cell]
    chance: random.Random
    tally: Tally
    beside: int = 0
    """Further messages at which nothing is aimed."""
    lasting: float = 0.0
    """Seconds over which those are spread where there are no cells."""
    limits: bool = True
    """Whether there are mailboxes with a limit among them."""
    pace: float = 1.0
    """The due times of two cells are a tenth of a second apart; behind one that costs a process, `pace` seconds."""
    letters: list[Letter] = field(default_factory=list)
    tight: list[Box] = field(default_factory=list)
    """Mailboxes with a limit, and more messages than that."""

    def run(self) -> None:
        self.enqueue()
        self.wait()
        self.judge()

    # ── enqueue ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _free_boxes(self) -> dict[str, list[Box]]:
        free: dict[str, list[Box]] = defaultdict(list)
        for box in self.town.boxes:
            if box.limit is None:
                free[box.route].append(box)
        for boxes in free.values():
            self.chance.shuffle(boxes)
        return free

    def _box_for(self, cell: Cell, free: dict[str, list[Box]]) -> Box:
        """One that no other cell of this wave has. A token is asked for by a new mailbox."""
        if cell.step.startswith("token") or not free[cell.route]:
            return self.town.add_box(cell.route)
        return free[cell.route].pop()

    def enqueue(self) -> None:
        """All in one transaction: every aim stands before anybody can see its message."""
        free = self._free_boxes()
        order = list(self.cells)
        self.chance.shuffle(order)
        planned = [(cell, self._box_for(cell, free)) for cell in order]
        others = [self._other(free) for _ in range(self.beside)]
        planned += self._tight_ones() if self.limits else []
        others += [box for box in self.tight for _ in range(SURPLUS)]
        self.chance.shuffle(others)
        start = datetime.now(UTC)
        dues = list(accumulate((self._pause(cell) for cell, _ in planned), initial=0.5))
        with (
            psycopg.connect(str(self.town.settings.database_url)) as connection,
            self.town.client.transaction(connection),
        ):
            for n, (cell, box) in enumerate(planned):
                due = start + timedelta(seconds=dues[n])
                if cell.step not in ONE_BY_ONE:
                    self.letters.append(self._letter(connection, box, due, cell))
            for n, box in enumerate(others):
                due = start + timedelta(seconds=(dues[-1] + self.lasting) * n / len(others))
                self.letters.append(self._letter(connection, box, due))
            for letter in self.letters:
                self._aim(letter)
        for cell, box in planned:
            if BY_NAME[cell.step].role == "crm":
                self.letters.append(self._by_an_app(cell, box))
            elif cell.step in ONE_BY_ONE:
                self.letters.append(self._alone(cell, box))
                time.sleep(self._pause(cell))

    def _tight_ones(self) -> list[tuple[Cell, Box]]:
        """A new mailbox with a limit on each route, with as many faults aimed at its messages as it may send."""
        planned = []
        for route, there in by_route(cells()):
            simple = [cell for cell in there if _is_simple(cell)]
            box = self.town.add_box(route, LIMIT)
            self.tight.append(box)
            planned += [(self.chance.choice(simple), box) for _ in range(LIMIT)]
        return planned

    def _pause(self, cell: Cell) -> float:
        return self.pace if cell.fault == "kill" and BY_NAME[cell.step].role != "crm" else 0.1

    def _other(self, free: dict[str, list[Box]]) -> Box:
        """A mailbox at which nothing is aimed: what a server does to a mailbox must not befall another message."""
        route = self.chance.choice(ROUTES)
        if not free[route]:
            free[route].append(self.town.add_box(route))
        return self.chance.choice(free[route])

    def _letter(self, connection: psycopg.Connection, box: Box, due: datetime, cell: Cell | None = None) -> Letter:
        to = self._recipient()
        message = Message(mailbox=box.id, to=to, subject="s", text="t", send_at=due)
        accepted = self.town.client.enqueue(message, connection=connection)
        self.tally.messages += 1
        return Letter(accepted.id, box, to, cell)

    def _recipient(self) -> str:
        return f"to{self.chance.getrandbits(64):x}@example.net"

    def _aim(self, letter: Letter) -> None:
        cell = letter.cell
        if cell is None:
            return
        step = BY_NAME[cell.step]
        target = letter.box.id if step.by_mailbox else letter.id
        letter.strike = Strike(self.town, cell, letter.box, target)
        if step.looks:
            self._lose_the_answer(letter.box)
        letter.strike.aim()
        self.tally.aimed[cell] += 1

    def _lose_the_answer(self, box: Box) -> None:
        """Its first handover gets no answer: taken or not, as chance will have it."""
        stage, user = STAGES["first byte", box.route], f"^{box.address}$"
        fault = self.chance.choice(("reset", "answer lost"))
        if box.route.startswith("smtp"):
            smtp_rule(
                self.town.filed if box.route == "smtp readable" else self.town.blind, fault, 0.0, stage=stage, user=user
            )
        else:
            web_rule(
                self.town.google if box.route.startswith("gmail") else self.town.microsoft,
                fault,
                0.0,
                stage=stage,
                user=user,
            )

    def _alone(self, cell: Cell, box: Box) -> Letter:
        """A message whose wake no other one shares."""
        strike = self._struck(cell, box)
        to = self._recipient()
        accepted = self.town.client.enqueue(Message(mailbox=box.id, to=to, subject="s", text="t"))
        return Letter(accepted.id, box, to, cell, strike)

    def _struck(self, cell: Cell, box: Box) -> Strike:
        strike = Strike(self.town, cell, box, box.id)
        strike.aim()
        self.tally.aimed[cell] += 1
        self.tally.messages += 1
        return strike

    def _by_an_app(self, cell: Cell, box: Box) -> Letter:
        """A process enqueues; if it dies of it, the app starts anew and asks again with the same key."""
        to, key = self._recipient(), f"{self.chance.getrandbits(64):x}"
        strike = self._struck(cell, box)
        member = self.town.bear("crm", str(box.id), to, key, wanted=False)
        assert member.ended.wait(60), "the app's process has not ended"
        if member.pid in self.town.killed:
            again = self.town.bear("crm", str(box.id), to, key, wanted=False)
            assert again.ended.wait(60), "the app's second process has not ended"
        ((message_id,),) = self.town.rows(BY_TO, box.id)
        return Letter(message_id, box, to, cell, strike)

    # ── until it is over ────────────────────────────────────────────────────────────────────────────────────────

    def wait(self) -> None:
        """Until everything has come to its end, or is known to be stuck."""
        longest = self.lasting + sum(self._pause(cell) for cell in self.cells) + PATIENCE * self.town.times.settled
        until = time.monotonic() + longest
        while ((open_now := self._open()) or self.town.referee.sleepers) and time.monotonic() < until:
            time.sleep(0.1)
        if open_now:
            self.tally.violations += [f"stuck after {longest:.0f} s: {each}" for each in open_now[:20]]
        for letter in self.letters:
            if letter.strike is not None:
                letter.strike.forget()
        for server in (self.town.google, self.town.microsoft, self.town.filed, self.town.blind):
            server.forget()

    def _open(self) -> list[str]:
        by_id = {letter.id: letter for letter in self.letters}
        waiting = []
        for message_id, state, reason, finding, never, parked, *looks in self.town.rows(STATES, list(by_id)):
            letter = by_id[message_id]
            if state == "unknown" and letter.box.route in BLIND and finding == "no_way" and never:
                continue
            if state == "queued" and letter.box.limit is not None and (parked or "").startswith("quota"):
                continue
            about = f"{letter.box.route} {letter.cell or 'beside'}: {state}"
            waiting.append(" | ".join(str(each) for each in (about, reason, parked, *looks) if each is not None))
        held = self.town.rows(HELD)[0][0]
        return waiting + ([f"{held} leases are held"] if held else [])

    # ── the verdict ─────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _exposed(self) -> set[UUID]:
        """What is unknown of processes that were killed, or that slept past every deadline."""
        return {row[0] for row in self.town.rows(EXPOSED, list(self.town.dead))}

    def judge(self) -> None:
        taken, ours = self.town.taken(), {letter.to for letter in self.letters}
        ends = {row[0]: row[1:] for row in self.town.rows(ENDS, [letter.id for letter in self.letters])}
        for letter in self.letters:
            self._judge_one(letter, *ends[letter.id], taken[letter.to])
        for box in self.tight:
            if (most := self.town.most_in_a_day(box)) > LIMIT:
                self._wrong(f"over quota: {box.route} took {most} of {LIMIT} in a day")
        self.tally.violations += self.town.by_themselves
        self.town.by_themselves.clear()
        self.tally.waves += 1
        self.tally.violations += [
            f"twice, after its wave: {number} times" for to, number in taken.items() if number > 1 and to not in ours
        ]

    def _judge_one(self, letter: Letter, state: str, reason: str | None, taken: int) -> None:
        strike, cell = letter.strike, letter.cell
        fell = strike is not None and strike.fell
        self.tally.states[state] += 1
        if fell and strike is not None and cell is not None:
            self.tally.fell[cell] += 1
            self.tally.unknown[cell] += state == "unknown"
            self.tally.beside[cell.fault] += len(strike.beside)
        about = (
            f"{letter.box.route} {cell or 'beside'}{'' if fell else ' (it never fell)'}: {state}, taken {taken} times"
        )
        if taken > 1:
            self._wrong(f"twice: {about}", letter)
        if state == "sent" and taken == 0:
            self._wrong(f"lost: {about}", letter)
        if state in ("failed", "cancelled", "expired"):
            self._wrong(f"ended otherwise ({reason}): {about}", letter)
        if state == "unknown" and not self._may_be_unknown(letter, fell):
            self._wrong(f"unknown without need ({reason}): {about}", letter)

    def _may_be_unknown(self, letter: Letter, fell: bool) -> bool:
        if letter.box.route not in BLIND:
            return False
        if letter.cell is not None and (BY_NAME[letter.cell.step].looks or (fell and may_be_unknown(letter.cell))):
            return True
        return letter.id in self._exposed or self._died_with_a_commit_on_its_way(letter)

    def _died_with_a_commit_on_its_way(self, letter: Letter) -> bool:
        """Another cell killed the process while the network still held its gate's COMMIT, which arrived afterwards."""
        strike, cell = letter.strike, letter.cell
        if strike is None or strike.hit is None or cell is None or cell.step != "gate submitted":
            return False
        return cell.fault in ANSWERS and strike.hit.pid in self.town.killed

    def _wrong(self, what: str, letter: Letter | None = None) -> None:
        journal = " → ".join(row[0] for row in self.town.rows(JOURNAL, letter.id)) if letter else ""
        self.tally.violations.append(f"{what} [{journal}]" if journal else what)


def _is_simple(cell: Cell) -> bool:
    """Aimed at one message of a mailbox that has others, and soon over."""
    step = BY_NAME[cell.step]
    return not (step.by_mailbox or step.looks or cell.fault == "stop past settling")


def run_cells(
    town: Town,
    wanted: Sequence[Cell],
    chance: random.Random,
    tally: Tally,
    size: int = 60,
    pace: float = 1.0,
    alone: bool = False,
) -> None:
    """Waves until each of these cells has befallen a message, or four tries were in vain. `alone`: nothing beside."""
    left = list(wanted)
    for _ in range(4):
        chance.shuffle(left)
        for start in range(0, len(left), size):
            Wave(town, left[start : start + size], chance, tally, 0 if alone else 12, pace=pace, limits=not alone).run()
        left = tally.missed(left)
        if not left:
            return


assert set(BLIND) < set(ROUTES)
