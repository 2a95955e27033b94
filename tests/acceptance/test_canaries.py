"""What is confidential stays so: through real processes, through every failure that can be arranged, in every place."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from acceptance.canaries import (
    Canaries,
    Monitor,
    everything_in_postgresql,
    everything_in_processes,
    everything_in_redis,
)
from acceptance.consented import consented
from acceptance.fleet import COMMAND
from acceptance.scene import Scene, scene
from outtray import Message
from outtray_schema.attachment import Attachment
from polling import eventually

pytestmark = [pytest.mark.processes, pytest.mark.slow]


def test_canaries_are_found_nowhere(database, services, redis, tmp_path):
    canaries = Canaries()
    make_postgresql_talkative(database)
    with (
        consented(canaries, tmp_path) as microsoft,
        scene(database, tmp_path, mailboxes=1, **microsoft.settings) as town,
        Monitor(database.settings.redis_url) as monitor,
    ):
        boxes = add_mailboxes(town, canaries)
        by_consent = microsoft.connect(town)
        town.start()
        flower = start_flower(town)
        script(town, canaries)
        for box in boxes.values():
            town.client.enqueue(canary_message(canaries, box))
        eventually(lambda: reached_its_end(town, boxes), 40, "each mailbox showed what became of it")
        microsoft.use(town, by_consent)
        damage_content(town, canaries, boxes["good"])
        said = refuse_in_postgresql(town, canaries, boxes["good"])
        said += ask_the_command_line(town, canaries, tmp_path)
        logged = services.postgres.log_path.read_bytes()  # a restart keeps of it only the end
        spool = outcomes_in_the_spool(town, services, canaries, boxes["good"])
        places: dict[str, bytes | str] = {
            "flower": flower_pages(flower),
            "redis": everything_in_redis(redis),
            "the spool": spool,
            **everything_in_processes(),
        }
    with database.connect() as db:
        places |= {f"table {name}": text for name, text in everything_in_postgresql(db).items()}
    places["monitor"] = "\n".join(monitor.said)
    places["postgresql's log"] = logged + services.postgres.log_path.read_bytes()
    places |= {log.name: log.read_bytes() for log in tmp_path.glob("*.log")}
    assert_the_search_finds_what_is_there(places, boxes)
    found = {place: kinds for place, text in places.items() if (kinds := canaries.found_in(text))}
    assert found == {}
    assert canaries.found_in(said, ("password", "token", "body", "subject", "metadata")) == set()


def make_postgresql_talkative(database: Any) -> None:
    """The embedded one is told to be silent; an operator's own may say all it knows, and has to know nothing."""
    talkative = {
        "log_min_messages": "warning", "log_min_error_statement": "error", "log_error_verbosity": "default",
        "log_parameter_max_length_on_error": "-1", "log_parameter_max_length": "-1", "log_statement": "all",
    }  # fmt: skip
    with database.connect() as db:
        name = db.info.dbname
        for setting, value in talkative.items():
            db.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")


def add_mailboxes(town: Scene, canaries: Canaries) -> dict[str, Any]:
    """One mailbox for each way to end, all with canaries for address and secret."""
    server = town.server
    plain = {"host": server.host, "port": server.port, "tls": "clear", "password": canaries["password"]}
    ways: dict[str, dict[str, Any]] = {
        "good": plain,
        "refused password": plain | {"password": canaries["password"] + "wrong"},
        "refused token": plain | {"auth": "xoauth2", "password": canaries["token"]},
        "no tls there": plain | {"tls": "implicit"},
        "nobody listens": plain | {"port": free_port(), "tls": "starttls"},
    }
    boxes = {}
    for number, (name, way) in enumerate(ways.items()):
        address = f"{canaries['sender']}.{number}@example.org"
        if "wrong" not in way["password"] and "auth" not in way:
            server.do("add_user", user=address, password=canaries["password"])
        boxes[name] = town.client.mailboxes.add_smtp(address, name=canaries["name"], **way).id
    return boxes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def script(town: Scene, canaries: Canaries) -> None:
    """Servers like to quote: the login in a 535, the recipient in a 550 and in a 451."""
    quoted, sender = f"{canaries['recipient']}@example.net", f"{canaries['sender']}@example.org"
    town.server.add_rule(stage="auth", reply=f"535 5.7.8 {sender} {canaries['password']}wrong refused", user=r"\.1@")
    town.server.add_rule(stage="rcpt", reply=f"451 4.2.1 <{quoted}> {canaries['recipient']} try later", times=1)
    town.server.add_rule(stage="dot", reply=f"550 5.1.1 <{quoted}>: {canaries['recipient']} unknown", times=1)


def canary_message(canaries: Canaries, box: Any, **fields: Any) -> Message:
    return Message(
        to=f"{canaries['name']} <{canaries['recipient']}@example.net>", bcc=f"b{canaries['recipient']}@example.net",
        subject=canaries["subject"], text=canaries["body"] * 3, html=f"<p>{canaries['body']}</p>",
        attachments=[Attachment(f"{canaries['attachment']}.txt", canaries["attachment"].encode())],
        headers={"X-Canary": canaries["body"]}, metadata={"contact": canaries["metadata"]}, tags=["found-everywhere"],
        mailbox=box, **({"idempotency_key": f"{canaries['idempotency']}-{box}"} | fields),
    )  # fmt: skip


