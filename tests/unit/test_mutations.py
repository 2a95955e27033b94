"""The table of safeguards says where each stands and which tests would miss it (`make mutations` tries it out)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from mutation.safeguards import SAFEGUARDS, Safeguard

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("safeguard", SAFEGUARDS, ids=lambda safeguard: safeguard.name)
def test_a_safeguard_stands_where_the_table_says_and_its_tests_exist(safeguard: Safeguard) -> None:
    assert (ROOT / safeguard.file).read_text().count(safeguard.text) == 1
    for test in safeguard.tests:
        file, _, name = test.partition("::")
        functions = {node.name for node in ast.walk(ast.parse((ROOT / "tests" / file).read_text()))
                     if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}  # fmt: skip
        assert not name or name in functions


def test_every_rule_that_code_keeps_is_in_the_table() -> None:
    """Rule 1 is a wake's own durability: its loss costs a sweep. All others have a safeguard here."""
    assert {str(number) for number in range(2, 17)} <= {safeguard.rule for safeguard in SAFEGUARDS}
