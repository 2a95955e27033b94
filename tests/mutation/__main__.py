"""`make mutations`: take out one safeguard after another, in a copy, and see a named test turn red.

    python -m mutation [--only TEXT]

Prints one line per safeguard and a table at the end; the exit status is 1 if any was not missed. The tests are run once
untouched first: a test that fails by itself proves nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from mutation.safeguards import SAFEGUARDS, Safeguard

ROOT = Path(__file__).parents[2]
ROOTS = ("", "schema", "producer", "worker", "sandbox", "tests")
COPIED = (
    "schema",
    "producer",
    "worker",
    "sandbox",
    "tests",
    "pyproject.toml",
    "deploy",
    "docs",
    "README.md",
    "Procfile",
)
AT_ONCE = 2
"""Copies, each with services of its own."""

LONGEST = 240
"""Seconds after which a run is ended; a safeguard whose loss lets a test hang was missed too."""


def copy(folder: Path) -> Path:
    """A copy of what the tests need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, folder / name)
    return folder


def passes(folder: Path, tests: Sequence[str]) -> bool:
    """Whether these tests pass in this copy."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        *(f"tests/{test}" for test in tests),
    ]
    path = os.pathsep.join(str(folder / root) for root in ROOTS)
    env = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, check=False, cwd=folder, env=env, capture_output=True, text=True, timeout=LONGEST
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-500:]}")
    return done.returncode == 0


def missed(folder: Path, safeguard: Safeguard) -> bool:
    """Whether its tests fail once it is gone."""
    file = folder / safeguard.file
    whole = file.read_text()
    file.write_text(whole.replace(safeguard.text, safeguard.without))
    try:
        return not passes(folder, safeguard.tests)
    finally:
        file.write_text(whole)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    parser.add_argument("--only", default="", help="part of a safeguard's name")
    wanted = [each for each in SAFEGUARDS if parser.parse_args().only in each.name]
    with tempfile.TemporaryDirectory(prefix="mutation-") as scratch:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(AT_ONCE):
            copies.put(copy(Path(scratch) / str(number)))
        first = copies.get()
        tests = sorted({test for each in wanted for test in each.tests})
        if not passes(first, tests):
            print("the tests fail with every safeguard in its place: nothing can be shown")
            return 1
        copies.put(first)

        def try_out(safeguard: Safeguard) -> bool:
            folder = copies.get()
            try:
                found = missed(folder, safeguard)
            finally:
                copies.put(folder)
            print(f"{'red' if found else 'STILL GREEN'}  {safeguard.name}", flush=True)
            return found

        with ThreadPoolExecutor(AT_ONCE) as threads:
            results = list(threads.map(try_out, wanted))
    print("\n| rule | safeguard taken out | turned red |\n|---|---|---|")
    for safeguard, found in zip(wanted, results, strict=True):
        tests = ", ".join(f"`{test.rpartition('::')[2]}`" for test in safeguard.tests) if found else "**nothing**"
        print(f"| {safeguard.rule} | {safeguard.name} | {tests} |")
    print(f"\n{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
