"""The embedded servers: real, private, and still there after whatever happened to the process that started them."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kombu
import psutil
import psycopg
import pytest
import redis as redis_client
from celery import Celery

from outtray_sandbox.servers import valkey
from outtray_sandbox.servers.place import find_place
from outtray_sandbox.services import Services, use_embedded
from outtray_schema.errors import SettingsError
from outtray_schema.settings import Settings, default_data_folder, load_settings
from polling import eventually

ROOT = os.geteuid() == 0
pytestmark = pytest.mark.xdist_group("services")  # what the tests of this file share is made once
only_root = pytest.mark.skipif(not ROOT, reason="only root can become another user")

USE = """
import sys
from outtray_sandbox.servers import valkey
from outtray_sandbox.services import use_embedded
from outtray_schema.settings import load_settings
import psycopg
with use_embedded(load_settings(data_folder=sys.argv[1])) as settings:
    with psycopg.connect(settings.database_url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(1)")
        connection.execute("CREATE TABLE IF NOT EXISTS used (pid integer)")
        connection.execute("INSERT INTO used VALUES (pg_backend_pid())")
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A data folder that the servers' user can reach; whatever runs there at the end is stopped and removed."""
    base = Path(tempfile.mkdtemp(prefix="outtray-folder-"))
    base.chmod(0o711)
    yield base / "data"
    if (base / "data").exists():
        Services.of(base / "data", keep=False).stop()
    shutil.rmtree(base)


@pytest.fixture(scope="module")
def shared() -> Iterator[Services]:
    base = Path(tempfile.mkdtemp(prefix="outtray-folder-"))
    base.chmod(0o711)
    with Services.start(base / "data", durable=False, keep=False) as services:
        yield services
    shutil.rmtree(base)


@pytest.fixture
def quick(shared) -> Services:
    """Servers without fsync that the tests of this file share: running again and empty, whatever the last one did."""
    shared.valkey.start()
    shared.postgres.start()
    redis_client.Redis.from_url(shared.redis_url).flushall()
    query(shared, "DROP SCHEMA public CASCADE")
    query(shared, "CREATE SCHEMA public")
    return shared


def without_root(call: Callable[[], Any]) -> str:
    """What `call` raises in a child process without root's rights. Forked: `nobody` may not reach this Python."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if ROOT:
                nobody = pwd.getpwnam("nobody")
                os.setgroups([])
                os.setgid(nobody.pw_gid)
                os.setuid(nobody.pw_uid)
            call()
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as said:
        return said.read()


def query(services: Services, statement: str, *values: Any) -> list[Any]:
    with psycopg.connect(services.database_url, autocommit=True) as connection:
        cursor = connection.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []


def using(folder: Path) -> subprocess.Popen[str]:
    """Another process that uses the embedded servers until it reads a line; returned once it has written a row."""
    process = subprocess.Popen(
        [sys.executable, "-c", USE, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def leave(process: subprocess.Popen[str]) -> None:
    process.communicate("\n", timeout=60)
    assert process.returncode == 0


def running(folder: Path) -> bool:
    services = Services.of(folder)
    return bool(services.postgres.process or services.valkey.process)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ── what is offered ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_redis_url_serves_redis_py_kombu_and_celery(quick):
    redis_client.Redis.from_url(quick.redis_url).set("key", "value")
    with kombu.Connection(quick.redis_url) as connection:
        assert connection.default_channel.client.get("key") == b"value"
        queue = connection.SimpleQueue("embedded")
        queue.put({"mailboxes": ["one"]}, serializer="json")
        assert queue.get(timeout=5).payload == {"mailboxes": ["one"]}
        queue.close()
    celery = Celery(broker=quick.redis_url)
    celery.send_task("nobody.takes.it", queue="waiting")
    assert redis_client.Redis.from_url(quick.redis_url).llen("waiting") == 1
    celery.close()


def test_the_servers_are_set_as_the_protocol_needs_them(folder):
    with Services.start(folder) as services:
        redis = redis_client.Redis.from_url(services.redis_url)
        assert redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert redis.config_get("append*") | {"appendonly": "yes", "appendfsync": "everysec"} == redis.config_get(
            "append*"
        )
        names = ["fsync", "synchronous_commit", "full_page_writes", "max_connections", "server_encoding"]
        shown = [query(services, f"SHOW {name}")[0][0] for name in names]
        assert shown == ["on", "on", "on", "200", "UTF8"]
        assert query(services, "SHOW server_version")[0][0].startswith("18.")
        # A schema named as the role would be searched first and hide a forgotten schema name.
        assert query(services, "SELECT current_schemas(false)") == [(["public"],)]


def test_settings_that_name_servers_pass_unchanged_and_start_nothing(tmp_path):
    own = Settings(database_url="postgresql://db/x", redis_url="redis://cache", data_folder=tmp_path / "none")
    with use_embedded(own) as settings:
        assert settings is own
    assert not own.data_folder.exists()


def test_embedded_settings_have_urls_and_keys_and_say_where_the_data_is(folder, capsys):
    with use_embedded(load_settings(data_folder=folder)) as settings:
        assert not settings.embedded
        assert psycopg.connect(settings.database_url).execute("SELECT 1").fetchone() == (1,)
        assert redis_client.Redis.from_url(settings.redis_url).ping()
        assert settings.key_file and mode(settings.key_file) == 0o600
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1 and str(folder) in said.err
        assert str(settings.redis_url) not in said.err
    assert not running(folder)


# ── who may come in ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_nobody_else_can_reach_the_servers_or_read_their_files(quick):
    home = quick.place.home
    assert query(quick, "SHOW listen_addresses") == [("",)]
    assert mode(quick.place.sockets / ".s.PGSQL.5432") & 0o777 == 0o600
    assert [mode(path) for path in (home / "postgres", home / "valkey", quick.place.sockets)] == [0o700] * 3
    assert mode(quick.folder) == (0o711 if ROOT else 0o700)
    for path in ("valkey/valkey.conf", "valkey/access.json", "postgres.log", "valkey.log", "postgres/pg_hba.conf"):
        assert mode(home / path) == 0o600, path
    port = json.loads((home / "valkey/access.json").read_text())["port"]
    with pytest.raises(redis_client.AuthenticationError):
        redis_client.Redis(port=port).ping()


@only_root
def test_another_user_is_refused_even_with_the_socket_open_to_all(quick):
    quick.place.sockets.chmod(0o755)
    (quick.place.sockets / ".s.PGSQL.5432").chmod(0o777)
    assert "Peer authentication failed" in without_root(lambda: psycopg.connect(quick.database_url))
    assert without_root(lambda: None) == "", "the child itself does not fail"


def test_no_password_is_in_the_process_list_or_the_environment(quick):
    password = json.loads((quick.place.home / "valkey/access.json").read_text())["password"]
    seen = [" ".join([*process.cmdline(), *process.environ().values()]) for process in servers(quick)]
    assert len(seen) >= 2 and not any(password in text for text in seen)


def servers(services: Services) -> list[psutil.Process]:
    found = [services.postgres.process, services.valkey.process]
    return [process for process in found if process]


def test_values_of_failing_statements_are_not_in_the_log(quick):
    query(quick, "CREATE TABLE person (address text PRIMARY KEY, age integer)")
    query(quick, "INSERT INTO person VALUES ('canary@example.org', 1)")
    for statement, values in [
        ("INSERT INTO person VALUES (%s, 2)", ["canary@example.org"]),  # the detail names the key
        ("SELECT %s::integer", ["canary"]),  # the text names the value
        ("SELECT 'canary' FROM nowhere", []),  # the statement holds it
    ]:
        with pytest.raises(psycopg.Error):
            query(quick, statement, *values)
    quick.postgres.stop("immediate")
    log = quick.postgres.log_path.read_text()
    assert "database system is ready" in log
    assert "canary" not in log


# ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_committed_survives_the_death_of_both_servers(folder):
    with Services.start(folder) as services:
        query(services, "CREATE TABLE kept AS SELECT 7 AS n")
        before = services.database_url, services.redis_url
        services.postgres.kill()
        services.valkey.kill()
        assert servers(services) == []
        services.postgres.start()
        services.valkey.start()
        assert (services.database_url, services.redis_url) == before
        assert query(services, "SELECT n FROM kept") == [(7,)]


@pytest.mark.parametrize("how", ["smart", "fast", "immediate"])
def test_postgres_stops_in_each_way_and_starts_again(quick, how):
    query(quick, "CREATE TABLE kept AS SELECT 7 AS n")
    quick.postgres.stop(how)
    with pytest.raises(psycopg.OperationalError):
        query(quick, "SELECT 1")
    quick.postgres.start()
    assert query(quick, "SELECT n FROM kept") == [(7,)]


def test_valkey_keeps_what_it_holds_when_it_is_stopped(quick):
    redis = redis_client.Redis.from_url(quick.redis_url)
    redis.set("wake", "1")
    quick.valkey.stop()
    with pytest.raises(redis_client.ConnectionError):
        redis.ping()
    quick.valkey.start()
    assert redis.get("wake") == b"1"


def test_a_paused_valkey_answers_nobody_until_it_is_resumed(quick):
    redis = redis_client.Redis.from_url(quick.redis_url, socket_timeout=0.2, retry=None)
    quick.valkey.pause()
    with pytest.raises(redis_client.TimeoutError):
        redis.ping()
    quick.valkey.resume()
    assert redis_client.Redis.from_url(quick.redis_url).ping()


def test_valkey_takes_another_port_when_somebody_has_taken_its_own(quick):
    quick.valkey.stop()
    old = quick.redis_url
    with socket.create_server(("127.0.0.1", int(old.rpartition(":")[2].partition("/")[0]))):
        quick.valkey.start()
    assert quick.redis_url != old
    assert redis_client.Redis.from_url(quick.redis_url).ping()


def test_valkey_waits_a_moment_for_the_port_of_a_server_that_is_still_dying(quick, monkeypatch):
    url, free = quick.valkey.url, iter([False, False, False])
    quick.valkey.stop()
    monkeypatch.setattr(valkey, "_is_free", lambda port: next(free, True))
    quick.valkey.start()
    assert quick.valkey.url == url and next(free, None) is None


def test_pid_files_of_the_dead_do_not_stop_a_start(quick):
    quick.postgres.kill()
    quick.valkey.kill()
    # The numbers of dead servers, given to another program since: ours.
    for pid_file in (quick.postgres.data / "postmaster.pid", quick.valkey.folder / "valkey.pid"):
        lines = pid_file.read_text().splitlines() if pid_file.exists() else [""]
        pid_file.write_text("\n".join([str(os.getppid()), *lines[1:]]) + "\n")
    quick.postgres.start()
    quick.valkey.start()
    assert len(servers(quick)) == 2


def test_backends_that_outlive_their_postmaster_are_ended_before_the_next_one(quick):
    with psycopg.connect(quick.database_url, autocommit=True) as connection:
        backend = psutil.Process(connection.info.backend_pid)
        backend.suspend()  # or it would notice the death by itself
        postmaster = quick.postgres.process
        assert postmaster
        postmaster.kill()
        eventually(lambda: quick.postgres.process is None, what="the postmaster is gone")
        quick.postgres.start()
        assert not backend.is_running() or backend.status() == psutil.STATUS_ZOMBIE
    assert query(quick, "SELECT 1") == [(1,)]


@pytest.mark.slow
def test_a_cluster_half_made_by_a_killed_first_start_is_made_anew(folder):
    place = find_place(folder)
    half = place.private_folder(place.home / "postgres.new")
    (half / "PG_VERSION").write_text("18\n")
    with Services.start(folder, durable=False) as services:
        assert query(services, "SELECT 1") == [(1,)]
    assert not half.exists()


# ── several users ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_processes_that_begin_at_once_share_one_pair_of_servers_and_the_last_stops_them(folder):
    with ThreadPoolExecutor(3) as threads:
        users = list(threads.map(using, [folder] * 3))
    assert query(Services.of(folder), "SELECT count(*) FROM used") == [(3,)]
    for user in users[:2]:
        leave(user)
        assert len(servers(Services.of(folder))) == 2, "somebody still uses them"
    leave(users[2])
    assert not running(folder)


@pytest.mark.slow
def test_a_user_killed_with_kill_9_is_counted_no_more_and_loses_nothing(folder):
    victim = using(folder)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert len(servers(Services.of(folder))) == 2, "the servers outlive the process that started them"
    last = using(folder)
    assert query(Services.of(folder), "SELECT count(*) FROM used") == [(2,)]
    leave(last)
    assert not running(folder)


# ── places ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_folder_with_a_long_name_gets_a_short_socket(folder):
    deep = folder / ("d" * 60) / ("e" * 60)
    deep.parent.mkdir(parents=True)
    folder.chmod(0o711)
    deep.parent.chmod(0o711)
    with Services.start(deep, durable=False, keep=False) as services:
        assert len(str(services.place.sockets)) < 60
        assert mode(services.place.sockets) == 0o700
        assert query(services, "SELECT 1") == [(1,)]
    assert not services.place.sockets.exists()


def test_a_runtime_folder_that_somebody_else_prepared_is_refused(folder, tmp_path):
    place = find_place(folder)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(SettingsError, match="somebody else"):
        place.private_folder(tmp_path / "link")


def test_a_folder_that_cannot_be_written_is_named_with_the_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"OUTTRAY_DATA_FOLDER.*Example: OUTTRAY_DATA_FOLDER="):
        Services.start(tmp_path / "file" / "data")


@only_root
def test_root_runs_the_servers_as_another_user_and_opens_no_folder_for_it(tmp_path):
    tmp_path.chmod(0o700)
    data = tmp_path / "data"
    with Services.start(data, durable=False) as services:
        home = services.place.home
        assert home.is_relative_to("/var/lib/outtray-embedded") and mode(tmp_path) == 0o700
        assert {process.username() for process in servers(services)} == {"outtray-embedded"}
        query(services, "CREATE TABLE kept AS SELECT 7 AS n")
    moved = data.rename(tmp_path / "moved")
    with Services.start(moved, durable=False, keep=False) as services:
        assert services.place.home == home, "a folder that was moved finds its databases"
        assert query(services, "SELECT n FROM kept") == [(7,)]
    assert not home.exists()


@pytest.mark.slow
@only_root
def test_programs_that_the_servers_user_cannot_reach_are_copied_once(folder, monkeypatch, tmp_path):
    place = find_place(folder)
    hidden = tmp_path / "site-packages"
    tmp_path.chmod(0o700)
    wheel = place.binaries.postgres.parents[1]
    shutil.copytree(
        wheel / "pginstall18", hidden / wheel.name / "pginstall18", ignore=shutil.ignore_patterns("include")
    )
    shutil.copytree(wheel.with_name(wheel.name + ".libs"), hidden / (wheel.name + ".libs"))
    valkey = hidden / "valkey-server"
    shutil.copy(place.binaries.valkey, valkey)
    from outtray_sandbox.servers import place as module

    binaries = module.Binaries(hidden / wheel.name / "pginstall18" / "bin", valkey)
    monkeypatch.setattr(module, "_installed", lambda: binaries)
    monkeypatch.setattr(module, "SYSTEM_FOLDER", folder.parent / "system")
    with Services.start(folder, durable=False) as services:
        assert services.place.binaries.postgres.is_relative_to(folder.parent / "system")
        assert query(services, "SELECT 1") == [(1,)]
        copied = services.place.binaries.valkey.stat().st_mtime_ns
    assert find_place(folder).binaries.valkey.stat().st_mtime_ns == copied


@pytest.mark.parametrize("home", ["", None])
def test_an_empty_home_variable_still_means_the_users_own_home(monkeypatch, home):
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("HOME")
    if home is not None:
        monkeypatch.setenv("HOME", home)
    assert default_data_folder() == Path(pwd.getpwuid(os.getuid()).pw_dir) / ".local/share/outtray"


def test_a_home_that_is_read_only_is_named_with_the_setting(monkeypatch):
    home = Path(tempfile.mkdtemp(prefix="outtray-home-"))
    home.chmod(0o555)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(home))
    said = without_root(lambda: use_embedded(load_settings()).__enter__())
    home.rmdir()
    assert said.startswith(f"SettingsError: OUTTRAY_DATA_FOLDER: the embedded servers cannot keep data in {home}")
