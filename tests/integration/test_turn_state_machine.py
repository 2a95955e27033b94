"""The message's states under random interleavings of all that may happen to it, and what must hold at each step.

Two workers claim, gate, hand over and record through real registrars, as late and as often as chance wants it; an app
cancels, suppresses, pauses and decides; looks for evidence begin and are written, in any order; time passes; and a
provider that keeps its own account is the judge. One of the two mailboxes can be looked into, the other cannot.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from outtray import Message, Outtray
from outtray_schema import bindings
from outtray_schema.database import conninfo
from outtray_schema.ledger import Allowance
from outtray_schema.outcome import Failed, Held, NotBegun, Outcome, Parked, Retry, Sent, Unknown
from outtray_schema.plans import effective_limits
from outtray_schema.vault import load_vault
from outtray_worker.claim import ClaimedMailbox, DueMessage, claim
from outtray_worker.deadline import Deadline
from outtray_worker.items import Gate, MailboxMove, Passed
from outtray_worker.lease import Leases
from outtray_worker.pick import arm
from outtray_worker.providers import Finding
from outtray_worker.reconcile.decide import Rules
from outtray_worker.reconcile.read import read_case
from outtray_worker.reconcile.schedule import OTHERS
from outtray_worker.reconcile.write import Look, write_look
from outtray_worker.record import Attempt, record_of
from outtray_worker.registrar import Registrar
from outtray_worker.spool import Spool
from outtray_worker.sweep import sweep
from outtray_worker.tend import tend
from readings import read_allowances, read_due

LEASE = timedelta(seconds=30)
BEGIN = timedelta(seconds=30)
WITHIN = timedelta(seconds=60)
SETTLE = timedelta(seconds=60)
LIMITS = {"messages": 4, "recipients_per_message": None}
ADDRESSES = ("a@example.net", "b@example.net", "c@example.net")
MOVES = (1.0, 31.0, 61.0, 200.0, 3600.0, 90_000.0)
TABLES = "message, recipient, message_tag, content, usage, event, journal, switch, suppression, mailbox, app"
NOT_TAKEN = (
    Retry("451"), Parked("421"), Failed("550"), Unknown("lost"), NotBegun("late"), Held("535"),
    Parked("4.7.1", after=timedelta(minutes=5)),
)  # fmt: skip
HAPPENINGS = (
    *["work"] * 6, *["gate"] * 4, *["take"] * 4, *["record"] * 5, *["end"] * 2, *["time"] * 5, *["dispatcher"] * 4,
    *["enqueue"] * 2, "cancel", *["resolve"] * 2, "hold", *["release"] * 2, *["look"] * 6, *["tell"] * 6,
)  # fmt: skip
"""What happens, as often as it stands here: mostly work, or chance would never get as far as a late answer."""
EXAMPLES, STEPS = 20, 50
LIVE = ("queued", "handing_over")


@dataclass
class Turn:
    """A claim of one worker, for as long as somebody remembers it: it may be dead, or come back late."""

    worker: int
    box: ClaimedMailbox
    due: list[DueMessage]
    allowance: Allowance


@dataclass
class Handover:
    """One passed gate. `taken`: when the provider took the mail, on the database's clock."""

    turn: Turn
    message: DueMessage
    number: int
    begin_by: datetime
    taken: datetime | None = None
    outcome: Outcome | None = None


@dataclass
class Truth:
    """What really happened, in no database."""

    handovers: list[Handover] = field(default_factory=list)
    numbers: dict[UUID, int] = field(default_factory=lambda: defaultdict(int))
    cancelled: set[UUID] = field(default_factory=set)
    suppressed: set[str] = field(default_factory=set)
    address: dict[UUID, str] = field(default_factory=dict)

    def taken(self, message: UUID) -> int:
        return sum(h.taken is not None for h in self.handovers if h.message.id == message)


