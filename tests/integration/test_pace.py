"""The bucket against a brute-force reference, over fakeredis and a real Valkey; and pace while Redis is away.

Neither server's clock can be moved, and no test sleeps: time passes by moving what the keys hold. A bucket knows the
time only as a distance from its TAT, so that a TAT moved back by a second is a second that has passed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import fakeredis
import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from outtray_schema.settings import Settings
from outtray_worker.quotas.pace import LEAVE_ALONE, Grant, Pace, Want, bucket_key
from outtray_worker.quotas.usage import read_app_paces
from readings import used_last_minute
from world import HANDOVER, run, world

SLACK = timedelta(seconds=1)
"""More than the real time that an example takes: the most by which a moved clock can be off."""

PATIENT = Settings(database_url=None, redis_url=None, redis_timeout=timedelta(seconds=20))
HASTY = Settings(database_url=None, redis_url=None, redis_timeout=timedelta(milliseconds=200))


class Clock:
    """A clock that a test moves, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A client, a pace on it, and time that passes when a test says so."""

    def __init__(self, client: Any, patience: Settings = PATIENT) -> None:
        self.client = client
        self.clock = Clock()
        self.pace = Pace(client, patience, self.clock)

    def want(self, per_minute: int, burst: int, tokens: int = 1, used: int | None = 0, **more: Any) -> Want:
        key = bucket_key(str(uuid4()), per_minute, burst)
        return Want(key, per_minute, burst, tokens, used, read_at=self.clock(), **more)

    async def pass_time(self, key: str, seconds: float) -> None:
        """Let seconds pass for this bucket, or let the server's clock step back by as much if they are negative."""
        self.clock.now += max(0.0, seconds)
        tat = await self.client.get(key)
        if tat is not None:
            await self.client.set(key, f"{float(tat) - seconds * 1e6:.0f}", keepttl=True)

    async def take(self, want: Want, tokens: int | None = None) -> Grant:
        (grant,) = await self.pace.take([want if tokens is None else replace(want, tokens=tokens)])
        return grant


