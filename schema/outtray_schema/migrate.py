"""Bringing a database to a version. Apart from `database.py`: who only enqueues need not load Alembic."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from outtray_schema.database import MIGRATIONS, connect_options, conninfo
from outtray_schema.settings import Settings


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
