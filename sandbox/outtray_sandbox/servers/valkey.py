"""A real Valkey in a folder, on loopback with a password of its own.

Not on a Unix socket: redis-py and kombu write one differently (`unix://` and `redis+socket://`), and whatever takes
`OUTTRAY_REDIS_URL` must be able to take it as it stands. The password is in a file of mode 0600 and on no command line.
"""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import signal
import socket
import time
from pathlib import Path

import psutil
import redis

from outtray_sandbox.servers.place import Place
from outtray_sandbox.servers.running import keep_short, kill, server_of, tail, wait_gone, write_private
from outtray_schema.errors import SettingsError

HOST = "127.0.0.1"
# Below the ports that systems give to outgoing connections (Linux 32768, macOS and IANA 49152), so that a stopped
# server finds its port free again.
PORTS = range(20_000, 32_000)
PORT_PATIENCE = 2.0
"""Seconds for which the port of last time is waited for: of a server that was killed, the main thread can be gone while
others still hold its sockets (seen 2026-11). Whoever knows the old address would look for it in vain for ever."""
# Lists of rounds must never be evicted: with any other policy kombu loses tasks without a word.
CONFIGURATION = """\
bind {host}
port {port}
requirepass {password}
dir "{folder}"
pidfile "{folder}/valkey.pid"
daemonize no
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
loglevel notice
"""
LAUNCH = '"$0" "$1" </dev/null >>"$2" 2>&1 &'


class Valkey:
    """The Valkey of one data folder."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.folder = place.home / "valkey"
        self.log_path = place.home / "valkey.log"

    @property
    def url(self) -> str:
        """What redis-py, kombu and Celery understand alike. Holds the password: never log it."""
        port, password = self._access()
        return f"redis://:{password}@{HOST}:{port}/0"

    @property
    def process(self) -> psutil.Process | None:
        return server_of(self.folder, self.folder / "valkey.pid")

    def start(self) -> None:
        """Start, and return once it answers. Raises `SettingsError` with the end of the server's log."""
        if self.process:
            self.resume()
            return
        self.place.private_folder(self.folder)
        for _ in range(3):  # another program may take the port between our look and the server's
            self._launch()
            if self._answers():
                return
        raise SettingsError(f"the embedded Valkey did not start ({self.log_path}):\n{tail(self.log_path)}")

    def stop(self) -> None:
        """SIGTERM: what it holds is written, and it ends."""
        process = self.process
        if process:
            self.resume()
            process.send_signal(signal.SIGTERM)
            if not wait_gone([process], 15):
                kill([process])

    def kill(self) -> None:
        """SIGKILL: the last second may be lost (`appendfsync everysec`)."""
        if process := self.process:
            kill([process])

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nobody answers, as on a frozen machine."""
        if process := self.process:
            process.suspend()

    def resume(self) -> None:
        """SIGCONT."""
        if process := self.process:
            process.resume()

    def _launch(self) -> None:
        port, password = self._free_access()
        text = CONFIGURATION.format(host=HOST, port=port, password=password, folder=_escaped(self.folder))
        configuration = self.folder / "valkey.conf"
        write_private(configuration, text, self.place.owner)
        keep_short(self.log_path)
        if not self.log_path.exists():
            write_private(self.log_path, "", self.place.owner)
        (self.folder / "valkey.pid").unlink(missing_ok=True)
        command = ("/bin/sh", "-c", LAUNCH, self.place.binaries.valkey, configuration, self.log_path)
        self.place.run(*command, start_new_session=True)

    def _answers(self, within: float = 30.0, appears_within: float = 5.0) -> bool:
        """Wait for an answer. A server that is loading its file may take its time; one that is not there may not."""
        begun = time.monotonic()
        while (waited := time.monotonic() - begun) < within:
            if self._ping():
                return True
            if waited > appears_within and self.process is None:
                return False
            time.sleep(0.01)
        return False

    def _ping(self) -> bool:
        port, password = self._access()
        client = redis.Redis(host=HOST, port=port, password=password, socket_timeout=1)
        with contextlib.suppress(redis.RedisError, OSError), client:
            return int(client.info("server")["process_id"]) == getattr(self.process, "pid", None)
        return False

    def _access(self) -> tuple[int, str]:
        access = json.loads(_access_file(self.folder).read_text())
        return int(access["port"]), str(access["password"])

    def _free_access(self) -> tuple[int, str]:
        """The port and password of last time, or new ones where there were none or the port has been taken."""
        try:
            port, password = self._access()
        except (OSError, ValueError, KeyError):
            port, password = 0, secrets.token_urlsafe(24)
        until = time.monotonic() + PORT_PATIENCE
        while port and not _is_free(port) and time.monotonic() < until:
            time.sleep(0.01)
        while not _is_free(port):
            port = random.SystemRandom().choice(PORTS)
        write_private(_access_file(self.folder), json.dumps({"port": port, "password": password}))
        return port, password


def _access_file(folder: Path) -> Path:
    return folder / "access.json"


def _is_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((HOST, port))
        except OSError:
            return False
    return port > 0


def _escaped(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')
