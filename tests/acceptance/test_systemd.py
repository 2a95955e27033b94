"""The systemd units: what they say, what systemd says of them, and what they start, on a read-only file system.

Where there is no systemd they are only read. Their commands run as written but for the path of the program; as root, in
a mount namespace whose root is read-only and whose state directory is the one thing that can be written to.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from configparser import RawConfigParser
from contextlib import ExitStack
from pathlib import Path

import pytest

from acceptance.scene import Scene, scene
from outtray_schema.sealing import public_text, seal
from outtray_schema.settings import Settings, parse_duration
from outtray_schema.vault import load_vault
from outtray_worker.intake import TASK, queue_of
from polling import eventually

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "deploy/systemd"
UNITS = sorted(FOLDER.glob("*.service"))
PROGRAM = "/opt/outtray/bin/outtray"
INSTALLED = Path(sys.executable).parent / "outtray"


def read(path: Path) -> RawConfigParser:
    parser = RawConfigParser(strict=False, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser


def command(name: str, instance: str = "") -> list[str]:
    """What a unit starts, with this environment's program."""
    program, *arguments = shlex.split(read(FOLDER / name)["Service"]["ExecStart"].replace("%i", instance))
    assert program == PROGRAM
    return [str(INSTALLED), *arguments]


def test_a_worker_has_longer_to_stop_than_the_longest_handover_and_its_drain() -> None:
    worker = read(FOLDER / "outtray-worker@.service")["Service"]
    assert int(worker["TimeoutStopSec"]) > Settings().drain_limit.total_seconds()
    assert Settings().drain_limit > Settings().handover_limit
    assert (worker["KillSignal"], worker["KillMode"]) == ("SIGTERM", "mixed")
    compose = (REPOSITORY / "deploy/compose.yaml").read_text()
    assert parse_duration(compose.partition("stop_grace_period: 720s")[1].split()[-1]).total_seconds() == int(
        worker["TimeoutStopSec"]
    )


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_no_unit_runs_as_root_or_may_write_but_to_its_state(path: Path) -> None:
    service = read(path)["Service"]
    assert service["User"] == "outtray" and service["ProtectSystem"] == "strict" and service["StateDirectory"]
    assert service["NoNewPrivileges"] == "yes" and service["CapabilityBoundingSet"] == ""
    assert "ReadWritePaths" not in service and "OUTTRAY_DATA_FOLDER=/var/lib/outtray" in service["Environment"]


def test_every_process_of_the_procfile_has_a_unit_and_every_variable_is_a_setting() -> None:
    procfile = dict(line.split(": ") for line in (REPOSITORY / "Procfile").read_text().splitlines())
    started = {command(path.name, "x")[1] for path in UNITS}
    assert {shlex.split(each)[1] for each in procfile.values()} <= started
    lines = [line for line in (FOLDER / "outtray.env").read_text().splitlines() if not line.startswith("#")]
    assert {line.split("=")[0].removeprefix("OUTTRAY_").lower() for line in lines} <= set(Settings.model_fields)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_them(tmp_path: Path) -> None:
    for path in (*UNITS, FOLDER / "outtray.target"):
        (tmp_path / path.name).write_text(path.read_text().replace(PROGRAM, str(INSTALLED)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(map(str, tmp_path.iterdir()))],
        env={"PATH": os.environ["PATH"], "SYSTEMD_LOG_LEVEL": "warning"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "outtray" in line]
    assert (done.returncode, ours) == (0, [])


# ── started ─────────────────────────────────────────────────────────────────────────────────────────────────────────

READ_ONLY = """
mount --make-rprivate / && mount --bind / / && mount --bind "$0" "$0" && mount -o remount,bind,ro /
touch /probe 2>/dev/null && exit 97
exec "$@"
"""


def can_be_made_read_only(state: Path) -> bool:
    probe = ["unshare", "--mount", "sh", "-ec", READ_ONLY, str(state), "true"]
    return os.geteuid() == 0 and shutil.which("unshare") is not None and subprocess.run(
        probe, capture_output=True, check=False
    ).returncode == 0  # fmt: skip


class Machine:
    """Starts units as systemd would."""

    def __init__(self, town: Scene, folder: Path) -> None:
        self.state = folder / "state"
        self.state.mkdir(mode=0o700)
        self.environment = {**town.fleet.env, "OUTTRAY_DATA_FOLDER": str(self.state)}
        self.prefix: list[str] = []
        if can_be_made_read_only(self.state):
            self.prefix = ["unshare", "--mount", "sh", "-ec", READ_ONLY, str(self.state)]
        self.log = folder / "units.log"
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, instance: str = "") -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*self.prefix, *command(name, instance)], cwd="/", env=self.environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip
        self.started[name] = process
        return process

    def kill(self) -> None:
        for process in self.started.values():
            process.kill()
            process.wait()


@pytest.fixture
def machine(database: object, tmp_path: Path) -> Iterator[tuple[Scene, Machine]]:
    with ExitStack() as ends:
        town = ends.enter_context(scene(database, tmp_path))
        machine = Machine(town, tmp_path)
        ends.callback(machine.kill)
        yield town, machine


@pytest.mark.slow
@pytest.mark.processes
def test_what_the_units_start_sends_mail_takes_sealed_messages_and_ends_in_time(
    machine: tuple[Scene, Machine],
) -> None:
    from celery import Celery

    town, units = machine
    assert units.start("outtray-migrate.service").wait(60) == 0, units.log.read_text()
    for name in ("outtray-worker@.service", "outtray-dispatcher.service"):
        units.start(name, "1")
    units.start("outtray-intake@.service", "default")
    town.enqueue(5)
    app = Celery("crm", broker=units.environment["OUTTRAY_REDIS_URL"], set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": "outtray:q:"}
    sealed = seal(public_text(load_vault(town.database.settings).intake_key), {
        "to": "sealed@example.net", "subject": "s", "text": "t", "mailbox": str(town.boxes[0]),
    })  # fmt: skip
    app.send_task(TASK, args=[sealed], queue=queue_of("default"))
    town.eventually_sent(6, within=90)
    town.judge()
    running = [each for name, each in units.started.items() if "migrate" not in name]
    for each in running:
        each.send_signal(signal.SIGTERM)
    assert [each.wait(60) for each in running] == [0, 0, 0], units.log.read_text()[-3000:]
    eventually(lambda: town.held() == 0, 10, "no lease is held")
    assert "Read-only file system" not in units.log.read_text()
