"""MIME: files that many messages carry are stored once."""

from pathlib import Path

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    cursor = op.get_bind().connection.cursor()
    cursor.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Take back what 0009 does not know. Messages whose files are stored once lose them: let them leave first."""
    op.execute("DROP TABLE outtray.content_attachment, outtray.attachment_chunk, outtray.attachment")
