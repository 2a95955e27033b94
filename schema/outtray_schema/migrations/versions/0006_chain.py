"""The journal's chain. The SQL stands beside this file."""

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    cursor = op.get_bind().connection.cursor()
    cursor.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Take back what 0005 does not know. The journal stays; its links and seals are lost."""
    op.execute("""
        DROP FUNCTION outtray.seal_day_1, outtray.seal_journal_1, outtray.look_at_journal_1, outtray.journal_text;
        DROP AGGREGATE outtray.chain_hash(bytea, bytea);
        DROP FUNCTION outtray.chain_step;
        DROP TABLE outtray.journal_sealing, outtray.journal_seal, outtray.journal_link;
        DROP INDEX outtray.journal_order""")
