"""Templates."""

from pathlib import Path

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    cursor = op.get_bind().connection.cursor()
    cursor.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """The templates are lost; what was made from them is not."""
    op.execute("ALTER TABLE outtray.message DROP COLUMN template; DROP TABLE outtray.template")
