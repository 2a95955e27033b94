"""The promise, with real processes: workers and dispatchers killed, Redis flushed and stopped, and every mail once.

The server's own ledger is the judge. Time constants are scaled (lease 3 s, handover 5 s); the server answers after a
seeded 0.2 to 1.5 s, so that kills fall into open handovers.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest

from acceptance.fleet import Fleet, environment
from outtray import Message, Outtray
from outtray_sandbox.smtp import SmtpServer
from polling import eventually

MAILBOXES = 50
MESSAGES_A_SECOND = 8
"""About 500 in the time that a run takes."""
LASTS, AT_MOST = 65.0, 180.0
"""Seconds of faults. A run goes on beyond the first until enough kills fell into an open handover: whom they befall is
chance, and a worker that has just been started has none: for seconds, on a busy machine."""
KILLS, IN_A_HANDOVER = 20, 10
"""How many must fall to prove anything."""
SCALED = {
    "lease": "3s", "turn_length": "2s", "round_again": "3s", "sweep_every": "3s", "tend_every": "500ms",
    "handover_begin": "1500ms", "handover_answer": "3500ms", "prepare_limit": "5s", "command_timeout": "4s",
    "connect_timeout": "2s", "broker_patience": "1s", "backoff_base": "300ms", "backoff_cap": "1s", "park_cap": "1s",
    "breaker_probe": "300ms", "breaker_probe_cap": "1s",
    "sweep_every_without_redis": "1s", "host_share": "1", "smtp_clear_loopback": "true",
}  # fmt: skip

OPEN = """
SELECT count(*) FROM outtray.message m JOIN outtray.mailbox b ON b.id = m.mailbox_id
WHERE m.state = 'handing_over' AND b.turn_worker = %s
"""


@dataclass
class Faults:
    """What fell, and when a handover was open."""

    kills: Counter[str] = field(default_factory=Counter)
    open_at_kill: int = 0
    kills_in_a_handover: int = 0
    flushes: int = 0
    redis_stops: int = 0
    messages: int = 0
    """Enqueued while they fell."""

    @property
    def enough(self) -> bool:
        return sum(self.kills.values()) >= KILLS and self.kills_in_a_handover >= IN_A_HANDOVER


def enqueue_some(client: Outtray, boxes: list, start: int, count: int) -> None:
    for number in range(start, start + count):
        client.enqueue(
            Message(
                to=f"person{number}@example.net", subject=f"n {number}", text="hi", mailbox=boxes[number % MAILBOXES]
            )
        )


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_kills_and_flushes_send_nothing_twice_and_lose_nothing(database, services, redis, tmp_path, seed):
    chance = random.Random(seed)
    with SmtpServer(tmp_path / "accepted.jsonl", users={f"box{n}@example.org": "pw" for n in range(MAILBOXES)},
                    latency=(0.2, 1.5), seed=seed) as server, Outtray(database.settings) as client:  # fmt: skip
        client.apps.add("default")
        boxes = [
            client.mailboxes.add_smtp(
                f"box{n}@example.org", host=server.host, port=server.port, tls="clear", username=f"box{n}@example.org",
                password="pw", limits={"messages": 1000},
            ).id
            for n in range(MAILBOXES)
        ]  # fmt: skip
        with database.connect() as db, Fleet(environment(database.settings, **SCALED), tmp_path) as fleet:
            fleet.start("dispatcher", 2)
            fleet.start("worker", 3)
            fleet.wait_alive(db)
            faults = rage(fleet, db, services, redis, client, boxes, chance)
            eventually(lambda: settled(db), 90, "nothing is queued, handed over or held")
            fleet.assert_alive()
        judge(db_rows(database), server, faults)


def rage(fleet: Fleet, db, services, redis, client: Outtray, boxes: list, chance: random.Random) -> Faults:
    """Faults while messages keep coming."""
    faults, begun = Faults(), time.monotonic()
    next_kill, next_flush, redis_back = 2.0, 5.0, None
    while (elapsed := time.monotonic() - begun) < (LASTS if faults.enough else AT_MOST):
        due = int(MESSAGES_A_SECOND * elapsed)
        enqueue_some(client, boxes, faults.messages, due - faults.messages)
        faults.messages = due
        if elapsed >= next_kill:
            next_kill += 2.0
            kill_somebody(fleet, db, chance, faults)
        if elapsed >= next_flush:
            next_flush += 5.0
            if redis_back is None:
                redis.flushall()
                faults.flushes += 1
        if elapsed >= 30 and faults.redis_stops == 0:
            services.valkey.stop()
            faults.redis_stops, redis_back = 1, elapsed + 10
        if redis_back is not None and elapsed >= redis_back:
            services.valkey.start()
            redis_back = None
        time.sleep(0.02)
    return faults


def kill_somebody(fleet: Fleet, db, chance: random.Random, faults: Faults) -> None:
    member = chance.choice(fleet.members)
    fleet.kill(member)  # first the kill, then the count: what it left open stands still until its deadline
    open_now = db.execute(OPEN, [member.name_in_table]).fetchone()[0]
    faults.kills[member.role] += 1
    faults.open_at_kill += open_now
    faults.kills_in_a_handover += bool(open_now)
    fleet.start(member.role)


def settled(db) -> bool:
    waiting = db.execute("SELECT count(*) FROM outtray.message WHERE state IN ('queued', 'handing_over')").fetchone()[0]
    held = db.execute("SELECT count(*) FROM outtray.mailbox WHERE turn_until IS NOT NULL").fetchone()[0]
    return waiting == 0 and held == 0


def db_rows(database) -> dict[str, str]:
    with database.connect() as db:
        return dict(db.execute("SELECT rfc_message_id, state FROM outtray.message").fetchall())


def judge(states: dict[str, str], server: SmtpServer, faults: Faults) -> None:
    taken = Counter(accepted.rfc_message_id for accepted in server.ledger.read())
    counts = Counter(states.values())
    print(f"states {dict(counts)}; accepted {sum(taken.values())}; {faults}")
    assert len(states) == faults.messages
    assert not server.ledger.twice(), "never twice"
    assert set(counts) <= {"sent", "unknown"}, "everything else is sent"
    lost = [message_id for message_id, state in states.items() if state == "sent" and taken[message_id] != 1]
    assert not lost, "what is called sent was taken exactly once"
    assert counts["unknown"] <= faults.open_at_kill, "only a kill in a handover leaves an unknown"
    assert sum(faults.kills.values()) >= KILLS, "too few kills fell to prove anything"
    assert faults.kills_in_a_handover >= IN_A_HANDOVER, "too few kills fell into an open handover"
    assert faults.flushes >= 8 and faults.redis_stops == 1
