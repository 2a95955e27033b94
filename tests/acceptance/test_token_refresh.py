"""Tokens with real processes: workers die within a refresh, and still each expiry costs one refresh per mailbox.

Four workers send for 50 mailboxes whose access tokens live for four seconds; the token server is slow, says which
refreshes are under way, rotates the refresh tokens and counts. The judge is the server's own record: a refresh is
*early* if the mailbox's last token was not yet old enough to be refreshed, and only a refresh that a kill cut off
excuses one.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from acceptance.fleet import Fleet, Member, environment
from databases import Database
from outtray import Message, Outtray
from outtray_schema.vault import Vault, load_vault
from outtray_worker.auth.store import READ, Stored, open_access
from polling import eventually
from token_server import CLIENT, SECRET, Refresh, TokenServer

MAILBOXES, WORKERS, KILLS = 50, 4, 12
LIFETIME = 4.0
OLD_ENOUGH = LIFETIME * (1 - 2 / 12)
"""A token of four seconds is refreshed at the earliest a sixth of its life before its end."""
SCOPE = "https://www.googleapis.com/auth/gmail.send"
SCALED = {
    "lease": "3s", "turn_length": "2s", "round_again": "3s", "sweep_every": "3s", "tend_every": "200ms",
    "handover_begin": "2s", "handover_answer": "3s", "prepare_limit": "8s", "broker_patience": "1s",
    "backoff_base": "300ms", "backoff_cap": "1s", "park_cap": "1s", "host_share": "1", "token_timeout": "2s",
    "token_lease": "3s", "suspect_alone": "300ms", "poison_after": "50", "sweep_every_without_redis": "1s",
}  # fmt: skip


@dataclass
class Town:
    """Mailboxes by their person's name, and what was done to the workers."""

    database: Database
    server: TokenServer
    client: Outtray
    fleet: Fleet
    ledger: Path
    vault: Vault
    db: psycopg.Connection[Any]
    boxes: dict[str, UUID] = field(default_factory=dict)
    cut: list[Refresh] = field(default_factory=list)
    """Refreshes whose answer died with the worker that had asked for it."""
    kills: int = 0
    enqueued: int = 0

    def start_worker(self) -> None:
        number = self.fleet.started["worker"] = self.fleet.started["worker"] + 1
        log = self.fleet.folder / f"worker-{number}.log"
        process = subprocess.Popen(
            [sys.executable, "-m", "acceptance.token_worker", str(self.ledger)],
            env={**self.fleet.env, "PYTHONPATH": str(Path(__file__).parents[1])},
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.fleet.adopt("worker", process, log)

    def add_mailboxes(self) -> None:
        self.client.provider_apps.add("google", "google", client_id=CLIENT, secret=SECRET)
        for n in range(MAILBOXES):
            self.boxes[f"p{n}"] = self.client.mailboxes.add_google(
                f"p{n}@example.org",
                refresh_token=self.server.add_person(f"p{n}", SCOPE),
                scopes=[SCOPE],
                provider_app="google",
                limits={"messages": None, "recipients_per_message": None},
            ).id

    def enqueue(self, count: int) -> None:
        boxes = list(self.boxes.values())
        for n in range(self.enqueued, self.enqueued + count):
            self.client.enqueue(Message(to=f"to{n}@example.net", subject="s", text="t", mailbox=boxes[n % len(boxes)]))
        self.enqueued += count

    def worker_of(self, refresh: Refresh) -> Member | None:
        """The worker that takes this mailbox's turn, and so waits for its refresh."""
        row = self.db.execute(
            "SELECT turn_worker FROM outtray.mailbox WHERE id = %s", [self.boxes[refresh.person]]
        ).fetchone()
        return next((each for each in self.fleet.members if row and each.name_in_table == row[0]), None)

    def kill_within_a_refresh(self) -> bool:
        """Kill a worker that waits for an answer of the token server. False: none does just now."""
        refresh = next(iter(self.server.open()), None)
        victim = self.worker_of(refresh) if refresh else None
        if refresh is None or victim is None or victim.role != "worker":
            return False
        os.kill(victim.process.pid, signal.SIGSTOP)  # it stands still, so that what is open now is what dies with it
        try:
            theirs = self._turns_of(victim)
            open_now = [each for each in self.server.open() if each.person in theirs]
        finally:
            self.fleet.kill(victim)
        self.kills += bool(open_now)
        self.cut += [each for each in self._lately(theirs) if each in open_now or not self._is_saved(each)]
        self.start_worker()
        return bool(open_now)

    def _turns_of(self, victim: Member) -> set[str]:
        rows = self.db.execute("SELECT id FROM outtray.mailbox WHERE turn_worker = %s", [victim.name_in_table])
        taken = {row[0] for row in rows}
        return {person for person, box in self.boxes.items() if box in taken}

    def _lately(self, people: set[str]) -> list[Refresh]:
        """These people's refreshes that are open, or were answered just now: the save may have died with its worker."""
        since = time.monotonic() - 1.0
        return [
            each
            for each in self.server.refreshes()
            if each.person in people and each.status in (0, 200) and (each.answered is None or each.answered > since)
        ]

    def _is_saved(self, refresh: Refresh) -> bool:
        cursor = self.db.cursor(row_factory=psycopg.rows.class_row(Stored))
        stored = cursor.execute(READ, {"mailbox": self.boxes[refresh.person], "audience": ""}).fetchone()
        assert stored is not None
        opened = open_access(self.vault, self.boxes[refresh.person], "", stored)
        return opened is not None and opened[0] == refresh.access


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True], ids=["previous-stays-valid", "strict"])
def test_workers_that_die_within_a_refresh_cost_one_more_and_no_mailbox_its_consent(database, tmp_path, seed, strict):
    chance = random.Random(seed)
    ledger = tmp_path / "handed-over"
    ledger.touch()
    with (
        TokenServer(LIFETIME, rotate=True, strict=strict, delay=lambda: chance.uniform(0.2, 0.7)) as server,
        Outtray(database.settings.model_copy(update=server.settings)) as client,
        database.connect() as db,
        Fleet(environment(database.settings, **SCALED, **server.settings), tmp_path) as fleet,
    ):
        client.apps.add("default")
        town = Town(database, server, client, fleet, ledger, load_vault(database.settings), db)
        town.add_mailboxes()
        fleet.start("dispatcher", 2)
        for _ in range(WORKERS):
            town.start_worker()
        fleet.wait_alive(db)
        rage(town, chance)
        eventually(lambda: settled(db), 60, "nothing is queued but what waits for a consent, and no lease is held")
        fleet.assert_alive()
        judge(town, strict)


