"""The image and the compose file, without a container daemon: they are read, and their steps run in an empty folder.

The steps of the build stage run as written, with the image's absolute paths moved below that folder and without the
network: what pip would fetch is taken from this test's own environment. Making the user needs root in the image and is
only read. As root the steps run as `nobody`, where `nobody` can reach this Python.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from outtray_schema.settings import Settings, parse_duration

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("image")  # what the tests of this file share is made once
DOCKERFILE = REPOSITORY / "deploy/Dockerfile"
COMPOSE = yaml.safe_load((REPOSITORY / "deploy/compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
PROCFILE = dict(line.split(": ", 1) for line in (REPOSITORY / "Procfile").read_text().splitlines())
OURS = {name: service for name, service in SERVICES.items() if service.get("image") == "outtray"}


@dataclass
class Stage:
    """One stage of the Dockerfile: its instructions in order, as (word, rest)."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [rest for found, rest in self.steps if found == word]

    def last(self, word: str) -> str:
        return self.all(word)[-1]


def stages() -> list[Stage]:
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    found: list[Stage] = []
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            found.append(Stage(rest))
        elif word and not word.startswith("#"):
            found[-1].steps.append((word, rest.strip()))
    return found


BUILD, FINAL = stages()


# ── what they say ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_image_runs_as_a_numbered_user_and_takes_sigterm_itself():
    assert FINAL.last("USER").isdigit() and int(FINAL.last("USER")) > 0
    assert FINAL.last("STOPSIGNAL") == "SIGTERM"
    # Exec form: a shell in between would swallow SIGTERM, and the handovers under way with it.
    assert json.loads(FINAL.last("ENTRYPOINT")) == ["outtray"]
    assert json.loads(FINAL.last("CMD")) == ["worker"]
    assert FINAL.steps.index(("USER", FINAL.last("USER"))) > max(
        i for i, (word, _) in enumerate(FINAL.steps) if word == "RUN"
    )
    assert not any("latest" in stage.base for stage in (BUILD, FINAL))


def test_a_worker_has_longer_to_stop_than_the_longest_handover_and_its_drain():
    defaults = Settings()
    grace = parse_duration(SERVICES["worker"]["stop_grace_period"])
    changed = [name for name in SERVICES["worker"]["environment"] if name.endswith(("_LIMIT", "_BEGIN", "_ANSWER"))]
    assert not changed, "the defaults are compared, so they must hold"
    assert grace > defaults.drain_limit > defaults.handover_limit > timedelta(0)


def test_every_process_of_the_procfile_is_a_service_with_the_same_command():
    assert set(PROCFILE) <= set(SERVICES)
    for name, command in PROCFILE.items():
        program, *arguments = shlex.split(command)
        assert program == "outtray"
        assert SERVICES[name]["command"][: len(arguments)] == arguments


def test_every_variable_is_a_setting():
    known = {f"OUTTRAY_{name.upper()}" for name in Settings.model_fields}
    named = {name for service in OURS.values() for name in service["environment"]}
    named |= set(re.findall(r"(OUTTRAY_\w+)=", FINAL.last("ENV")))
    assert len(named) >= 4 and named <= known


def test_keys_are_secrets_and_the_producer_has_none_for_credentials():
    for name, service in OURS.items():
        (secret,) = service["secrets"]
        assert service["environment"]["OUTTRAY_KEY_FILE"] == f"/run/secrets/{secret}"
        assert secret == ("producer_keys" if name == "producer" else "keys")
    files = {name: secret["file"] for name, secret in COMPOSE["secrets"].items()}
    assert len(set(files.values())) == 2
    assert not any((REPOSITORY / "deploy" / file).exists() for file in files.values()), (
        "keys are never in the repository"
    )


def test_nothing_is_reachable_from_outside_but_flower_on_loopback():
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(ports) == ["flower"] and all(port.startswith("127.0.0.1:") for port in ports["flower"])
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for name in ("postgres", "valkey", "dispatcher", "producer"):
        assert SERVICES[name]["networks"] == ["inside"]


