"""A real PostgreSQL 18 in a folder, on a Unix socket of mode 0600 that only its own user (and root) may speak to."""

from __future__ import annotations

import os
import pwd
import shutil
from typing import Literal
from urllib.parse import quote

import psutil
import psycopg

from outtray_sandbox.servers.place import Account, Place
from outtray_sandbox.servers.running import keep_short, kill, server_of, tail, working_in, write_private
from outtray_schema.errors import SettingsError

DATABASE = "outtray"
# Not "outtray": PostgreSQL looks into a schema named as the role before all others, and a statement of ours that
# forgets to name its schema would work here and nowhere else.
ROLE = "embedded"
StopMode = Literal["smart", "fast", "immediate"]

# Errors stay out of the log: their texts and details quote values, and values are addresses and keys of apps. The
# client is told everything; the log keeps what concerns the server (LOG, FATAL, PANIC).
CONFIGURATION = """\
listen_addresses = ''
port = 5432
unix_socket_directories = '{sockets}'
unix_socket_permissions = 0600
max_connections = 200
timezone = 'UTC'
log_timezone = 'UTC'
log_min_messages = log
log_min_error_statement = panic
log_error_verbosity = terse
log_statement = none
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
log_checkpoints = off
"""
# Without fsync a commit survives the end of every process, but not of the machine: enough for tests.
NOT_DURABLE = """\
fsync = off
full_page_writes = off
autovacuum_naptime = 10s
"""
ALLOWED = f"local all all peer map={ROLE}\n"


class Postgres:
    """The PostgreSQL of one data folder. `durable=False` is for data that may vanish with the machine."""

    def __init__(self, place: Place, durable: bool = True) -> None:
        self.place = place
        self.durable = durable
        self.data = place.home / "postgres"
        self.log_path = place.home / "postgres.log"

    def url(self, database: str = DATABASE) -> str:
        """A libpq URL; SQLAlchemy takes it with `postgresql+psycopg://`."""
        return f"postgresql://{ROLE}@/{quote(database)}?host={quote(str(self.place.sockets))}"

    @property
    def process(self) -> psutil.Process | None:
        """The postmaster, if it runs."""
        return server_of(self.data, self.data / "postmaster.pid")

    def start(self) -> None:
        """Start, and return once it takes connections. The first start makes the cluster and the database.

        Raises `SettingsError` with the end of the server's log.
        """
        if self.process:
            return
        self._initialise()
        self._configure()
        self._forget_dead_postmaster()
        started = self._control("start", "--wait", "--timeout=60", "--silent", f"--log={self.log_path}")
        if not started:
            raise SettingsError(f"the embedded PostgreSQL did not start ({self.log_path}):\n{tail(self.log_path)}")
        self._ensure_database()

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop, and return once it has stopped. `immediate` is a crash that PostgreSQL itself arranges."""
        process = self.process
        if process and not self._control("stop", "--wait", "--timeout=60", "--silent", f"--mode={mode}"):
            self.kill()

    def kill(self) -> None:
        """SIGKILL to the postmaster and all its children, as the machine's own killer would."""
        process = self.process
        if process:
            process.suspend()  # it would start a child anew
            kill([process, *process.children(recursive=True)])

    def _control(self, action: str, *options: str) -> bool:
        done = self.place.run(
            self.place.binaries.postgres / "pg_ctl", action, f"--pgdata={self.data}", *options, capture_output=True
        )
        return done.returncode == 0

    def _initialise(self) -> None:
        """Make the cluster beside its place and move it there when it is whole: a killed initdb leaves nothing."""
        if (self.data / "PG_VERSION").exists():
            return
        _user_name(self.place.account)
        new = self.place.home / "postgres.new"
        shutil.rmtree(new, ignore_errors=True)
        self.place.private_folder(new)
        done = self.place.run(
            self.place.binaries.postgres / "initdb", f"--pgdata={new}", f"--username={ROLE}", "--encoding=UTF8",
            "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--auth=peer", "--no-instructions",
            *([] if self.durable else ["--no-sync"]), capture_output=True,
        )  # fmt: skip
        if done.returncode:
            raise SettingsError(f"initdb could not make the embedded database in {new}:\n{done.stderr.strip()}")
        with (new / "postgresql.conf").open("a") as configuration:
            configuration.write("\ninclude 'outtray.conf'\n")
        new.rename(self.data)

    def _configure(self) -> None:
        quoted = str(self.place.sockets).replace('"', '""').replace("'", "''")
        text = CONFIGURATION.format(sockets=f'"{quoted}"') + ("" if self.durable else NOT_DURABLE)
        names = {"root", _user_name(self.place.account)}
        users = "".join(f'{ROLE} "{name}" {ROLE}\n' for name in sorted(names))
        for name, content in (("outtray.conf", text), ("pg_hba.conf", ALLOWED), ("pg_ident.conf", users)):
            write_private(self.data / name, content, self.place.owner)
        keep_short(self.log_path)
        if not self.log_path.exists():
            write_private(self.log_path, "", self.place.owner)

    def _forget_dead_postmaster(self) -> None:
        """End what a dead postmaster left, and its lock files: PostgreSQL cannot tell a pid that is used again, or a
        zombie, from a living postmaster. Its file is only removed once nobody works in the data folder, since it is
        what keeps two postmasters from sharing it.
        """
        if not self.process:
            kill(working_in(self.data))
            for file in (self.data / "postmaster.pid", self.place.sockets / ".s.PGSQL.5432.lock"):
                file.unlink(missing_ok=True)

    def _ensure_database(self) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            found = connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
            if found is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")


def _user_name(account: Account | None) -> str:
    """The operating system's name of the servers' user, which PostgreSQL asks for."""
    if account:
        return account.name
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise SettingsError(
            f"PostgreSQL needs a user with a name, and uid {os.geteuid()} has none in /etc/passwd. Run Outtray as a "
            "named user, or set OUTTRAY_DATABASE_URL and OUTTRAY_REDIS_URL (docs/settings.md)"
        ) from None
