"""Limits that providers teach, budgets of tenants, and the units of a provider's projects."""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    cursor = op.get_bind().connection.cursor()
    cursor.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Take back what 0004 does not know. What was learned is lost; the providers will teach it again."""
    op.execute("""
        ALTER TABLE outtray.mailbox DROP COLUMN learned;
        ALTER TABLE outtray.budget DROP COLUMN tenant;
        ALTER TABLE outtray.provider_app DROP COLUMN units_per_minute, DROP COLUMN user_units_per_minute""")
