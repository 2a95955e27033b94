"""SMTP and IMAP as people have them."""

from pathlib import Path

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    cursor = op.get_bind().connection.cursor()
    cursor.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    op.execute("""
        DROP TABLE outtray.refused_recipient;
        ALTER TABLE outtray.message DROP COLUMN continues, DROP COLUMN copy_at, DROP COLUMN copy_tries,
            DROP COLUMN copy_end;
        ALTER TABLE outtray.mailbox DROP COLUMN logins""")
