"""Celery's own doors: sealed messages come in through a queue, and counts go out to where an administrator looks."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import threading
from typing import Any

import pytest
import redis
import redis.asyncio
from celery import Celery
from celery.exceptions import Reject
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from command_line import CommandLine
from crm import ask, count, crm
from outtray.wakes import redis_url
from outtray_schema.errors import CannotOpen, Unavailable
from outtray_schema.sealing import MOST, public_text, seal, unseal
from outtray_schema.vault import load_vault
from outtray_worker import queues
from outtray_worker.celery import celery_app
from outtray_worker.commands_intake import ClientDesk
from outtray_worker.dispatcher import Dispatcher
from outtray_worker.intake import TASK, VISIBILITY, Intake, queue_of
from outtray_worker.process import ProcessThread, connect
from outtray_worker.rounds import QUEUE, Rounds
from outtray_worker.serve import worker_app
from polling import eventually

WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
END_WAITING = f"SELECT pg_terminate_backend(pid) FROM ({WAITING}) AS w"
HELLO = {"to": "ann@elsewhere.example", "subject": "canary-subject", "text": "Hello Ann"}


def messages(database: Any) -> list[dict[str, Any]]:
    return ask(database.settings, "SELECT id, state FROM outtray.message ORDER BY id")


# ── sealing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_sealed_opens_with_the_private_key_for_its_app_and_nowhere_else() -> None:
    key = X25519PrivateKey.generate()
    text = seal(public_text(key), HELLO, "crm")
    assert unseal(key, text, "crm") == HELLO
    assert text != seal(public_text(key), HELLO, "crm") and "canary" not in base64.b64decode(text).decode("latin-1")
    damaged = base64.b64encode(base64.b64decode(text)[:-1] + b"\0").decode()
    other = base64.b64encode(b"\x02" + base64.b64decode(text)[1:]).decode()
    no_message = seal(public_text(key), {}, "crm")
    assert unseal(key, no_message, "crm") == {}
    for wrong, by, app in (
        (text, key, "other"), (text, X25519PrivateKey.generate(), "crm"), (damaged, key, "crm"), (other, key, "crm"),
        ("", key, "crm"), ("no base64!", key, "crm"), (None, key, "crm"), ({"a": 1}, key, "crm"),
        ("A" * (MOST + 1), key, "crm"), (text[:40], key, "crm"),
    ):  # fmt: skip
        with pytest.raises(CannotOpen) as caught:
            unseal(by, wrong, app)
        assert "canary" not in str(caught.value)


def test_only_a_public_key_and_json_can_be_sealed() -> None:
    key = public_text(X25519PrivateKey.generate())
    for public, fields, said in (
        ("age1xyz", HELLO, "no public key"), ("outtray1:AAAA", HELLO, "no public key"),
        (key, {"attachments": [{"content": b"x"}]}, "must be JSON"), (key, {"text": "x" * MOST}, "at most"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            seal(public, fields)


# ── the intake ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_payload_is_accepted_once_and_a_bad_one_is_remembered_and_over(database):
    vault = load_vault(database.settings)
    key = public_text(vault.intake_key)
    with crm(database.settings) as client:
        intake = Intake(ClientDesk(client), vault.intake_key, "default")
        sealed = seal(key, HELLO)
        assert [intake.take(sealed), intake.take(sealed)] == ["accepted", "known"], "delivered twice, enqueued once"
        assert intake.take(seal(key, HELLO)) == "accepted", "asked for twice"
        keyed = [seal(key, HELLO | {"idempotency_key": "one"}) for _ in range(2)]
        assert [intake.take(each) for each in keyed] == ["accepted", "known"]
        file = {"filename": "a.txt", "content": base64.b64encode(b"x").decode()}
        assert intake.take(seal(key, HELLO | {"attachments": [file]})) == "accepted"
        bad = (seal(key, {"to": "nobody", "text": "x"}), seal(key, HELLO, "other"), "garbage", None,
               seal(key, HELLO | {"attachments": [{"path": "/etc/passwd"}]}))  # fmt: skip
        assert {intake.take(each) for each in bad} == {"refused"}
        assert len(client.refusals()) == len(bad)
    assert len(messages(database)) == 4
    assert {row["actor"] for row in ask(database.settings, "SELECT actor FROM outtray.journal")} == {"crm"}


def test_while_postgresql_is_away_a_payload_waits_and_goes_back_where_the_process_ends(database, monkeypatch):
    monkeypatch.setattr("outtray_worker.intake.AGAIN", 0.01)
    with crm(database.settings) as client:
        intake, tried = (
            Intake(ClientDesk(client), load_vault(database.settings).intake_key, "default"),
            threading.Event(),
        )

        def away(_: object) -> str:
            tried.set()
            raise Unavailable("away")

        monkeypatch.setattr(intake, "take", away)
        ended: list[BaseException] = []

        def waits() -> None:
            try:
                intake.take_patiently("x")
            except Reject as reject:
                ended.append(reject)

        thread = threading.Thread(target=waits)
        thread.start()
        assert tried.wait(10) and not ended
        intake.stopping.set()
        thread.join(10)
        assert isinstance(ended[0], Reject) and ended[0].requeue


@pytest.mark.slow
def test_an_apps_celery_enqueues_without_a_secret_and_a_process_that_ends_loses_nothing(database):
    """As docs/celery.md tells an app to: Celery, the public key, and nothing else of ours."""
    line = CommandLine.on(database.settings)
    key = line.ok("keys", "public", "--json").json["public_key"]
    assert line.ok("keys", "public").out.strip() == key
    broker = redis.Redis.from_url(redis_url(database.settings))
    with crm(database.settings):
        app = Celery("crm", broker=redis_url(database.settings), set_as_current=False)
        app.conf.broker_transport_options = {"global_keyprefix": "outtray:q:"}

        def send(*fields: Any) -> None:
            for each in fields:
                sealed = each if isinstance(each, str) else seal(key, each)
                app.send_task(TASK, args=[sealed], queue=queue_of("default"))

        def waiting() -> int:
            names = broker.keys("outtray:q:unacked") + broker.keys(f"outtray:q:{queue_of('default')}*")
            return sum(broker.llen(name) if broker.type(name) == b"list" else broker.hlen(name) for name in names)

        send(*(HELLO | {"subject": f"canary-{n}"} for n in range(3)), "garbage")
        stored = b"".join(each for each in broker.lrange(f"outtray:q:{queue_of('default')}", 0, -1))
        assert b"canary" not in stored and b"elsewhere" not in stored and b"outtray.enqueue" in stored
        process = line.start("intake")
        try:
            eventually(lambda: (len(messages(database)), waiting()) == (3, 0), 60, "all are in, none is left")
            assert count(database.settings, "refusal") == 1
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
        out = process.communicate()[0]
        assert "canary" not in out and "Traceback" not in out, out
        enqueued = ask(database.settings, "SELECT actor FROM outtray.journal WHERE kind = 'enqueued'")
        assert {row["actor"] for row in enqueued} == {"celery"}
    assert line("intake", "--app", "nobody").code == 3


@pytest.mark.slow
@pytest.mark.parametrize("committed", [False, True])
def test_an_intake_killed_between_taking_and_acknowledging_leaves_the_task_to_the_next_one(database, committed):
    """Its visibility timeout is over at once here: Redis' own clock of what was taken is set back."""
    line = CommandLine.on(database.settings)
    key = line.ok("keys", "public", "--json").json["public_key"]
    broker = redis.Redis.from_url(redis_url(database.settings))
    queue, taken, since = (f"outtray:q:{name}" for name in (queue_of("default"), "unacked", "unacked_index"))
    with crm(database.settings):
        app = Celery("crm", broker=redis_url(database.settings), set_as_current=False)
        app.conf.broker_transport_options = {"global_keyprefix": "outtray:q:"}
        app.send_task(TASK, args=[seal(key, HELLO)], queue=queue_of("default"))
        with database.connect() as watching, database.connect() as other, other.transaction():
            other.execute("LOCK TABLE outtray.message IN ACCESS EXCLUSIVE MODE")
            process = line.start("intake")
            eventually(lambda: watching.execute(WAITING).fetchall(), 60, "it is taken, and on its way in")
            assert (broker.llen(queue), broker.hlen(taken)) == (0, 1)
            process.kill()
            process.communicate()
            if not committed:  # else its statement, which PostgreSQL has, goes on without it
                watching.execute(END_WAITING)
        eventually(lambda: len(messages(database)) == committed, 10)
        for each, at in broker.zrange(since, 0, -1, withscores=True):
            broker.zadd(since, {each: at - 2 * VISIBILITY})
        process = line.start("intake")
        try:
            eventually(lambda: (len(messages(database)), broker.hlen(taken)) == (1, 0), 60, "the next one has it")
        finally:
            process.kill()
            process.communicate()