@pytest.fixture(params=["fakeredis", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Something that makes a bench on the running loop: over fakeredis, and over a real Valkey."""
    if request.param == "valkey":
        url = request.getfixturevalue("services").redis_url
        yield lambda: redis.asyncio.Redis.from_url(url)
    else:
        fake = fakeredis.FakeServer()
        yield lambda: fakeredis.FakeAsyncRedis(server=fake)


@asynccontextmanager
async def bench(server: Any) -> AsyncIterator[Bench]:
    client = server()
    try:
        yield Bench(client)
    finally:
        await client.aclose()


STEPS = st.lists(st.tuples(st.floats(0, 40), st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=15)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 120), st.integers(1, 10), STEPS)
def test_no_window_holds_more_starts_than_the_pace_and_the_burst(server, per_minute, burst, steps):
    burst = min(burst, per_minute)

    async def scene() -> None:
        async with bench(server) as b:
            want = b.want(per_minute, burst)
            starts: list[float] = []
            now = 0.0
            for seconds, wanted, returned in steps:
                now += seconds
                await b.pass_time(want.key, seconds)
                tokens = (await b.take(want, wanted)).tokens
                assert 0 <= tokens <= wanted
                kept = max(0, tokens - returned)
                await b.pace.give_back(want.key, tokens - kept)
                starts += [now] * kept
            assert_within(starts, per_minute, burst)

    run(scene())


def assert_within(starts: list[float], per_minute: float, burst: int) -> None:
    """Every window, by brute force: it begins and ends with a start."""
    for i, begin in enumerate(starts):
        for j in range(i, len(starts)):
            allowed = burst + (starts[j] - begin + SLACK.total_seconds()) * per_minute / 60
            assert j - i + 1 <= allowed, f"{j - i + 1} starts within {starts[j] - begin} s"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 120), st.integers(1, 10), STEPS)
def test_the_bucket_grants_what_a_brute_force_reference_grants(server, per_minute, burst, steps):
    burst = min(burst, per_minute)
    rate = per_minute / 60

    async def scene() -> None:
        async with bench(server) as b:
            want = b.want(per_minute, burst)
            least = most = float(burst)  # the reference's tokens, if no real time passed, and if all the slack did
            for seconds, wanted, _ in steps:
                await b.pass_time(want.key, seconds)
                least, most = min(burst, least + seconds * rate), min(burst, most + (seconds + 0.2) * rate)
                grant = await b.take(want, wanted)
                # A rounding of a microsecond per token is allowed at either bound.
                assert min(wanted, math.floor(least - 1e-3)) <= grant.tokens <= min(wanted, math.floor(most + 1e-3))
                least, most = max(0.0, least - grant.tokens), max(0.0, most - grant.tokens)
                whole = max(0.0, (1 - least) / rate)
                assert grant.wait.total_seconds() <= whole + 0.01
            assert grant.wait <= timedelta(seconds=60 / per_minute + 0.001)

    run(scene())


def test_the_wait_that_is_answered_is_the_wait_that_is_needed(server):
    async def scene() -> None:
        async with bench(server) as b:
            want = b.want(per_minute=6, burst=2, tokens=5)
            first = await b.take(want)
            assert first.tokens == 2
            assert timedelta(seconds=9) < first.wait <= timedelta(seconds=10)
            await b.pass_time(want.key, first.wait.total_seconds() - 1)
            assert (await b.take(want)).tokens == 0
            await b.pass_time(want.key, 1)
            assert (await b.take(want)).tokens == 1

    run(scene())


@pytest.mark.parametrize(("used", "granted"), [(0, 5), (2, 3), (5, 0), (300, 0), (None, 0)])
def test_a_missing_bucket_is_rebuilt_from_what_was_used_and_never_assumed_full(server, used, granted):
    async def scene() -> None:
        async with bench(server) as b:
            grant = await b.take(b.want(per_minute=10, burst=5, tokens=9, used=used))
            assert grant.tokens == granted
            assert grant.wait <= timedelta(seconds=6)

    run(scene())


def test_a_flush_in_the_middle_of_a_turn_grants_no_second_burst(server):
    async def scene() -> None:
        async with bench(server) as b:
            want = b.want(per_minute=10, burst=5, tokens=9, used=0)
            assert (await b.take(want)).tokens == 5
            await b.client.flushall()
            assert (await b.take(want)).tokens == 0

    run(scene())


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(1, 10_000_000), st.integers(0, 5))
def test_a_clock_that_steps_back_neither_freezes_a_bucket_nor_grants_a_burst(server, step, before):
    async def scene() -> None:
        async with bench(server) as b:
            want = b.want(per_minute=6, burst=5)
            await b.take(want, before)
            await b.pass_time(want.key, -step)
            grant = await b.take(want, 5)
            assert grant.tokens <= 5 - before
            assert grant.wait <= timedelta(seconds=10)
            await b.pass_time(want.key, grant.wait.total_seconds())
            assert (await b.take(want, 1)).tokens == 1

    run(scene())


def test_keys_expire_hold_no_personal_data_and_differ_by_their_parameters(server):
    async def scene() -> None:
        async with bench(server) as b:
            await b.client.flushall()
            want = b.want(per_minute=30, burst=3, tokens=2)
            await b.take(want)
            (key,) = await b.client.keys("*")
            assert key.decode() == want.key
            assert 60_000 < await b.client.pttl(key) <= 66_000
            assert (await b.client.get(key)).isdigit()
            assert bucket_key("x", 30, 3) != bucket_key("x", 30, 4) != bucket_key("x", 31, 4)

    run(scene())


def test_many_buckets_are_served_in_one_call_and_one_bucket_twice_in_it_is_counted_twice(server):
    async def scene() -> None:
        async with bench(server) as b:
            wants = [b.want(per_minute=60, burst=n, tokens=9) for n in range(1, 65)]
            shared = b.want(per_minute=60, burst=4, tokens=3)
            grants = await b.pace.take([*wants, shared, shared])
            assert [grant.tokens for grant in grants] == [min(9, n) for n in range(1, 65)] + [3, 1]

    run(scene())


def test_tokens_that_are_given_back_can_be_taken_again_but_never_more_than_the_burst(server):
    async def scene() -> None:
        async with bench(server) as b:
            want = b.want(per_minute=6, burst=4, tokens=4)
            assert (await b.take(want)).tokens == 4
            await b.pace.give_back(want.key, 3)
            assert (await b.take(want)).tokens == 3
            await b.pace.give_back(want.key, 100)
            assert (await b.take(want, 50)).tokens == 4
            await b.client.delete(want.key)
            await b.pace.give_back(want.key, 1)
            assert not await b.client.exists(want.key)

    run(scene())


@pytest.mark.parametrize("invention", ["set", "text"])
def test_a_key_that_somebody_invented_counts_as_missing(server, invention):
    async def scene() -> None:
        async with bench(server) as b:
            want = b.want(per_minute=6, burst=4, tokens=4, used=1)
            await (b.client.sadd(want.key, "x") if invention == "set" else b.client.set(want.key, "tomorrow"))
            assert (await b.take(want)).tokens == 3
            assert not b.pace.away

    run(scene())


# ── without Redis ─────────────────────────────────────────────────────────────────────────────────────────────────


class Absent:
    """Where nobody listens, and how often somebody asked: a server that takes connections and never says a word."""

    def __init__(self) -> None:
        self.asked = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        await reader.read()
        writer.close()


@asynccontextmanager
async def silent_bench() -> AsyncIterator[tuple[Bench, Absent]]:
    absent = Absent()
    server = await asyncio.start_server(absent.connected, "127.0.0.1", 0)
    client = redis.asyncio.Redis(port=server.sockets[0].getsockname()[1])
    try:
        yield Bench(client, HASTY), absent
    finally:
        await client.aclose()
        server.close()


def test_a_redis_that_says_nothing_costs_one_timeout_and_is_then_left_alone():
    async def scene() -> None:
        async with silent_bench() as (b, absent):
            want = b.want(per_minute=30, burst=1)
            async with asyncio.timeout(5):
                assert (await b.take(want)).tokens == 1
            assert b.pace.away
            asked = absent.asked
            for _ in range(50):
                await b.take(want)
                await b.pace.give_back(want.key, 1)
            assert absent.asked == asked
            b.clock.now += LEAVE_ALONE
            await b.take(want)
            assert absent.asked > asked

    run(scene())


def absent_bench() -> Bench:
    """A bench whose Redis refuses every connection."""
    return Bench(redis.asyncio.Redis(port=1, retry=Retry(NoBackoff(), 0)))


@settings(max_examples=60)
@given(st.integers(1, 120), st.integers(1, 10), st.lists(st.tuples(st.floats(0, 30), st.integers(1, 8)), max_size=40))
def test_without_redis_no_minute_holds_more_than_half_of_the_pace(per_minute, burst, steps):
    burst = min(burst, per_minute)

    async def scene() -> None:
        b = absent_bench()
        starts: list[float] = []
        key = b.want(per_minute, burst).key
        for seconds, wanted in steps:
            b.clock.now += seconds
            used = sum(1 for at in starts if at > b.clock() - 60)  # what a turn reads of the ledger at its claim
            grant = await b.take(Want(key, per_minute, burst, wanted, used, read_at=b.clock() + 1e-9))
            starts += [b.clock()] * grant.tokens
        for i, begin in enumerate(starts):
            minute = [at for at in starts[i:] if at - begin < 60]
            assert len(minute) <= max(1, per_minute // 2)
        await b.client.aclose()

    run(scene())


def test_a_turn_that_reads_its_ledger_once_is_not_over_without_redis():
    async def scene() -> None:
        b = absent_bench()
        want = b.want(per_minute=20, burst=20, tokens=3, used=4)
        assert sum([(await b.take(want)).tokens for _ in range(10)]) == 6
        assert (await b.take(want)).wait >= timedelta(seconds=6)
        await b.client.aclose()

    run(scene())


def test_a_slow_mailbox_still_sends_without_redis():
    async def scene() -> None:
        b = absent_bench()
        want = b.want(per_minute=1, burst=1, tokens=5)
        assert (await b.take(want)).tokens == 1
        assert (await b.take(want)).tokens == 0
        b.clock.now += 61
        assert (await b.take(b.want(1, 1, 5))).tokens == 1
        await b.client.aclose()

    run(scene())


@pytest.mark.parametrize("sharers", [1, 2, 5, 30, 31, 100])
def test_processes_that_share_a_bucket_are_together_not_over_without_redis(sharers):
    async def scene() -> None:
        starts: list[float] = []
        for _ in range(sharers):
            b = absent_bench()
            want = Want(bucket_key("app:shared", 30, 3), 30, 3, 9, None, sharers)
            for _ in range(650):
                b.clock.now += 0.2
                starts += [b.clock()] * (await b.take(want)).tokens
            await b.client.aclose()
        starts.sort()
        for begin in starts:
            assert sum(1 for at in starts if 0 <= at - begin < 60) <= 30
        assert bool(starts) == (sharers <= 30)

    run(scene())


def test_a_shared_buckets_part_is_spread_over_the_minute_without_redis():
    async def scene() -> None:
        b = absent_bench()
        want = Want(bucket_key("app:shared", 60, 10), 60, 10, 9, None, 2)
        tokens = 0
        for _ in range(20):
            b.clock.now += 0.5
            tokens += (await b.take(want)).tokens
        assert tokens <= 3, "half of a half of 60 a minute is one in four seconds"
        await b.client.aclose()

    run(scene())


def test_each_time_redis_comes_back_what_was_granted_without_it_is_charged_once(services):
    async def scene() -> None:
        async with bench(lambda: redis.asyncio.Redis.from_url(services.redis_url)) as b:
            want = b.want(per_minute=20, burst=5, tokens=5)
            assert (await b.take(want)).tokens == 5
            working = b.pace._take
            for _ in range(2):
                await b.pass_time(want.key, 20)  # full again, as Redis knows it
                b.pace._take = _refused
                later = replace(want, read_at=b.clock())
                assert (await b.take(later)).tokens == 5
                b.pace._take = working
                b.clock.now += LEAVE_ALONE
                back = await b.take(later)
                assert back.tokens == 0
                await b.pass_time(want.key, back.wait.total_seconds())
                assert (await b.take(later, 1)).tokens == 1

    run(scene())


async def _refused(**_: Any) -> None:
    raise redis.exceptions.ConnectionError("refused")


# ── what PostgreSQL tells the buckets ─────────────────────────────────────────────────────────────────────────────


def test_what_began_in_the_last_minute_is_counted_open_or_ended(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            box, other = await w.mailbox(), await w.mailbox()
            await w.message(box)
            await w.gate_one(box)
            now = await w.now()
            ended: dict[str, Any] = {"state": "sent", "handover": 1, "handover_until": now + HANDOVER}
            await w.message(box, **ended, handed_at=now, ended_at=now, counted_at=now)
            ago = now - timedelta(seconds=61)
            await w.message(box, **ended, handed_at=ago, ended_at=now, counted_at=now)
            assert await used_last_minute(w.db, [box, other]) == {box: 2, other: 0}
            await w.shift(timedelta(seconds=61))
            assert await used_last_minute(w.db, [box]) == {box: 0}

    run(scene())


def test_a_provider_apps_pace_is_read_with_the_workers_that_are_alive(database):
    async def scene() -> None:
        async with world(database.settings) as w:
            await w.db.execute(
                "INSERT INTO outtray.provider_app (name, provider, per_minute)"
                " VALUES ('a', 'memory', 600), ('b', 'memory', NULL)"
            )
            assert (await read_app_paces(w.db, ["a", "b"]))["a"].workers == 1
            await w.db.execute(
                "INSERT INTO outtray.process (id, role, beat_at) VALUES"
                " ('1', 'worker', outtray.outtray_now()), ('2', 'worker', outtray.outtray_now()),"
                " ('3', 'worker', outtray.outtray_now() - interval '31 s'), ('4', 'dispatcher', outtray.outtray_now())"
            )
            paces = await read_app_paces(w.db, ["a", "b", "c"])
            assert set(paces) == {"a"}
            assert (paces["a"].per_minute, paces["a"].workers, paces["a"].burst) == (600, 2, 10)

    run(scene())
