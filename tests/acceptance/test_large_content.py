"""Large messages: a worker holds a bounded part of them, and one that is not complete never leaves."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import psycopg
import pytest
from psycopg.types.json import Jsonb

from acceptance.fleet import Fleet, environment
from acceptance.scene import SCALED, scene
from outtray import Message
from outtray_schema import bindings
from outtray_schema.attachment import Attachment
from outtray_schema.content import CHUNK, Head
from outtray_schema.ids import new_id
from outtray_schema.vault import Vault, load_vault
from polling import eventually

pytestmark = [pytest.mark.processes, pytest.mark.slow]

MESSAGES = 20
CHUNKS = 100
MIB = 1024 * 1024
ROOT = Path(__file__).parents[2]


def test_twenty_messages_of_100_mb_at_once_stay_within_the_bound(database, tmp_path):
    with database.connect() as db:
        ids, digest = store(db, load_vault(database.settings))
        scaled = SCALED | {"lease": "20s", "turn_length": "60s", "prepare_limit": "200s", "handover_begin": "30s"}
        with Fleet(environment(database.settings, **scaled), tmp_path) as fleet:
            worker = counting_worker(fleet, tmp_path)
            fleet.wait_alive(db)
            before = peak(worker)
            db.execute("UPDATE outtray.mailbox SET next_at = outtray.outtray_now()")
            fleet.start("dispatcher")
            sent = "SELECT count(*) FROM outtray.message WHERE state = 'sent'"
            eventually(lambda: db.execute(sent).fetchone() == (MESSAGES,), 150, "all have left")
            grown = peak(worker) - before
            fleet.assert_alive()
    lines = (tmp_path / "ledger").read_text().split("\n")[:-1]
    assert sorted(lines) == sorted(f"{message} {CHUNKS * CHUNK} {digest.hex()}" for message in ids)
    print(f"grown by {grown / MIB:.0f} MiB while {MESSAGES} messages of {CHUNKS} MiB were read side by side")
    assert grown < 150 * MIB


def store(db: psycopg.Connection[Any], vault: Vault) -> tuple[list[UUID], bytes]:
    """Rows as `enqueue` would write them; written by COPY, since 2 GB through MIME would test something else."""
    block = os.urandom(CHUNK)
    digest = hashlib.sha256()
    for _ in range(CHUNKS):
        digest.update(block)
    ids = [new_id() for _ in range(MESSAGES)]
    app = new_id()
    db.execute("ALTER TABLE outtray.content_chunk SET UNLOGGED")
    db.execute("INSERT INTO outtray.app (id, name) VALUES (%s, 'default')", [app])
    for message in ids:
        store_message(db, vault, app, message, digest.digest())
    with db.cursor().copy("COPY outtray.content_chunk FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["uuid", "int4", "bytea"])
        for message, n, data in sealed_chunks(vault, ids, block):
            copy.write_row((message, n, data))
    return ids, digest.digest()


def store_message(db: psycopg.Connection[Any], vault: Vault, app: UUID, message: UUID, digest: bytes) -> None:
    address = vault.addresses.encrypt(
        json.dumps({"address": "box@example.org"}).encode(), bindings.mailbox_address(message)
    )
    db.execute(
        "INSERT INTO outtray.mailbox (id, app_id, provider, host, address, address_index, plan, limits)"
        " VALUES (%s, %s, 'memory', 'memory', %s, %s, 'smtp', %s)",
        [message, app, address, message.bytes, Jsonb({})],
    )
    db.execute(
        "INSERT INTO outtray.message (id, app_id, mailbox_id, request_hash, due_at, recipients, external, size,"
        " rfc_message_id) VALUES (%s, %s, %s, '', outtray.outtray_now(), 1, 1, %s, %s)",
        [message, app, message, CHUNKS * CHUNK, f"<{message}@example.org>"],
    )
    head = Head("box@example.org", "", (("to", "to@example.net"),), "s", {})
    db.execute(
        "INSERT INTO outtray.content (message_id, head, body_hash) VALUES (%s, %s, %s)",
        [
            message, vault.content.encrypt(head.to_json(), bindings.head(message)),
            vault.keyed_hash(message, "body", digest),
        ],
    )  # fmt: skip


def sealed_chunks(vault: Vault, ids: list[UUID], block: bytes) -> Iterator[tuple[UUID, int, bytes]]:
    for message in ids:
        for n in range(CHUNKS):
            yield message, n, vault.content.encrypt(block, bindings.chunk(message, n))


def counting_worker(fleet: Fleet, folder: Path) -> psutil.Process:
    log = folder / "worker.log"
    path = os.pathsep.join(filter(None, (str(ROOT / "tests"), fleet.env.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "acceptance.counting_worker", str(folder / "ledger"), str(MESSAGES)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**fleet.env, "PYTHONPATH": path}, stdout=output, stderr=subprocess.STDOUT
        )
    fleet.adopt("worker", process, log)
    return psutil.Process(process.pid)


def peak(process: psutil.Process) -> int:
    """The greatest resident size that the process ever had, in bytes (`VmHWM` of Linux)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("table", ["content_chunk", "attachment_chunk"])
@pytest.mark.parametrize("lost", ["0", "2", "last"])
def test_a_message_that_lost_a_piece_never_reaches_the_dot(database, tmp_path, table, lost):
    with scene(database, tmp_path) as town:
        whole = {"text": os.urandom(2 * MIB).hex()}
        if table == "attachment_chunk":
            whole = {"text": "t", "attachments": [Attachment("large.bin", os.urandom(3 * MIB))]}
        town.client.mailboxes.pause(town.boxes[0])
        town.client.enqueue(Message(to="a@example.net", subject="s", mailbox=town.boxes[0], **whole))
        town.client.enqueue(Message(to="b@example.net", subject="s", text="t", mailbox=town.boxes[0]))
        with database.connect() as db:
            n = f"(SELECT max(n) FROM outtray.{table})" if lost == "last" else lost
            assert db.execute(f"DELETE FROM outtray.{table} WHERE n = {n}").rowcount == 1
        town.client.mailboxes.resume(town.boxes[0])
        town.start()
        town.eventually_idle()
        assert town.states() == {"failed": 1, "sent": 1}
        reason = town.one("SELECT reason FROM outtray.message WHERE state = 'failed'")
        assert reason in ("its stored content is damaged", "its content was erased")
        taken = town.server.ledger.read()
        assert [one.recipients for one in taken] == [("b@example.net",)], "nothing of it was taken"
        assert town.server.seen["dot"] == 1
