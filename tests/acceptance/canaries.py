"""Canaries: values that nobody may find again outside the ciphertext, and the searches for them."""

from __future__ import annotations

import base64
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

KINDS = (
    "sender", "recipient", "name", "subject", "body", "metadata", "password", "token", "secret", "idempotency",
    "attachment",
)  # fmt: skip


@dataclass
class Canaries:
    """One value of each kind; letters and digits only, so that no encoding of text changes it.

    A test adds what a server gave out meanwhile: its tokens and URLs.
    """

    values: dict[str, str] = field(
        default_factory=lambda: {kind: f"cnry{kind}{secrets.token_hex(6)}" for kind in KINDS}
    )

    def __getitem__(self, kind: str) -> str:
        return self.values[kind]

    def found_in(self, text: bytes | str, kinds: Iterable[str] | None = None) -> set[str]:
        """The kinds whose value stands in `text`: plain, in base64 at any offset, or in hexadecimal."""
        data = (text if isinstance(text, bytes) else text.encode("utf-8", "replace")).lower()
        return {kind for kind in kinds or self.values if any(form in data for form in _forms(self.values[kind]))}


def _forms(value: str) -> list[bytes]:
    plain = value.encode()
    shifted = [base64.b64encode(b"x" * offset + plain)[4 if offset else 0 : -4].lower() for offset in range(3)]
    return [plain.lower(), plain.hex().encode(), *shifted]


class Monitor:
    """Everything that is said to Redis while the context is open."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, socket_timeout=None)  # silence is no end of it (5 s in redis-py 8)
        self.said: list[str] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        with self._client.monitor() as monitor:
            self._ready.set()
            for command in monitor.listen():
                self.said.append(str(command))
                if "end-of-monitor" in command["command"]:
                    return

    def __enter__(self) -> Monitor:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: Any) -> None:
        self._client.echo("end-of-monitor")
        self._thread.join(10)
        self._client.close()


def everything_in_redis(client: redis.Redis) -> str:
    """All keys with their values, of whatever type."""
    read = {
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"hash": client.hgetall,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"stream": client.xrange,
    }
    return "\n".join(f"{key!r} {read[client.type(key)](key)!r}" for key in client.scan_iter())


def everything_in_postgresql(db: Any) -> dict[str, str]:
    """All rows of all tables as text, `bytea` in hexadecimal, by the table's name."""
    names = db.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'outtray'::regnamespace AND relkind IN ('r', 'm')"
    ).fetchall()
    return {
        name: "\n".join(row[0] for row in db.execute(f'SELECT t::text FROM outtray."{name}" AS t')) for (name,) in names
    }


def everything_in_processes() -> dict[str, bytes]:
    """Command line and environment of every process that this user may look at."""
    seen = {}
    for entry in Path("/proc").glob("[0-9]*"):
        for file in ("cmdline", "environ"):
            try:
                seen[f"{entry.name}/{file}"] = (entry / file).read_bytes()
            except OSError:
                continue
    return seen
