"""Migrations: what they make is what `tables.py` says, and calling them at any time does no harm."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

from outtray_schema.database import MIGRATIONS
from outtray_schema.migrate import migrate, sqlalchemy_engine
from outtray_schema.settings import Settings, load_settings
from outtray_schema.tables import metadata

NOT_OURS_TO_COMPARE = "(relname = 'alembic_version' OR relispartition)"
COLUMNS = f"""
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity::text,
       pg_get_expr(d.adbin, d.adrelid)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'outtray'::regnamespace AND c.relkind IN ('r', 'p') AND NOT {NOT_OURS_TO_COMPARE}
ORDER BY c.relname, a.attnum
"""
CONSTRAINTS = f"""
SELECT c.relname, pg_get_constraintdef(n.oid) FROM pg_constraint n JOIN pg_class c ON c.oid = n.conrelid
WHERE n.connamespace = 'outtray'::regnamespace AND NOT {NOT_OURS_TO_COMPARE} ORDER BY 1, 2
"""
INDEXES = f"""
SELECT pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
WHERE c.relnamespace = 'outtray'::regnamespace AND NOT {NOT_OURS_TO_COMPARE} ORDER BY 1
"""
OPTIONS = f"""
SELECT relname, relkind::text, pg_get_partkeydef(oid), array(SELECT unnest(reloptions) ORDER BY 1) FROM pg_class
WHERE relnamespace = 'outtray'::regnamespace AND relkind IN ('r', 'p', 'S') AND NOT {NOT_OURS_TO_COMPARE} ORDER BY 1
"""


@pytest.fixture
def empty(services) -> Iterator[Settings]:
    """Settings of a database in which nobody has migrated anything."""
    services.postgres.start()
    with psycopg.connect(services.database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE empty")
    yield load_settings(database_url=services.postgres.url("empty"), redis_url=services.redis_url)
    with psycopg.connect(services.database_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE empty WITH (FORCE)")


def connect(settings: Settings) -> psycopg.Connection[Any]:
    return psycopg.connect(str(settings.database_url), autocommit=True)


def revisions(settings: Settings) -> list[Any]:
    with connect(settings) as connection:
        return connection.execute("SELECT version_num FROM outtray.alembic_version").fetchall()


@pytest.mark.filterwarnings("ignore:Did not recognize type 'xid8'")
def test_alembic_finds_no_difference_between_the_tables_and_the_migrations(database):
    engine = sqlalchemy_engine(database.settings, "test")

    def ours(name: str | None, kind: str, parents: Any) -> bool:
        if kind == "schema":
            return name == "outtray"
        return kind != "table" or not (name == "alembic_version" or str(name).endswith("_default"))

    with engine.connect() as connection:
        options = {"include_schemas": True, "include_name": ours, "compare_type": True, "compare_server_default": False}
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
    engine.dispose()
    assert differences == []


@pytest.mark.parametrize(
    "catalog", [COLUMNS, CONSTRAINTS, INDEXES, OPTIONS], ids=["columns", "constraints", "indexes", "options"]
)
def test_tables_made_from_the_page_are_those_that_the_migrations_make(database, empty, catalog):
    with connect(empty) as made, database.connect() as migrated:
        made.execute("CREATE SCHEMA outtray")
        made.execute(migrated.execute("SELECT pg_get_functiondef('outtray.outtray_now()'::regprocedure)").fetchone()[0]
                     .replace("(SELECT shift FROM outtray.clock)", "interval '0'"))  # fmt: skip
        engine = sqlalchemy_engine(empty, "test")
        metadata.create_all(engine)
        engine.dispose()
        found = made.execute(catalog).fetchall()
        assert found, "the catalog shows nothing, so nothing was compared"
        assert found == migrated.execute(catalog).fetchall()


def test_migrating_again_changes_nothing(database):
    before = revisions(database.settings)
    with database.connect() as connection:
        connection.execute("INSERT INTO outtray.app (id, name) VALUES (gen_random_uuid(), 'kept')")
    migrate(database.settings)
    assert revisions(database.settings) == before
    with database.connect() as connection:
        assert connection.execute("SELECT name FROM outtray.app").fetchall() == [("kept",)]


def test_many_processes_migrate_an_empty_database_at_once(empty):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(migrate, [empty] * 4, chunksize=1)
    assert len(revisions(empty)) == 1
    with connect(empty) as connection:
        assert connection.execute("SELECT count(*) FROM outtray.clock").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,)


def test_a_migration_that_fails_leaves_no_lock_and_no_half_schema(empty):
    with connect(empty) as connection:
        connection.execute("CREATE SCHEMA outtray")
        connection.execute("CREATE TABLE outtray.journal (somebody_elses text)")
    with pytest.raises(psycopg.errors.DuplicateTable, match="journal"):
        migrate(empty)
    with connect(empty) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'outtray'").fetchall()
        assert tables == [("journal",)]
        connection.execute("DROP TABLE outtray.journal")
    migrate(empty)
    assert len(revisions(empty)) == 1


def test_going_down_drops_everything_of_ours_and_nothing_of_the_apps(database):
    with database.connect() as connection:
        connection.execute("CREATE TABLE public.crm (id integer)")
    engine = sqlalchemy_engine(database.settings, "test", poolclass=sa.NullPool)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        connection.commit()
    with database.connect() as connection:
        left = "SELECT relname FROM pg_class WHERE relnamespace = 'outtray'::regnamespace AND relkind <> 'i'"
        assert connection.execute(left).fetchall() == [("alembic_version",)]
        functions = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'outtray'::regnamespace"
        assert connection.execute(functions).fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM public.crm").fetchone() == (0,)
    migrate(database.settings)
    assert len(revisions(database.settings)) == 1