def rage(town: Town, chance: random.Random) -> None:
    """Mail for everybody all the time, and a kill within a refresh every two seconds or so, for at least 40 s."""
    begun, next_kill = time.monotonic(), 3.0
    while (elapsed := time.monotonic() - begun) < 40 or (town.kills < KILLS and elapsed < 120):
        due = int(elapsed * MAILBOXES / 2)
        town.enqueue(max(0, min(due - town.enqueued, 20)))
        if elapsed >= next_kill and town.kill_within_a_refresh():
            next_kill = elapsed + chance.uniform(1.5, 2.5)
        time.sleep(0.01)


def settled(db: psycopg.Connection[Any]) -> bool:
    (waiting, held), = db.execute(
        "SELECT (SELECT count(*) FROM outtray.message m JOIN outtray.mailbox b ON b.id = m.mailbox_id"
        "        WHERE m.state IN ('queued', 'handing_over') AND b.status = 'active'),"
        "       (SELECT count(*) FROM outtray.mailbox WHERE turn_until IS NOT NULL)"
    ).fetchall()  # fmt: skip
    return waiting == held == 0


def judge(town: Town, strict: bool) -> None:
    early = early_refreshes(town.server.refreshes())
    cut = Counter(each.person for each in town.cut)
    status = dict(town.db.execute("SELECT id, status FROM outtray.mailbox").fetchall())
    reconnect = {person for person, box in town.boxes.items() if status[box] == "reconnect"}
    states = dict(town.db.execute("SELECT state, count(*)::int FROM outtray.message GROUP BY 1").fetchall())
    handed = Counter(line.split()[0] for line in town.ledger.read_text().splitlines())
    print(
        f"{len(town.server.requests)} refreshes, {town.kills} kills within one, {sum(cut.values())} cut off, "
        f"{sum(early.values())} early; reconnect {sorted(reconnect)}; {states}; handed over {sum(handed.values())}"
    )
    assert town.kills >= 10, "too few kills fell into a refresh to prove anything"
    assert len(town.server.requests) > MAILBOXES * 3, "too few tokens expired to prove anything"
    assert not early - cut, "one refresh per expiry, and one more for each that a kill cut off"
    assert not [count for count in handed.values() if count > 1], "never twice"
    assert set(states) <= {"sent", "unknown", "queued"}
    assert reconnect <= (set(cut) if strict else set()), "only a lost refresh token needs its person"
    assert states.get("queued", 0) == 0 or reconnect, "everything left, but for those without a consent"
    events = Counter(
        row[0] for row in town.db.execute("SELECT mailbox_id FROM outtray.event WHERE kind = 'mailbox.reconnect'")
    )
    assert events == Counter(town.boxes[person] for person in reconnect), "told exactly once"
    wrong = [line for line in town.ledger.read_text().splitlines() if line.split()[1] not in town.server.valid]
    assert not wrong, "every mail left with a token that the server gave"


def early_refreshes(requests: list[Refresh]) -> Counter[str]:
    """Per person: refreshes that began before the token of the one before could be old."""
    early: Counter[str] = Counter()
    last: dict[str, Refresh] = {}
    for each in sorted(requests, key=lambda each: each.begun):
        before = last.get(each.person)
        # A tenth of a second for what passes between the worker's clock reading and the server's.
        early[each.person] += bool(before and each.begun < before.begun + OLD_ENOUGH - 0.1)
        last[each.person] = each
    return early


def test_the_count_sees_a_second_refresh_within_one_life() -> None:
    at = [0.0, 3.5, 4.0, 7.5]
    assert early_refreshes([Refresh("a", {}, begun) for begun in at] + [Refresh("b", {}, 0.5)]) == {"a": 1, "b": 0}
