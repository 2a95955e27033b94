"""The reference pages tell of everything that there is, with the defaults that hold."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
import typer.main

from outtray.cli.application import build
from outtray_schema.settings import Settings, parse_duration

DOCS = Path(__file__).parents[2] / "docs"
SETTINGS = (DOCS / "settings.md").read_text()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_stands_on_its_page_with_its_default(name: str) -> None:
    row = re.search(rf"^\| `OUTTRAY_{name.upper()}` \| (.+?) \|", SETTINGS, re.MULTILINE)
    assert row is not None
    field = Settings.model_fields[name]
    if isinstance(field.default, timedelta):
        assert parse_duration(row[1].strip("`")) == field.default
    elif field.default is None:
        assert row[1] == "unset"
    elif field.default_factory is None:
        assert row[1].strip("`").lower() == str(field.default).lower()


def test_the_page_names_no_setting_that_there_is_not() -> None:
    named = set(re.findall(r"OUTTRAY_([A-Z_]+[A-Z])", SETTINGS))
    assert {name.lower() for name in named} <= set(Settings.model_fields)


def test_every_command_stands_on_its_page() -> None:
    page = (DOCS / "commands.md").read_text()
    for name, command in typer.main.get_command(build()).commands.items():  # type: ignore[attr-defined]
        assert f"`{name}" in page, name
        for inner in getattr(command, "commands", {}):
            assert re.search(rf"`(?:{name} )?{inner}\b", page), f"{name} {inner}"
