"""A process that stands still right before its last look writes no byte that commits, on any route of any provider.

The freeze falls between the connection and the look at the clock: later than that nobody can look (docs/guarantees.md).
`CLOCK_BOOTTIME` is moved, as it runs on while a process is stopped or a machine sleeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gmail_rig import COMPOSE, METADATA, SEND, GmailRig
from graph_mails import MB, UNSUBSCRIBE, file, frozen
from graph_rig import GraphRig
from provider_rigs import MemoryRig, Rig, SmtpRig, mail_of, new_mail, soon

from outtray_schema.outcome import NotBegun, Outcome, Sent
from outtray_worker import deadline
from outtray_worker.providers import Mail
from outtray_worker.providers.gmail import Sizes
from outtray_worker.providers.smtp.link import Link
from outtray_worker.providers.web import client

HOUR = 3600.0
WHOLE, RESUMABLE = Sizes(json=1000), Sizes(json=1000, multipart=2000)


def large() -> Mail:
    """Of several pieces, whatever the shape."""
    text = b"0123456789abcd\r\n" * 40_000
    return mail_of(b"Message-ID: <large@sender.example>\r\nTo: canary-to@first.example\r\nSubject: s\r\n\r\n" + text)


ROUTES: dict[str, tuple[Callable[[Path], Any], Callable[[], Mail]]] = {
    "memory": (lambda folder: MemoryRig(), new_mail),
    "smtp, clear": (SmtpRig, new_mail),
    "smtp, implicit TLS": (lambda folder: SmtpRig(folder, "implicit"), new_mail),
    "gmail, a draft": (lambda folder: GmailRig(folder, (COMPOSE, METADATA)), new_mail),
    "gmail, a draft that was uploaded": (lambda folder: GmailRig(folder, (COMPOSE, METADATA), sizes=RESUMABLE), large),
    "gmail, messages.send": (lambda folder: GmailRig(folder, (SEND,)), new_mail),
    "gmail, multipart": (lambda folder: GmailRig(folder, (SEND,), sizes=WHOLE), large),
    "gmail, an upload's last piece": (lambda folder: GmailRig(folder, (SEND,), sizes=RESUMABLE), large),
    "graph, a draft": (lambda folder: GraphRig(folder, "draft"), frozen),
    "graph, a draft with an uploaded file": (
        lambda folder: GraphRig(folder, "draft"), lambda: frozen(attachments=[file(4 * MB)])),
    "graph, a draft from MIME": (
        lambda folder: GraphRig(folder, "draft"), lambda: frozen(headers=UNSUBSCRIBE, attachments=[file(1000)])),
    "graph, sendMail": (lambda folder: GraphRig(folder, "sendMail"), frozen),
}  # fmt: skip


class Clock:
    """`CLOCK_BOOTTIME`, moved by `ahead` seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        self.freezes = 0
        real = deadline.boottime
        monkeypatch.setattr(deadline, "boottime", lambda: real() + self.ahead)

    def stand_still(self) -> None:
        """The process is stopped here for an hour."""
        self.ahead += HOUR
        self.freezes += 1


@contextmanager
def frozen_at_the_last_look(clock: Clock) -> Iterator[None]:
    """Each provider's last step before it looks, and so before its first byte that commits."""

    def stopped(step: Callable[..., Any]) -> Callable[..., Any]:
        def first(*given: Any) -> Any:
            clock.stand_still()
            return step(*given)

        return first

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client._Attempt, "begin", stopped(client._Attempt.begin))
        patch.setattr(Link, "heed", stopped(Link.heed))
        yield


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Rig, Callable[[], Mail]]]:
    make, mail = ROUTES[request.param]
    rig = make(tmp_path)
    if isinstance(rig, MemoryRig):
        yield rig, mail
        return
    with rig:
        yield rig, mail


def test_a_process_that_was_frozen_begins_no_handover(
    route: tuple[Rig, Callable[[], Mail]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, new = route
    clock = Clock(monkeypatch)

    async def frozen_then_not() -> tuple[Outcome, int, Outcome]:
        session = rig.provider.open(rig.account)
        prepared = await session.prepare(new())
        begin_by, answer_by = soon(30), soon(60)
        with frozen_at_the_last_look(clock):
            if isinstance(rig, MemoryRig):
                clock.stand_still()
            late = await prepared.hand_over(begin_by, answer_by)
        taken = len(rig.taken())
        again = await (await session.prepare(new())).hand_over(soon(30), soon(60))
        await session.close()
        return late, taken, again

    late, taken, again = rig.run(frozen_then_not())
    assert clock.freezes == 1, "it stood still once, in the handover"
    assert isinstance(late, NotBegun) and taken == 0
    assert isinstance(again, Sent), "and nothing but the freeze kept it"
    assert len(rig.taken()) == 1
