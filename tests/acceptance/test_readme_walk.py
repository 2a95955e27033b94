"""The README's walk of a sequence for a list, word for word: its commands, in a shell, against real processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from acceptance.fleet import environment
from acceptance.scene import SCALED, Scene, scene
from polling import eventually

pytestmark = [pytest.mark.processes, pytest.mark.slow]
README = Path(__file__).parents[2] / "README.md"
BOB, CARLA = "bob@example.org", "carla@example.net"


def commands() -> list[str]:
    """The shell's lines of that section, block by block."""
    section = README.read_text().partition("## A sequence for a list")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.+?)```", section, re.DOTALL)


class Shell:
    """A stranger's terminal in an empty folder, with `outtray` on its path."""

    def __init__(self, town: Scene, folder: Path) -> None:
        (folder / "bin").mkdir()
        self._home = folder / "home"
        self._home.mkdir()
        command = folder / "bin/outtray"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m outtray.cli.main "$@"\n')
        command.chmod(0o755)
        self._environment = environment(town.database.settings, **SCALED)
        self._environment["PATH"] = f"{command.parent}:{os.environ['PATH']}"

    def type(self, lines: str) -> str:
        script = ["/bin/sh", "-e", "-c", lines]
        ran = subprocess.run(
            script, cwd=self._home, env=self._environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout


def received(town: Scene) -> Counter[str]:
    return Counter(address for taken in town.server.ledger.read() for address in taken.recipients)


def days(town: Scene, number: int) -> None:
    town.database.shift(timedelta(days=number, minutes=1))


def test_the_walk_sends_each_step_in_its_time_and_ends_where_somebody_answered(database, tmp_path):
    setting_up, bob_has_answered = commands()
    with scene(database, tmp_path) as town:
        town.client.mailboxes.set_default(town.boxes[0])
        shell = Shell(town, tmp_path)
        said = shell.type(setting_up)
        assert "how is business at Lee & Sons?" in said and "6 messages accepted" in said
        town.start()
        eventually(lambda: received(town) == {BOB: 1, CARLA: 1}, 30, "the first step")
        days(town, 3)
        eventually(lambda: received(town) == {BOB: 2, CARLA: 2}, 30, "the second, three days later")
        town.eventually_sent(4)
        assert "1 message cancelled" in shell.type(bob_has_answered)
        days(town, 7)
        eventually(lambda: received(town) == {BOB: 2, CARLA: 3}, 30, "the last, for who has not answered")
        town.eventually_sent(5)
        days(town, 30)
        assert "6 messages accepted. (6 stood there already)" in shell.type(setting_up), "nothing twice"
        assert received(town) == {BOB: 2, CARLA: 3} and town.states() == {"sent": 5, "cancelled": 1}
        subjects = {each.subject for each in town.client.list(recipient=CARLA).items}
        assert subjects == {"A question, Carla", "Re: A question, Carla"}
        town.judge()
