"""The client's parts that need no server: brackets, circuits, batches, cursors."""

from __future__ import annotations

import inspect
import logging
from itertools import islice
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

import outtray
from outtray import AsyncOuttray, InvalidMessage, Message, Outtray
from outtray.async_client import AsyncApps, AsyncMailboxes
from outtray.client import Apps, Mailboxes
from outtray.events import _is_snapshot, _place
from outtray.many import MOST_BYTES, MOST_MESSAGES, batches
from outtray.plan import Statement, add_wakes
from outtray.transaction import AfterCommit, Frames, merged
from outtray.waiting import LONGEST, pauses
from outtray.wakes import QUIET, Circuit, redis_url
from outtray_schema.settings import load_settings


def settings(url):
    return load_settings(database_url="postgresql://h/d", redis_url=url)


def test_a_circuit_stays_open_for_its_time_and_warns_once_for_each(caplog):
    now = [100.0]
    circuit = Circuit(lambda: now[0])
    assert circuit.lets_pass
    with caplog.at_level(logging.WARNING):
        circuit.failed(ConnectionError("redis://:pw-canary@cache"), 3)
    now[0] += QUIET - 0.01
    assert not circuit.lets_pass
    now[0] += 0.02
    assert circuit.lets_pass
    assert len(caplog.records) == 1 and "canary" not in caplog.text and "3 mailboxes" in caplog.text


def test_kombus_form_of_a_unix_socket_is_understood():
    assert redis_url(settings("redis+socket:///run/v.sock?virtual_host=2")) == "unix:///run/v.sock?db=2"
    assert redis_url(settings("redis://cache:6379/1")) == "redis://cache:6379/1"


def test_a_statement_never_shows_its_parameters():
    assert "canary" not in repr(Statement("SELECT 1", {"secret": "canary"}))


@given(st.lists(st.integers(0, 3 * MOST_BYTES), max_size=12), st.integers(0, 2 * MOST_MESSAGES + 1))
def test_batches_keep_order_and_are_bounded_in_messages_and_bytes(sizes, small):
    text = "x" * (3 * MOST_BYTES)
    shared = Message(to="a@b.example", text="x")
    messages = [shared.model_copy(update={"text": text[:size]}) for size in sizes] + [shared] * small
    found = list(batches(messages))
    assert [index for batch in found for index, _ in batch] == list(range(len(messages)))
    assert [message for batch in found for _, message in batch] == messages
    for batch in found:
        assert 0 < len(batch) <= MOST_MESSAGES
        assert sum(len(message.text) for _, message in batch[:-1]) < MOST_BYTES


def test_an_item_that_is_no_message_is_a_refusal_and_not_an_end():
    ((_, first), (_, second)), *_ = batches([{"to": "nonsense"}, 7])
    assert isinstance(first, InvalidMessage) and isinstance(second, InvalidMessage)


def test_only_one_batch_is_drawn_from_the_iterable_at_a_time():
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield {"to": "a@b.example", "text": "x"}

    list(islice(batches(endless()), 2))
    assert len(drawn) == 2 * MOST_MESSAGES


A, B = UUID(int=1), UUID(int=2)


def test_frames_publish_only_what_the_outermost_level_committed():
    frames = Frames()
    frames.push()
    frames.add({A: 5})
    frames.push()
    frames.add({A: 3, B: 4})
    assert frames.pop(committed=True) == {}
    frames.push()
    frames.add({B: 1})
    assert frames.pop(committed=False) == {}
    assert frames.pop(committed=True) == {A: 3, B: 4}
    assert frames.add({A: 1}) is False


def test_wakes_of_one_publisher_are_published_together():
    one, two = (lambda _: None), (lambda _: None)
    assert merged([(one, {A: 5}), (two, {A: 1}), (one, {A: 3, B: 9})]) == [(one, {A: 3, B: 9}), (two, {A: 1})]


@given(st.lists(st.integers(0, 2), max_size=30), st.data())
def test_savepoints_take_along_exactly_the_wakes_written_since(actions, data):
    """Against a model that keeps a copy of everything at each savepoint."""
    hook, model, saved, n = AfterCommit(None), [], [], 0
    for action in actions:
        if action == 0:
            n += 1
            hook.add(print, {UUID(int=n): n})
            model.append(n)
        elif action == 1:
            saved.append((f"sa_savepoint_{len(saved)}", list(model)))
            hook.on_statement(None, None, f"SAVEPOINT {saved[-1][0]}")
        elif saved:
            at = data.draw(st.integers(0, len(saved) - 1))
            name, then = saved[at]
            if data.draw(st.booleans()):
                hook.on_statement(None, None, f"ROLLBACK TO SAVEPOINT {name}")
                model, saved = list(then), saved[: at + 1]
            else:
                hook.on_statement(None, None, f"release savepoint {name};")
                saved = saved[:at]
    assert [due for _, wakes in hook.waiting for due in wakes.values()] == model


def test_pauses_grow_to_a_second_and_stay_there():
    found = list(islice(pauses(), 10_000))
    assert found[0] < 0.05 and found == sorted(found) and found[-1] == LONGEST


@pytest.mark.parametrize("text", ["1:1:", "5:9:5,7", "10:20:"])
def test_a_snapshot_that_postgresql_writes_is_one(text):
    assert _is_snapshot(text)


@pytest.mark.parametrize("text", ["0:1:", "9:1:", "5:9:7,5", "5:9:4", "5:9:9", "5:99999999999999999999:"])
def test_a_snapshot_that_postgresql_would_refuse_is_none(text):
    assert not _is_snapshot(text)


def test_a_place_comes_back_from_its_cursor():
    for cursor in ("1:1:", "5:9:5,7", "5:9:5,7/9:12:/345"):
        assert str(_place(cursor)) == cursor


@pytest.mark.parametrize(
    ("sync", "its_twin"), [(Outtray, AsyncOuttray), (Mailboxes, AsyncMailboxes), (Apps, AsyncApps)]
)
def test_the_async_twin_has_every_method_with_the_same_parameters(sync, its_twin):
    for name, method in inspect.getmembers(sync, inspect.isfunction):
        if name.startswith("_"):
            continue
        twin = list(inspect.signature(getattr(its_twin, name)).parameters)
        ours = [each for each in inspect.signature(method).parameters if each not in ("sleep", "stop")]
        assert twin == ours, name


def test_everything_that_is_offered_exists():
    assert all(hasattr(outtray, name) for name in outtray.__all__)


def test_wakes_keep_the_earliest_time():
    wakes = {A: 5}
    add_wakes(wakes, {A: 7, B: 2})
    add_wakes(wakes, {A: 1})
    assert wakes == {A: 1, B: 2}