def reached_its_end(town: Scene, boxes: dict[str, Any]) -> bool:
    status = dict(town.rows("SELECT id, status FROM outtray.mailbox"))
    parked = dict(town.rows("SELECT id, parks FROM outtray.mailbox"))
    return (
        status[boxes["refused password"]] == status[boxes["refused token"]] == "reconnect"
        and parked[boxes["no tls there"]] > 0 < parked[boxes["nobody listens"]]
        and town.one("SELECT state FROM outtray.message WHERE mailbox_id = %s", boxes["good"]) == "failed"
    )


def damage_content(town: Scene, canaries: Canaries, box: Any) -> None:
    """An exception on the way: stored content that does not open."""
    town.client.mailboxes.pause(box)
    message = town.client.enqueue(canary_message(canaries, box, idempotency_key=None)).id
    with town.database.connect() as db:
        db.execute("UPDATE outtray.content SET body = body || 'x'::bytea WHERE message_id = %s", [message])
    town.client.mailboxes.resume(box)
    state = "SELECT state || ': ' || reason FROM outtray.message WHERE id = %s"
    eventually(
        lambda: town.one(state, message) == "failed: its stored content is damaged", 20, "the damaged one failed"
    )


def refuse_in_postgresql(town: Scene, canaries: Canaries, box: Any) -> str:
    """Our own statements, refused by a PostgreSQL that logs errors with statement, row and parameters."""
    said = []
    with town.database.connect() as db:
        for table in ("content", "recipient", "message"):
            db.execute(f"ALTER TABLE outtray.{table} ADD CONSTRAINT never CHECK (false) NOT VALID")
            with pytest.raises(Exception) as refused:
                town.client.enqueue(canary_message(canaries, box, idempotency_key=None))
            said.append(str(refused.value))
            db.execute(f"ALTER TABLE outtray.{table} DROP CONSTRAINT never")
    return "\n".join(said)


def ask_the_command_line(town: Scene, canaries: Canaries, folder: Path) -> str:
    """Refused input and a wrong password, by the commands; what they write to the terminal."""
    file = folder / "bad.ndjson"
    row = {
        "to": "no address",
        "subject": canaries["subject"],
        "text": canaries["body"],
        "metadata": canaries["metadata"],
    }
    file.write_text(json.dumps(row) + "\n")
    commands = {
        ("send", "--file", str(file)): "",
        ("mailbox", "test", str(town.boxes[0])): "",
        ("mailbox", "add", "smtp", "x@example.org", "--host", "127.0.0.1", "--limit", "nonsense=1", "--password-stdin"):
            canaries["password"] + "\n",
    }  # fmt: skip
    said = []
    for arguments, typed in commands.items():
        run = subprocess.run(
            [str(COMMAND), *arguments],
            env=dict(town.fleet.env),
            input=typed,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        said.append(run.stdout + run.stderr)
    return "\n".join(said)


def outcomes_in_the_spool(town: Scene, services: Any, canaries: Canaries, box: Any) -> str:
    """PostgreSQL goes away during a handover that is then refused with an address in the text."""
    quoted = f"{canaries['recipient']}@example.net"
    town.server.add_rule(stage="dot", late=1.0, reply=f"550 5.7.1 <{quoted}> {canaries['recipient']} blocked", times=1)
    asked = town.server.seen["dot"]
    town.client.enqueue(canary_message(canaries, box, idempotency_key=None))
    eventually(lambda: town.server.seen["dot"] > asked, 20, "it is handed over")
    services.postgres.stop("immediate")
    try:
        spool = town.database.settings.spool
        kept = eventually(lambda: [line for file in spool.glob("*.spool") for line in file.open()], 20, "it is spooled")
        return "\n".join(kept)
    finally:
        services.postgres.start()


def start_flower(town: Scene) -> int:
    port = free_port()
    log = (town.fleet.folder / "flower.log").open("wb")
    process = subprocess.Popen(
        [str(COMMAND), "flower", "--port", str(port)], env=dict(town.fleet.env), stdout=log, stderr=subprocess.STDOUT
    )
    town.fleet.adopt("flower", process, Path(log.name))
    eventually(lambda: page(port, "/") is not None, 30, "Flower answers")
    return port


def page(port: int, path: str) -> bytes | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        return error.read()
    except OSError:
        return None


def flower_pages(port: int) -> bytes:
    paths = ("/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks", "/api/task/types", "/metrics")
    return b"\n".join(page(port, path) or b"" for path in paths)


def assert_the_search_finds_what_is_there(places: dict[str, bytes | str], boxes: dict[str, Any]) -> None:
    """A search that finds nothing must have looked: what may stand in each place is found there."""
    box = str(boxes["good"])
    assert box in str(places["monitor"]), "the hints name mailboxes"
    assert "found-everywhere" in str(places["table message"]), "tags are no secret"
    assert b"violates check constraint" in bytes(places["postgresql's log"])
    assert "550" in str(places["the spool"]) and "5.7.1" in str(places["the spool"])
    assert b"outtray-" in bytes(places["flower"]), "Flower shows the worker"
    assert any(b"outtray" in bytes(text) for place, text in places.items() if place.endswith("cmdline"))
