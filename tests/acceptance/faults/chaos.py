"""`make chaos`: all cells and all troubles, again and again, with many mailboxes; then the seed, the table, the totals.

make chaos SECONDS=3600 SEED=7              goes through the matrix for an hour
make chaos CELL='gated/kill/gmail draft'    replays one cell
make chaos REAL=1                           one cell per route, and both recoveries, on the real time constants
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from acceptance.faults.machines import TROUBLES, trouble
from acceptance.faults.matrix import ANSWERS, BLIND, BY_NAME, FAULTS, ROUTES, STEPS, Cell, cells, why_not
from acceptance.faults.recovery import after_a_flush, after_killing_all_workers
from acceptance.faults.town import REAL, SCALED, Times, Town, town
from acceptance.faults.wave import Tally, Wave, run_cells
from outtray_sandbox.services import Services
from outtray_schema.migrate import migrate
from outtray_schema.settings import load_settings
from outtray_schema.vault import new_key_file

WORKERS, DISPATCHERS, MAILBOXES = 8, 3, 64
AT_ONCE, CHEAP, BESIDE = 150, 150, 60
"""Of a wave: cells in the matrix's order of this round, further ones that cost a request alone, and mail beside them.
"""
ENOUGH = 50
"""Violations after which a run ends: the rest would say the same."""
REAL_FAULT = ("gated", "kill")
"""What each route suffers on the real constants: the longest way to an end, by look or by policy."""


@contextmanager
def standing(folder: Path, times: Times, mailboxes: int) -> Iterator[tuple[Town, Services]]:
    """A town of its own, with its own servers, and everybody at work."""
    with Services.start(folder / "s", durable=False, keep=False) as services:
        new_key_file(folder / "keys.json")
        settings = load_settings(
            database_url=services.database_url,
            redis_url=services.redis_url,
            key_file=folder / "keys.json",
            data_folder=folder / "data",
        )
        migrate(settings)
        with town(settings, services.place.sockets, folder, times) as here:
            for route in ROUTES:
                for _ in range(mailboxes):
                    here.add_box(route)
            here.start(WORKERS, DISPATCHERS)
            yield here, services


def rage(here: Town, services: Services, seconds: float, chance: random.Random, tally: Tally) -> Counter[str]:
    """Cells in shuffled order, a trouble after each few waves, until the time is over. Returns the troubles' count."""
    until, troubles, left = time.monotonic() + seconds, Counter[str](), list[Cell]()
    names: list[str] = []
    said = 0
    cheap = [cell for cell in cells() if cell.fault in ANSWERS and BY_NAME[cell.step].under_way == "provider"]
    cheap = [cell for cell in cheap if not cell.step.startswith("token")]
    while time.monotonic() < until and len(tally.violations) < ENOUGH:
        if len(left) < AT_ONCE:
            more = cells()
            chance.shuffle(more)
            left += more
        wave, left = left[:AT_ONCE], left[AT_ONCE:]
        begun = time.monotonic()
        Wave(here, wave + chance.choices(cheap, k=CHEAP), chance, tally, beside=BESIDE, pace=0.4).run()
        took = time.monotonic() - begun
        names = names or chance.sample(sorted(TROUBLES), len(TROUBLES))
        name = names.pop()
        told = trouble(here, services, name, chance, seconds=6.0)
        troubles[name] += 1
        tally.messages += told.messages
        tally.states += told.states
        tally.violations += [f"{name}: {each}" for each in told.violations]
        _say(
            f"wave {tally.waves} ({took:.0f} s), {tally.faulted} messages faulted, "
            f"{len(tally.violations)} violations; {name}"
        )
        for violation in tally.violations[said:]:
            _say(f"VIOLATION {violation}")
        said = len(tally.violations)
    return troubles


def recover(here: Town) -> list[str]:
    """How long until everything flows again, after a flush and after the death of all workers; what took too long."""
    violations = []
    for recovery in (after_a_flush, after_killing_all_workers):
        recovered = recovery(here)
        _say(str(recovered))
        violations += recovered.violations
    return violations


def table(tally: Tally, wanted: Sequence[Cell] | None = None) -> str:
    """The matrix in markdown: how often each step's fault fell, over all routes; and the totals."""
    wanted = cells() if wanted is None else wanted
    lines = ["| step | " + " | ".join(FAULTS) + " |", "|---|" + "---:|" * len(FAULTS)]
    for step in (step for step in STEPS if any(cell.step == step.name for cell in wanted)):
        shown = [_count(tally, step.name, fault, wanted) for fault in FAULTS]
        lines.append(f"| {step.name} | " + " | ".join(shown) + " |")
    by_route = [f"{route} {sum(n for cell, n in tally.fell.items() if cell.route == route)}" for route in ROUTES]
    return "\n".join(
        [
            *lines,
            "",
            f"{tally.messages} messages in {tally.waves} waves: {_counted(tally.states)}. "
            f"Faults that fell inside the step they were aimed at: {sum(tally.fell.values())} "
            f"of {sum(tally.aimed.values())} ({', '.join(by_route)}); "
            f"handovers open beside them: {_counted(tally.beside)}. "
            f"Unknown by a fault aimed at them: {sum(tally.unknown.values())}, all on {', '.join(sorted(BLIND))}. "
            f"Cells whose fault never fell: {len(tally.missed(wanted))}. Violations: {len(tally.violations)}.",
        ]
    )


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items()) if n) or "none"


def _count(tally: Tally, step: str, fault: str, wanted: Sequence[Cell]) -> str:
    there = [Cell(step, fault, route) for route in ROUTES if why_not(Cell(step, fault, route)) is None]
    asked = [cell for cell in there if cell in set(wanted)]
    return str(sum(tally.fell[cell] for cell in asked)) if asked else ("" if there else "–")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--cell", type=Cell.parse, default=None, help="STEP/FAULT/ROUTE")
    parser.add_argument("--trouble", choices=sorted(TROUBLES), default=None, help="one of those that befall servers")
    parser.add_argument("--real", action="store_true", help="one cell per route on the real time constants")
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if asked.seed is None else asked.seed
    _say(f"SEED={seed}")
    chance, tally, troubles = random.Random(seed), Tally(), Counter[str]()
    times, one = REAL if asked.real else SCALED, list[Cell]()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="outtray-chaos-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with standing(folder, times, 2 if asked.cell or asked.real or asked.trouble else MAILBOXES) as (here, services):
            if asked.trouble:
                tally = trouble(here, services, asked.trouble, chance, seconds=6.0)
            elif asked.cell or asked.real:
                one = [asked.cell] if asked.cell else [Cell(*REAL_FAULT, route) for route in ROUTES]
                run_cells(here, one, chance, tally, alone=asked.cell is not None)
                tally.violations += recover(here) if asked.real else []
            else:
                troubles = rage(here, services, asked.seconds, chance, tally)
    _say(table(tally, one or None))
    if troubles:
        _say(f"Troubles of servers and processes: {_counted(troubles)}.")
    for violation in tally.violations:  # once more, behind the table
        _say(f"VIOLATION {violation}")
    _say(f"SEED={seed}, {time.monotonic() - begun:.0f} s")
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
