"""The spool: an answer that is on the disk is never lost, never guessed at, and never written twice."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import subprocess
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from command_line import CommandLine
from databases import Database
from outtray_worker import spool as spool_module
from outtray_worker.items import MailboxMove, Record, Refusal
from outtray_worker.lease import Leases
from outtray_worker.registrar import Registrar
from outtray_worker.replay import replay
from outtray_worker.spool import Spool, look_into
from outtray_worker.spool_entry import Damaged, Kept, decode, encode
from polling import until
from world import World, run, world


def sent(message: Any = None, box: Any = None) -> Record:
    evidence = {"code": 250, "text": "queued as 4f"}
    return Record(
        message or uuid4(), box or uuid4(), 1, "sent", "sent", True, provider_id="p-1", evidence=evidence
    )  # fmt: skip


def read(folder: Path) -> list[Record | Refusal]:
    return [kept.item for file in look_into(folder) for kept in file.kept]


# ── lines ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_is_read_back_as_it_was_kept() -> None:
    box = uuid4()
    move = MailboxMove(box, 3, park=timedelta(seconds=90), park_reason="quota", learns={"messages": 5})
    for item in (
        sent(), Record(uuid4(), box, 2, "retry", "queued", True, again=timedelta(seconds=7), reason="Ü 451", move=move),
        Refusal(uuid4(), box, 4, "failed", "failed", spends=True, reason="550", move=move),
    ):  # fmt: skip
        kept = decode(encode(item))
        assert isinstance(kept, Kept) and kept.item == item and kept.at is not None


def test_a_line_of_the_release_before_is_read() -> None:
    item = sent()
    text = encode(item).split(b" ", 2)[2].rstrip(b"\n")
    text = json.dumps({name: value for name, value in json.loads(text).items() if name != "kept"}).encode()
    checksum = spool_module.encode.__globals__["hashlib"].sha256(text).hexdigest()[:16].encode()
    kept = decode(checksum + b" " + text + b"\n")
    assert isinstance(kept, Kept) and (kept.item, kept.at) == (item, None)


def test_no_damage_goes_unseen() -> None:
    line = encode(sent())
    for at in range(len(line) - 1):
        assert isinstance(decode(line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]), Damaged), at
        assert isinstance(decode(line[:at]), Damaged), f"cut at {at}"
    assert isinstance(decode(line[:-1]), Kept), "only the end of the line is missing: the entry is whole"


# ── the disk ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_disk_that_fills_up_spoils_no_line_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spool, items, real, room = Spool(tmp_path), [sent() for _ in range(4)], os.write, [10_000]

    def write(descriptor: int, data: bytes) -> int:
        taken = real(descriptor, data[: room[0]]) if room[0] else 0
        room[0] -= taken
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        return taken

    monkeypatch.setattr(spool_module.os, "write", write)
    assert spool.keep(items[0])
    room[0] = 100
    assert not spool.keep(items[1]) and not spool.keep(items[2]), "half a line is no line"
    room[0] = 10_000
    assert spool.keep(items[3]) and spool.keep(items[1])
    (file,) = look_into(tmp_path)
    assert [kept.item for kept in file.kept] == [items[0], items[3], items[1]] and not file.damaged and file.owned
    said = capsys.readouterr().out
    assert said.count("cannot be written") == 1 and said.count("takes outcomes again") == 1, "said once, not each time"


def test_a_real_disk_that_is_full_holds_what_it_held(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        spool, kept = Spool(small), []
        for _ in range(100):
            kept += [item] if spool.keep(item := sent()) else []
        assert 10 < len(kept) < 100 and read(small) == kept
        (small / "else").unlink(missing_ok=True)
        for item in kept:
            spool.forget(item)
        assert not look_into(small) and spool.keep(item) and read(small) == [item]
        spool.close()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_file_that_somebody_takes_for_an_orphan_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stolen = spool_module.fcntl.flock, []

    def flock(file: Any, how: int) -> None:
        if not stolen:
            stolen.extend(tmp_path.glob("*.spool"))
            stolen[0].unlink()
        real(file, how)

    monkeypatch.setattr(spool_module.fcntl, "flock", flock)
    spool, item = Spool(tmp_path), sent()
    assert spool.keep(item)
    assert stolen and read(tmp_path) == [item]


def test_what_was_kept_before_the_file_was_closed_stays(tmp_path: Path) -> None:
    spool, items = Spool(tmp_path), [sent(), sent()]
    for item in items:
        assert spool.keep(item)
        spool.close()
    assert read(tmp_path) == items


# ── replay ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Writer:
    """A process as far as a replay needs one."""

    def __init__(self, w: World, folder: Path, reach: list[bool]) -> None:
        async def connect() -> Any:
            if not reach[0]:
                raise psycopg.OperationalError("no route to PostgreSQL")
            return await w.connect()

        settings = w.settings.model_copy(update={"spool_after": timedelta(0)})
        self.spool = Spool(folder)
        self.registrar = Registrar(settings, connect, self.spool, Leases(settings.lease))


@asynccontextmanager
async def writer(w: World, folder: Path, reach: list[bool] | None = None):
    made = Writer(w, folder, reach if reach is not None else [True])
    task = asyncio.create_task(made.registrar.run())
    yield made
    made.registrar.close()
    await asyncio.wait_for(task, 10)


async def handed_over(w: World) -> Record:
    """A message in the midst of a handover, and the answer that its worker then kept."""
    box_id = await w.mailbox()
    await w.message(box_id)
    box, message = await w.gate_one(box_id)
    return sent(message.id, box.id)


async def history(w: World) -> list[tuple[Any, ...]]:
    journal = await w.rows("SELECT message_id, kind, handover, detail FROM outtray.journal ORDER BY id")
    told = await w.rows("SELECT message_id, kind FROM outtray.event ORDER BY id")
    states = await w.rows("SELECT id, state, version, provider_id FROM outtray.message ORDER BY id")
    return [tuple(row.values()) for row in (*journal, *told, *states)]


def test_a_second_replay_changes_nothing_whoever_does_it(database: Database, tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(database.settings) as w, writer(w, tmp_path) as one, writer(w, tmp_path) as other:
            records = [await handed_over(w) for _ in range(3)]
            dead = Spool(tmp_path)
            assert all(dead.keep(record) for record in records)
            dead.close()
            (path,) = tmp_path.glob("*.spool")
            shutil.copy(path, tmp_path / "copy")
            both = await asyncio.gather(replay(one), replay(other))
            assert sum(each.files for each in both) == 1 and sum(each.taken for each in both) == 3, "one has the lock"
            before = await history(w)
            assert [row["state"] for row in await w.rows("SELECT state FROM outtray.message")] == ["sent"] * 3
            replayed = await w.rows(
                "SELECT detail->'evidence'->'replayed' AS r FROM outtray.journal WHERE kind = 'sent'"
            )
            assert [row["r"] for row in replayed] == [True] * 3, "the journal shows that it came by the spool"
            for copy in ("again.spool", path.name):
                (tmp_path / "copy").rename(tmp_path / copy)
                shutil.copy(tmp_path / copy, tmp_path / "copy")
                assert (await replay(other)).outcomes == 3
                assert await history(w) == before
            assert not list(tmp_path.glob("*.spool"))

    run(scene())


def test_what_is_damaged_is_set_aside_and_holds_up_nobody(database: Database, tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(database.settings) as w, writer(w, tmp_path) as mine:
            records = [await handed_over(w) for _ in range(3)]
            lines = [encode(record) for record in records]
            torn, flipped = lines[2][:-20], lines[1].replace(b'"sent"', b'"send"', 1)
            (tmp_path / "77-dead.spool").write_bytes(lines[0] + flipped + torn)
            (tmp_path / "78-other.spool").write_bytes(lines[1])
            done = await replay(mine)
            assert (done.files, done.taken, done.aside) == (2, 2, 2)
            assert (tmp_path / "77-dead.damaged").read_bytes() == flipped + torn + b"\n"
            assert (await replay(mine)).files == 0, "what was set aside is not tried for ever"
            states = {row["id"]: row["state"] for row in await w.rows("SELECT id, state FROM outtray.message")}
            assert [states[record.message_id] for record in records] == ["sent", "sent", "handing_over"]

    run(scene())


def test_what_cannot_be_set_aside_stays_where_it_is(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with world(database.settings) as w, writer(w, tmp_path) as mine:
            record = await handed_over(w)
            (tmp_path / "77-dead.spool").write_bytes(encode(record) + b"torn")

            def full(*_: Any) -> Any:
                raise OSError(errno.ENOSPC, "No space left on device")

            with monkeypatch.context() as patch:
                patch.setattr(spool_module, "_write_all", full)
                assert (await replay(mine)).taken == 1
            assert (tmp_path / "77-dead.spool").read_bytes().endswith(b"torn")
            await replay(mine)
            assert [path.name for path in tmp_path.glob("77*")] == ["77-dead.damaged"]

    run(scene())


def test_with_a_full_disk_and_no_database_an_answer_waits_in_memory(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        reach, tries = [True], []

        def full(*_: Any) -> int:
            tries.append(1)
            raise OSError(errno.ENOSPC, "No space left on device")

        async with world(database.settings) as w, writer(w, tmp_path, reach) as mine:
            record = await handed_over(w)
            with monkeypatch.context() as patch:
                patch.setattr(spool_module.os, "write", full)
                reach[0] = False
                written = mine.registrar.record(record)
                await until(lambda: len(tries) >= 3)
                mine.registrar.close()
                await until(lambda: len(tries) >= 5)
                assert not written.done(), "not even the end of its process makes it give up"
            reach[0] = True
            assert await written
            assert (await w.row("message", record.message_id))["state"] == "sent"

    run(scene())


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_lists_shows_and_replays(database: Database) -> None:
    outtray, folder = CommandLine.on(database.settings), database.settings.spool
    assert "Nothing waits" in outtray.ok("spool", "list").out

    async def scene() -> Record:
        async with world(database.settings) as w:
            return await handed_over(w)

    record, dead, alive = asyncio.run(scene()), Spool(folder), Spool(folder)
    assert dead.keep(record) and alive.keep(sent())
    dead.close()
    away = {"OUTTRAY_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing"}
    listed = outtray("spool", "list", "--json", **away).json["files"]
    assert sorted(file["owned"] for file in listed) == [False, True], "looking needs no database"
    (file,) = (each for each in listed if not each["owned"])
    (entry,) = file["outcomes"]
    assert (entry["message_id"], entry["handover"], entry["state"]) == (str(record.message_id), 1, "sent")
    shown = outtray.ok("spool", "show", file["file"]).out
    assert str(record.message_id) in shown and "p-1" in shown
    assert outtray("spool", "replay", **away).code == 4
    with (folder / file["file"]).open("ab") as broken:
        broken.write(b"half a li")
    ran = outtray("spool", "replay", "--json")
    assert ran.code == 1 and ran.json == {"files": 1, "outcomes": 1, "taken": 1, "aside": 1}
    again = outtray("spool", "replay")
    assert again.code == 0 and "0 outcomes of 0 files" in again.out
    listed = outtray.ok("spool", "list").out
    assert "set aside" in listed and "a running worker's" in listed
    damaged = outtray("spool", "show", file["file"].replace(".spool", ".damaged"))
    assert damaged.code == 0 and "its length is no number" in damaged.err
    assert "half a li" not in damaged.out + damaged.err
    missing = outtray("spool", "show", "none.spool")
    assert missing.code == 3 and "see: outtray spool list" in missing.err
    alive.close()
