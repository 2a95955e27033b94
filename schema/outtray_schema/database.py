"""Reaching PostgreSQL: one place for URLs, connection options and migrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from outtray_schema.errors import SettingsError
from outtray_schema.settings import Settings

MIGRATIONS = Path(__file__).parent / "migrations"


def conninfo(settings: Settings) -> str:
    """The libpq URL of a settings' database: SQLAlchemy's `postgresql+psycopg://` is accepted too."""
    if settings.database_url is None:
        raise SettingsError(
            "OUTTRAY_DATABASE_URL is not set. Example: OUTTRAY_DATABASE_URL=postgresql://outtray@db/outtray"
        )
    scheme, separator, rest = settings.database_url.partition("://")
    if not separator or scheme.split("+")[0] not in ("postgresql", "postgres"):
        raise SettingsError(
            "OUTTRAY_DATABASE_URL must start with postgresql://. Example: OUTTRAY_DATABASE_URL=postgresql://outtray@db/outtray"
        )
    return f"postgresql://{rest}"


def connect_options(settings: Settings, role: str) -> dict[str, Any]:
    """Keyword arguments of `psycopg.connect`: no hang while connecting, no statement without an end.

    TCP keepalives find a dead server in about 25 s; `idle_in_transaction_session_timeout` keeps a stuck process of
    ours from pinning the vacuum horizon (one old snapshot made claims 62 times slower when it was measured).
    """
    return {
        "connect_timeout": max(1, round(settings.database_timeout.total_seconds())),
        "application_name": f"outtray-{role}",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        "options": "-c statement_timeout=60s -c lock_timeout=20s -c idle_in_transaction_session_timeout=60s",
    }


def sqlalchemy_engine(settings: Settings, role: str, **options: Any) -> sa.Engine:
    """A pooled SQLAlchemy engine on psycopg, with the options above."""
    url = "postgresql+psycopg://" + conninfo(settings).removeprefix("postgresql://")
    return sa.create_engine(url, pool_pre_ping=True, connect_args=connect_options(settings, role), **options)


def migrate(settings: Settings, revision: str = "head") -> None:
    """Bring the database to `revision`. Safe to call from many processes at once: an advisory lock lets one work."""
    engine = sqlalchemy_engine(settings, "migrate", poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            _wait_for_others(connection)
            connection.execute(sa.text("CREATE SCHEMA IF NOT EXISTS outtray"))
            connection.commit()
            command.upgrade(_alembic(connection), revision)
            connection.commit()
    finally:
        engine.dispose()


def _wait_for_others(connection: sa.Connection) -> None:
    """Take the lock of all migrations, however long another one works; the session's end releases it."""
    connection.execute(sa.text("SET statement_timeout = 0"))  # an index on a large table takes its time
    connection.execute(sa.text("SET lock_timeout = 0"))
    connection.execute(sa.text("SELECT pg_advisory_lock(hashtext('outtray.migrate'))"))
    # Whoever waits for a table makes everybody behind it wait: a migration gives up rather than stop the mail.
    connection.execute(sa.text("SET lock_timeout = '20s'"))
    connection.commit()


def _alembic(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
