"""`constraints.txt` pins all that an installation brings, and says nothing of where it comes from."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
LINES = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
BEFORE_3_11_3 = {"async-timeout"}
"""Brought by older Pythons alone (redis 8.1 asks for it there)."""
SPARE = BEFORE_3_11_3 if sys.version_info >= (3, 11, 3) else set()
ALL_PINS = dict(line.split("==") for line in LINES)
PINS = {name: version for name, version in ALL_PINS.items() if name not in SPARE}


def asked_for() -> list[Requirement]:
    """All that pyproject.toml asks for, in every extra, and what builds the wheel."""
    project = PROJECT["project"]
    groups = [project["dependencies"], PROJECT["build-system"]["requires"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def closure() -> set[str]:
    """The names that those bring on this platform, read from what is installed."""
    found: set[str] = set()
    waiting = [(requirement.name, frozenset(requirement.extras)) for requirement in asked_for()]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        found.add(canonicalize_name(name))
        for text in distribution(name).requires or [] if name != "outtray" else []:
            requirement = Requirement(text)
            needed = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
            )
            step = (requirement.name, frozenset(requirement.extras))
            if needed and step not in seen:
                seen.add(step)
                waiting.append(step)
    return found - {"outtray"}


def test_every_line_is_one_name_and_one_exact_version():
    assert len(LINES) > 50
    assert [line for line in LINES if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert sorted(LINES) == LINES and len(ALL_PINS) == len(LINES)


def test_all_that_is_brought_is_pinned_and_nothing_else():
    assert closure() == set(PINS)


def test_the_pins_are_what_pyproject_asks_for_and_what_is_installed():
    wrong = [
        str(wish)
        for wish in asked_for()
        if wish.name != "outtray" and PINS[canonicalize_name(wish.name)] not in wish.specifier
    ]
    assert wrong == []
    different = {}
    for name, version in PINS.items():
        try:
            installed = distribution(name).version
        except PackageNotFoundError:
            installed = "none"
        if installed == "none" or Version(installed) != Version(version):
            different[name] = (version, installed)
    assert different == {}
