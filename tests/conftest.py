"""Real servers for the tests: one PostgreSQL and one Valkey per pytest process, a database of its own for each test."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
import redis as redis_client

from databases import Database
from outtray_sandbox.services import Services
from outtray_schema.migrate import migrate
from outtray_schema.settings import Settings, load_settings
from outtray_schema.vault import new_key_file

SEED = "OUTTRAY_TEST_SEED"
CI = "OUTTRAY_CI"
"""Set where everything is checked: there no test may be left out for want of an installed server."""
TEMPLATE = "outtray_template"
FOLDERS = "outtray-tests-"
_numbers = count()

hypothesis.settings.register_profile("outtray", deadline=None, print_blob=True)
hypothesis.settings.load_profile("outtray")


def pytest_configure(config: pytest.Config) -> None:
    """One seed for the whole run, workers of xdist included: they inherit the environment and the options."""
    os.environ.setdefault(SEED, str(random.SystemRandom().randrange(2**32)))
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A shell's background job inherits a SIGINT that is ignored, and so would every process that a test interrupts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = os.environ[SEED]
    for name in [name for name in os.environ if name.startswith("OUTTRAY_") and name not in (SEED, CI)]:
        del os.environ[name]  # a developer's own servers and keys are no business of the tests


def pytest_report_header() -> str:
    return f"{SEED}={os.environ[SEED]} (set it to repeat this run's random choices)"


@pytest.fixture
def seed() -> int:
    """The run's seed, printed so that a failure shows it."""
    print(f"{SEED}={os.environ[SEED]}")
    return int(os.environ[SEED])


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """One PostgreSQL (without fsync) and one Valkey for this process; both may be stopped and killed by a test."""
    _end_what_killed_runs_left()
    # Made under another name, so that nobody takes it for a dead run's before it is owned.
    new = Path(tempfile.mkdtemp(prefix=f"new-{FOLDERS}"))
    folder = new.with_name(new.name.removeprefix("new-"))
    with _owned(new), Services.start(new.rename(folder) / "s", durable=False, keep=False) as started:
        yield started
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template(services: Services) -> str:
    """The name of a migrated database, never connected to again, that each test's own is copied from."""
    with psycopg.connect(services.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}")
    migrate(load_settings(database_url=services.postgres.url(TEMPLATE), redis_url=services.redis_url))
    return TEMPLATE


@pytest.fixture
def database(services: Services, template: str, redis: Any, tmp_path: Path) -> Iterator[Database]:
    """A fresh migrated database, an empty Valkey, a fresh key file and an empty data folder."""
    services.postgres.start()  # the test before may have killed it
    name = f"test_{next(_numbers)}"
    with psycopg.connect(services.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    yield Database(_settings(services, name, tmp_path))
    services.postgres.start()
    with psycopg.connect(services.database_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _settings(services: Services, name: str, folder: Path) -> Settings:
    new_key_file(folder / "keys.json")
    return load_settings(
        database_url=services.postgres.url(name),
        redis_url=services.redis_url,
        key_file=folder / "keys.json",
        data_folder=folder / "data",
    )


@pytest.fixture
def redis(services: Services) -> Iterator[redis_client.Redis]:
    """A client of the empty Valkey."""
    services.valkey.start()
    with redis_client.Redis.from_url(services.redis_url) as client:
        client.flushall()
        yield client


def _end_what_killed_runs_left() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDERS}*"):
        with contextlib.suppress(OSError), _owned(folder):
            Services.of(folder / "s", keep=False).stop()
            shutil.rmtree(folder)


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold a folder for as long as this process lives; `BlockingIOError` if another process holds it."""
    folder.chmod(0o711)  # as root the servers run as a user of their own, who has to pass through
    with (folder / "owner.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
