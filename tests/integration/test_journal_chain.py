"""The journal's chain: what is linked and sealed verifies, and nothing that somebody does to it goes unseen."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis.asyncio as redis_client
from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from command_line import CommandLine
from databases import Database
from outtray.journal import Verified, read_seals, verify
from outtray_schema.database import conninfo
from outtray_worker import dispatcher as dispatching
from outtray_worker import seal as sealing
from outtray_worker.celery import celery_app
from outtray_worker.prune import prune
from outtray_worker.rounds import Rounds
from polling import until

STRANGE = {
    "state": "sent", "reason": 'quoted "so", Größe, \u0001\t\n\\, 😀',
    "evidence": {"code": 250, "share": 0.10, "big": 1e30}, "empty": {}, "none": None, "list": [1, "2", False],
    "": "a key without a name",
}  # fmt: skip


@dataclass
class History:
    """Two days of a journal, both linked, the first one sealed (with 5 links): two messages, a mailbox, a switch."""

    database: Database
    first: UUID
    second: UUID
    box: UUID

    def note(self, kind: str, message: UUID | None = None, box: UUID | None = None, /, **detail: Any) -> int:
        """Write one entry, as all code does, and answer with its number."""
        insert = """INSERT INTO outtray.journal (message_id, mailbox_id, kind, handover, actor, detail)
            VALUES (%s, %s, %s, 1, 'ann', %s) RETURNING id"""
        with self.database.connect() as connection:
            row = connection.execute(insert, [message, box, kind, Jsonb(detail) if detail else None]).fetchone()
        assert row is not None
        return int(row[0])

    def noon(self) -> None:
        """Move the clock to the next noon in UTC: far from every midnight."""
        with self.database.connect() as connection:
            connection.execute("""UPDATE outtray.clock SET shift = shift + (
                date_trunc('day', outtray.outtray_now(), 'UTC') + interval '36 hours' - outtray.outtray_now())""")

    def link(self) -> None:
        """What dispatchers do within half a minute."""
        asyncio.run(self._link())

    async def _link(self) -> None:
        async with await AsyncConnection.connect(conninfo(self.database.settings), autocommit=True) as connection:
            for _ in range(3):
                while await sealing.seal(connection):
                    pass

    def verify(self, **only: Any) -> Verified:
        with self.database.connect(row_factory=dict_row) as connection:
            return verify(connection, **only)

    def sql(self, statement: str, **values: Any) -> list[Any]:
        with self.database.connect() as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def entry(self, message: UUID, kind: str) -> int:
        found = self.sql("SELECT id FROM outtray.journal WHERE message_id = %(m)s AND kind = %(k)s", m=message, k=kind)
        return int(found[0][0])


@pytest.fixture
def history(database: Database, monkeypatch: pytest.MonkeyPatch) -> History:
    monkeypatch.setattr(sealing, "SPAN", 3)  # a chain's entries fall into different chunks
    made = History(database, uuid4(), uuid4(), uuid4())
    made.noon()
    for kind, detail in (("enqueued", {}), ("gate", {}), ("sent", STRANGE)):
        made.note(kind, made.first, made.box, **detail)
    made.note("enqueued", made.second, made.box)
    made.note("parked", None, made.box, reason="quota")
    made.link()
    made.noon()
    made.link()
    made.note("gate", made.second, made.box)
    made.note("sent", made.second, made.box, state="sent")
    made.note("switch.paused", kind="all", target="")
    made.note("added", None, made.box)
    made.link()
    return made


def test_a_journal_that_nobody_touched_verifies(history: History) -> None:
    found = history.verify()
    assert found.ok, found.breaks
    assert (found.entries, found.chains, found.unlinked) == (9, 4, 0)
    carried = history.sql("SELECT id FROM outtray.journal_link WHERE carried IS NOT NULL ORDER BY id")
    assert carried == [(history.entry(history.second, "gate"),), (9,)], (
        "what goes on from an earlier day says from what"
    )
    assert history.verify(message_id=history.second).entries == 3


def test_each_day_is_sealed_once_and_each_seal_continues_the_one_before(history: History) -> None:
    for _ in range(2):
        history.noon()
        history.note("look", history.first)
        history.link()
        history.link()
    with history.database.connect() as connection:
        seals = read_seals(connection)
    days = [seal.day for seal in seals]
    assert days == [days[0] + timedelta(days=n) for n in range(len(days))] and len(days) == 4
    assert all(later.previous == earlier.digest for earlier, later in pairwise(seals))
    assert sum(seal.links for seal in seals) + history.sql("SELECT links FROM outtray.journal_sealing")[0][0] == 11
    assert history.verify().ok


# ── what somebody may do to it ────────────────────────────────────────────────────────────────────────────────────


def change_a_detail(h: History) -> tuple[str, Any]:
    h.sql("UPDATE outtray.journal SET detail = detail || '{\"reason\": \"other\"}' WHERE message_id = %(m)s"
          " AND kind = 'sent'", m=h.first)  # fmt: skip
    return "changed", h.entry(h.first, "sent")


def change_a_time(h: History) -> tuple[str, Any]:
    h.sql("UPDATE outtray.journal SET at = at + interval '1 microsecond' WHERE message_id = %(m)s AND kind = 'gate'",
          m=h.second)  # fmt: skip
    return "changed", h.entry(h.second, "gate")


def delete_from_the_middle(h: History) -> tuple[str, Any]:
    gate = h.entry(h.first, "gate")
    h.sql("DELETE FROM outtray.journal WHERE id = %(id)s", id=gate)
    return "missing", gate


def delete_the_end(h: History) -> tuple[str, Any]:
    sent = h.entry(h.second, "sent")
    h.sql("DELETE FROM outtray.journal WHERE id = %(id)s", id=sent)
    return "missing", sent


def delete_the_end_with_its_link(h: History) -> tuple[str, Any]:
    sent = h.entry(h.second, "sent")
    for table in ("journal", "journal_link"):
        h.sql(f"DELETE FROM outtray.{table} WHERE id = %(id)s", id=sent)
    return "link", None


def delete_a_sealed_end_with_its_link(h: History) -> tuple[str, Any]:
    sent = h.entry(h.first, "sent")
    h.sql("DELETE FROM outtray.journal WHERE id = %(id)s", id=sent)
    h.sql("DELETE FROM outtray.journal_link WHERE id = %(id)s", id=sent)
    return "link", None


def insert_an_entry(h: History) -> tuple[str, Any]:
    h.sql("INSERT INTO outtray.journal (id, message_id, kind) VALUES (2, %(m)s, 'cancel')", m=h.second)
    return "added", 2


def swap_two(h: History) -> tuple[str, Any]:
    h.sql("""UPDATE outtray.journal j SET kind = o.kind, detail = o.detail FROM outtray.journal o
        WHERE j.message_id = %(m)s AND o.message_id = %(m)s
          AND (j.kind, o.kind) IN (('gate', 'sent'), ('sent', 'gate'))""", m=h.second)  # fmt: skip
    return "changed", 6


def give_an_entry_to_another_message(h: History) -> tuple[str, Any]:
    h.sql("UPDATE outtray.journal SET message_id = %(m)s WHERE id = 3", m=h.second)
    return "missing", 3


def write_an_earlier_day_anew(h: History) -> tuple[str, Any]:
    enqueued = h.entry(h.second, "enqueued")
    h.sql("UPDATE outtray.journal SET actor = 'eve' WHERE id = %(id)s", id=enqueued)
    h.sql("""UPDATE outtray.journal_link l SET hash = outtray.chain_step(NULL, decode(repeat('00', 32), 'hex'),
        outtray.journal_text(j.id, j.at, j.message_id, j.mailbox_id, j.kind, j.handover, j.actor, j.detail))
        FROM outtray.journal j WHERE j.id = l.id AND j.id = %(id)s""", id=enqueued)  # fmt: skip
    return "cut", h.entry(h.second, "gate")


def alter_a_link(h: History) -> tuple[str, Any]:
    h.sql("UPDATE outtray.journal_link SET hash = sha256(hash) WHERE id = 3")
    return "changed", 3


def alter_a_seal(h: History) -> tuple[str, Any]:
    h.sql("UPDATE outtray.journal_seal SET digest = sha256(digest) WHERE links = 5")
    return "link", None


def take_a_seal_away(h: History) -> tuple[str, Any]:
    h.sql("DELETE FROM outtray.journal_seal WHERE day = (SELECT min(day) FROM outtray.journal_seal)")
    return "seal", None


def drop_a_sealed_day_and_its_seal(h: History) -> tuple[str, Any]:
    for table in ("journal", "journal_link"):
        h.sql(f"DELETE FROM outtray.{table} WHERE id <= 5")
    h.sql("DELETE FROM outtray.journal_seal WHERE links = 5")
    return "seal", None


DEEDS = [
    change_a_detail, change_a_time, delete_from_the_middle, delete_the_end, delete_the_end_with_its_link,
    delete_a_sealed_end_with_its_link, insert_an_entry, swap_two, give_an_entry_to_another_message,
    write_an_earlier_day_anew, alter_a_link, alter_a_seal, take_a_seal_away, drop_a_sealed_day_and_its_seal,
]  # fmt: skip


def test_tampering_is_found_and_named(history: History) -> None:
    tables = ("journal", "journal_link", "journal_seal")
    for table in tables:
        history.sql(f"CREATE TABLE public.{table} AS TABLE outtray.{table}")
    for deed in DEEDS:
        what, entry = deed(history)
        found = history.verify()
        assert (what, entry) in [(each.what, each.entry) for each in found.breaks], (deed.__name__, found.breaks)
        if entry is not None:
            first = next(each for each in found.breaks if each.entry == entry)
            assert first.chain in (history.first, history.second), deed.__name__
        for table in tables:
            history.sql(f"TRUNCATE outtray.{table}; INSERT INTO outtray.{table} TABLE public.{table}")
    assert history.verify().ok


def test_whoever_rewrites_seals_and_all_is_found_by_what_was_exported(history: History) -> None:
    with history.database.connect() as connection:
        exported = {seal.day: seal.digest.hex() for seal in read_seals(connection)}
    assert history.verify(exported=exported).ok
    history.sql("UPDATE outtray.journal SET detail = NULL WHERE message_id = %(m)s", m=history.first)
    history.sql("TRUNCATE outtray.journal_link, outtray.journal_seal")
    history.sql("DELETE FROM outtray.journal_sealing; INSERT INTO outtray.journal_sealing DEFAULT VALUES")
    history.link()
    assert history.verify().ok, "a chain proves nothing against one who makes it anew"
    found = history.verify(exported=exported)
    assert {each.what for each in found.breaks} == {"export"}


# ── what it must live with ────────────────────────────────────────────────────────────────────────────────────────


def test_an_entry_that_commits_late_is_waited_for(history: History) -> None:
    with history.database.connect(autocommit=False) as late:
        late.execute("INSERT INTO outtray.journal (message_id, kind) VALUES (%s, 'enqueued')", [uuid4()])
        history.note("look", history.second)
        for _ in range(3):
            history.link()
        found = history.verify()
        assert found.ok and found.unlinked == 1, "nothing behind it is linked before it"
        late.commit()
    history.link()
    found = history.verify()
    assert found.ok and found.unlinked == 0 and found.entries == 11


def test_a_running_dispatcher_links_and_seals(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "SEAL_EVERY", 0.01)
    settings = history.database.settings
    history.note("look", history.first)
    history.noon()

    async def scene() -> None:
        async def connect() -> AsyncConnection[Any]:
            return await AsyncConnection.connect(conninfo(settings), autocommit=True)

        async with redis_client.Redis.from_url(str(settings.redis_url)) as broker:
            rounds = Rounds(celery_app(settings, "dispatcher"))
            dispatcher = dispatching.Dispatcher(settings, connect, broker, rounds)
            running = asyncio.create_task(dispatcher.run())
            await until(lambda: history.sql("SELECT count(*) FROM outtray.journal_seal") == [(3,)])
            dispatcher.stop()
            await running
            rounds.close()

    asyncio.run(scene())
    found = history.verify()
    assert found.ok and found.unlinked == 0 and found.seals == 3


def test_a_second_dispatcher_leaves_it_to_the_first(history: History) -> None:
    history.note("look", history.first)
    with history.database.connect(autocommit=False) as first:
        first.execute("SELECT FROM outtray.journal_sealing FOR UPDATE")
        with history.database.connect() as second:
            second.execute("SET lock_timeout = '1s'")
            for statement in ("SELECT outtray.seal_journal_1(100)", "SELECT outtray.seal_day_1('0')"):
                assert second.execute(statement).fetchone() in [(False,), (None,)]
    history.link()
    assert history.verify().ok


def test_a_day_is_dropped_only_once_it_is_sealed_and_its_seal_stays(history: History) -> None:
    settings = history.database.settings.model_copy(update={"keep_journal": timedelta(days=3)})

    async def pruned() -> dict[str, int]:
        async with await AsyncConnection.connect(conninfo(settings), autocommit=True) as connection:
            return await prune(connection, settings)

    asyncio.run(pruned())  # makes partitions for the days to come
    history.noon()
    history.note("look", history.second)
    for _ in range(6):
        history.noon()
    assert asyncio.run(pruned())["journal days"] == 0, "that of the look is not sealed, nor any later one"
    assert history.sql("SELECT count(*) FROM outtray.journal WHERE kind = 'look'") == [(1,)]
    history.link()
    assert asyncio.run(pruned())["journal days"] > 0
    kept = history.sql("SELECT count(*) FROM outtray.journal UNION ALL SELECT count(*) FROM outtray.journal_link")
    assert kept == [(0,), (0,)]
    history.note("look", history.second)
    history.link()
    found = history.verify()
    assert found.ok and found.entries == 1 and (found.seals, found.dropped_seals) == (3, 2)
    carried = history.sql("SELECT count(*) FROM outtray.journal_link WHERE carried IS NOT NULL")
    assert carried == [(0,)], "nothing is left of it that could be gone on from"


def test_only_what_is_of_a_day_and_later_is_verified_since_that_day(history: History) -> None:
    day: date = history.sql("SELECT (outtray.outtray_now() AT TIME ZONE 'UTC')::date")[0][0]
    assert history.verify(since=day).entries == 4
    history.sql("UPDATE outtray.journal SET actor = 'eve' WHERE id = 1")
    assert history.verify(since=day).ok
    assert not history.verify(since=day - timedelta(days=1)).ok


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_names_what_is_broken_and_ends_with_1(history: History, tmp_path: Path) -> None:
    outtray = CommandLine.on(history.database.settings)
    assert "9 entries of 4 chains" in outtray.ok("journal", "verify").out
    seals = tmp_path / "seals.json"
    seals.write_text(outtray.ok("journal", "seals", "--json").out)
    assert outtray.ok("journal", "verify", "--against", str(seals), "--json").json["ok"]
    assert str(history.sql("SELECT max(day) FROM outtray.journal_seal")[0][0]) in outtray.ok("journal", "seals").out
    assert "enqueued" in outtray.ok("journal", "show", str(history.first)).out
    history.sql("UPDATE outtray.journal SET kind = 'cancel' WHERE id = 2")
    ran = outtray("journal", "verify")
    assert ran.code == 1 and f"changed: message {history.first}, entry 2 (cancel)" in ran.err
    told = outtray("journal", "verify", "--message", str(history.first), "--json")
    assert told.code == 1 and [each["entry"] for each in told.json["breaks"]] == [2]
    assert outtray("journal", "verify", "--message", str(history.second)).code == 0


def test_the_doctor_sees_that_linking_is_behind(history: History) -> None:
    def finding() -> dict[str, str]:
        told = CommandLine.on(history.database.settings)("doctor", "--json").json["findings"]
        return next(each for each in told if each["about"] == "journal")

    assert (finding()["grade"], finding()["found"]) == ("ok", "linked; 2 seals")
    history.note("look", history.first)
    assert finding()["grade"] == "ok", "it has half a minute"
    history.noon()
    assert finding()["grade"] == "warning" and "entries wait to be linked, since" in finding()["found"]
    history.link()
    assert finding()["grade"] == "ok"


WRONG = [
    (["verify", "--since", "yesterday"], 2, "--since: 'yesterday' is no day; write 2026-11-20"),
    (["verify", "--message", "7"], 2, "is no message id"),
    (["verify", "--message", str(uuid4())], 3, "there is no journal of a message"),
    (["verify", "--message", str(uuid4()), "--since", "2026-11-20"], 2, "--message stands alone"),
    (["verify", "--against", "/nowhere.json"], 2, "--against: /nowhere.json: No such file or directory"),
    (["verify", "--against", "{file}"], 2, "is not what `outtray journal seals --json` writes"),
    (["show", str(uuid4())], 3, "there is no journal of a message"),
]


def test_wrong_use_of_the_command_names_the_cure(database: Database, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps([1]))
    for arguments, code, says in WRONG:
        ran = CommandLine.on(database.settings)(
            "journal", *(each.format(file=tmp_path / "other.json") for each in arguments)
        )
        assert ran.code == code and says in " ".join(ran.err.split()), arguments
