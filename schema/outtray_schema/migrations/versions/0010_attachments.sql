-- MIME: files that many messages carry are stored once.
--
-- The release before reads and writes none of this. It cannot read the head of a message that refers to such a file
-- (on purpose: it would send the mail without it) and tries again later, so change workers before producers.

-- A file of an app as it stands in MIME: base64, in lines. Found by a hash that is keyed per app: a plain one would tell
-- one app what another has sent. Two that were stored at the same time under one hash do no harm; the newer one is used.
CREATE TABLE outtray.attachment (
    id         uuid PRIMARY KEY,
    app_id     uuid NOT NULL,
    digest     bytea NOT NULL,
    size       bigint NOT NULL CHECK (size > 0),  -- bytes of base64, line ends included
    created_at timestamptz NOT NULL DEFAULT outtray.outtray_now()
);
CREATE INDEX attachment_digest ON outtray.attachment (app_id, digest);

-- In pieces of 1 MiB, each encrypted by itself.
CREATE TABLE outtray.attachment_chunk (
    attachment_id uuid NOT NULL REFERENCES outtray.attachment (id) ON DELETE CASCADE,
    n             integer NOT NULL,
    data          bytea NOT NULL,
    PRIMARY KEY (attachment_id, n)
);
ALTER TABLE outtray.attachment_chunk ALTER COLUMN data SET STORAGE EXTERNAL;

-- Whose content needs which file. It goes with the content, by retention or erasure; then pruning takes the file, once
-- no other content needs it.
CREATE TABLE outtray.content_attachment (
    message_id    uuid NOT NULL REFERENCES outtray.content (message_id) ON DELETE CASCADE,
    attachment_id uuid NOT NULL REFERENCES outtray.attachment (id),
    PRIMARY KEY (message_id, attachment_id)
);
CREATE INDEX content_attachment_needed ON outtray.content_attachment (attachment_id);
