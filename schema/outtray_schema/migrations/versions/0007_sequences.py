"""Sequences: messages that follow others."""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    cursor = op.get_bind().connection.cursor()
    cursor.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """What still waits for another message is cancelled: the release before would let it wait for ever."""
    op.execute("""
    DROP TRIGGER message_ended ON outtray.message;
    DROP TRIGGER message_deleted ON outtray.message;
    UPDATE outtray.message SET state = 'cancelled', ended_at = outtray.outtray_now(), version = version + 1,
        reason = 'sequences were taken out by a downgrade'
    WHERE state = 'queued' AND due_at IS NULL AND follows IS NOT NULL;
    DROP FUNCTION outtray.follow_up_1, outtray.is_followed, outtray.predecessor_deleted, outtray.predecessor_ended,
        outtray.settle_followers;
    DROP TABLE outtray.following;
    DROP INDEX outtray.message_follows;
    ALTER TABLE outtray.message DROP COLUMN follows, DROP COLUMN follow_after, DROP COLUMN follow_from,
        DROP COLUMN go_on, DROP COLUMN has_followers;
    """)
