"""Gmail and Microsoft Graph: OAuth clients, tokens, consents, drafts. The SQL stands beside this file."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    cursor = op.get_bind().connection.cursor()
    cursor.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Take back what 0001 does not know. Drafts that are bound, tokens and consents are lost with it."""
    op.execute("""
        DROP TABLE outtray.unknown_signal, outtray.consent, outtray.token;
        DROP INDEX outtray.message_provider_id, outtray.message_delivered_id;
        UPDATE outtray.message SET state = 'cancelled' WHERE state = 'drafted';
        ALTER TABLE outtray.message
            DROP CONSTRAINT message_state_check, DROP CONSTRAINT message_ended_check,
            ADD CONSTRAINT message_state_check CHECK (state IN
                ('queued', 'handing_over', 'unknown', 'sent', 'failed', 'cancelled', 'expired')),
            ADD CHECK ((state IN ('sent', 'failed', 'cancelled', 'expired')) = (ended_at IS NOT NULL)),
            DROP COLUMN draft, DROP COLUMN only_draft, DROP COLUMN look_at, DROP COLUMN looks;
        ALTER TABLE outtray.mailbox DROP COLUMN scopes, DROP COLUMN on_unknown;
        ALTER TABLE outtray.provider_app
            DROP COLUMN app_id, DROP COLUMN kind, DROP COLUMN client_id, DROP COLUMN tenant, DROP COLUMN secret,
            DROP COLUMN secret_version, DROP COLUMN status, DROP COLUMN status_reason, DROP COLUMN status_at""")
