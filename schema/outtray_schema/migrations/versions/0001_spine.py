"""The spine. The SQL stands beside this file, so that it can be read as SQL."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    cursor = op.get_bind().connection.cursor()
    cursor.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop everything but Alembic's own table, in which it is about to note that we are gone."""
    op.execute("""
        DO $$ DECLARE statement text; BEGIN
            FOREACH statement IN ARRAY ARRAY(
                SELECT format('DROP TABLE IF EXISTS %s CASCADE', oid::regclass) FROM pg_class
                WHERE relnamespace = 'outtray'::regnamespace AND relkind IN ('r', 'p') AND relname <> 'alembic_version'
                UNION ALL
                SELECT format('DROP SEQUENCE IF EXISTS %s', oid::regclass) FROM pg_class
                WHERE relnamespace = 'outtray'::regnamespace AND relkind = 'S'
                UNION ALL
                SELECT format('DROP FUNCTION IF EXISTS %s CASCADE', oid::regprocedure) FROM pg_proc
                WHERE pronamespace = 'outtray'::regnamespace)
            LOOP EXECUTE statement; END LOOP;
        END $$""")
