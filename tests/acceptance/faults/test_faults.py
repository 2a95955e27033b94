"""The fault matrix in its short form: `kill -9` at every step of every route, and each pair of step, fault and route.

`make chaos CELL='gated/kill/gmail draft'` replays a cell, `make chaos SECONDS=3600` goes through all of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from acceptance.faults.chaos import table
from acceptance.faults.machines import trouble
from acceptance.faults.matrix import EXCLUDED, FAULTS, ROUTES, STEPS, Cell, cells, short_form, why_not
from acceptance.faults.recovery import after_a_flush, after_killing_all_workers
from acceptance.faults.town import Town, town
from acceptance.faults.wave import Tally, run_cells

WORKERS, DISPATCHERS, MAILBOXES = 6, 2, 14
ALWAYS = ("rolling restarts", "hints", "wall clocks")
BY_CHANCE = 3


@pytest.fixture
def place(database, services, tmp_path) -> Iterator[Town]:
    with town(database.settings, services.place.sockets, tmp_path) as here:
        for route in ROUTES:
            for _ in range(MAILBOXES):
                here.add_box(route)
        here.start(WORKERS, DISPATCHERS)
        yield here


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whatever_befalls_a_step_nothing_leaves_twice_and_nothing_is_lost(place, seed):
    chance, tally = random.Random(seed), Tally()
    chosen = short_form(seed)
    run_cells(place, chosen, chance, tally, size=90, pace=0.4)
    print(table(tally, chosen))
    assert not tally.violations, "\n".join(tally.violations)
    assert not tally.missed(chosen), "every cell's fault fell inside its step"


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_trouble_of_servers_restarts_clocks_or_hints_leaves_an_unknown(place, services, seed):
    from acceptance.faults.machines import TROUBLES

    chance = random.Random(seed)
    others = sorted(set(TROUBLES) - set(ALWAYS))
    for name in (*ALWAYS, *chance.sample(others, BY_CHANCE)):
        tally = trouble(place, services, name, chance, seconds=4.0)
        print(f"{name}: {dict(tally.states)}")
        assert not tally.violations, "\n".join([name, *tally.violations])
        assert tally.states == {"sent": tally.messages}, name


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("recovery", [after_a_flush, after_killing_all_workers])
def test_after_a_flush_and_after_the_death_of_all_workers_mail_flows_again_in_time(place, recovery):
    recovered = recovery(place)
    print(recovered)
    assert not recovered.violations


def test_the_short_form_has_every_step_fault_and_route_and_every_pair_of_them():
    for seed in range(3):
        chosen = short_form(seed)
        for pair in ("step", "fault"), ("step", "route"), ("fault", "route"):
            wanted = {tuple(getattr(cell, name) for name in pair) for cell in cells()}
            assert {tuple(getattr(cell, name) for name in pair) for cell in chosen} == wanted
        assert {cell.step for cell in chosen} == {step.name for step in STEPS}
        assert {cell.fault for cell in chosen} == set(FAULTS)
        assert {cell for cell in cells() if cell.fault == "kill"} <= set(chosen)


def test_every_cell_that_is_left_out_says_why():
    every = [Cell(step.name, fault, route) for step in STEPS for fault in FAULTS for route in ROUTES]
    assert all(len(reason) > 10 for cell in every if (reason := why_not(cell)) is not None)
    for excluded in EXCLUDED:
        assert any(excluded.holds(cell) for cell in every), f"{excluded.reason}: holds for nothing"


def test_a_cell_is_named_by_its_three_words_and_a_wrong_one_says_what_there_is():
    assert Cell.parse("gated/kill/gmail draft") == Cell("gated", "kill", "gmail draft")
    with pytest.raises(ValueError, match="a cell is STEP/FAULT/ROUTE"):
        Cell.parse("gated/kill")
    with pytest.raises(ValueError, match="'gate': there are enqueuing"):
        Cell.parse("gate/kill/gmail draft")
    with pytest.raises(ValueError, match="does not exist: the route makes no draft"):
        Cell.parse("draft made/kill/gmail send")
