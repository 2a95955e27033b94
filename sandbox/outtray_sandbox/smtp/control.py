"""Commands to a running server from other processes: JSON lines over a Unix socket or a loopback port.

    {"do": "add_rule", "with": {"stage": "dot", "reply": "451 4.3.0 later", "seconds": 20}}   →   {"done": 7}

The commands are the methods of `House` that `COMMANDS` names, and `down` and `up` (stop and begin to listen).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

Obey = Callable[[str, dict[str, Any]], Awaitable[Any]]


class Refused(Exception):
    """The server did not obey; the text is its reason."""


class Control:
    """The other end of `--control PATH` or `--control PORT`. One connection per command, so it survives restarts."""

    def __init__(self, where: str | int | Path, patience: float = 10.0) -> None:
        self._where = str(where)
        self._patience = patience

    def do(self, command: str, /, **arguments: Any) -> Any:
        """Obeyed when this returns. Raises `Refused`, or `OSError` where no server listens."""
        with self._connect() as connection, connection.makefile("rw", encoding="utf-8") as lines:
            lines.write(json.dumps({"do": command, "with": arguments}) + "\n")
            lines.flush()
            answer = json.loads(lines.readline() or '{"refused": "the server closed the connection"}')
        if "refused" in answer:
            raise Refused(answer["refused"])
        return answer["done"]

    def _connect(self) -> socket.socket:
        if self._where.isdigit():
            return socket.create_connection(("127.0.0.1", int(self._where)), timeout=self._patience)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(self._patience)
        connection.connect(self._where)
        return connection


async def serve_control(where: str, obey: Obey) -> asyncio.Server:
    """Listen for commands at a loopback port (a number; 0 picks one) or at a Unix socket of mode 0600."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write((json.dumps(await _answer(line, obey)) + "\n").encode())
            await writer.drain()
        writer.close()

    if where.isdigit():
        return await asyncio.start_server(serve, "127.0.0.1", int(where))
    with suppress(FileNotFoundError):
        os.unlink(where)
    before = os.umask(0o177)
    try:
        return await asyncio.start_unix_server(serve, where)
    finally:
        os.umask(before)


async def _answer(line: bytes, obey: Obey) -> dict[str, Any]:
    try:
        asked = json.loads(line)
        return {"done": await obey(asked["do"], asked.get("with", {}))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return {"refused": f"{error.__class__.__name__}: {error}"}
