"""The matrix: every step × every fault × every route, what each cell may end in, and why some cells do not exist."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from outtray_worker.crash import POINTS

Role = Literal["crm", "dispatcher", "worker"]
UnderWay = Literal["nothing", "provider", "database"]


@dataclass(frozen=True, slots=True)
class Step:
    """From one crash point to the next. `under_way` is the request that goes out in it, if one does."""

    name: str
    role: Role
    under_way: UnderWay
    by_mailbox: bool = False
    """Reached for a mailbox, not for a message."""
    behind: bytes = b""
    """Words of the packet that a cut falls on, if that is not the first to name the mailbox or message."""
    looks: bool = False
    """Reached only by a message that is unknown."""


STEPS = (
    Step("enqueuing", "crm", "database", by_mailbox=True, behind=b"INSERT INTO"),
    Step("enqueued", "crm", "nothing", by_mailbox=True),
    Step("woken", "dispatcher", "database", by_mailbox=True),
    Step("picked", "dispatcher", "nothing", by_mailbox=True),
    Step("published", "dispatcher", "nothing", by_mailbox=True),
    Step("claiming", "worker", "database", by_mailbox=True),
    Step("claimed", "worker", "database", by_mailbox=True),
    Step("due read", "worker", "nothing", by_mailbox=True),
    Step("preparing", "worker", "provider"),
    Step("token asked", "worker", "provider", by_mailbox=True),
    Step("token answered", "worker", "database", by_mailbox=True, behind=b"COMMIT"),
    Step("token saved", "worker", "nothing", by_mailbox=True),
    Step("draft made", "worker", "nothing"),
    Step("uploaded", "worker", "nothing"),
    Step("prepared", "worker", "nothing"),
    Step("gate submitted", "worker", "database"),
    Step("gate committed", "worker", "nothing"),
    Step("gated", "worker", "nothing"),
    Step("last look", "worker", "nothing"),
    Step("first byte", "worker", "provider"),
    Step("answered", "worker", "provider"),
    Step("handed over", "worker", "nothing"),
    Step("record submitted", "worker", "database"),
    Step("record committed", "worker", "nothing"),
    Step("end submitted", "worker", "database", by_mailbox=True),
    Step("end committed", "worker", "nothing", by_mailbox=True),
    Step("looking", "worker", "provider", looks=True),
    Step("looked", "worker", "database", looks=True, behind=b"COMMIT"),
    Step("look written", "worker", "nothing", looks=True),
)
assert tuple(step.name for step in STEPS) == POINTS
BY_NAME = {step.name: step for step in STEPS}

SIGNALS = ("kill", "stop within lease", "stop past lease", "stop past settling")
ANSWERS = ("reset", "answer lost", "answer late")
FAULTS = (*SIGNALS, *ANSWERS)
"""`kill`: SIGKILL. `stop …`: SIGSTOP, and SIGCONT before the lease ends, after it, or after the handover's deadline and
the settling time, when others have looked and perhaps sent again. The other three befall the step's request:
`reset` before it is carried out, `answer lost` after it, `answer late` beyond the time that it is waited for."""

ROUTES = ("gmail draft", "gmail send", "graph draft", "graph sendMail", "smtp readable", "smtp blind")
DRAFTS = frozenset({"gmail draft", "graph draft"})
BLIND = frozenset({"gmail send", "graph sendMail", "smtp blind"})
"""Where nobody can look what was sent: these scopes do not read, this server shows no folder of sent mail."""
SMTP = frozenset({"smtp readable", "smtp blind"})

OPEN = ("gate committed", "gated", "last look", "first byte", "answered", "handed over", "record submitted")
"""Steps in which the handover is gated and its outcome is not written."""


@dataclass(frozen=True, slots=True)
class Cell:
    step: str
    fault: str
    route: str

    def __str__(self) -> str:
        return f"{self.step}/{self.fault}/{self.route}"

    @classmethod
    def parse(cls, text: str) -> Cell:
        """`STEP/FAULT/ROUTE`. Raises `ValueError` with what there is, or why there is no such cell."""
        parts = text.split("/")
        if len(parts) != 3:
            raise ValueError(f"{text!r}: a cell is STEP/FAULT/ROUTE, as in 'gated/kill/gmail draft'")
        for part, known in zip(parts, (tuple(BY_NAME), FAULTS, ROUTES), strict=True):
            if part not in known:
                raise ValueError(f"{part!r}: there are {', '.join(known)}")
        cell = cls(*parts)
        if (reason := why_not(cell)) is not None:
            raise ValueError(f"{cell} does not exist: {reason}")
        return cell


@dataclass(frozen=True, slots=True)
class Excluded:
    """Cells that cannot exist, or that prove nothing, with the reason. Empty means all."""

    reason: str
    steps: frozenset[str] = frozenset()
    faults: frozenset[str] = frozenset()
    routes: frozenset[str] = frozenset()

    def holds(self, cell: Cell) -> bool:
        pairs = ((self.steps, cell.step), (self.faults, cell.fault), (self.routes, cell.route))
        return all(not these or this in these for these, this in pairs)


def _all(*names: str) -> frozenset[str]:
    return frozenset(names)


EXCLUDED = (
    Excluded(
        "no request goes out in this step",
        frozenset(step.name for step in STEPS if step.under_way == "nothing"),
        frozenset(ANSWERS),
    ),
    Excluded(
        "no handover is open in this step: a stop past the lease shows the same",
        frozenset(step.name for step in STEPS if step.name not in OPEN),
        _all("stop past settling"),
    ),
    Excluded(
        "what remains (docs/guarantees.md): frozen between its last look at the clock and its first byte until others "
        "have looked and sent again, a route without drafts sends twice",
        _all("first byte"),
        _all("stop past settling"),
        _all("smtp readable"),
    ),
    Excluded(
        "an app that enqueues holds no lease; that it waits harms nobody",
        _all("enqueuing", "enqueued"),
        _all("stop past lease"),
    ),
    Excluded(
        "it logs in by a password, not by a token",
        _all("token asked", "token answered", "token saved"),
        routes=SMTP,
    ),
    Excluded("the route makes no draft", _all("draft made"), routes=frozenset(ROUTES) - DRAFTS),
    Excluded(
        "what is uploaded here is the draft, or the handover itself", _all("uploaded"), routes=frozenset(ROUTES) - SMTP
    ),
    Excluded(
        "nothing goes out before the handover",
        _all("preparing"),
        frozenset(ANSWERS),
        _all("gmail send", "graph sendMail"),
    ),
    Excluded("the reply to the dot is all there is: this step has no length", _all("answered"), routes=SMTP),
    Excluded(
        "the ids of what was sent cannot be read with these scopes",
        _all("answered"),
        frozenset(ANSWERS),
        _all("gmail send", "graph sendMail"),
    ),
    Excluded("nobody can be asked", _all("looking"), frozenset(ANSWERS), BLIND),
)


def why_not(cell: Cell) -> str | None:
    """Why there is no such cell; None: there is."""
    return next((each.reason for each in EXCLUDED if each.holds(cell)), None)


def cells() -> list[Cell]:
    """All that there are, in the order of the steps."""
    every = (Cell(step.name, fault, route) for step in STEPS for fault in FAULTS for route in ROUTES)
    return [cell for cell in every if why_not(cell) is None]


def may_be_unknown(cell: Cell) -> bool:
    """Whether the message that the fault is aimed at may end as `unknown`, for good.

    Only where nobody can look: what lost its answer, and what lost the process that had the answer. A process that was
    only stopped comes back with its answer.
    """
    if cell.route not in BLIND:
        return False
    if BY_NAME[cell.step].looks:
        return True
    if cell.fault == "kill":
        return cell.step in OPEN
    return cell.step == "first byte" and cell.fault in (*ANSWERS, "stop past settling")


# ── choice ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def short_form(seed: int) -> list[Cell]:
    """`kill` at every step of every route, and of the rest a seeded choice in which each pair that exists is there."""
    chance = random.Random(seed)
    chosen = [cell for cell in cells() if cell.fault == "kill"]
    others = [cell for cell in cells() if cell.fault != "kill"]
    chance.shuffle(others)
    missing = {pair for cell in others for pair in _pairs(cell)} - {pair for cell in chosen for pair in _pairs(cell)}
    while missing:
        best = max(others, key=lambda cell: len(missing & _pairs(cell)))
        chosen.append(best)
        missing -= _pairs(best)
    return chosen


def _pairs(cell: Cell) -> set[tuple[str, str]]:
    return {(cell.step, cell.fault), (cell.step, cell.route), (cell.fault, cell.route)}


def by_route(chosen: list[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    for route in ROUTES:
        yield route, [cell for cell in chosen if cell.route == route]