def test_valkey_keeps_its_queues_and_everything_waits_for_the_tables():
    command = " ".join(SERVICES["valkey"]["command"])
    assert "--maxmemory-policy noeviction" in command and "--appendonly yes" in command
    for name in PROCFILE:
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert SERVICES["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert SERVICES["worker"]["volumes"] == [f"spool:{FINAL.last('VOLUME')}"]


# ── what their steps do ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Image:
    """An empty folder that stands for the image's root, and the user that works in it."""

    root: Path
    user: dict[str, Any]

    @property
    def site(self) -> Path:
        (found,) = (self.root / "opt/outtray/lib").glob("python*/site-packages")
        return found

    def moved(self, text: str) -> str:
        """A step with the image's own absolute paths moved below the root."""
        return re.sub(r"(?<![\w.])/(src|wheels|opt/outtray)\b", lambda path: f"{self.root}{path[0]}", text)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(self.root),
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        return subprocess.run(
            ["/bin/sh", "-ec", command], cwd=self.root / "src", env=environment, capture_output=True, text=True,
            check=False, **self.user,
        )  # fmt: skip


def nobody_if_possible() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam("nobody")
    user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    try:
        subprocess.run([sys.executable, "-c", "import hatchling"], cwd="/", check=True, capture_output=True, **user)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return user


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The build stage, carried out."""
    with tempfile.TemporaryDirectory(prefix="outtray-image-", ignore_cleanup_errors=True) as root:
        made = Image(Path(root), nobody_if_possible())
        copy_sources(made)
        for step in BUILD.all("RUN"):
            done = made.run(made.moved(without_network(step)))
            assert done.returncode == 0, f"RUN {step}\n{done.stdout}\n{done.stderr}"
        borrow(made)
        yield made


def copy_sources(image: Image) -> None:
    """What COPY does, for the user that will work with it."""
    (image.root / "src").mkdir()
    for copied in BUILD.all("COPY"):
        *sources, target = copied.split()
        for source in sources:
            copy(REPOSITORY / source, image.root / "src" / target)
    for path in (image.root, *image.root.rglob("*")):
        shutil.chown(path, image.user.get("user", -1), image.user.get("group", -1))


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def without_network(step: str) -> str:
    """What the new environment would fetch it borrows instead (`borrow`); the wheel is installed in earnest."""
    return step.replace("pip install", "pip install --no-deps") if "/wheels/" in step else step


def borrow(image: Image) -> None:
    """Let the new environment import this one's packages, after its own."""
    (image.site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")


@pytest.mark.slow
def test_the_wheel_installs_and_holds_the_four_packages_and_what_is_not_python(image):
    for package in ("outtray_schema", "outtray", "outtray_worker", "outtray_sandbox"):
        assert (image.site / package / "py.typed").exists(), package
    for pattern in ("*.sql", "*.lua"):
        roots = [REPOSITORY / root for root in ("schema", "producer", "worker", "sandbox")]
        source = {path.relative_to(root) for root in roots for path in root.rglob(pattern)}
        assert source and {path.relative_to(image.site) for path in image.site.glob(f"outtray*/**/{pattern}")} == source
    assert not list(image.site.glob("tests*"))


@pytest.mark.slow
@pytest.mark.parametrize("service", sorted(OURS))
def test_the_command_of_each_service_is_one_that_the_image_has(image, service):
    entry = json.loads(FINAL.last("ENTRYPOINT"))
    done = image.run(shlex.join([f"{image.root}/opt/outtray/bin/{entry[0]}", *OURS[service]["command"], "--help"]))
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.slow
def test_the_keys_that_the_compose_file_asks_for_are_made_as_its_head_says(image):
    head = (REPOSITORY / "deploy/compose.yaml").read_text()
    commands = re.findall(r"#   (outtray keys .*?)(?:  |$)", head, re.MULTILINE)
    for command in commands:
        done = image.run(f"cd {image.root} && {image.root}/opt/outtray/bin/{command}")
        assert done.returncode == 0, done.stderr
    for secret in COMPOSE["secrets"].values():
        assert (image.root / secret["file"]).stat().st_mode & 0o777 == 0o600
    assert "credentials" in json.loads((image.root / "keys.json").read_text())
    assert "credentials" not in json.loads((image.root / "producer-keys.json").read_text())


@pytest.mark.slow
def test_a_process_whose_database_is_away_says_so_at_once(image):
    own = {"DATABASE_URL": "postgresql://127.0.0.1:1/x", "REDIS_URL": "redis://127.0.0.1:1", "KEY_FILE": "/run/none"}
    given = " ".join(f"OUTTRAY_{name}={value}" for name, value in own.items())
    done = image.run(f"{given} {image.root}/opt/outtray/bin/outtray dispatcher")
    assert done.returncode == 4
    assert "PostgreSQL" in done.stdout + done.stderr
