"""The registrar's one statement. The SQL stands beside this file."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    cursor = op.get_bind().connection.cursor()
    cursor.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    op.execute("""
        DROP FUNCTION outtray.write_group_1;
        DROP INDEX outtray.mailbox_turn;
        CREATE INDEX mailbox_turn ON outtray.mailbox (turn_until) WHERE turn_until IS NOT NULL""")
