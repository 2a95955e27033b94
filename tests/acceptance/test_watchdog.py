"""A worker whose event loop stands still, with real processes: it goes, its mail goes on elsewhere, and none twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from acceptance.fleet import Fleet, Member, environment
from acceptance.scene import SCALED
from outtray import Message, Outtray
from outtray_schema import bindings
from outtray_schema.vault import load_vault
from outtray_worker.watchdog import EXIT
from polling import eventually

pytestmark = [pytest.mark.processes, pytest.mark.slow]

LIMIT = 2.0
MAILBOXES, EACH = 8, 4


@contextmanager
def office(database, folder: Path):
    """Mailboxes of the memory provider with mail in them, and a fleet of which only the dispatcher runs yet."""
    scaled = SCALED | {"watchdog": f"{LIMIT}s", "suspect_alone": "300ms"}
    with (
        database.connect() as db,
        Outtray(database.settings) as client,
        Fleet(environment(database.settings, **scaled), folder) as fleet,
    ):
        client.apps.add("default")
        enqueue(client, [add_mailbox(db, database.settings) for _ in range(MAILBOXES)])
        fleet.start("dispatcher")
        yield db, fleet, client


def enqueue(client: Outtray, boxes: list[UUID]) -> None:
    client.enqueue_many(
        Message(to=f"p{number}@example.net", subject="s", text="t", mailbox=boxes[number % MAILBOXES])
        for number in range(MAILBOXES * EACH)
    )


def add_mailbox(db: psycopg.Connection, settings) -> UUID:
    box = uuid4()
    address = json.dumps({"address": f"box-{box}@example.org", "name": "", "aliases": []}).encode()
    sealed = load_vault(settings).addresses.encrypt(address, bindings.mailbox_address(box))
    db.execute(
        "INSERT INTO outtray.mailbox (id, app_id, provider, host, address, address_index, plan, limits)"
        " SELECT %s, a.id, 'memory', 'memory', %s, %s, 'smtp', %s FROM outtray.app a",
        [box, sealed, box.bytes, Jsonb({"messages": None})],
    )
    return box


def start_worker(fleet: Fleet, ledger: Path, flag: Path) -> Member:
    number = fleet.started["worker"] = fleet.started["worker"] + 1
    log = fleet.folder / f"worker-{number}.log"
    process = subprocess.Popen(
        [sys.executable, "-m", "acceptance.stuck_worker", str(ledger), str(flag)],
        env={**fleet.env, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    fleet.adopt("worker", process, log)
    return fleet.members[-1]


def states(db) -> dict[str, int]:
    return dict(db.execute("SELECT state, count(*)::int FROM outtray.message GROUP BY state").fetchall())


def test_a_worker_whose_loop_is_blocked_goes_and_its_mail_leaves_elsewhere_once(database, tmp_path):
    ledger, flag = tmp_path / "ledger", tmp_path / "flag"
    flag.touch()
    with office(database, tmp_path) as (db, fleet, client):
        stuck = start_worker(fleet, ledger, flag)
        eventually(lambda: not flag.exists(), 60, "its loop is blocked")
        begun = time.monotonic()
        start_worker(fleet, ledger, flag)
        assert stuck.process.wait(30) == EXIT
        fleet.members.remove(stuck)
        assert time.monotonic() - begun < LIMIT * 5
        said = stuck.log.read_text()
        assert "its event loop stands still" in said and "block_once" in said and "example.net" not in said
        eventually(lambda: states(db) == {"sent": MAILBOXES * EACH}, 60, "all of it has left")
        handed = Counter(ledger.read_text().split())
        assert len(handed) == MAILBOXES * EACH and set(handed.values()) == {1}
        goes_on_after_a_sleep(fleet, db, client)


def goes_on_after_a_sleep(fleet: Fleet, db, client: Outtray) -> None:
    """Stopped for twice the limit, as on a machine that was suspended: a loop that runs again gives its sign."""
    (worker,) = [member for member in fleet.members if member.role == "worker"]
    worker.process.send_signal(signal.SIGSTOP)
    since = time.monotonic()
    eventually(lambda: time.monotonic() > since + 2 * LIMIT, 30, "it stands still")
    worker.process.send_signal(signal.SIGCONT)
    since = time.monotonic()
    enqueue(client, [row[0] for row in db.execute("SELECT id FROM outtray.mailbox")])
    eventually(lambda: states(db) == {"sent": 2 * MAILBOXES * EACH}, 60, "it sends again")
    eventually(lambda: time.monotonic() > since + 1.5 * LIMIT, 30, "its watchdog had the time to end it")
    fleet.assert_alive()
