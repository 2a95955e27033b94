"""A lost answer of a real SMTP server, settled by what a real IMAP server shows: from the final dot to the ledger."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from databases import Database
from inside import Inside, inside
from looks import looks_of
from outtray_sandbox.imap import ImapServer
from outtray_sandbox.smtp import SmtpServer
from outtray_worker.providers.smtp import SmtpProvider
from world import run

USER, PASSWORD = "ann@sender.example", "pw-canary"
FIRST, SETTLED = timedelta(seconds=10), timedelta(minutes=25)
QUIET = {"smtp_clear_loopback": True}


async def doubted(office: Inside, smtp: SmtpServer, imap: ImapServer, takes: bool) -> UUID:
    """A message whose dot got no answer, from a mailbox that sent one before."""
    office.client.mailboxes.add_smtp(
        USER, host=smtp.host, port=smtp.port, tls="clear", password=PASSWORD, imap=imap.where()
    )
    for text in ("first", "second"):
        if text == "second":
            smtp.add_rule(stage="dot", drop="after" if takes else "before", times=1)
        message = office.enqueue(USER, subject=text)[0]  # type: ignore[arg-type]
        await office.round()
    await office.later(timedelta(0))
    assert (await office.message(message))["state"] == "unknown"
    return message


@pytest.mark.parametrize("takes", [True, False])
@pytest.mark.parametrize("files", [True, False])
def test_it_ends_as_the_folder_of_sent_mail_shows_and_nothing_leaves_twice(
    database: Database, tmp_path: Path, takes: bool, files: bool
) -> None:
    settings = database.settings.model_copy(update=QUIET)
    users = {USER: PASSWORD}

    async def scene() -> Any:
        async with inside(settings, SmtpProvider(settings)) as office:
            message = await doubted(office, smtp, imap, takes)
            await office.later(FIRST)
            assert await office.look() == 1
            first = await office.message(message)
            assert first["state"] == ("sent" if takes and files else "unknown")
            await office.later(SETTLED)
            await office.look()
            await office.until_idle()
            return await office.message(message), await looks_of(office, message)

    async def whole() -> None:
        row, looks = await scene()
        if not files:
            assert (row["state"], looks) == ("unknown", ["nothing"])
        else:
            assert (row["state"], looks[0]) == ("sent", "sent" if takes else "absent")
            assert row["may_have_left"] is not takes
        assert smtp.ledger.twice() == {}
        assert len(smtp.ledger.read()) == 1 + (takes or files)

    with (
        SmtpServer(tmp_path / "accepted.jsonl", users=users) as smtp,
        ImapServer(smtp, files_sent=files) as imap,
    ):
        run(whole())


def test_what_was_unknown_before_the_mailbox_could_be_looked_into_is_looked_for_once_it_can(
    database: Database, tmp_path: Path
) -> None:
    settings = database.settings.model_copy(update=QUIET)

    async def scene(smtp: SmtpServer, imap: ImapServer) -> None:
        async with inside(settings, SmtpProvider(settings)) as office:
            office.client.mailboxes.add_smtp(USER, host=smtp.host, port=smtp.port, tls="clear", password=PASSWORD)
            smtp.add_rule(stage="dot", drop="after", times=1)
            (message,) = office.enqueue(USER)  # type: ignore[arg-type]
            await office.round()
            await office.later(timedelta(0))
            await office.later(FIRST)
            await office.look()
            blind = await office.message(message)
            assert (blind["looked"]["finding"], blind["look_at"]) == ("no_way", None), "nobody looks again by itself"
            office.client.mailboxes.set_imap(USER, imap.where())
            await office.later(timedelta(0))
            assert (await office.message(message))["looks"] == 0, "its schedule begins anew"
            await office.later(FIRST)
            assert await office.look() == 1
            assert (await office.message(message))["state"] == "sent"
            assert len(smtp.ledger.read()) == 1

    with (
        SmtpServer(tmp_path / "accepted.jsonl", users={USER: PASSWORD}) as smtp,
        ImapServer(smtp, files_sent=True) as imap,
    ):
        run(scene(smtp, imap))
