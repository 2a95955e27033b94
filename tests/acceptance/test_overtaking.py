"""A small app's mail overtakes in a worker that has taken in all it can of a large app's."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta

import pytest

from acceptance.scene import scene
from outtray import Message, Outtray
from outtray_worker.celery import celery_app
from outtray_worker.rounds import Rounds
from polling import eventually

pytestmark = [pytest.mark.processes, pytest.mark.slow]

ANSWER = 2.5
"""Seconds that the server takes to answer each mail: as long as a round waits for room in a full engine."""
AT_ONCE = 2
UNDER_WAY = "SELECT count(*) FROM outtray.message WHERE state = 'handing_over'"


def test_rounds_that_wait_for_room_leave_threads_to_one_that_overtakes(database, tmp_path):
    late = {"latency": (ANSWER, ANSWER)}
    narrow = {"engine_turns": str(AT_ONCE), "round_mailboxes": "1", "round_again": "30s", "lease": "10s"}
    with scene(database, tmp_path, mailboxes=24, server=late, **narrow) as town:
        town.enqueue(24)
        town.client.apps.add("small")
        with Outtray(database.settings, app="small", actor="test") as small:
            town.server.do("add_user", user="lone@example.com", password="pw")
            server = {"host": "localhost", "port": town.server.port, "tls": "clear", "password": "pw"}
            box = small.mailboxes.add_smtp("lone@example.com", **server).id
            town.fleet.start("dispatcher")
            with closing(Rounds(celery_app(database.settings, "dispatcher"))) as rounds:
                eventually(lambda: rounds.waiting() >= database.settings.round_backlog, 20, "rounds wait in the broker")
            town.fleet.start("worker")
            eventually(lambda: town.one(UNDER_WAY) == AT_ONCE, 20, "the engine is full")
            message = small.enqueue(Message(mailbox=box, to="a@example.net", subject="s", text="t"))
            eventually(lambda: small.get(message.id).state == "sent", 15, "the small app's mail is sent")
        (waited,) = town.rows("SELECT handed_at - created_at FROM outtray.message WHERE id = %s", message.id)[0]
        assert waited < timedelta(seconds=ANSWER / 2), "it waited for none of the large app's turns to end"
        assert town.states()["queued"] > 2 * AT_ONCE, "of which many were left"
        town.fleet.assert_alive()
