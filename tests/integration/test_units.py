"""Units: a provider counts its calls, for each user and for its whole project, and a mail costs what its route does."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import fakeredis
import pytest
import redis.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from inside import inside, most_within
from outtray_schema.consent import SCOPES
from outtray_schema.settings import Settings
from outtray_worker.providers.memory import MemoryProvider
from outtray_worker.quotas.check import USER_BURST
from outtray_worker.quotas.pace import Pace, Want, bucket_key
from outtray_worker.quotas.units import DEAREST, units_of_handover
from world import run

SETTINGS = Settings(database_url=None, redis_url=None)
SEND = "https://www.googleapis.com/auth/gmail.send"
COMPOSE = "https://www.googleapis.com/auth/gmail.compose"
METADATA = "https://www.googleapis.com/auth/gmail.metadata"


@pytest.mark.parametrize(
    ("scopes", "units"),
    [([SEND], 100), ([SEND, METADATA], 120), ([COMPOSE], 110), ([COMPOSE, METADATA], 130)],
    ids=["send", "send, read back", "draft", "draft, read back"],
)
def test_a_mail_at_gmail_costs_what_its_route_calls(scopes, units):
    assert units_of_handover("gmail", scopes) == units <= DEAREST


def test_other_providers_count_no_units():
    assert units_of_handover("microsoft", SCOPES["microsoft"]["compose"]) is None
    assert units_of_handover("smtp", ["https://mail.google.com/"]) is None


# ── one bucket, several costs ─────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def pace(server: Any) -> AsyncIterator[tuple[Pace, Any]]:
    client = server()
    try:
        yield Pace(client, SETTINGS), client
    finally:
        await client.aclose()


@pytest.fixture(params=["fakeredis", "valkey"])
def server(request: pytest.FixtureRequest) -> Any:
    if request.param == "valkey":
        url = request.getfixturevalue("services").redis_url
        request.getfixturevalue("redis")
        return lambda: redis.asyncio.Redis.from_url(url)
    fake = fakeredis.FakeServer()
    return lambda: fakeredis.FakeAsyncRedis(server=fake)


def want(per_minute: int, burst: int, cost: int, tokens: int, used: int | None = 0) -> Want:
    return Want(bucket_key("app:google:units", per_minute, burst), per_minute, burst, tokens, used, 1, cost=cost)


def test_mailboxes_of_different_routes_share_one_bucket_of_units(server):
    async def scene() -> None:
        async with pace(server) as (shared, _):
            by_draft, by_send = want(600, 600, 130, 3), want(600, 600, 100, 9)
            (first,) = await shared.take([by_draft])
            (second,) = await shared.take([by_send])
            assert (first.tokens, second.tokens) == (3, 2), "600 less 3 x 130 leaves 2 x 100"
            assert 8.5 < second.wait.total_seconds() <= 9, "90 of 100 units are missing, at 10 a second"
            await shared.give_back(by_draft.key, 1, by_draft.cost)
            assert (await shared.take([by_send]))[0].tokens == 1

    run(scene())


def test_a_lost_bucket_is_rebuilt_in_units(server):
    async def scene() -> None:
        async with pace(server) as (shared, _):
            (grant,) = await shared.take([want(6_000, 1_000, 130, 50, used=5)])
            assert grant.tokens == (1_000 - 5 * 130) // 130

    run(scene())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(130, 20_000),
    st.lists(st.tuples(st.sampled_from([100, 110, 120, 130]), st.integers(0, 40)), max_size=12),
)
def test_never_more_units_than_the_bucket_holds(per_minute, takes):
    burst = max(130, per_minute // 6)

    async def scene() -> None:
        async with pace(fakeredis.FakeAsyncRedis) as (shared, _):
            begun, units = time.monotonic(), 0
            for cost, tokens in takes:
                (grant,) = await shared.take([want(per_minute, burst, cost, tokens)])
                units += grant.tokens * cost
            assert units <= burst + (time.monotonic() - begun + 0.001) * per_minute / 60

    run(scene())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(260, 20_000),
    st.lists(st.tuples(st.floats(0, 20), st.sampled_from([100, 130]), st.integers(1, 40)), max_size=30),
)
def test_without_redis_no_minute_holds_more_than_half_of_the_units(per_minute, steps):
    now = [1000.0]

    async def scene() -> None:
        client = redis.asyncio.Redis(port=1, retry=Retry(NoBackoff(), 0))
        alone = Pace(client, SETTINGS, lambda: now[0])
        spent: list[tuple[float, int]] = []
        for seconds, cost, tokens in steps:
            now[0] += seconds
            shared = replace(want(per_minute, max(130, per_minute // 6), cost, tokens, used=None), read_at=now[0])
            (grant,) = await alone.take([shared])
            spent.append((now[0], grant.tokens * cost))
        for begin, _ in spent:
            minute = sum(units for at, units in spent if 0 <= at - begin < 60)
            assert minute <= max(130, per_minute // 2)
        await client.aclose()

    run(scene())


# ── whole turns ───────────────────────────────────────────────────────────────────────────────────────────────────


class Gmail(MemoryProvider):
    name = "gmail"


def test_users_keep_to_their_units_and_all_of_them_to_their_projects(database):
    async def scene() -> None:
        async with inside(database.settings, Gmail()) as office:
            await office.w.db.execute("INSERT INTO outtray.provider_app (name, provider) VALUES ('google', 'google')")
            kept = office.client.provider_apps.set("google", units_per_minute=60_000, user_units_per_minute=6_000)
            assert (kept.units_per_minute, kept.user_units_per_minute, kept.per_minute) == (60_000, 6_000, None)
            for _ in range(3):
                box = await office.mailbox(provider="gmail", provider_app="google", scopes=[COMPOSE, METADATA])
                office.enqueue(box, 9)
            await office.round_until(lambda: len(office.accepted) == 27, within=20)
            # A second's worth at once is 7 mails of 130, for the project; ten seconds' worth is 7 of each user.
            assert office.accepted_at[-1] - office.accepted_at[0] >= (27 - 7 - 1) * 130 / 1_000
            for box in {taken.mailbox_id for taken in office.provider.accepted}:
                mine = [taken.monotonic for taken in office.provider.accepted if taken.mailbox_id == box]
                assert mine[-1] - mine[0] >= (9 - 7 - 1) * 130 / 100

    run(scene())


def test_one_user_has_a_few_seconds_worth_at_once_and_then_its_pace(database):
    async def scene() -> None:
        async with inside(database.settings, Gmail()) as office:
            await office.w.db.execute("INSERT INTO outtray.provider_app (name, provider) VALUES ('google', 'google')")
            office.client.provider_apps.set("google", user_units_per_minute=15_000)
            box = await office.mailbox(provider="gmail", provider_app="google", scopes=[COMPOSE, METADATA])
            office.enqueue(box, 40)
            await office.round()
            at_once = 15_000 * USER_BURST // 60 // 130
            assert at_once == 19
            spread = office.accepted_at[-1] - office.accepted_at[0]
            assert at_once <= len(office.accepted) <= at_once + spread * 250 / 130 + 2
            assert most_within(office.accepted_at, 0.1) <= at_once + 2

    run(scene())


def test_lifting_the_units_lifts_the_pace(database):
    async def scene() -> None:
        async with inside(database.settings, Gmail()) as office:
            await office.w.db.execute("INSERT INTO outtray.provider_app (name, provider) VALUES ('google', 'google')")
            office.client.provider_apps.set("google", units_per_minute=130, user_units_per_minute=130)
            lifted = office.client.provider_apps.set("google", units_per_minute=0, user_units_per_minute=0)
            assert (lifted.units_per_minute, lifted.user_units_per_minute) == (None, None)
            box = await office.mailbox(provider="gmail", provider_app="google", scopes=[COMPOSE])
            office.enqueue(box, 12)
            await office.round()
            assert len(office.accepted) == 12

    run(scene())
