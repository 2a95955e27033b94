"""Ids: UUIDv7, ordered within a process."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from outtray_schema import ids
from outtray_schema.ids import new_id


def test_an_id_is_a_uuid_of_version_7_with_the_time_in_front() -> None:
    before = time.time_ns() // 1_000_000
    made = new_id()
    after = time.time_ns() // 1_000_000
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    # Thousands of ids within one millisecond run ahead of the clock by as little.
    assert before <= made.int >> 80 <= after + 1


def test_each_id_is_greater_than_the_one_before() -> None:
    made = [new_id() for _ in range(20_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_ids_of_many_threads_never_meet() -> None:
    with ThreadPoolExecutor(8) as threads:
        made = [each for batch in threads.map(lambda _: [new_id() for _ in range(500)], range(16)) for each in batch]
    assert len(set(made)) == 8000


def test_a_clock_that_is_set_back_does_not_reverse_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_id()
    monkeypatch.setattr(ids.time, "time_ns", lambda: 1_000_000_000)
    assert new_id() > first
