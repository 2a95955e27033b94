"""Nobody's account is locked by us: failed logins are counted durably, by every process and on every way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from databases import Database
from inside import Inside, inside
from outtray_sandbox.imap import ImapServer
from outtray_sandbox.smtp import SmtpServer
from outtray_schema.outcome import Held, Parked
from outtray_worker.auth.logins import (
    AFTER_OPEN,
    AFTER_REFUSALS,
    FREE_LATER,
    MOST_LATER,
    MOST_OPEN,
    MOST_REFUSED,
    Count,
    LoginGuard,
)
from outtray_worker.mailbox_check import check_mailbox
from outtray_worker.providers import NoLoginNow
from outtray_worker.providers.smtp import SmtpProvider
from world import run

USER = "ann@sender.example"
NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[SmtpServer, ImapServer]]:
    with SmtpServer(tmp_path / "accepted.jsonl", users={USER: "right"}) as smtp, ImapServer(smtp) as imap:
        yield smtp, imap


def test_refusals_are_bounded_and_new_credentials_begin_anew() -> None:
    count = Count(7)
    for _ in range(MOST_REFUSED):
        assert count.after is None or count.after <= NOW
        count = count.begun(NOW).was_refused(NOW)
    assert count.after == NOW + AFTER_REFUSALS
    stored = {"smtp": count.to_json()}
    assert Count.of(stored, "smtp", 7) == count
    assert Count.of(stored, "smtp", 8) == Count(8)
    assert Count.of(stored, "imap", 7) == Count(7)


def test_temporary_failures_wait_longer_each_time() -> None:
    count, waits = Count(1), []
    for _ in range(FREE_LATER + 8):
        count = count.begun(NOW).was_put_off(NOW)
        waits.append(count.after - NOW if count.after else timedelta(0))
    assert waits[:FREE_LATER] == [timedelta(0)] * FREE_LATER
    assert waits[FREE_LATER : FREE_LATER + 3] == [timedelta(minutes=each) for each in (15, 30, 60)]
    assert waits[-1] == MOST_LATER and count.refused == 0


async def connected(office: Inside, smtp: SmtpServer, imap: ImapServer | None, password: str) -> Any:
    office.client.mailboxes.add_smtp(
        USER, host=smtp.host, port=smtp.port, tls="clear", password=password, imap=imap.where() if imap else None
    )
    office.enqueue(USER)  # type: ignore[arg-type]
    return office.client.mailboxes.get(USER).id


async def made_active(office: Inside, box: Any) -> None:
    """Whatever brings it back: a person, a restart, a bug."""
    await office.w.db.execute(
        "UPDATE outtray.mailbox SET status = 'active', parked_until = NULL, turn_until = NULL,"
        " next_at = outtray.outtray_now() WHERE id = %s",
        [box],
    )


def test_turns_tests_and_restarts_together_never_try_more(
    database: Database, servers: tuple[SmtpServer, ImapServer]
) -> None:
    smtp, _ = servers
    settings = database.settings.model_copy(update={"smtp_clear_loopback": True})

    async def another_process(box: Any) -> Any:
        async with inside(settings, SmtpProvider(settings)) as office:
            await made_active(office, box)
            await office.round()
            return await office.box(box)

    async def scene() -> None:
        async with inside(settings, SmtpProvider(settings)) as office:
            box = await connected(office, smtp, None, "wrong")
            for _ in range(3):
                row = await another_process(box)
                with database.connect() as connection:
                    found = await check_mailbox(settings, connection, box)
                assert isinstance(found, Held)
                assert row["status"] == "reconnect"
            assert smtp.seen["auth"] == MOST_REFUSED
            assert found.evidence["rule"] == "login-guard" and "one more could lock the account" in found.reason
            office.client.mailboxes.set_password(USER, "right")
            assert (await office.box(box))["logins"] is None
            await office.until_idle()
            assert [mail.user for mail in smtp.ledger.read()] == [USER]
            assert (await office.box(box))["logins"] is None

    run(scene())


def test_looks_into_the_folder_count_apart_and_stop_no_mail(
    database: Database, servers: tuple[SmtpServer, ImapServer]
) -> None:
    smtp, imap = servers
    settings = database.settings.model_copy(update={"smtp_clear_loopback": True})

    async def scene() -> None:
        async with inside(settings, SmtpProvider(settings)) as office:
            office.client.mailboxes.add_smtp(
                USER, host=smtp.host, port=smtp.port, tls="clear", password="right", imap=imap.where(),
                imap_password="wrong",
            )  # fmt: skip
            smtp.add_rule(stage="dot", drop="after", times=1)
            lost, after = (office.enqueue(USER)[0] for _ in range(2))  # type: ignore[arg-type]
            await office.until_idle()
            await office.later(timedelta(0))
            for _ in range(6):
                await office.later(timedelta(hours=1))
                await office.look()
            assert imap.post.seen["logins"] == MOST_REFUSED
            assert (await office.message(lost))["state"] == "unknown"
            assert (await office.message(after))["state"] == "sent"
            logins = (await office.box(office.client.mailboxes.get(USER).id))["logins"]
            assert set(logins) == {"imap"}
            await office.later(AFTER_REFUSALS)
            await office.look()
            assert imap.post.seen["logins"] == MOST_REFUSED + 1

    run(scene())


def test_a_login_that_somebody_died_in_stays_counted(database: Database) -> None:
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()

            def guard(clean: bool = False) -> LoginGuard:
                return LoginGuard(office.process.pool.connection, box, 1, clean)

            for _ in range(MOST_OPEN):
                await guard().permit("smtp")  # and no word of what became of it
            with pytest.raises(NoLoginNow) as refused:
                await guard().permit("smtp")
            assert isinstance(refused.value.outcome, Parked), "nobody said that the login is bad: no person has to act"
            await guard().permit("imap")
            assert (await office.box(box))["logins"]["imap"]["open"] == 1
            await office.later(AFTER_OPEN)
            late = guard()
            await late.permit("smtp")
            await late.told("smtp", "accepted")
            assert set((await office.box(box))["logins"]) == {"imap"}

    run(scene())


def test_logins_of_many_processes_at_once_are_bounded_too(database: Database) -> None:
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            permitted = 0

            async def one() -> None:
                nonlocal permitted
                try:
                    await LoginGuard(office.process.pool.connection, box, 1, False).permit("smtp")
                    permitted += 1
                except NoLoginNow:
                    pass

            await asyncio.gather(*(one() for _ in range(20)))
            assert permitted == MOST_OPEN

    run(scene())


def test_put_off_logins_are_spaced_and_forgotten_with_the_first_that_is_taken(
    database: Database, servers: tuple[SmtpServer, ImapServer]
) -> None:
    smtp, _ = servers
    settings = database.settings.model_copy(update={"smtp_clear_loopback": True})

    async def scene() -> None:
        async with inside(settings, SmtpProvider(settings)) as office:
            box = await connected(office, smtp, None, "right")
            rule = smtp.add_rule(stage="auth", reply="454 4.7.0 temporary authentication failure")
            for _ in range(FREE_LATER + 3):
                await made_active(office, box)
                await office.round()
            assert smtp.seen["auth"] == FREE_LATER + 1
            row = await office.box(box)
            assert row["status"] == "active" and "lest the account be locked" in row["parked_reason"]
            smtp.forget(rule)
            await office.later(timedelta(hours=2))
            await office.until_idle()
            assert len(smtp.ledger.read()) == 1
            assert (await office.box(box))["logins"] is None

    run(scene())


def test_no_count_is_written_where_logins_are_taken(database: Database) -> None:
    async def scene() -> None:
        async with inside(database.settings) as office:

            def nobody() -> Any:
                raise AssertionError("a statement was paid for")

            guard = LoginGuard(nobody, uuid4(), 1, clean=True)
            await guard.permit("smtp")
            await guard.told("smtp", "accepted")
            assert isinstance(office, Inside)

    run(scene())


def test_without_postgresql_nobody_logs_in_uncounted() -> None:
    async def scene() -> None:
        import psycopg

        def away() -> Any:
            raise psycopg.OperationalError("away")

        with pytest.raises(NoLoginNow) as refused:
            await LoginGuard(away, uuid4(), 1, clean=False).permit("smtp")
        assert isinstance(refused.value.outcome, Parked)

    run(scene())
