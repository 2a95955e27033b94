"""What the sandbox's SMTP and IMAP servers are alike in: a thread with an event loop of its own, on a port that stays,
commanded from this process or through `Control`."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

from outtray_sandbox.smtp.control import serve_control

Self = TypeVar("Self", bound="MailServer")


class MailServer(ABC):
    """`host`, `port`: where it is; port 0 picks a free one, and a restart keeps it. Use it as a context manager."""

    commands: tuple[str, ...] = ()
    """The methods of `office` that can be commanded."""
    office: Any
    """What the server knows."""

    def __init__(self, name: str, host: str, port: int, control: str | None) -> None:
        self.host, self.port, self.control = host, port, control
        self._loop = asyncio.new_event_loop()
        self._listener: asyncio.Server | None = None
        self._control: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"sandbox-{name}", daemon=True)

    @abstractmethod
    async def _listen(self) -> asyncio.Server:
        """Begin to listen at `host` and `port`."""

    @abstractmethod
    async def _break_all(self) -> None:
        """End every connection at once."""

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self: Self) -> Self:
        self._thread.start()
        self.up()
        if self.control is not None:
            self._control = self._run(serve_control(self.control, self._obey))
            if self.control.isdigit():
                self.control = str(self._control.sockets[0].getsockname()[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        await self._down()
        if self._control:
            self._control.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    def down(self) -> None:
        """Stop listening and break every connection: from now on connections are refused."""
        self._run(self._down())

    def up(self) -> None:
        """Listen, on the same port as before."""
        self._run(self._up())

    async def _up(self) -> None:
        if self._listener is None:
            self._listener = await self._listen()
            self.port = self._listener.sockets[0].getsockname()[1]

    async def _down(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self._break_all()

    # ── commands ────────────────────────────────────────────────────────────────────────────────────────────────

    def do(self, command: str, /, **arguments: Any) -> Any:
        """A command of the control socket, from this process. Raises `ValueError` for an unknown one."""
        return self._run(self._obey(command, arguments))

    def add_rule(self, **fields: Any) -> int:
        """Misbehave as the server's `Rule` says; returns the rule's id."""
        return int(self.do("add_rule", **fields))

    def forget(self, rule_id: int | None = None) -> None:
        """End one rule, or all."""
        self.do("forget", rule_id=rule_id)

    async def _obey(self, command: str, arguments: dict[str, Any]) -> Any:
        if command in ("down", "up"):
            steps: Callable[[], Awaitable[None]] = self._down if command == "down" else self._up
            return await steps()
        if command not in self.commands:
            raise ValueError(f"no such command: {command}; there are {', '.join((*self.commands, 'down', 'up'))}")
        return getattr(self.office, command)(**arguments)

    def _run(self, steps: Any) -> Any:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(steps, self._loop)
        return done.result(30)
