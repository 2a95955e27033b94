"""Providers that are loaded by their first mailbox: once, in a thread, within the deadline of who waits."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from uuid import uuid4

import pytest

from outtray_schema.outcome import Parked
from outtray_schema.settings import load_settings
from outtray_worker.deadline import Deadline
from outtray_worker.providers import Account, Mail, Prepared, Provider, Reader, Remover, Session, Trace
from outtray_worker.providers.late import LateProvider, LateWeb
from outtray_worker.providers.memory import MemoryProvider
from outtray_worker.providers.web.signals import Signals
from outtray_worker.serve import default_providers

ACCOUNT = Account(uuid4(), "memory", {}, "box@example.org", {})


class Loading:
    """A provider whose loading lasts until the test says so, or fails."""

    def __init__(self) -> None:
        self.memory = MemoryProvider(drafts=True, readable=True)
        self.go_on = threading.Event()
        self.began = threading.Event()
        self.times = 0
        self.fails = False
        self.late = LateProvider("memory", self.load)

    def load(self) -> Provider:
        self.times += 1
        self.began.set()
        assert self.go_on.wait(10)
        if self.fails:
            raise ImportError("no module named ann@example.org")
        return self.memory

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self.began.wait, 10)


def mail() -> Mail:
    async def body():
        yield b"Subject: s\r\n\r\nt"

    message_id = uuid4()
    return Mail(message_id, "box@example.org", ("to@example.net",), f"<{message_id}@example.org>", 16, body)


async def send(session: Session) -> object:
    prepared = await session.prepare(mail())
    if isinstance(prepared, Parked):
        return prepared
    soon = Deadline.after(timedelta(seconds=5))
    return await prepared.hand_over(soon, soon)  # type: ignore[union-attr]


def test_mailboxes_that_need_a_provider_wait_for_one_loading_and_the_loop_goes_on():
    async def test() -> None:
        loading = Loading()
        turns = [asyncio.create_task(send(loading.late.open(ACCOUNT))) for _ in range(3)]
        await loading.has_begun()  # the loop runs, or we would not be here
        assert not any(turn.done() for turn in turns) and loading.memory.accepted == []
        loading.go_on.set()
        await asyncio.gather(*turns)
        assert len(loading.memory.accepted) == 3 and loading.times == 1
        opened = loading.late.open(ACCOUNT)
        assert type(opened) is type(loading.memory.open(ACCOUNT)), "nothing stands between from then on"

    asyncio.run(test())


def test_who_gives_up_waiting_does_not_stop_the_loading_for_the_others():
    async def test() -> None:
        loading = Loading()
        patient = asyncio.create_task(send(loading.late.open(ACCOUNT)))
        await loading.has_begun()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await loading.late.open(ACCOUNT).prepare(mail())
        loading.go_on.set()
        await patient
        assert len(loading.memory.accepted) == 1 and loading.times == 1

    asyncio.run(test())


def test_a_provider_that_cannot_be_loaded_parks_its_mailboxes_and_is_tried_again():
    async def test() -> None:
        loading = Loading()
        loading.fails = True
        loading.go_on.set()
        session = loading.late.open(ACCOUNT)
        parked = await session.prepare(mail())
        assert parked == Parked("this worker cannot load its client for memory: ImportError", scope="app")
        assert isinstance(session, Reader) and await session.read_original("1") == parked
        trace = Trace(uuid4(), "<1@example.org>", None, ())  # type: ignore[arg-type]
        finding = await session.find_evidence(trace)
        assert (finding.kind, finding.outcome) == ("failed", parked)
        assert isinstance(session, Remover) and (await session.remove_draft(trace)).kind == "failed"
        loading.fails = False
        assert not isinstance(await session.prepare(mail()), Parked)
        await session.close()

    asyncio.run(test())


def test_the_providers_that_are_loaded_late_have_sessions_that_read_and_remove():
    """What stands in for them while they are loaded says so for both."""

    async def test() -> None:
        settings = load_settings()
        web = LateWeb(settings)
        known = default_providers(settings, web, Signals())
        for name in ("gmail", "microsoft"):
            late = known[name]
            assert isinstance(late, LateProvider)
            loaded = await late.provider()
            assert not isinstance(loaded, Parked) and loaded.name == name
            session = late.open(ACCOUNT)
            assert isinstance(session, Reader) and isinstance(session, Remover)
        assert {known[name]._loaded.web for name in ("gmail", "microsoft")} == {web()}, "one client for both"  # type: ignore[attr-defined]
        await web.close()

    asyncio.run(test())


def test_a_prepared_mail_is_the_real_ones():
    async def test() -> None:
        loading = Loading()
        loading.go_on.set()
        prepared: Prepared | object = await loading.late.open(ACCOUNT).prepare(mail())
        assert type(prepared).__module__ == "outtray_worker.providers.memory"

    asyncio.run(test())
