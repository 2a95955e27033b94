-- Limits that providers teach us, and limits that many mailboxes share. The release before neither reads nor writes the
-- new columns: its turns go by the plan alone for as long as one of its workers runs.

-- {measure: {"limit", "used", "at"}}: what a refusal taught (schema/outtray_schema/learned.py).
ALTER TABLE outtray.mailbox ADD COLUMN learned jsonb NOT NULL DEFAULT '{}';

-- Mailboxes of provider apps of this tenant join the budget by themselves when they are added.
ALTER TABLE outtray.budget ADD COLUMN tenant text;

-- What a provider counts calls in, all users of its project together and each one of them; NULL: not kept to.
ALTER TABLE outtray.provider_app
    ADD COLUMN units_per_minute      integer CHECK (units_per_minute > 0),
    ADD COLUMN user_units_per_minute integer CHECK (user_units_per_minute > 0);
