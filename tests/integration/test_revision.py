"""Which migration a database is at, against Alembic's own answer."""

from __future__ import annotations

from alembic.config import Config
from alembic.script import ScriptDirectory

from databases import Database
from outtray.revision import newest_revision, revision
from outtray_schema.database import MIGRATIONS


def test_the_newest_revision_is_alembics_head_and_a_migrated_database_has_it(database: Database) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert newest_revision() == ScriptDirectory.from_config(config).get_current_head()
    with database.connect() as connection:
        assert revision(connection) == newest_revision()
        connection.execute("DROP SCHEMA outtray CASCADE")
        assert revision(connection) is None
