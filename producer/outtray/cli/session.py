"""What a command works with: settings, the services behind them, a migrated database, and the client.

With no database configured the embedded servers are used. They are migrated and given their first app by themselves; a
configured database is only ever migrated by `outtray migrate`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import Connection
from psycopg.rows import DictRow, dict_row

from outtray import Outtray
from outtray.connections import translating
from outtray.embedded import embedded_services
from outtray.revision import newest_revision, revision
from outtray_schema.database import connect_options, conninfo
from outtray_schema.errors import SettingsError
from outtray_schema.settings import Settings, load_settings


@contextmanager
def services() -> Iterator[Settings]:
    """The process's settings, with the embedded servers running if none are configured. Says nothing of tables."""
    settings = load_settings()
    if not settings.embedded:
        yield settings
        return
    with embedded_services(settings) as ready:
        yield ready


@contextmanager
def ready_services() -> Iterator[Settings]:
    """`services` with tables of this version. Raises `SettingsError` that says to migrate, `Unavailable`."""
    with services() as settings:
        require_migrated(settings)
        yield settings


@contextmanager
def client(app: str | None = None) -> Iterator[Outtray]:
    """A client for one app on ready services."""
    with ready_services() as settings, Outtray(settings, app=app) as opened:
        yield opened


@contextmanager
def database(settings: Settings) -> Iterator[Connection[DictRow]]:
    """A connection of the command line's own, autocommit, rows as dictionaries. Raises `Unavailable`."""
    with (
        translating(),
        Connection[DictRow].connect(
            conninfo(settings), autocommit=True, row_factory=dict_row, **connect_options(settings, "cli")
        ) as connection,
    ):
        yield connection


def require_migrated(settings: Settings) -> None:
    """Raise `SettingsError` with the cure unless the database has the tables of this version; `Unavailable`."""
    with database(settings) as connection:
        found, needed = revision(connection), newest_revision()
    if found is None:
        raise SettingsError("The database has no tables yet. Run: outtray migrate")
    if found < needed:
        raise SettingsError(f"The database is at migration {found}, this version needs {needed}. Run: outtray migrate")
