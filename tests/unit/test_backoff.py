"""Backoff: full jitter within its bounds, and a provider's own wish believed within reason."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outtray_schema.settings import Settings
from outtray_worker.backoff import mailbox_backoff, message_backoff

SETTINGS = Settings(database_url=None, redis_url=None)
SECOND = timedelta(seconds=1)


@given(st.integers(1, 2000))
def test_a_message_waits_between_nothing_and_the_doubled_base_or_the_cap(attempt):
    window = min(SETTINGS.backoff_base * 2 ** min(attempt - 1, 40), SETTINGS.backoff_cap)
    assert timedelta(0) <= message_backoff(SETTINGS, attempt) <= window


@pytest.mark.parametrize(("attempt", "window"), [(1, 10), (2, 20), (4, 80), (7, 640), (8, 900), (12, 900)])
def test_the_jitter_uses_the_whole_window(seed, attempt, window):
    random.seed(seed)
    waits = [message_backoff(SETTINGS, attempt).total_seconds() for _ in range(500)]
    assert min(waits) < 0.1 * window
    assert max(waits) > 0.9 * window
    assert 0.4 * window < sum(waits) / len(waits) < 0.6 * window


@given(st.integers(0, 2000))
def test_a_mailbox_without_a_hint_waits_at_least_a_second_and_at_most_its_cap(parks):
    assert SECOND <= mailbox_backoff(SETTINGS, parks, None) <= SETTINGS.park_cap


@given(st.integers(0, 50), st.timedeltas(timedelta(seconds=1), timedelta(days=30)))
def test_a_hint_is_the_least_that_is_waited_up_to_what_is_believed(parks, hint):
    wait = mailbox_backoff(SETTINGS, parks, hint)
    believed = min(hint, SETTINGS.park_hint_cap)
    assert wait >= believed
    assert wait <= max(believed * 1.1 + timedelta(microseconds=1), SETTINGS.park_cap)


@given(st.timedeltas(timedelta(days=-30), timedelta(0)))
def test_a_hint_in_the_past_is_no_hint(hint):
    assert mailbox_backoff(SETTINGS, 0, hint) <= SETTINGS.backoff_base


def test_a_hint_below_a_second_is_asked_again_after_a_second():
    assert mailbox_backoff(SETTINGS, 0, timedelta(milliseconds=1)) >= SECOND


def test_mailboxes_that_were_told_the_same_time_do_not_come_back_together(seed):
    random.seed(seed)
    waits = {mailbox_backoff(SETTINGS, 0, timedelta(minutes=10)) for _ in range(50)}
    assert len(waits) > 45
