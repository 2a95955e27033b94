"""Unknown answers of providers reach the operator's table, each once and none lost."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from psycopg import AsyncConnection

from databases import Database
from outtray_schema.database import conninfo
from outtray_worker.providers.web.signals import Signals
from outtray_worker.unknown_signals import write_signals

READ = "SELECT provider, signal, times, last_at >= first_at FROM outtray.unknown_signal ORDER BY signal"


def test_counts_add_up_over_several_writings(database: Database) -> None:
    async def write() -> list[tuple[object, ...]]:
        signals = Signals()
        async with await AsyncConnection.connect(conninfo(database.settings), autocommit=True) as connection:
            for times in (2, 3):
                for _ in range(times):
                    signals.note("gmail", "commit 418")
                signals.note("microsoft", f"prepare {times}")
                assert await write_signals(connection, signals) == 2
            assert await write_signals(connection, signals) == 0
            return await (await connection.execute(READ)).fetchall()

    assert asyncio.run(write()) == [
        ("gmail", "commit 418", 5, True),
        ("microsoft", "prepare 2", 1, True),
        ("microsoft", "prepare 3", 1, True),
    ]


def test_what_could_not_be_written_stays_counted(database: Database) -> None:
    async def fail() -> Signals:
        signals = Signals()
        signals.note("gmail", "commit 418")
        connection = await AsyncConnection.connect(conninfo(database.settings), autocommit=True)
        await connection.close()
        with pytest.raises(psycopg.Error):
            await write_signals(connection, signals)
        return signals

    assert asyncio.run(fail()).take() == {("gmail", "commit 418"): 1}


def test_a_provider_that_never_says_the_same_twice_does_not_fill_the_memory() -> None:
    signals = Signals()
    for number in range(1000):
        signals.note("gmail", f"{'x' * 500} {number}"[-500:])
    taken = signals.take()
    assert len(taken) <= 201
    assert taken.total() == 1000
    assert max(len(signal) for _, signal in taken) <= 200
