"""The command line as its users meet it: arguments, standard input, what it writes, and an exit code.

Called, it runs within the test's own process, since a process of its own takes a second to start; `process` is the same
in a process of its own, and `start` one that stays.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from outtray.cli.application import main
from outtray_schema.settings import Settings

PATIENCE = 60.0
"""Seconds that one command may take on a busy machine."""


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its standard output as one JSON document."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Its standard output as NDJSON."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> Any:
        """What it says on standard error under `--json`."""
        return json.loads(self.err)["error"]


@dataclass
class CommandLine:
    """Runs `outtray` on a test's services."""

    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def on(cls, settings: Settings, **more: str) -> CommandLine:
        """On these services and keys."""
        return cls(
            {
                "OUTTRAY_DATABASE_URL": str(settings.database_url),
                "OUTTRAY_REDIS_URL": str(settings.redis_url),
                "OUTTRAY_KEY_FILE": str(settings.key_file),
                "OUTTRAY_DATA_FOLDER": str(settings.data_folder),
                **more,
            }
        )

    def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> Ran:
        out, err = _writer(), _writer()
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("OUTTRAY_")]:
                patch.delenv(name)
            for name, value in self.full_environment(**environment).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["outtray", *arguments])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            code = _exit_code()
        return Ran(code, _written(out), _written(err))

    def process(self, *arguments: str, stdin: str = "", **environment: str) -> Ran:
        """The same in a process of its own."""
        ended = subprocess.run(
            command(*arguments),
            input=stdin,
            env=self.full_environment(**environment),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert "Traceback" not in ended.stderr, ended.stderr
        return Ran(ended.returncode, ended.stdout, ended.stderr)

    def ok(self, *arguments: str, stdin: str = "") -> Ran:
        """Run a command that must succeed."""
        ran = self(*arguments, stdin=stdin)
        assert ran.code == 0, ran
        return ran

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command that stays; its output is one pipe."""
        return subprocess.Popen(
            command(*arguments),
            env=self.full_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def full_environment(self, **more: str) -> dict[str, str]:
        """The test's own settings over what a terminal of 80 columns brings."""
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return inherited | {"COLUMNS": "80", "TERM": "dumb"} | self.environment | more


def command(*arguments: str) -> list[str]:
    """The command line of this interpreter's installation."""
    return [sys.executable, "-m", "outtray.cli.main", *arguments]


def _exit_code() -> int:
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _writer() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def _written(writer: io.TextIOWrapper) -> str:
    writer.flush()
    written: io.BytesIO = writer.buffer  # type: ignore[assignment]
    return written.getvalue().decode()
