"""Redis and PostgreSQL go away under load: mail leaves without the one, and nothing is lost without the other."""

from __future__ import annotations

import time

import pytest

from acceptance.scene import scene
from outtray import Message
from outtray_schema.errors import Unavailable
from polling import eventually

pytestmark = [pytest.mark.processes, pytest.mark.slow]

OUTAGE = 12.0
"""Seconds without Redis: 60 s on the scale of `broker_patience`, which is 1 s here instead of 5 s."""


def test_mail_leaves_while_redis_is_stopped_none_twice_and_none_over(database, services, tmp_path):
    limits = {0: {"messages": 15}, 1: {"per_minute": 30, "burst": 5}}
    with scene(database, tmp_path, mailboxes=8, limits=limits, server={"latency": (0.02, 0.1)}) as town:
        town.start(workers=2)
        town.enqueue(80)
        eventually(lambda: town.taken() >= 20, 20, "mail leaves")
        services.valkey.stop()
        stopped, before = time.monotonic(), town.taken()
        town.enqueue(160, start=80)
        eventually(lambda: time.monotonic() - stopped > OUTAGE, OUTAGE + 5)
        during, back = town.taken() - before, time.monotonic()
        services.valkey.start()
        assert during >= 100, "the six mailboxes without a pace go on"
        town.enqueue(8, start=240)
        free = 6 * 31
        eventually(lambda: town.taken() - _taken(town, 0) - _taken(town, 1) == free, 30, "the rest leaves too")
        town.fleet.assert_alive()
        assert _taken(town, 0) == 15, "not one over the quota"
        moments = [one.monotonic for one in town.server.ledger.by_user()["box1@example.org"]]
        assert 1 <= sum(stopped < moment < back for moment in moments) <= 15, "half of the pace"
        # Each process's memory may hold a burst of its own while Redis is away.
        assert len(moments) <= 5 + (moments[-1] - moments[0]) / 2 + 5
        town.judge()


def _taken(town, box: int) -> int:
    return len(town.server.ledger.by_user().get(f"box{box}@example.org", ()))


def test_after_flushes_under_load_everything_flows_again(database, redis, tmp_path):
    with scene(database, tmp_path, mailboxes=8, server={"latency": (0.05, 0.3)}) as town:
        town.start(dispatchers=2)
        for n in range(10):
            town.enqueue(8, start=8 * n)
            redis.flushall()
        for n in range(20):  # now while mail is on its way
            eventually(lambda wanted=3 * n: town.taken() >= wanted, 20, "mail leaves between the flushes")
            redis.flushall()
        town.eventually_idle()
        assert town.states() == {"sent": 80}
        town.fleet.assert_alive()
        town.judge()


def test_without_postgresql_enqueue_says_so_at_once_and_outcomes_survive_in_the_spool(database, services, tmp_path):
    with scene(database, tmp_path, mailboxes=6) as town:
        workers = town.start(workers=2)
        town.server.add_rule(stage="dot", late=1.0)
        town.enqueue(30)
        eventually(lambda: town.states()["handing_over"] == 6, 20, "every mailbox is in a handover")
        services.postgres.stop("immediate")
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            town.client.enqueue(Message(to="a@example.net", subject="s", text="t", mailbox=town.boxes[0]))
        assert time.monotonic() - begun < 6
        spool = database.settings.spool
        eventually(
            lambda: sum(1 for file in spool.glob("*.spool") for _ in file.open()) >= 6, 20, "the spool holds them"
        )
        taken = town.taken()
        town.fleet.assert_alive()
        town.fleet.kill(workers[0])  # one takes its memory with it: only the spool still knows
        services.postgres.start()
        eventually(lambda: town.states()["sent"] >= taken, 20, "what was taken is recorded")
        town.server.forget()
        town.eventually_idle()
        assert town.states() == {"sent": 30}, "not one is unknown"
        eventually(lambda: not list(spool.glob("*.spool")), 15, "the spool is empty")
        town.fleet.assert_alive()
        town.judge()
