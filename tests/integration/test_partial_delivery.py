"""`recipients="accepted"`: the server refuses some and takes the others, and nobody is lost, nor receives it twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from databases import Database
from inside import Inside, dies_at, inside
from outtray import InvalidMessage, Message
from outtray_sandbox.imap import ImapServer
from outtray_sandbox.smtp import SmtpServer
from outtray_worker.afterwards import follow
from outtray_worker.providers.smtp import SmtpProvider
from outtray_worker.settle import settle
from world import run

USER, PASSWORD = "ann@sender.example", "pw-canary"
OK, GONE, BUSY, HIDDEN = (f"{name}@receiver.example" for name in ("ok", "gone", "busy", "hidden"))
WAIT, SETTLED = timedelta(minutes=16), timedelta(minutes=25)


@asynccontextmanager
async def post_office(database: Database, folder: Path, **options: Any) -> AsyncIterator[tuple[Inside, SmtpServer]]:
    """A worker whose mailbox is at the sandbox's SMTP and IMAP servers, which refuse two of the recipients."""
    settings = database.settings.model_copy(update={"smtp_clear_loopback": True})
    with (
        SmtpServer(folder / "accepted.jsonl", users={USER: PASSWORD}) as smtp,
        ImapServer(smtp, files_sent=True) as imap,
    ):
        smtp.add_rule(stage="rcpt", recipient=GONE, reply="550 5.1.1 no such user")
        smtp.add_rule(stage="rcpt", recipient=BUSY, reply="450 4.2.1 receiving too fast", **options)
        async with inside(settings, SmtpProvider(settings)) as office:
            office.client.mailboxes.add_smtp(
                USER, host=smtp.host, port=smtp.port, tls="clear", password=PASSWORD, imap=imap.where(files_sent=True)
            )
            yield office, smtp


def message_to(office: Inside, *to: str, recipients: str = "accepted", **fields: Any) -> UUID:
    return office.enqueue(USER, to=list(to), recipients=recipients, **fields)[0]  # type: ignore[arg-type]


def taken(smtp: SmtpServer) -> Counter[str]:
    """How often each address received a mail."""
    return Counter(each for mail in smtp.ledger.read() for each in mail.recipients)


def results(office: Inside, message: UUID) -> dict[str, str | None]:
    return {each.address: each.result for each in office.client.get(message).recipients}


async def children(office: Inside, message: UUID) -> list[UUID]:
    found = await office.w.rows("SELECT id FROM outtray.message WHERE continues = %s", message)
    return [row["id"] for row in found]


def test_the_others_receive_it_and_those_refused_for_now_get_a_message_of_their_own(
    database: Database, tmp_path: Path
) -> None:
    async def scene() -> None:
        async with post_office(database, tmp_path, times=1) as (office, smtp):
            message = message_to(office, OK, GONE, BUSY, bcc=[HIDDEN], tags=["t"], text="x" * 1_500_000)
            await office.round()
            assert (await office.message(message))["state"] == "sent"
            await asyncio.gather(*(follow(office.process) for _ in range(3)))
            (child,) = await children(office, message)
            said = results(office, message)
            assert (said[OK], said[HIDDEN], said[BUSY]) == (
                "accepted",
                "accepted",
                f"refused for now: goes on as {child}",
            )
            assert said[GONE].startswith("refused: the recipient does not exist (127.0.0.1:")  # type: ignore[union-attr]
            assert office.client.get(message).continued_in == child
            assert office.client.get(child).continues == message
            row = await office.message(child)
            assert (row["state"], row["attempt"], row["recipients"], row["tags"]) == ("queued", 1, 1, ["t"])
            assert row["failing_since"] is not None
            await office.later(WAIT)
            await office.until_idle()
            await follow(office.process)
            first, second = smtp.ledger.read()
            assert (first.recipients, second.recipients) == ((OK, HIDDEN), (BUSY,))
            assert (await office.message(child))["state"] == "sent"
            assert "continued" in await office.journal(message)
            assert (second.rfc_message_id, abs(second.size - first.size)) == (first.rfc_message_id, 0)
            assert taken(smtp) == {OK: 1, HIDDEN: 1, BUSY: 1}

    run(scene())


