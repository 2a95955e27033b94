"""Looks for evidence: what they are about, what they showed, and which are still to be planned."""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    cursor = op.get_bind().connection.cursor()
    cursor.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Take back what 0003 does not know. What was looked at stays in the journal."""
    op.execute("""
        DROP INDEX outtray.message_unlooked, outtray.message_look;
        ALTER TABLE outtray.message DROP COLUMN look_handover, DROP COLUMN looked, DROP COLUMN draft_end;
        CREATE INDEX message_look ON outtray.message (look_at) WHERE look_at IS NOT NULL""")
