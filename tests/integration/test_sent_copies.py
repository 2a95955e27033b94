"""The copy in Sent: filed where the provider files none, one at most, and never a matter of the sending itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from databases import Database
from inside import Inside, inside
from outtray_sandbox.imap import ImapServer
from outtray_sandbox.smtp import SmtpServer
from outtray_worker.copies import TRIES, file_copies
from outtray_worker.providers.smtp import SmtpProvider
from outtray_worker.providers.smtp.imap.line import Place
from world import run

USER, PASSWORD = "ann@sender.example", "pw-canary"
HIDDEN = "hidden@receiver.example"
SETTLED, LATER = timedelta(minutes=11), timedelta(hours=7)


@asynccontextmanager
async def post_office(
    database: Database, folder: Path, files: bool = False, **imap_fields: Any
) -> AsyncIterator[tuple[Inside, SmtpServer, ImapServer]]:
    settings = database.settings.model_copy(
        update={
            "smtp_clear_loopback": True,
            "look_limit": timedelta(seconds=2),
            "command_timeout": timedelta(seconds=1),
        }
    )
    with (
        SmtpServer(folder / "accepted.jsonl", users={USER: PASSWORD}) as smtp,
        ImapServer(smtp, files_sent=files) as imap,
    ):
        async with inside(settings, SmtpProvider(settings)) as office:
            office.client.mailboxes.add_smtp(
                USER, host=smtp.host, port=smtp.port, tls="clear", password=PASSWORD, imap=imap.where(**imap_fields)
            )
            yield office, smtp, imap


async def sent(office: Inside, **fields: Any) -> UUID:
    (message,) = office.enqueue(USER, **fields)  # type: ignore[arg-type]
    await office.until_idle()
    assert (await office.message(message))["state"] == "sent"
    return message


async def filed(office: Inside, wait: timedelta = timedelta(0)) -> None:
    """What workers do in that time, two of them at once."""
    await office.later(wait)
    await asyncio.gather(file_copies(office.process), file_copies(office.process))


def in_sent(imap: ImapServer) -> list[Any]:
    folder = imap.post.folder(USER, "Sent")
    assert folder is not None
    return folder.mails


async def end_of(office: Inside, message: UUID) -> str | None:
    return str((await office.message(message))["copy_end"] or "") or None


def test_it_is_filed_once_as_it_was_sent_and_shows_its_owner_bcc(database: Database, tmp_path: Path) -> None:
    async def scene() -> None:
        async with post_office(database, tmp_path, files_sent=False) as (office, smtp, imap):
            message = await sent(office, bcc=[HIDDEN])
            for _ in range(3):
                await filed(office)
            (copy,) = in_sent(imap)
            (mail,) = smtp.ledger.read()
            assert (await end_of(office, message), (await office.message(message))["state"]) == ("filed", "sent")
            assert copy.values("Bcc") == [HIDDEN] and copy.values("Message-ID") == [mail.rfc_message_id]
            assert copy.values("X-Outtray-Key") == [], "a look would take it for one that the provider filed"
            key = len(f"X-Outtray-Key: {message}\r\n")
            assert copy.size == mail.size - key + len(f"Bcc: {HIDDEN}\r\n")
            assert "copy" in await office.journal(message)

    run(scene())


@pytest.mark.parametrize(
    ("fields", "provider_files", "wanted"),
    [
        ({}, True, "found"),
        ({}, False, "filed"),
        ({"files_sent": True}, True, None),
        ({"sent_copy": "never"}, False, None),
        ({"sent_copy": "append", "files_sent": True}, True, "found"),
        ({"sent_copy": "append", "files_sent": True}, False, "filed"),
    ],
)
def test_where_the_provider_may_file_one_it_is_waited_for_and_looked_for(
    database: Database, tmp_path: Path, fields: dict[str, Any], provider_files: bool, wanted: str | None
) -> None:
    async def scene() -> None:
        async with post_office(database, tmp_path, provider_files, **fields) as (office, _, imap):
            message = await sent(office)
            await filed(office)
            assert (await end_of(office, message), imap.post.seen["append"]) == (None, 0)
            await filed(office, SETTLED)
            assert await end_of(office, message) == wanted
            assert imap.post.seen["append"] == (wanted == "filed")
            assert len(in_sent(imap)) == (wanted is not None or provider_files)

    run(scene())


@pytest.mark.parametrize(
    "rule",
    [
        {"stage": "append", "drop": "after"},
        {"stage": "append", "drop": "before"},
        {"stage": "append", "silent": True},
        {"stage": "append", "reply": "NO [OVERQUOTA] full"},
        {"stage": "append", "raw": "garbage\r\n"},
        {"stage": "login", "reply": "NO [UNAVAILABLE] later"},
        {"stage": "select", "drop": "before"},
        {"stage": "search", "reply": "NO [UNAVAILABLE] later"},
    ],
    ids=lambda rule: "-".join(map(str, rule.values())),
)
def test_whatever_the_server_does_there_is_one_copy_and_one_mail(
    database: Database, tmp_path: Path, rule: dict[str, Any]
) -> None:
    async def scene() -> None:
        async with post_office(database, tmp_path, files_sent=False) as (office, smtp, imap):
            imap.add_rule(**rule, times=1)
            message = await sent(office)
            await filed(office)
            for _ in range(3):
                await filed(office, LATER)
            assert await end_of(office, message) in ("filed", "found")
            assert len(in_sent(imap)) == 1
            row = await office.message(message)
            assert (row["state"], row["attempt"], len(smtp.ledger.read())) == ("sent", 1, 1)

    run(scene())


def test_a_worker_that_dies_behind_the_append_leaves_one_copy(database: Database, tmp_path: Path) -> None:
    async def scene() -> None:
        async with post_office(database, tmp_path, files_sent=False) as (office, _, imap):
            message = await sent(office)
            imap.add_rule(stage="append", late=1.0, times=1)
            dying = asyncio.create_task(file_copies(office.process))
            while not imap.post.seen["append"]:
                await asyncio.sleep(0.01)
            dying.cancel()
            await asyncio.gather(dying, return_exceptions=True)
            assert await file_copies(office.process) == 0, "its mark is gone too early"
            while not in_sent(imap):
                await asyncio.sleep(0.01)
            await filed(office, LATER)
            assert (await end_of(office, message), len(in_sent(imap))) == ("found", 1)

    run(scene())


def test_a_folder_that_can_take_none_is_given_up_in_the_end(database: Database, tmp_path: Path) -> None:
    async def scene() -> None:
        async with post_office(database, tmp_path, files_sent=False) as (office, _, imap):
            imap.add_rule(stage="append", reply="NO [OVERQUOTA] full")
            messages = [await sent(office) for _ in range(2)]
            for _ in range(TRIES * 4):
                await filed(office, LATER)
                if all([await end_of(office, each) for each in messages]):
                    break
            assert {await end_of(office, each) for each in messages} == {"given up"}
            assert TRIES <= imap.post.seen["append"] <= TRIES * 2
            assert in_sent(imap) == []

    run(scene())


def test_what_is_not_known_to_have_left_gets_no_copy(database: Database, tmp_path: Path) -> None:
    """Else a look for evidence would find our own copy, and take it for proof."""

    async def scene() -> None:
        async with post_office(database, tmp_path, files_sent=False) as (office, smtp, imap):
            smtp.add_rule(stage="dot", drop="after", times=1)
            (lost,) = office.enqueue(USER)  # type: ignore[arg-type]
            await office.until_idle()
            await office.later(timedelta(0))
            await filed(office, LATER)
            assert ((await office.message(lost))["state"], in_sent(imap)) == ("unknown", [])
            await sent(office)
            await filed(office, LATER)
            assert len(in_sent(imap)) == 1
            await office.look()
            assert (await office.message(lost))["state"] == "unknown", "our own copies are no sign of the provider's"

    run(scene())


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"host": "imap.gmail.com"}, None),
        ({"host": "imap.gmail.com", "sent_copy": "append"}, "look"),
        ({"host": "imap.example"}, "look"),
        ({"host": "imap.example", "files_sent": False}, "due"),
        ({"host": "imap.example", "files_sent": False, "sent_copy": "append"}, "due"),
        ({"host": "imap.example", "files_sent": True}, None),
        ({"host": "imap.example", "sent_copy": "never"}, None),
    ],
)
def test_the_setting_and_what_is_known_of_the_host_decide(fields: dict[str, Any], wanted: str | None) -> None:
    assert Place.of({"imap": fields}).wants_copies == wanted
