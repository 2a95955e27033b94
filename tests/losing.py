"""A way to PostgreSQL on which one answer is lost: what was asked was done, and the connection ends before it is said.

It speaks no SQL of its own: bytes go to and fro, until those of a client hold the marker that a test has set. What the
server then does it is let do to its end (it says that it is ready again), and not one byte of its answer comes back.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from outtray_schema.settings import Settings

READY, IDLE = b"Z\x00\x00\x00\x05", b"I"
"""ReadyForQuery; outside a transaction, where it says so: the COMMIT is done (PostgreSQL 18, "Message Formats")."""


class LosingWay:
    """Listens on loopback. `lose` arms it for the next request that holds a marker; `lost` counts."""

    def __init__(self, settings: Settings) -> None:
        parts = conninfo_to_dict(str(settings.database_url))
        self._server = Path(str(parts["host"])) / f".s.PGSQL.{parts.get('port', 5432)}"
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        url = f"postgresql://{parts['user']}@127.0.0.1:{port}/{parts['dbname']}?sslmode=disable&gssencmode=disable"
        self.settings = settings.model_copy(update={"database_url": url})
        self._marker: bytes | None = None
        self._skip = 0
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, marker: bytes, after: int = 0) -> None:
        """Lose the answer to a request that holds the marker, once `after` such requests were answered."""
        self._marker, self._skip = marker, after

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            server.connect(str(self._server))
            losing = threading.Event()
            threading.Thread(target=self._answers, args=[server, client, losing], daemon=True).start()
            asked = b""
            while data := client.recv(65536):
                asked = asked[-100:] + data  # a marker may come in two pieces
                if self._marker is not None and self._marker in asked:
                    asked = b""
                    self._skip -= 1
                    if self._skip < 0:
                        losing.set()
                server.sendall(data)

    def _answers(self, server: socket.socket, client: socket.socket, losing: threading.Event) -> None:
        swallowed = b""
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if not losing.is_set():
                    client.sendall(data)
                    continue
                swallowed += data
                if READY in swallowed:
                    self._marker = None
                    self.lost += READY + IDLE in swallowed
                    break
            client.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def losing_way(settings: Settings) -> Iterator[LosingWay]:
    """A way to these settings' database; `.settings` lead over it."""
    way = LosingWay(settings)
    try:
        yield way
    finally:
        way.close()
