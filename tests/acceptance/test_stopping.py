"""SIGTERM, `kill -9` of all workers, a frozen worker: what was handed over is recorded, and nothing leaves twice."""

from __future__ import annotations

import os
import signal
import time

import pytest

from acceptance.scene import LEASE, SWEEP, scene
from polling import eventually

pytestmark = [pytest.mark.processes, pytest.mark.slow]


def test_sigterm_finishes_open_handovers_and_begins_nothing_new(database, tmp_path):
    with scene(database, tmp_path, mailboxes=4) as town:
        (worker,) = town.start()
        town.server.add_rule(stage="dot", late=1.5)
        town.enqueue(20)
        eventually(lambda: town.states()["handing_over"] == 4, 20, "every mailbox is in a handover")
        before = town.taken()
        assert town.fleet.stop(worker) == 0
        states = town.states()
        assert states["sent"] == town.taken() and before + 1 <= states["sent"] <= before + 4
        assert states["handing_over"] == states["unknown"] == 0 and town.held() == 0
        assert town.rows("SELECT DISTINCT attempt FROM outtray.message WHERE state = 'queued'") == [(0,)]
        assert town.one("SELECT count(*) FROM outtray.process WHERE role = 'worker'") == 0, "it took its leave"
        town.server.forget()
        town.fleet.start("worker")
        town.eventually_idle()
        assert town.states() == {"sent": 20}
        (dispatcher,) = (member for member in town.fleet.members if member.role == "dispatcher")
        assert town.fleet.stop(dispatcher) == 0
        town.judge()


def test_after_a_kill_of_all_workers_every_mailbox_is_back_within_a_lease_and_a_sweep(database, tmp_path):
    with scene(database, tmp_path, mailboxes=6) as town:
        workers = town.start(workers=2)
        town.server.do("set_latency", low=0.2, high=0.6)
        town.enqueue(60)
        eventually(lambda: town.taken() >= 6, 20, "mail leaves")
        for worker in workers:
            town.fleet.kill(worker)
        killed = time.monotonic()
        opened = town.states()["handing_over"]
        free = "SELECT count(*) FROM outtray.mailbox WHERE turn_until IS NULL AND next_at <= outtray.outtray_now()"
        eventually(lambda: town.one(free) == 6, LEASE + SWEEP, "every mailbox can be taken again")
        print(f"back after {time.monotonic() - killed:.1f} s, {opened} handovers were open")
        town.fleet.start("worker", 2)
        town.eventually_idle()
        states = town.states()
        assert states["unknown"] <= opened and states["sent"] == 60 - states["unknown"]
        town.judge()


def test_a_worker_frozen_before_its_gate_beyond_its_lease_begins_nothing_when_it_wakes(database, tmp_path):
    # Patient in preparation, so that it is the gate that stops it.
    with scene(database, tmp_path, prepare_limit="60s", command_timeout="60s") as town:
        (frozen,) = town.start()
        town.server.add_rule(stage="rcpt", late=1.0, times=1)
        town.enqueue(3)
        eventually(lambda: town.server.seen["rcpt"] == 1, 20, "it prepares the first message")
        os.kill(frozen.process.pid, signal.SIGSTOP)
        town.fleet.start("worker")
        town.eventually_idle()
        assert town.states() == {"sent": 3} and town.taken() == 3
        mails = town.server.seen["dot"]
        os.kill(frozen.process.pid, signal.SIGCONT)
        town.enqueue(3, start=3)
        town.eventually_idle()
        assert town.fleet.stop(frozen) == 0, "it woke, and it lives"
        assert town.server.seen["dot"] == mails + 3
        assert town.states() == {"sent": 6}
        town.judge()


def test_a_worker_frozen_in_its_handover_reports_what_the_server_said_once_it_wakes(database, tmp_path):
    with scene(database, tmp_path) as town:
        (frozen,) = town.start()
        town.server.add_rule(stage="dot", late=1.0, times=1)
        town.enqueue(2)
        eventually(lambda: town.server.seen["dot"] == 1, 20, "it waits for the first answer")
        os.kill(frozen.process.pid, signal.SIGSTOP)
        town.fleet.start("worker")
        eventually(lambda: town.states() == {"sent": 1, "unknown": 1}, 30, "the other left, the open one is unknown")
        os.kill(frozen.process.pid, signal.SIGCONT)
        town.eventually_sent(2)
        town.judge()
        assert town.taken() == 2


def test_a_message_that_kills_its_workers_fails_as_poison_and_the_next_one_leaves(database, tmp_path):
    with scene(database, tmp_path, crash_at="preparing", lease="700ms", engine_turns="1") as town:
        town.enqueue(1, priority="high")
        town.fleet.start("dispatcher")
        poison = town.one("SELECT id FROM outtray.message")
        for _ in range(4):
            (worker,) = town.fleet.start("worker")
            assert worker.process.wait(30) == -signal.SIGKILL
            town.fleet.members.remove(worker)
        town.enqueue(1)
        town.fleet.env = {**town.fleet.env, "OUTTRAY_CRASH_AT": ""}
        town.fleet.start("worker")
        town.eventually_idle()
        rows = town.rows("SELECT id = %s, state, reason FROM outtray.message ORDER BY priority", poison)
        assert rows == [(True, "failed", "poison: its worker died 3 times while preparing it"), (False, "sent", None)]
        assert town.taken() == 1
