"""Host names, looked up in threads of our own.

The event loop has few threads for this (uvloop: libuv's four; asyncio: six on two cores, 2026-11), and a look-up that a
dead resolver leaves hanging cannot be cancelled: four such hosts would hold up the connections of everybody else.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

THREADS = 64
"""Look-ups at once in one process. Each costs a thread's stack only while it lasts."""


class Names:
    """One process's resolver."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="names")

    async def addresses(self, host: str, port: int) -> list[str]:
        """The numeric addresses of a host, in the order in which to try them. Raises `OSError` (`gaierror`)."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(address[0]) for *_, address in found))
