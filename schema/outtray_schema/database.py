"""Reaching PostgreSQL: one place for its URL and the options of a connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from outtray_schema.errors import SettingsError
from outtray_schema.settings import Settings

MIGRATIONS = Path(__file__).parent / "migrations"
"""Where Alembic finds the revisions; `outtray_schema.migrate` runs them."""


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
