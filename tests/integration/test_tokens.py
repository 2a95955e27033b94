"""Tokens on a real PostgreSQL and through real HTTP: refreshed once, saved safely, and never guessed."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from outtray_schema import bindings
from outtray_schema.outcome import Parked
from outtray_worker.auth import saving
from outtray_worker.auth.tokens import Auth, MailboxTokens
from outtray_worker.deadline import boottime
from outtray_worker.providers import NoToken
from tokens import SMTP_SCOPE, Box, outcome_of, tokens
from world import run

# ── one refresh ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_token_is_fetched_once_and_used_until_it_ages(database):
    async def test() -> None:
        async with tokens(database) as t:
            box = await t.google_box()
            mine = MailboxTokens(await t.worker(), box)
            first = await mine.access()
            assert t.server.valid[first] == "ann"
            assert [await mine.access() for _ in range(5)] == [first] * 5
            assert len(t.server.requests) == 1
            t.ahead = 3600 - 11 * 60
            assert await mine.access() == first, "not refreshed before ten minutes are left"
            t.ahead = 3600 - 4 * 60
            await t.w.shift(timedelta(seconds=3600 - 4 * 60))
            assert await mine.access() != first, "refreshed when five minutes are left"

    run(test())


def test_of_many_workers_one_refreshes_and_all_have_its_token(database):
    async def test() -> None:
        async with tokens(database, rotate=True, strict=True, delay=lambda: 0.3) as t:
            box = await t.google_box()
            workers = [await t.worker() for _ in range(4)]
            got = await asyncio.gather(
                *(MailboxTokens(auth, Box(box.id)).access() for auth in workers for _ in range(10))
            )
            assert len(set(got)) == 1
            assert len(t.server.requests) == 1

    run(test())


def test_a_young_enough_token_is_used_while_somebody_else_refreshes_it(database):
    async def test() -> None:
        async with tokens(database) as t:
            box = await t.google_box()
            first, second = await t.worker(), await t.worker()
            old = await MailboxTokens(first, box).access()
            await t.w.shift(timedelta(seconds=3600 - 240))
            t.ahead = 3600 - 240
            t.server.delay = lambda: 0.5
            refreshing = asyncio.create_task(MailboxTokens(first, Box(box.id)).access())
            while not t.server.open():
                await asyncio.sleep(0.01)
            assert await MailboxTokens(second, Box(box.id)).access() == old
            assert t.server.open(), "it was not waited for"
            assert await refreshing != old
            assert len(t.server.requests) == 2

    run(test())


def test_a_rotated_refresh_token_is_saved_with_its_access_token(database):
    async def test() -> None:
        async with tokens(database, rotate=True, strict=True) as t:
            box = await t.google_box()
            mine = MailboxTokens(await t.worker(), box)
            for version in (2, 3, 4):
                await mine.access()
                stored = await t.stored(box)
                assert stored["version"] == version == box.credentials_version, "a hold would name this version"
                assert stored["refresh_token"] == t.server.people["ann"].chain[-1]
                await t.expire(box)

    run(test())


def test_the_lease_of_a_dead_worker_ends_by_itself(database):
    async def test() -> None:
        async with tokens(database) as t:
            box = await t.google_box()
            await t.w.db.execute(
                "INSERT INTO outtray.token (mailbox_id, refreshing, refreshing_until)"
                " VALUES (%s, 7, outtray.outtray_now() + interval '1 s')", [box.id],
            )  # fmt: skip
            begun = boottime()
            await MailboxTokens(await t.worker(), box).access()
            assert boottime() - begun >= 0.9
            assert len(t.server.requests) == 1

    run(test())


def test_who_waits_for_another_workers_refresh_too_long_is_parked(database):
    async def test() -> None:
        async with tokens(database) as t:
            box = await t.google_box()
            await t.w.db.execute(
                "INSERT INTO outtray.token (mailbox_id, refreshing, refreshing_until)"
                " VALUES (%s, 7, outtray.outtray_now() + interval '1 h')", [box.id],
            )  # fmt: skip
            short = {"token_timeout": timedelta(seconds=0.2), "token_lease": timedelta(seconds=0.3)}
            outcome = await outcome_of(MailboxTokens(await t.worker(**short), box))
            assert isinstance(outcome, Parked) and outcome.scope == "connection"
            assert t.server.requests == []

    run(test())


def test_a_token_that_was_answered_with_401_is_renewed_once_for_all(database):
    async def test() -> None:
        async with tokens(database) as t:
            box = await t.google_box()
            first, second = await t.worker(), await t.worker()
            refused = await MailboxTokens(first, box).access()
            assert await MailboxTokens(second, Box(box.id)).access() == refused
            newer = await MailboxTokens(first, box).renewed(refused)
            assert newer != refused
            assert await MailboxTokens(second, Box(box.id)).renewed(refused) == newer
            assert await MailboxTokens(first, box).renewed(refused) == newer
            assert len(t.server.requests) == 2

    run(test())


def test_a_cancelled_turn_loses_no_rotated_token(database):
    async def test() -> None:
        async with tokens(database, rotate=True, strict=True, delay=lambda: 0.3) as t:
            box = await t.google_box()
            auth = await t.worker()
            turn = asyncio.create_task(MailboxTokens(auth, box).access())
            while not t.server.open():
                await asyncio.sleep(0.01)
            turn.cancel()
            with pytest.raises(asyncio.CancelledError):
                await turn
            await MailboxTokens(auth, Box(box.id)).access()
            assert len(t.server.requests) == 1
            assert (await t.stored(box))["refresh_token"] == t.server.people["ann"].chain[-1]

    run(test())


# ── saving ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_newer_refresh_token_is_never_overwritten_by_an_older_one(database):
    async def test() -> None:
        async with tokens(database, rotate=True, delay=lambda: 0.3) as t:
            box = await t.google_box()
            slow = asyncio.create_task(MailboxTokens(await t.worker(), Box(box.id)).access())
            while not t.server.open():
                await asyncio.sleep(0.01)
            # The lease is lost meanwhile (a frozen process), and somebody else refreshes from the same one.
            await t.w.db.execute("UPDATE outtray.token SET refreshing_until = NULL")
            t.server.delay = lambda: 0.0
            newer = await MailboxTokens(await t.worker(), Box(box.id)).access()
            kept = await t.stored(box)
            assert await slow == newer, "who came too late takes what is stored"
            assert await t.stored(box) == kept and kept["version"] == 2

    run(test())


def test_a_new_consent_during_a_refresh_wins(database):
    async def test() -> None:
        async with tokens(database, rotate=True, strict=True, delay=lambda: 0.3) as t:
            box = await t.google_box()
            slow = asyncio.create_task(MailboxTokens(await t.worker(), box).access())
            while not t.server.open():
                await asyncio.sleep(0.01)
            new = {"kind": "google", "refresh_token": t.server.add_person("ann")}
            sealed = t.vault.credentials.encrypt(json.dumps(new).encode(), bindings.credentials(box.id, 2))
            await t.w.db.execute(
                "UPDATE outtray.mailbox SET credentials = %s, credentials_version = 2 WHERE id = %s", [sealed, box.id]
            )
            assert t.server.valid[await slow] == "ann"
            assert box.credentials_version == 3, "the token is of the new consent, which was rotated once"
            assert (await t.stored(box))["refresh_token"] == t.server.people["ann"].chain[-1]

    run(test())


def test_a_refresh_that_cannot_be_saved_is_used_and_saved_later(database, monkeypatch):
    monkeypatch.setattr(saving, "AGAIN", (0.05, 0.1))

    async def test() -> None:
        async with tokens(database, rotate=True, strict=True) as t:
            box = await t.google_box()
            auth = await t.worker()
            away = True
            real = saving.store.save

            async def save(*args: Any) -> bool:
                if away:
                    raise psycopg.OperationalError("away")
                return await real(*args)

            monkeypatch.setattr(saving.store, "save", save)
            token = await MailboxTokens(auth, box).access()
            assert t.server.valid[token] == "ann"
            assert (await t.stored(box))["version"] == 1
            # A second one would be made with a refresh token that is dead by now.
            outcome = await _refused_renewal(auth, box, token)
            assert isinstance(outcome, Parked) and len(t.server.requests) == 1
            away = False
            while auth._saving._waiting:
                await asyncio.sleep(0.01)
            assert (await t.stored(box))["refresh_token"] == t.server.people["ann"].chain[-1]
            assert await MailboxTokens(auth, box).renewed(token) != token

    run(test())


async def _refused_renewal(auth: Auth, box: Box, token: str) -> Any:
    with pytest.raises(NoToken) as refused:
        await MailboxTokens(auth, box).renewed(token)
    return refused.value.outcome


def test_a_lost_commit_of_a_save_is_read_back(database, monkeypatch):
    monkeypatch.setattr(saving, "AGAIN", (0.05, 0.1))

    async def test() -> None:
        async with tokens(database, rotate=True, strict=True) as t:
            box = await t.google_box()
            auth = await t.worker()
            real, calls = saving.store.save, []

            async def save(*args: Any) -> bool:
                calls.append(await real(*args))
                if len(calls) == 1:
                    raise psycopg.OperationalError("the answer to COMMIT is lost")
                return calls[-1]

            monkeypatch.setattr(saving.store, "save", save)
            token = await MailboxTokens(auth, box).access()
            while auth._saving._waiting:
                await asyncio.sleep(0.01)
            assert calls == [True, False], "the second try found nothing to write"
            assert await MailboxTokens(await t.worker(), Box(box.id)).access() == token
            assert (await t.stored(box))["version"] == 2 and len(t.server.requests) == 1

    run(test())


def test_while_postgresql_is_away_the_present_token_is_used(database, services):
    async def test() -> None:
        async with tokens(database) as t:
            box = await t.google_box()
            auth = await t.worker()
            token = await MailboxTokens(auth, box).access()
            t.ahead = 3600 - 240
            services.postgres.stop("immediate")
            try:
                assert await MailboxTokens(auth, box).access() == token
                t.ahead = 3600
                outcome = await outcome_of(MailboxTokens(auth, box))
                assert outcome == Parked("PostgreSQL did not answer", scope="app")
            finally:
                services.postgres.start()

    run(test())


# ── audiences ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_audience_has_a_token_of_its_own_from_the_same_refresh_token(database):
    async def test() -> None:
        async with tokens(database, rotate=True, strict=True, delay=lambda: 0.2) as t:
            await t.app("entra", "microsoft")
            credentials = {"kind": "microsoft", "refresh_token": t.server.add_person("ann"), "tenant": "t9"}
            box = await t.mailbox("entra", credentials, ["Mail.Send", SMTP_SCOPE], provider="microsoft")
            first, second = await t.worker(), await t.worker()
            graph, smtp = await asyncio.gather(
                MailboxTokens(first, Box(box.id)).access(), MailboxTokens(second, Box(box.id), "smtp").access()
            )
            assert graph != smtp
            asked = [each.form["scope"].split() for each in t.server.requests]
            assert {"https://graph.microsoft.com/Mail.Send", SMTP_SCOPE} <= {scope for form in asked for scope in form}
            assert not any({"https://graph.microsoft.com/Mail.Send", SMTP_SCOPE} <= set(form) for form in asked)
            assert await MailboxTokens(first, Box(box.id), "smtp").access() == smtp
            assert (await t.stored(box))["version"] == 3 and len(t.server.requests) == 2

    run(test())
