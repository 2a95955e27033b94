"""Look-ups of host names: a resolver that hangs on some domains holds nobody else up."""

from __future__ import annotations

import asyncio
import socket
import threading

from outtray_worker.providers.names import Names


def test_domains_that_hang_do_not_hold_up_the_others(monkeypatch):
    real, go_on = socket.getaddrinfo, threading.Event()

    def resolver(host, *rest, **more):
        if host == "dead.example":
            go_on.wait(20)
            raise socket.gaierror("no answer")
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)

    async def scene() -> None:
        names = Names()
        dead = [asyncio.create_task(names.addresses("dead.example", 25)) for _ in range(40)]
        try:
            assert "127.0.0.1" in await asyncio.wait_for(names.addresses("localhost", 25), 5)
            assert not any(task.done() for task in dead)
        finally:
            go_on.set()
        failed = await asyncio.gather(*dead, return_exceptions=True)
        assert all(isinstance(error, socket.gaierror) for error in failed)

    asyncio.run(scene())


def test_each_address_is_named_once_and_in_order():
    async def scene() -> None:
        assert await Names().addresses("127.0.0.1", 25) == ["127.0.0.1"]

    asyncio.run(scene())
