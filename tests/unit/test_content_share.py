"""What a worker holds of `OUTTRAY_CONTENT_MEMORY` comes back, at whatever instant the turn that asked for it ends."""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from outtray_worker.content import Content, ContentReader, forget
from outtray_worker.turn import Turn

MEMORY = 10_000


def message() -> Any:
    return SimpleNamespace(id=uuid4(), size=1000)


def bring(reader: ContentReader) -> None:
    """The content arrives: what `run()` does with the first that is wanted."""
    wanted, cost, future = reader._wanted.popleft()
    future.set_result(Content(wanted.id, None, cost, reader, b"mime", b""))  # type: ignore[arg-type]


def reading_ahead(reader: ContentReader, messages: list[Any]) -> Turn:
    """A turn, as far as its content goes."""
    turn = Turn.__new__(Turn)
    turn._process = SimpleNamespace(content=reader)  # type: ignore[assignment]
    turn._mailbox = SimpleNamespace(dead_turns=0)  # type: ignore[assignment]
    turn._messages, turn._position, turn._ahead = messages, 0, deque()
    return turn


@pytest.mark.parametrize("ahead", [False, True], ids=["asked for alone", "read ahead"])
@pytest.mark.parametrize("when", ["before it comes", "as it comes"])
def test_a_turn_that_is_cancelled_gives_its_share_back(ahead: bool, when: str) -> None:
    async def test() -> None:
        reader, wanted = ContentReader(None, None, MEMORY), message()  # type: ignore[arg-type]
        asking = reading_ahead(reader, [wanted])._content(wanted) if ahead else reader.load(wanted)
        task = asyncio.create_task(asking)
        while not reader._wanted:
            await asyncio.sleep(0)
        if when == "as it comes":
            await asyncio.sleep(0)
            bring(reader)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if when == "before it comes":  # nobody wants it by then
            gone, cost, future = reader._wanted.popleft()
            reader._answer(gone, cost, future, None)
        assert reader._held == 0

    asyncio.run(test())


def test_what_was_cancelled_already_can_be_forgotten() -> None:
    async def test() -> None:
        reader = ContentReader(None, None, MEMORY)  # type: ignore[arg-type]
        [(_, future)] = reader.ask_ahead([message()])
        future.cancel()
        forget(future)
        gone, cost, _ = reader._wanted.popleft()
        reader._answer(gone, cost, future, None)
        assert reader._held == 0

    asyncio.run(test())
