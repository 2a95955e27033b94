"""Times: windows and gaps."""

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    cursor = op.get_bind().connection.cursor()
    cursor.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Take back what 0007 does not know. Windows and gaps are lost: what waits for one leaves when its park ends."""
    op.execute("""
        ALTER TABLE outtray.mailbox DROP COLUMN times;
        ALTER TABLE outtray.message DROP COLUMN times""")
