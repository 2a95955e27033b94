"""The embedded default: a real PostgreSQL and a real Valkey in a data folder. Same code, same SQL as anywhere.

For trying out, tests and small single machines. The servers outlive a command that is killed; the last command that
uses them stops them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from outtray_sandbox.servers.place import Place, find_place
from outtray_sandbox.servers.postgres import Postgres
from outtray_sandbox.servers.valkey import Valkey
from outtray_schema.errors import SettingsError
from outtray_schema.settings import Settings

LOCK_PATIENCE = 120.0
"""Seconds to wait for another process that is starting or stopping the same servers."""


class Services:
    """Both servers of one data folder. As a context manager it stops them at its end.

    `keep=False`: stopping removes the databases, wherever they are (as root that may be outside the folder).
    """

    def __init__(self, folder: Path, place: Place, *, durable: bool, keep: bool) -> None:
        self.folder = folder
        self.place = place
        self.keep = keep
        self.postgres = Postgres(place, durable)
        self.valkey = Valkey(place)

    @classmethod
    def start(cls, folder: Path, *, durable: bool = True, keep: bool = True) -> Self:
        """Start what does not run yet, and return once both answer; about a second the first time.

        `durable=False` leaves out fsync, for tests. Raises `SettingsError` that says what stands in the way.
        """
        services = cls.of(folder, durable=durable, keep=keep)
        with _alone(services.folder):
            services._start()
        return services

    @classmethod
    def of(cls, folder: Path, *, durable: bool = True, keep: bool = True) -> Self:
        """The servers of a folder as they are, running or not."""
        place = find_place(folder)
        return cls(folder.resolve(), place, durable=durable, keep=keep)

    @property
    def database_url(self) -> str:
        """The database `outtray`; not migrated."""
        return self.postgres.url()

    @property
    def redis_url(self) -> str:
        """Understood by redis-py, kombu and Celery alike. Holds a password: never log it."""
        return self.valkey.url

    def stop(self) -> None:
        """Stop both servers, whoever uses them."""
        with _alone(self.folder):
            self._stop()

    def _start(self) -> None:
        self.valkey.start()
        try:
            self.postgres.start()
        except BaseException:
            self.valkey.stop()
            raise

    def _stop(self) -> None:
        with ExitStack() as every:  # one that resists must not keep the other
            if not self.keep:
                every.callback(self._remove)
            every.callback(self.valkey.stop)
            every.callback(self.postgres.stop)

    def _remove(self) -> None:
        for path in (self.postgres.data, self.valkey.folder, self.place.sockets):
            shutil.rmtree(path, ignore_errors=True)
        if self.place.home != self.folder:
            shutil.rmtree(self.place.home, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextmanager
def use_embedded(settings: Settings) -> Iterator[Settings]:
    """Settings whose URLs lead to the embedded servers of the data folder; settings with URLs pass unchanged.

    Any number of processes may use them at once: the first starts them, the last one stops them.
    Raises `SettingsError`.
    """
    if not settings.embedded:
        yield settings
        return
    services = Services.start(settings.data_folder)
    with _user_of(services):
        sys.stderr.write(f"outtray: using the embedded PostgreSQL and Valkey; data in {_where(services)}\n")
        yield settings.model_copy(
            update={
                "database_url": services.database_url,
                "redis_url": services.redis_url,
                "key_file": settings.key_file or _key_file(settings),
            }
        )


def _key_file(settings: Settings) -> Path | None:
    """The embedded default's own keys, unless they come by the environment; made here, since the copy has URLs."""
    if settings.keys is not None:
        return None
    from outtray_schema.vault import load_vault  # noqa: PLC0415

    load_vault(settings)
    return settings.data_folder / "keys.json"


def _where(services: Services) -> str:
    if services.place.home == services.folder:
        return str(services.folder)
    return f"{services.folder} (databases in {services.place.home})"


@contextmanager
def _user_of(services: Services) -> Iterator[None]:
    """Be counted as a user. The count is the kernel's: each user holds a shared lock, which its death releases too."""
    with (services.folder / "users.lock").open("a") as lock:
        with _alone(services.folder):
            fcntl.flock(lock, fcntl.LOCK_SH)
            services._start()  # the last user may have stopped them between our start and our lock
        try:
            yield
        finally:
            with _alone(services.folder), contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                services._stop()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Of all processes that start or stop this folder's servers, one at a time. Released by the kernel at our death."""
    descriptor = os.open(folder / "services.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise SettingsError(
                    f"another process has been starting or stopping the embedded servers of {folder} for "
                    f"{LOCK_PATIENCE:.0f} s; end it, then try again"
                ) from None
            time.sleep(0.02)
