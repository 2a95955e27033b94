"""Which migration the database is at, and which one this version needs. Cheap enough to ask before every command."""

from __future__ import annotations

from typing import Any

from psycopg import Connection
from psycopg.errors import InvalidSchemaName, UndefinedTable
from psycopg.rows import tuple_row

from outtray_schema.database import MIGRATIONS

# Reads which migration the database is at; locks nothing.
REVISION = "SELECT v.version_num FROM outtray.alembic_version v"


def newest_revision() -> str:
    """The migration that this version's code needs: the files are named by their revision, in order."""
    return max(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def revision(connection: Connection[Any]) -> str | None:
    """The migration that the database is at; `None` where there are no tables yet. `connection` in autocommit."""
    try:
        row = connection.cursor(row_factory=tuple_row).execute(REVISION).fetchone()
    except (UndefinedTable, InvalidSchemaName):
        return None
    return str(row[0]) if row else None
