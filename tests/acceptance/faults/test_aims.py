"""How a fault is aimed: off it is nothing, on it falls once, where it was aimed, and the process waits meanwhile."""

from __future__ import annotations

import asyncio
import json
import threading
from uuid import UUID, uuid4

import pytest

from acceptance.faults.nursery import move_wall_clock
from acceptance.faults.referee import Reached, Referee
from outtray_schema.settings import load_settings
from outtray_worker.crash import crash_points, file_of, group_points
from outtray_worker.items import Refusal


@pytest.fixture
def referee(tmp_path):
    here = Referee(tmp_path / "aims")
    yield here
    here.close()


def test_without_the_setting_a_point_is_nothing_and_a_group_is_not_even_asked():
    assert load_settings().crash_at is None
    assert crash_points(None)("gated", uuid4()) is None
    assert group_points(None) is None


def test_an_aim_falls_once_at_its_point_and_its_message_and_is_written_down_before(referee):
    reach, ours, other, fell = crash_points(str(referee.folder)), uuid4(), uuid4(), list[Reached]()

    def strike(reached: Reached) -> None:
        assert "gated" in (referee.folder / "fell.jsonl").read_text(), "the report stands before the fault falls"
        fell.append(reached)

    referee.aim("gated", ours, strike)
    reach("gated", other)
    reach("prepared", ours)
    assert fell == []
    reach("gated", ours)
    reach("gated", ours)
    assert [(each.point, each.id) for each in fell] == [("gated", ours)]
    (line,) = (referee.folder / "fell.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == str(ours)


def test_an_aim_may_wait_for_the_nth_time_and_may_be_forgotten(referee):
    reach, ours, fell = crash_points(str(referee.folder)), uuid4(), list[Reached]()
    referee.aim("gated", ours, fell.append, nth=3)
    for _ in range(2):
        reach("gated", ours)
    assert fell == []
    reach("gated", ours)
    assert len(fell) == 1
    referee.aim("gated", ours, fell.append)
    referee.forget("gated", ours)
    reach("gated", ours)
    assert len(fell) == 1


def test_the_process_waits_until_the_fault_has_fallen(referee):
    reach, ours, order = crash_points(str(referee.folder)), uuid4(), list[str]()
    go_on = threading.Event()

    def strike(_: Reached) -> None:
        order.append("fell")
        go_on.wait(5)
        order.append("mended")

    referee.aim("gated", ours, strike)
    threading.Timer(0.05, go_on.set).start()
    reach("gated", ours)
    order.append("went on")
    assert order == ["fell", "mended", "went on"]


def test_deep_in_a_call_a_point_is_about_the_message_that_its_task_named_last(referee):
    reach, ours, other, fell = crash_points(str(referee.folder)), uuid4(), uuid4(), list[UUID]()
    referee.aim("first byte", ours, lambda reached: fell.append(reached.id))

    async def turn(message: UUID) -> None:
        reach("gated", message)
        await asyncio.sleep(0)
        await asyncio.create_task(deep())

    async def deep() -> None:
        reach("first byte")

    async def both() -> None:
        await asyncio.gather(turn(other), turn(ours))

    asyncio.run(both())
    assert fell == [ours]


def test_a_group_commit_reaches_the_points_of_its_items(referee):
    reach, ours, fell = group_points(str(referee.folder)), uuid4(), list[str]()
    assert reach is not None
    referee.aim("record committed", ours, lambda reached: fell.append(reached.point))
    item = Refusal(ours, uuid4(), 1, kind="retry")
    reach([item], "submitted")
    assert fell == []
    reach([item], "committed")
    assert fell == ["record committed"]


def test_nobody_waits_for_a_referee_that_is_gone(tmp_path):
    (tmp_path / "aims").mkdir()
    ours = uuid4()
    aim = tmp_path / "aims" / file_of("gated", ours)
    aim.touch()
    crash_points(str(tmp_path / "aims"))("gated", ours)
    assert not aim.exists(), "the aim was reached, and the process went on"


def test_a_moved_wall_clock_moves_what_our_modules_read(monkeypatch):
    import time
    from datetime import UTC, datetime

    from outtray_worker import process

    monkeypatch.setattr(time, "time", time.time)
    import sys

    for name, module in list(sys.modules.items()):
        if name.startswith("outtray") and getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", datetime)
    real, monotonic = time.time(), time.monotonic()
    move_wall_clock(1.0)
    assert 3599 < time.time() - real < 3700
    assert 3599 < process.datetime.now(UTC).timestamp() - real < 3700
    assert time.monotonic() - monotonic < 100
