"""The stand: the real services, the sinks, and the processes of the arms, with what each of them costs.

CPU is counted per *role*: a process with all its descendants, those that have ended included (Linux adds a reaped
child's times to its parent). The sinks are roles of their own, so that they are in nobody's figure.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis

from outtray.wakes import redis_url
from outtray_sandbox.services import Services
from outtray_schema.database import conninfo
from outtray_schema.migrate import migrate
from outtray_schema.settings import Settings, load_settings
from outtray_schema.vault import Vault, load_vault, new_key_file

REPOSITORY = Path(__file__).parents[2]
STOP_PATIENCE = 60.0
"""Seconds that a process may take to end after SIGTERM."""


class CannotRun(Exception):
    """A scenario could not run to its end; its text says why."""


def wait_for(what: str, condition: Callable[[], Any], within: float, every: float = 0.02) -> Any:
    """Poll until `condition` is true and return it. Raises `CannotRun` after `within` seconds."""
    end = time.monotonic() + within
    while not (value := condition()):
        if time.monotonic() > end:
            raise CannotRun(f"{what}: not within {within:g} s")
        time.sleep(every)
    return value


def cpu_seconds(roots: Sequence[psutil.Process]) -> float:
    """CPU that these processes and all their descendants have used since they began."""
    spent = 0.0
    for root in roots:
        for process in _tree(root):
            try:
                spent += sum(process.cpu_times()[:4])  # user, system, and both of its reaped children
            except psutil.NoSuchProcess:
                continue
    return spent


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def private_memory(roots: Sequence[psutil.Process]) -> int:
    """Bytes that would be free if these processes ended (USS): shared pages are nobody's."""
    return sum(process.memory_full_info().uss for root in roots for process in _tree(root))


