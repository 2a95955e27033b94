-- Templates: each version as it was written, for ever, since messages name the one that they were made from.
-- The release before reads and writes none of it.
CREATE TABLE outtray.template (
    app_id     uuid NOT NULL REFERENCES outtray.app,
    name       text NOT NULL,
    version    integer NOT NULL CHECK (version > 0),
    source     bytea NOT NULL,                    -- content ring: {"subject", "text", "html"}
    variables  text[] NOT NULL,                   -- the names that it reads
    actor      text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT outtray.outtray_now(),
    PRIMARY KEY (app_id, name, version)
);
ALTER TABLE outtray.message ADD COLUMN template text; -- name@version that it was made from
