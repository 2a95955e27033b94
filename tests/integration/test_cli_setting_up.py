"""A new installation by command line: keys, tables, apps, and a doctor who says what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
import pytest

from command_line import CommandLine
from databases import Database
from outtray_sandbox.services import Services
from outtray_schema.database import MIGRATIONS


@pytest.fixture
def outtray(database: Database) -> CommandLine:
    return CommandLine.on(database.settings)


def test_a_new_database_is_refused_until_it_is_migrated(services: Services, outtray: CommandLine) -> None:
    with psycopg.connect(services.database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE not_migrated")
    try:
        outtray.environment["OUTTRAY_DATABASE_URL"] = services.postgres.url("not_migrated")
        refused = outtray("app", "list")
        assert (refused.code, refused.out) == (2, "")
        assert "outtray migrate" in refused.err
        newest = max(path.name[:4] for path in (MIGRATIONS / "versions").glob("0*.py"))
        assert outtray.ok("migrate", "--json").json == {"before": None, "now": newest, "changed": True}
        assert outtray.ok("migrate", "--json").json["changed"] is False
        assert outtray.ok("app", "list", "--json").json == []
    finally:
        with psycopg.connect(services.database_url, autocommit=True) as connection:
            connection.execute("DROP DATABASE not_migrated WITH (FORCE)")


def test_an_app_is_added_once(outtray: CommandLine) -> None:
    added = outtray.ok("app", "add", "crm", "--on-unknown", "resend", "--json").json
    again = outtray("app", "add", "crm", "--json")
    assert again.code == 1
    assert again.error["problems"][0]["field"] == "name"
    listed = outtray.ok("app", "list", "--json").json
    assert [(app["id"], app["name"], app["on_unknown"]) for app in listed] == [(added["id"], "crm", "resend")]


def test_a_wrong_setting_names_itself_and_an_example(outtray: CommandLine) -> None:
    refused = outtray("app", "list", OUTTRAY_LEASE="soon")
    assert refused.code == 2
    assert "OUTTRAY_LEASE" in refused.err
    assert "OUTTRAY_LEASE=30s" in refused.err
    examined = outtray("doctor", "--json", OUTTRAY_LEASE="soon")
    assert (examined.code, examined.json["findings"][0]["grade"]) == (2, "trouble")


def test_a_dead_database_is_an_error_at_once(outtray: CommandLine) -> None:
    refused = outtray("app", "list", "--json", OUTTRAY_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing")
    assert refused.code == 4
    assert refused.error["kind"] == "Unavailable"


def test_a_key_file_is_made_for_its_owner_alone_and_never_overwritten(outtray: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    assert outtray.ok("keys", "new", str(path), "--json").json == {"file": str(path)}
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_text()
    assert outtray("keys", "new", str(path)).code == 2
    assert path.read_text() == before


def test_a_producers_key_file_has_no_credentials_ring(outtray: CommandLine, tmp_path: Path) -> None:
    full, derived = outtray.environment["OUTTRAY_KEY_FILE"], tmp_path / "producer.json"
    outtray.ok("keys", "producer", full, str(derived))
    assert set(json.loads(derived.read_text())) == {"content", "addresses"}
    outtray.ok("app", "add", "default")
    outtray.environment["OUTTRAY_KEY_FILE"] = str(derived)
    refused = outtray(*ADD_ANN, stdin="secret")
    assert refused.code == 2
    assert "credentials" in refused.err


ADD_ANN = ("mailbox", "add", "smtp", "ann@example.com", "--host", "smtp.example.com", "--password-stdin")


def test_a_ring_is_rotated_and_its_old_key_dropped_only_then(outtray: CommandLine) -> None:
    outtray.ok("app", "add", "default")
    outtray.ok(*ADD_ANN, stdin="secret")
    assert outtray.ok("keys", "add", "credentials", "--json").json == {
        "ring": "credentials",
        "key": "k2",
        "primary": True,
    }
    refused = outtray("keys", "drop", "credentials", "k1")
    assert refused.code == 2
    assert "keys rotate credentials" in refused.err
    assert outtray.ok("keys", "rotate", "credentials", "--json").json == {"ring": "credentials", "rows": 1}
    rings = outtray.ok("keys", "list", "--json").json
    assert rings["credentials"] == {"primary": "k2", "values": {"k2": 1}}
    assert outtray.ok("keys", "drop", "credentials", "k1", "--json").json["dropped"] == "k1"


def test_the_doctor_says_what_is_missing_and_what_to_do(outtray: CommandLine, redis: Any) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        found = outtray("doctor", "--json")
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    grades = {each["about"]: each["grade"] for each in found.json["findings"]}
    assert found.code == 1
    assert grades["tables"] == "ok"
    assert (grades["workers"], grades["dispatchers"], grades["redis memory"]) == ("trouble", "trouble", "trouble")
    cures = {each["about"]: each["cure"] for each in found.json["findings"]}
    assert "outtray worker" in cures["workers"]
    assert "noeviction" in cures["redis memory"]


def test_the_doctor_finds_all_well_where_processes_are_alive(outtray: CommandLine, database: Database) -> None:
    with database.connect() as connection:
        connection.execute("INSERT INTO outtray.process (id, role) VALUES ('a:1', 'worker'), ('a:2', 'dispatcher')")
    found = outtray("doctor", "--json")
    assert found.code == 0, found.out
    assert {each["grade"] for each in found.json["findings"]} == {"ok"}


def test_the_doctor_tells_of_a_dead_database_and_a_dead_redis(outtray: CommandLine) -> None:
    found = outtray(
        "doctor",
        "--json",
        OUTTRAY_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing",
        OUTTRAY_REDIS_URL="redis://127.0.0.1:1/0",
    )
    grades = {each["about"]: each["grade"] for each in found.json["findings"]}
    assert found.code == 1
    assert (grades["postgresql"], grades["redis"]) == ("trouble", "warning")


def test_the_doctor_finds_outcomes_that_wait_in_the_spool(outtray: CommandLine) -> None:
    spool = Path(outtray.environment["OUTTRAY_DATA_FOLDER"]) / "spool"
    spool.mkdir(parents=True)
    (spool / "1-abc.spool").write_text("x\n")
    found = {each["about"]: each for each in outtray("doctor", "--json").json["findings"]}
    assert found["spool"]["grade"] == "warning"
    (spool / "1-abc.damaged").write_text("x\n")
    found = {each["about"]: each for each in outtray("doctor", "--json").json["findings"]}
    assert (found["spool"]["grade"], found["spool"]["cure"]) == (
        "trouble", "look at it: outtray spool show 1-abc.damaged; docs/spool.md says what can be done",
    )  # fmt: skip


def test_it_knows_its_version() -> None:
    assert CommandLine()("--version").out.strip() == f"outtray {version('outtray')}"


@pytest.mark.parametrize(
    ("hidden", "arguments", "cure"), [("typer", ("app",), "[cli]"), ("celery", ("worker",), "[worker]")]
)
def test_what_is_not_installed_is_named_with_its_cure(hidden: str, arguments: tuple[str, ...], cure: str) -> None:
    """A None in `sys.modules` is what the import system itself takes for "not installed"."""
    hide = f"import sys; sys.modules[{hidden!r}] = None; sys.argv[1:] = {list(arguments)!r}"
    code = f"{hide}; from outtray.cli.main import run; run()"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert ended.returncode == 2, ended
    assert f"pip install 'outtray{cure}'" in ended.stderr
    assert "Traceback" not in ended.stderr
