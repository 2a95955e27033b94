"""A test's own database, as the fixture `database` makes it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg

from outtray_schema.settings import Settings


@dataclass
class Database:
    """A migrated database of one test, and settings that lead to it."""

    settings: Settings

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """A new connection, autocommit unless told otherwise."""
        return psycopg.connect(str(self.settings.database_url), **({"autocommit": True} | options))

    def shift(self, by: timedelta) -> None:
        """Move the database's clock."""
        with self.connect() as connection:
            connection.execute("UPDATE outtray.clock SET shift = shift + %s", [by])