class Queue(RuleBasedStateMachine):
    database: Any = None
    seen: ClassVar[Counter[str]] = Counter()
    """What chance reached, over all runs: a machine that never got to a handover would prove nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = TemporaryDirectory()
        self.do(self.begin())
        self.client = Outtray(self.database.settings, app="app", actor="test")
        self.boxes = [self.do(self.add_mailbox()) for _ in range(2)]
        self.turns: list[Turn] = []
        self.looks: list[Look] = []
        self.truth = Truth()
        self.stopped = 0

    def do(self, work: Any) -> Any:
        return self.runner.run(work)

    # ── the world ───────────────────────────────────────────────────────────────────────────────────────────────

    async def begin(self) -> None:
        self.db = await self.connect()
        await self.db.execute(f"TRUNCATE {', '.join(f'outtray.{name}' for name in TABLES.split(', '))} CASCADE")
        await self.db.execute("UPDATE outtray.clock SET shift = '0'")
        self.app_id = uuid4()
        await self.db.execute("INSERT INTO outtray.app (id, name) VALUES (%s, 'app')", [self.app_id])
        self.registrars = [self.registrar(name) for name in ("one", "two")]
        self.tasks = [asyncio.ensure_future(each.run()) for each in self.registrars]

    def registrar(self, name: str) -> Registrar:
        own = self.database.settings
        return Registrar(own, self.connect, Spool(Path(self.folder.name) / name), Leases(own.lease))

    async def connect(self) -> AsyncConnection[Any]:
        return await AsyncConnection.connect(conninfo(self.database.settings), autocommit=True)

    async def add_mailbox(self) -> UUID:
        mailbox_id = uuid4()
        address = json.dumps({"address": f"{mailbox_id}@example.org", "name": "", "aliases": []}).encode()
        sealed = load_vault(self.database.settings).addresses.encrypt(address, bindings.mailbox_address(mailbox_id))
        await self.db.execute(
            "INSERT INTO outtray.mailbox (id, app_id, provider, host, address, address_index, plan, limits)"
            " VALUES (%s, %s, 'memory', 'memory', %s, %s, 'smtp', %s)",
            [mailbox_id, self.app_id, sealed, mailbox_id.bytes, Jsonb(LIMITS)],
        )
        return mailbox_id

    async def one(self, statement: str, *parameters: Any) -> Any:
        row = await (await self.db.execute(statement, parameters)).fetchone()
        return row[0] if row else None

    def rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        async def ask() -> list[tuple[Any, ...]]:
            return await (await self.db.execute(statement, parameters)).fetchall()

        return self.do(ask())

    def now(self) -> datetime:
        return self.rows("SELECT outtray.outtray_now()")[0][0]

    def state(self, message: UUID) -> str:
        return str(self.rows("SELECT state FROM outtray.message WHERE id = %s", message)[0][0])

    def some(self, states: tuple[str, ...], number: int) -> UUID | None:
        found = self.rows("SELECT id FROM outtray.message WHERE state = ANY(%s) ORDER BY id", list(states))
        return found[number % len(found)][0] if found else None

    # ── what may happen ─────────────────────────────────────────────────────────────────────────────────────────

    @initialize()
    def some_mail(self) -> None:
        for n, box in enumerate((0, 0, 0, 1, 1, 1, 1)):
            self.enqueue(box, ADDRESSES[n % 3], resend=n % 2 == 0, expires=False, lost=n == 6)

    @rule(
        what=st.sampled_from(HAPPENINGS), box=st.integers(0, 1), worker=st.integers(0, 1), number=st.integers(0, 99),
        steps=st.integers(0, 3), to=st.sampled_from(ADDRESSES), flags=st.tuples(*[st.booleans()] * 3),
        outcome=st.sampled_from(NOT_TAKEN), seconds=st.sampled_from(MOVES),
        decision=st.sampled_from(("sent", "resend", "fail")), held=st.sampled_from(("suppress", "mailbox", "all")),
    )  # fmt: skip
    def something_happens(self, what: str, **chance: Any) -> None:
        arguments = {
            "enqueue": lambda: self.enqueue(chance["box"], chance["to"], *chance["flags"]),
            "work": lambda: self.work(chance["box"], chance["worker"], chance["steps"], chance["outcome"]),
            "gate": lambda: self.gate(chance["number"]),
            "take": lambda: self.take(chance["number"]),
            "record": lambda: self.record(chance["number"], chance["outcome"], chance["flags"][0]),
            "end": lambda: self.end(chance["number"]),
            "time": lambda: self.time_passes(chance["seconds"]),
            "dispatcher": self.dispatcher,
            "look": lambda: self.look(chance["number"], chance["flags"][0]),
            "tell": lambda: self.tell(chance["number"]),
            "cancel": lambda: self.cancel(chance["number"]),
            "resolve": lambda: self.resolve(chance["number"], chance["decision"]),
            "hold": lambda: self.hold(chance["box"], chance["to"], chance["held"]),
            "release": self.release,
        }
        arguments[what]()

    # ── the app ─────────────────────────────────────────────────────────────────────────────────────────────────

    def enqueue(self, box: int, to: str, resend: bool, expires: bool, lost: bool) -> None:
        expires_at = self.now() + timedelta(hours=2) if expires else None
        policy: Any = "resend" if resend else None
        message = Message(
            to=to, subject="s", text="t", mailbox=self.boxes[box], on_unknown=policy, expires_at=expires_at
        )
        self.truth.address[self.client.enqueue(message).id] = to
        if not lost:
            self.do(arm(self.db, {self.boxes[box]: self.now()}))

    def cancel(self, number: int) -> None:
        message = self.some(("queued", "handing_over", "unknown", "sent"), number)
        if message is None:
            return
        before, answer = self.state(message), self.client.cancel(message).answer
        if answer == "cancelled":
            assert before == "queued" and self.truth.taken(message) == 0
            self.truth.cancelled.add(message)
        assert answer != "sent" or before == "sent"

    def resolve(self, number: int, decision: Any) -> None:
        message = self.some(("unknown",), number)
        if message is not None:
            self.client.resolve(message, decision)
            if decision == "resend":
                self.assert_armed(message)

    def hold(self, box: int, to: str, what: str) -> None:
        """Suppress an address, or pause a mailbox or everything, while turns are on their way."""
        if what == "suppress":
            self.client.suppress(to, "bounced")
            self.truth.suppressed.add(to)
        elif what == "mailbox":
            self.client.mailboxes.pause(self.boxes[box])
        else:
            self.client.pause("all")

    def release(self) -> None:
        for address in sorted(self.truth.suppressed):
            self.client.unsuppress(address)
        self.truth.suppressed.clear()
        self.client.resume("all")
        for box in self.boxes:
            if self.rows("SELECT status FROM outtray.mailbox WHERE id = %s", box)[0][0] == "paused":
                self.client.mailboxes.resume(box)
            self.do(self._reconnect(box))

    async def _reconnect(self, box: UUID) -> None:
        await self.db.execute(
            "UPDATE outtray.mailbox SET status = 'active', credentials_version = credentials_version + 1,"
            " next_at = outtray.not_before(outtray.earliest_due(id), parked_until)"
            " WHERE id = %s AND status = 'reconnect'",
            [box],
        )

    # ── the workers ─────────────────────────────────────────────────────────────────────────────────────────────

    def work(self, box: int, worker: int, steps: int, outcome: Outcome) -> None:
        """A worker takes a turn as far as chance lets it: to the claim, the gate, the provider, or the record."""
        turn = self.do(self._claim(self.boxes[box], worker))
        if turn is None:
            return
        self.turns.append(turn)
        before = len(self.truth.handovers)
        if steps > 0:
            self.gate(0)
        if len(self.truth.handovers) > before and steps > 1:
            self.take(0)
        if len(self.truth.handovers) > before and steps > 2:
            self.record(0, outcome, lost=False)
            self.end(0)

    async def _claim(self, box: UUID, worker: int) -> Turn | None:
        claimed = await claim(self.db, [box], LEASE, str(worker))
        if not claimed:
            return None
        due = (await read_due(self.db, [box], 50)).get(box, [])
        allowance = await read_allowances(self.db, [(box, effective_limits("smtp", LIMITS, "memory"))])
        return Turn(worker, claimed[0], due, allowance[box])

    def gate(self, number: int) -> None:
        if not self.turns:
            return
        turn = self.turns[-1 - number % min(len(self.turns), 3)]
        if not turn.due or turn.allowance.binding(turn.due[0]) is not None:
            return
        message, begin_by = turn.due.pop(0), self.now() + BEGIN
        forbidden = self.forbidden(turn, message)
        passed = self.do(self._gate(turn, message))
        if isinstance(passed, Passed):
            assert forbidden is None, f"passed although {forbidden}"
            turn.allowance.take(message)
            self.truth.handovers.append(Handover(turn, message, passed.handover, begin_by))
        else:
            self.stopped += 1

    def forbidden(self, turn: Turn, message: DueMessage) -> str | None:
        """Why this gate must not let the message pass, as far as it can be said beforehand."""
        fence, status = self.rows("SELECT turn_fence, status FROM outtray.mailbox WHERE id = %s", turn.box.id)[0]
        reasons = {
            "its fence was taken": fence != turn.box.fence,
            "its mailbox is held": status != "active",
            "everything is paused": bool(self.rows("SELECT FROM outtray.switch")),
            "it is suppressed": self.truth.address[message.id] in self.truth.suppressed,
            "it was cancelled": message.id in self.truth.cancelled,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    async def _gate(self, turn: Turn, message: DueMessage) -> Any:
        ask = Gate(
            message.id, turn.box.id, turn.box.fence, message.version, message.handover + 1, turn.box.provider, WITHIN
        )
        return await self.registrars[turn.worker].gate(ask, Deadline.after(timedelta(seconds=20)))

    def take(self, number: int) -> None:
        """The provider takes the mail, unless its time to begin has passed: then not one byte is written."""
        if not self.truth.handovers:
            return
        handover, now = self.truth.handovers[-1 - number % min(len(self.truth.handovers), 3)], self.now()
        if handover.taken is None and handover.outcome is None and now < handover.begin_by:
            handover.taken = now

    def record(self, number: int, outcome: Outcome, lost: bool) -> None:
        """Write what the provider said: now, late or again. Once said, it stays the same."""
        if not self.truth.handovers:
            return
        handover = self.truth.handovers[-1 - number % min(len(self.truth.handovers), 5)]
        if handover.outcome is None:
            taken = Unknown("the answer was lost") if lost else Sent("p", "<r@example.org>")
            handover.outcome = taken if handover.taken is not None else outcome
        if not isinstance(handover.outcome, (Sent, Unknown)):
            handover.turn.allowance = _after_refusal(handover)
        self.do(self._record(handover))
        if self.state(handover.message.id) == "queued":
            self.assert_armed(handover.message.id)

    async def _record(self, handover: Handover) -> None:
        turn = handover.turn
        attempt = Attempt(self.database.settings, turn.box, handover.message, handover.message.version, False)
        await self.registrars[turn.worker].record(record_of(attempt, handover.number, handover.outcome))

    def end(self, number: int) -> None:
        if self.turns:
            self.do(self._end(self.turns[-1 - number % min(len(self.turns), 3)]))

    async def _end(self, turn: Turn) -> None:
        turn.due.clear()
        await self.registrars[turn.worker].move(MailboxMove(turn.box.id, turn.box.fence, ends=True))

    # ── looks for evidence ──────────────────────────────────────────────────────────────────────────────────────

    def look(self, number: int, later: bool) -> None:
        """A look begins and shows what is so at this moment. When it is written is another matter."""
        if later:
            self.time_passes(200.0)
        self.dispatcher()
        message = self.some(("unknown",), number)
        if message is not None:
            case = self.do(read_case(self.db, load_vault(self.database.settings), message))
            if case is not None:
                self.looks.append(Look(case, self.shown(message, case.mailbox.id)))

    def shown(self, message: UUID, box: UUID) -> Finding:
        if box == self.boxes[1]:
            return Finding("no_way", "no permission")
        found = Finding("sent", "what was sent", Sent("p", "<r@example.org>"))
        return found if self.truth.taken(message) else Finding("absent", "what was sent")

    def tell(self, number: int) -> None:
        """Write one of the looks that have ended: late, or a second time, as chance wants it."""
        if self.looks:
            look = self.looks[-1 - number % min(len(self.looks), 3)]
            self.do(write_look(self.db, look, Rules(OTHERS, SETTLE, 8, timedelta(hours=24))))
            if self.state(look.case.message_id) == "queued":
                self.assert_armed(look.case.message_id)

    # ── time ────────────────────────────────────────────────────────────────────────────────────────────────────

    def time_passes(self, seconds: float) -> None:
        self.rows("UPDATE outtray.clock SET shift = shift + %s RETURNING one", timedelta(seconds=seconds))

    def dispatcher(self) -> None:
        """Time does what it does to turns and messages, and one sweep finds every mailbox that has mail."""
        self.do(tend(self.db, SETTLE))
        self.do(sweep(self.db))
        asleep = self.rows(
            "SELECT id FROM outtray.mailbox m WHERE status = 'active' AND turn_until IS NULL"
            " AND (next_at IS NULL OR next_at > outtray.not_before(outtray.earliest_due(id), parked_until))"
            " AND outtray.earliest_due(id) IS NOT NULL"
        )
        assert asleep == []

    @invariant()
    def all_promises_hold(self) -> None:
        self.a_handovers_number_only_rises()
        self.nothing_is_taken_twice_unless_it_was_sent_again_by_decision_or_policy()
        self.what_was_cancelled_for_good_never_leaves()
        self.no_message_has_two_handovers_that_could_begin()
        self.no_mailbox_is_over_its_limit_in_any_24_hours()
        self.the_ledger_forgets_nothing_that_was_taken()
        self.what_is_sent_has_an_id_or_a_decision()

    # ── what must hold ──────────────────────────────────────────────────────────────────────────────────────────

    def assert_armed(self, message: UUID) -> None:
        """Whoever sets `queued` arms the mailbox, unless its turn will when it ends (rule 13)."""
        query = """
        SELECT b.next_at <= greatest(m.due_at, b.parked_until, outtray.outtray_now()) OR b.turn_until IS NOT NULL
        FROM outtray.message m JOIN outtray.mailbox b ON b.id = m.mailbox_id WHERE m.id = %s
        """
        assert self.rows(query, message) == [(True,)], "queued, and nobody will look for it"

    def a_handovers_number_only_rises(self) -> None:
        for message, number in self.rows("SELECT id, handover FROM outtray.message"):
            assert number >= self.truth.numbers[message]
            self.truth.numbers[message] = number

    def nothing_is_taken_twice_unless_it_was_sent_again_by_decision_or_policy(self) -> None:
        again = Counter(
            row[0] for row in self.rows(
                "SELECT message_id FROM outtray.journal WHERE kind = 'resend' AND actor = 'policy'"
                " OR kind = 'resolved' AND detail->>'decision' = 'resend'"
            )
        )  # fmt: skip
        for message in self.truth.address:
            assert self.truth.taken(message) <= 1 + again[message]

    def what_was_cancelled_for_good_never_leaves(self) -> None:
        assert all(self.truth.taken(message) == 0 for message in self.truth.cancelled)

    def no_message_has_two_handovers_that_could_begin(self) -> None:
        now = self.now()
        able = [h for h in self.truth.handovers if h.outcome is None and h.taken is None and now < h.begin_by]
        current = {row[0]: row[1] for row in self.rows("SELECT id, handover FROM outtray.message")}
        for handover in able:
            assert current[handover.message.id] == handover.number
        assert len({h.message.id for h in able}) == len(able)

    def no_mailbox_is_over_its_limit_in_any_24_hours(self) -> None:
        for box in self.boxes:
            taken = sorted(h.taken for h in self.truth.handovers if h.taken and h.turn.box.id == box)
            for first, fifth in zip(taken, taken[LIMITS["messages"] or 0 :], strict=False):
                assert fifth - first >= timedelta(hours=24)

    def the_ledger_forgets_nothing_that_was_taken(self) -> None:
        now = self.now()
        for box in self.boxes:
            used = self.do(self._used(box))
            mine = [h for h in self.truth.handovers if h.turn.box.id == box]
            recent = sum(h.taken is not None and h.taken > now - timedelta(hours=24) for h in mine)
            assert recent <= used <= len(mine)

    async def _used(self, box: UUID) -> int:
        allowance = await read_allowances(self.db, [(box, effective_limits("smtp", LIMITS, "memory"))])
        return int(allowance[box].used("messages"))

    def what_is_sent_has_an_id_or_a_decision(self) -> None:
        without = self.rows(
            "SELECT id FROM outtray.message WHERE state = 'sent' AND provider_id IS NULL AND reason <> 'decided: sent'"
        )
        assert without == []

    # ── and in the end ──────────────────────────────────────────────────────────────────────────────────────────

    def teardown(self) -> None:
        self.seen["taken"] += sum(h.taken is not None for h in self.truth.handovers)
        self.seen["stopped gates"] += self.stopped
        self.seen.update(f"journal {kind}" for (kind,) in self.rows("SELECT kind FROM outtray.journal"))
        again = "SELECT FROM outtray.journal WHERE kind = 'resend' AND actor = 'evidence'"
        self.seen["sent again by evidence"] += len(self.rows(again))
        try:
            self.finish()
        finally:
            self.client.close()
            for registrar in self.registrars:
                registrar.close()
            self.do(asyncio.wait(self.tasks, timeout=10))
            self.do(self.db.close())
            self.runner.close()
            self.folder.cleanup()

    def finish(self) -> None:
        """Once nothing fails any more, every message ends or is unknown, and the truth is told."""
        self.release()
        for _ in range(30):
            if not self.some(LIVE, 0):
                break
            self.time_passes(90_000.0)
            self.do(tend(self.db, SETTLE))
            self.do(sweep(self.db))
            for box in self.boxes:
                self.work_off(box)
        assert not self.some(LIVE, 0), "nothing is stuck"
        for message, state in self.rows("SELECT id, state FROM outtray.message"):
            if state == "sent" and self.truth.taken(message) == 0:
                reason = self.rows("SELECT reason FROM outtray.message WHERE id = %s", message)[0][0]
                assert reason == "decided: sent", "sent is only what was taken"

    def work_off(self, box: UUID) -> None:
        turn = self.do(self._claim(box, 0))
        if turn is None:
            return
        for message in list(turn.due):
            if turn.allowance.binding(message) is None and isinstance(self.do(self._gate(turn, message)), Passed):
                turn.allowance.take(message)
                handover = Handover(
                    turn, message, message.handover + 1, self.now(), taken=self.now(), outcome=Sent("p")
                )
                self.truth.handovers.append(handover)
                self.do(self._record(handover))
        self.do(self._end(turn))


def _after_refusal(handover: Handover) -> Allowance:
    """What was definitely refused gives its place back, once, as in the turn."""
    allowance = handover.turn.allowance
    if not getattr(handover, "given_back", False):
        handover.given_back = True  # type: ignore[attr-defined]
        allowance.give_back(handover.message)
    return allowance


@pytest.mark.slow
def test_the_queue_keeps_its_promises_under_every_interleaving(database, seed):
    Queue.database = database
    Queue.seen = Counter()
    # Not shrunk: each step asks PostgreSQL, and the steps that led to a failure are printed as they are.
    run_state_machine_as_test(
        Queue,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, phases=[Phase.generate], database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
    print(dict(Queue.seen))
    reached = ("taken", "stopped gates", "journal sent", "journal unknown", "journal look")
    assert all(Queue.seen[what] for what in reached), Queue.seen
