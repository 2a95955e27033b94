"""How each fault is done at its step: a signal, a rule of a sandbox server, a cut on the way to PostgreSQL.

A strike is made for one cell and one target. `fell` says afterwards whether it really befell what it was aimed at:
a signal by the process's own report, a rule by the server's using it, a cut by the proxy.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from acceptance.faults.matrix import BLIND, BY_NAME, SIGNALS, Cell
from acceptance.faults.proxy import Cut
from acceptance.faults.referee import Reached
from acceptance.faults.town import Box, Town

STAGES = {
    ("preparing", "gmail draft"): r"drafts\.create",
    ("preparing", "graph draft"): r"messages\.create",
    ("preparing", "smtp readable"): "data",
    ("preparing", "smtp blind"): "data",
    ("first byte", "gmail draft"): r"drafts\.send",
    ("first byte", "gmail send"): r"messages\.send",
    ("first byte", "graph draft"): r"messages\.send",
    ("first byte", "graph sendMail"): "sendMail",
    ("first byte", "smtp readable"): "dot",
    ("first byte", "smtp blind"): "dot",
    ("answered", "gmail draft"): r"messages\.get",
    ("answered", "graph draft"): r"messages\.get",
    ("looking", "gmail draft"): r"drafts\.get|threads\.get|messages\.list",
    ("looking", "graph draft"): r"messages\.get",
    ("looking", "smtp readable"): "search",
}
"""The servers' stage of the request that goes out in each step on each route; a token's is `token` everywhere."""

COMMITS_BY = 0.3
"""Seconds after a process's death in which its last COMMIT may still be carried out."""
OPEN = """
SELECT m.id FROM outtray.message m JOIN outtray.mailbox b ON b.id = m.mailbox_id
WHERE m.state = 'handing_over' AND b.turn_worker = %s
"""


@dataclass
class Strike:
    """One cell's fault, aimed at one message in one mailbox."""

    town: Town
    cell: Cell
    box: Box
    target: UUID
    """The message's id, or the mailbox's where its step is reached for that."""
    hit: Reached | None = None
    beside: set[UUID] = field(default_factory=set)
    """Other messages whose handover was open in the process that a signal befell."""
    _used: Callable[[], bool] | None = None

    def aim(self) -> None:
        self.town.referee.aim(self.cell.step, self.target, self._fall)

    def forget(self) -> None:
        self.town.referee.forget(self.cell.step, self.target)

    @property
    def fell(self) -> bool:
        return self.hit is not None and (self._used is None or self._used())

    def _fall(self, reached: Reached) -> None:
        fault = self.cell.fault
        if fault in SIGNALS:
            self.hit = reached
            self._signal(reached.pid)
        elif BY_NAME[self.cell.step].under_way == "database":
            self._cut(reached)
            self.hit = reached
        else:
            self._rule()
            self.hit = reached

    # ── signals ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _signal(self, pid: int) -> None:
        times, fault = self.town.times, self.cell.fault
        if fault == "kill":
            member = self.town.kill(pid)
            if member is not None and member.role == "worker":
                self._count_beside(member.name_in_table)
            return
        seconds = {
            "stop within lease": times.short_stop,
            "stop past lease": times.long_stop,
            "stop past settling": times.past_settling,
        }
        self.town.referee.stop(pid, seconds[fault], self._settled if fault == "stop past settling" else None)
        if (member := self.town.members.get(pid)) is not None:
            self._count_beside(member.name_in_table)
            if fault == "stop past settling":
                self.town.dead.add(member.name_in_table)

    def _settled(self) -> bool:
        """Whether others have seen what became of it, and sent it again if need be. Where nobody can look: at once."""
        if self.box.route in BLIND:
            return True
        ((state,),) = self.town.rows("SELECT state FROM outtray.message WHERE id = %s", self.target)
        return state == "sent"

    def _count_beside(self, worker: str) -> None:
        """What else was open in it: a COMMIT that was under way is carried out while its sender is dead, or asleep."""
        for pause in (COMMITS_BY, 0.0):
            self.beside |= {row[0] for row in self.town.rows(OPEN, worker)} - {self.target}
            time.sleep(pause)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────

    def _cut(self, reached: Reached) -> None:
        step = BY_NAME[self.cell.step]
        cut: Cut = self.town.proxy.cut(
            self.cell.fault, reached.pid, self.target, step.behind, self.town.times.late_commit  # type: ignore[arg-type]
        )  # fmt: skip
        self._used = lambda: cut.fell

    def _rule(self) -> None:
        step, route = self.cell.step, self.cell.route
        seconds = self.town.times.late if step == "first byte" else self.town.times.late_command
        user = f"^{re.escape(self.box.address)}$"
        if step == "token asked":
            server = self.town.google if route.startswith("gmail") else self.town.microsoft
            self._used = web_rule(server, self.cell.fault, seconds, stage="token")
        elif step == "looking" and route == "smtp readable":
            self._used = self._imap_rule(seconds)
        elif route.startswith("smtp"):
            server = self.town.filed if route == "smtp readable" else self.town.blind
            self._used = smtp_rule(server, self.cell.fault, seconds, stage=STAGES[step, route], user=user)
        else:
            server = self.town.google if route.startswith("gmail") else self.town.microsoft
            self._used = web_rule(server, self.cell.fault, seconds, stage=STAGES[step, route], user=user)

    def _imap_rule(self, seconds: float) -> Callable[[], bool]:
        how: dict[str, dict[str, Any]] = {
            "reset": {"drop": "before"},
            "answer lost": {"drop": "after"},
            "answer late": {"late": seconds},
        }
        number = self.town.imap.add_rule(stage="search", user=self.box.address, times=1, **how[self.cell.fault])
        return lambda: all(rule.id != number for rule in self.town.imap.post.script.rules)


def web_rule(server: Any, fault: str, seconds: float, **where: Any) -> Callable[[], bool]:
    """One request of a web server goes wrong; the answer says whether it has by now."""
    how: dict[str, dict[str, Any]] = {
        "reset": {"drop": "before", "reset": True},
        "answer lost": {"drop": "after"},
        "answer late": {"answer_late": seconds},
    }
    number = server.add_rule(times=1, **how[fault], **where)
    return lambda: all(rule.id != number for rule in server.house.script.rules)


def smtp_rule(server: Any, fault: str, seconds: float, **where: Any) -> Callable[[], bool]:
    how: dict[str, dict[str, Any]] = {
        "reset": {"drop": "before", "reset": True},
        "answer lost": {"drop": "after"},
        "answer late": {"late": seconds},
    }
    number = server.add_rule(times=1, **how[fault], **where)
    return lambda: all(rule.id != number for rule in server.house.script.rules)
