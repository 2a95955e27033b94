"""Care: refusals, erasure, breakers."""

from pathlib import Path

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    cursor = op.get_bind().connection.cursor()
    cursor.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    op.execute("DROP TABLE IF EXISTS outtray.breaker")
    op.execute("DROP TABLE outtray.refusal; ALTER TABLE outtray.message DROP COLUMN erase_asked_at")