@dataclass
class Stand:
    """Everything that a question needs of the machine. Make one with `stand()`."""

    settings: Settings
    vault: Vault
    database: psycopg.Connection[Any]
    redis: redis.Redis
    folder: Path
    http_port: int
    roles: dict[str, list[psutil.Process]]
    _processes: dict[str, list[subprocess.Popen[bytes]]] = field(default_factory=dict)

    # ── processes ───────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, role: str, command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start one more process of a role; its output goes to a file in the stand's folder."""
        with (self.folder / f"{role}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=REPOSITORY,
                env=self._environment() | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.setdefault(role, []).append(process)
        self.roles.setdefault(role, []).append(psutil.Process(process.pid))
        return process

    def _environment(self) -> dict[str, str]:
        settings = self.settings
        return dict(os.environ) | {
            "OUTTRAY_DATABASE_URL": str(settings.database_url),
            "OUTTRAY_REDIS_URL": str(settings.redis_url),
            "OUTTRAY_KEY_FILE": str(settings.key_file),
            "OUTTRAY_DATA_FOLDER": str(settings.data_folder),
            "OUTTRAY_SMTP_CLEAR_LOOPBACK": "true",
        }

    def stop(self, *roles: str) -> None:
        """SIGTERM to every process of these roles; return once they have ended."""
        ending = [process for role in roles for process in self._processes.pop(role, [])]
        for process in ending:
            process.send_signal(signal.SIGTERM)
        for process in ending:
            try:
                process.wait(STOP_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise CannotRun(f"process {process.args!r} did not end within {STOP_PATIENCE:g} s of SIGTERM") from None
        for role in roles:
            self.roles.pop(role, None)

    def kill(self, *roles: str) -> None:
        """SIGKILL, for processes that would rightly take ten minutes to end: theirs is a server that never answers."""
        for role in roles:
            for process in self._processes.pop(role, []):
                process.kill()
                process.wait()
            self.roles.pop(role, None)

    def alive(self, role: str) -> None:
        """Raise `CannotRun` if a process of this role has ended by itself."""
        for process in self._processes.get(role, []):
            if process.poll() is not None:
                raise CannotRun(f"a {role} ended with {process.returncode}; see {self.folder / f'{role}.log'}")

    def cpu(self) -> dict[str, float]:
        """CPU seconds of every role so far."""
        return {role: cpu_seconds(processes) for role, processes in self.roles.items()}

    # ── PostgreSQL and Redis ────────────────────────────────────────────────────────────────────────────────────

    def value(self, statement: str, *parameters: Any) -> Any:
        row = self.database.execute(statement, parameters).fetchone()
        return row[0] if row else None

    def empty(self) -> None:
        """Forget every message, mailbox, hint and task, and let both arms begin from a checkpoint."""
        tables = self.value(
            "SELECT string_agg(format('outtray.%%I', tablename), ', ') FROM pg_tables"
            " WHERE schemaname = 'outtray' AND tablename NOT IN ('clock', 'alembic_version')"
        )
        self.database.execute(f"TRUNCATE {tables}")
        self.redis.flushall()
        self.settle()

    def settle(self) -> None:
        """Statistics and a checkpoint, as a database that runs for a while has them."""
        self.database.execute("ANALYZE")
        self.database.execute("CHECKPOINT")

    # ── the HTTP sink ───────────────────────────────────────────────────────────────────────────────────────────

    def sink_url(self, ledger: str, answer: str) -> str:
        """Where to post; `answer` is a number of milliseconds, or `never`."""
        return f"http://127.0.0.1:{self.http_port}/{ledger}/{answer}"

    def sink_count(self, ledger: str) -> int:
        return int(self._sink(f"/{ledger}/count")["count"])

    def sink_ledger(self, ledger: str) -> dict[str, int]:
        """Key → how often the sink took it."""
        return {str(key): int(times) for key, times in self._sink(f"/{ledger}").items()}

    def sink_requests(self, ledger: str) -> dict[str, int]:
        """Operation of an API → how often the sink was asked for it."""
        return {str(name): int(times) for name, times in self._sink(f"/{ledger}/requests").items()}

    def _sink(self, path: str) -> Mapping[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=30)
        connection.request("GET", path)
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return answer


@contextmanager
def stand() -> Iterator[Stand]:
    """Durable services of its own in a fresh folder, migrated, and the HTTP sink; everything ends with it."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="outtray-bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        services = stack.enter_context(Services.start(_made(folder / "services"), durable=True, keep=False))
        new_key_file(folder / "keys.json")
        settings = load_settings(
            database_url=services.database_url,
            redis_url=services.redis_url,
            key_file=folder / "keys.json",
            data_folder=folder,
        )
        migrate(settings)
        database = stack.enter_context(psycopg.connect(conninfo(settings), autocommit=True))
        hints = redis.Redis.from_url(redis_url(settings))
        roles = {
            "postgres": [_parent(database.info.backend_pid)],
            "redis": [psutil.Process(int(hints.info("server")["process_id"]))],
        }
        sink = stack.enter_context(_sink_process())
        roles["sink"] = [psutil.Process(sink.pid)]
        assert sink.stdout is not None
        port = int(sink.stdout.readline())
        made = Stand(settings, load_vault(settings), database, hints, folder, port, roles)
        stack.callback(lambda: made.kill(*list(made._processes)))
        yield made


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    return folder


def _parent(pid: int) -> psutil.Process:
    """The postmaster of a backend."""
    parent = psutil.Process(pid).parent()
    if parent is None:
        raise CannotRun("the postmaster is not on this machine")
    return parent


@contextmanager
def _sink_process() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.bench.sink"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def fsync_microseconds(folder: Path, times: int = 200) -> float:
    """Median of an 8 KiB write with fdatasync in `folder`: says how flattering the disk is."""
    path = folder / f"fsync-{secrets.token_hex(4)}"
    taken = []
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            file.write(bytes(8192))
            begun = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - begun)
    path.unlink()
    return sorted(taken)[times // 2] * 1e6