# ── what Flower shows ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_dispatchers_show_counts_once_a_minute_and_no_personal_data(database):
    with crm(database.settings) as client:
        for _ in range(3):
            client.enqueue_many([HELLO])
        ask(database.settings, "UPDATE outtray.message SET due_at = outtray.outtray_now() - interval '90 s'")
        ask(database.settings, "UPDATE outtray.mailbox SET parked_until = outtray.outtray_now() + interval '1 h'")

    async def two_dispatchers() -> None:
        broker = redis.asyncio.Redis.from_url(redis_url(database.settings))
        for _ in range(2):
            rounds = Rounds(celery_app(database.settings, "dispatcher"))
            connection = await connect(database.settings, "dispatcher")
            dispatcher = Dispatcher(database.settings, lambda: connect(database.settings, "dispatcher"), broker, rounds)
            assert await dispatcher._show_queues(connection) <= queues.EVERY / 2
            await connection.close()
            rounds.close()
        await broker.aclose()

    asyncio.run(two_dispatchers())
    broker = redis.Redis.from_url(redis_url(database.settings))
    lists = [name for name in broker.keys(f"outtray:q:{QUEUE}*") if broker.type(name) == b"list"]
    (task,) = [json.loads(each) for name in lists for each in broker.lrange(name, 0, -1)]
    assert task["headers"]["task"] == queues.TASK
    _, counts, _ = json.loads(base64.b64decode(task["body"]))
    oldest = counts.pop("oldest_due_seconds")
    assert counts == {"due": 3, "parked": 1, "unknown": 0} and 90 <= oldest < 300
    worker = worker_app(database.settings, ProcessThread.__new__(ProcessThread))
    assert worker.tasks[queues.TASK](**counts) is None