@pytest.mark.parametrize("point", ["handed over", "gated"])
def test_whoever_dies_around_the_dot_loses_nobody(database: Database, tmp_path: Path, point: str) -> None:
    """What was refused is known before the gate; evidence brings the rest."""

    async def scene() -> None:
        async with post_office(database, tmp_path, times=2 if point == "gated" else 1) as (office, smtp):
            message = message_to(office, OK, GONE, BUSY)
            office.process.crash_point = dies_at(point)
            await office.round()
            office.process.crash_point = lambda *_: None
            await office.later(SETTLED)
            await office.later(timedelta(0))
            await follow(office.process)
            assert await children(office, message) == []
            for _ in range(4):
                await office.later(SETTLED)
                await office.look()
                await office.until_idle()
                await follow(office.process)
            assert (await office.message(message))["state"] == "sent"
            (child,) = await children(office, message)
            assert (await office.message(child))["state"] == "sent"
            assert taken(smtp) == {OK: 1, BUSY: 1}

    run(scene())


def test_the_copy_of_the_first_is_no_evidence_for_the_one_that_goes_on(database: Database, tmp_path: Path) -> None:
    """Both have one Message-ID. Were it believed, a lost answer would lose the recipient."""

    async def scene() -> None:
        async with post_office(database, tmp_path, times=1) as (office, smtp):
            message = message_to(office, OK, BUSY)
            await office.round()
            await follow(office.process)
            (child,) = await children(office, message)
            smtp.add_rule(stage="dot", drop="before", times=1)
            await office.later(WAIT)
            await office.until_idle()
            await office.later(timedelta(0))
            assert (await office.message(child))["state"] == "unknown"
            await office.later(timedelta(seconds=10))
            assert await office.look() == 1
            assert (await office.message(child))["state"] == "unknown"
            await office.later(SETTLED)
            await office.look()
            await office.until_idle()
            assert (await office.message(child))["state"] == "sent"
            assert taken(smtp) == {OK: 1, BUSY: 1}

    run(scene())


def test_by_default_and_where_nobody_is_taken_it_is_all_or_none(database: Database, tmp_path: Path) -> None:
    async def scene() -> None:
        async with post_office(database, tmp_path) as (office, smtp):
            whole = message_to(office, OK, BUSY, recipients="all")
            nobody = message_to(office, GONE, BUSY)
            only_gone = message_to(office, GONE)
            await office.round()
            await follow(office.process)
            states = {each: (await office.message(each))["state"] for each in (whole, nobody, only_gone)}
            assert states == {whole: "queued", nobody: "failed", only_gone: "failed"}
            assert taken(smtp) == {} and results(office, whole)[OK] is None

    run(scene())


def test_it_goes_on_within_the_attempts_of_the_first_and_then_ends(database: Database, tmp_path: Path) -> None:
    async def scene() -> None:
        async with post_office(database, tmp_path) as (office, smtp):
            message = message_to(office, OK, BUSY, give_up_after="1h")
            await office.round()
            await follow(office.process)
            (child,) = await children(office, message)
            for _ in range(8):
                await office.later(WAIT)
                await office.until_idle()
            row = await office.message(child)
            assert row["state"] == "failed" and row["reason"].startswith("gave up")
            assert taken(smtp) == {OK: 1}

    run(scene())


def test_whom_an_earlier_handover_may_have_reached_does_not_go_on(database: Database, tmp_path: Path) -> None:
    async def scene() -> None:
        async with post_office(database, tmp_path) as (office, _):
            message = message_to(office, OK, BUSY)
            await office.round()
            row = await office.message(message)
            await office.w.db.execute(
                "INSERT INTO outtray.usage (mailbox_id, counted_at, recipients, external, message_id, handover, source)"
                " VALUES (%s, now(), 2, 2, %s, 0, 'resent')",
                [row["mailbox_id"], message],
            )
            async with office.process.pool.connection() as connection:
                assert await settle(connection, office.process.vault, office.process.settings, message) is None
            assert "an earlier handover may have reached it" in str(results(office, message)[BUSY])
            assert await children(office, message) == []

    run(scene())


def test_a_raw_mail_goes_to_all_or_none() -> None:
    """It is sent unaltered, so it carries no key by which the one that goes on could be told apart."""
    raw = b"From: ann@sender.example\r\nTo: a@b.example\r\nSubject: s\r\n\r\nt\r\n"
    with pytest.raises(InvalidMessage, match="recipients: of a raw mail are all or none"):
        Message(raw=raw, to="a@b.example", recipients="accepted")
    with pytest.raises(InvalidMessage, match="recipients: Input should be 'all' or 'accepted'"):
        Message(to="a@b.example", text="t", recipients="some")  # type: ignore[arg-type]
