"""Temporary copies that are to be deleted: a queue that follows the files, sites at work, and sweeps."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

QUEUE = """
ALTER TABLE transfer ADD COLUMN cleaned_at timestamptz;
ALTER TABLE transfer_history ADD COLUMN cleaned_at timestamptz;
COMMENT ON COLUMN transfer.cleaned_at IS
    'From then on the temporary copy is being deleted, or gone; before ended_at: that of an earlier attempt.';

CREATE TABLE cleaning (
    transfer_id bigint NOT NULL,
    source      text NOT NULL,
    source_lfn  text NOT NULL,
    destination text NOT NULL,
    username    text NOT NULL,
    identity    text NOT NULL,
    activity    text NOT NULL,
    size_bytes  bigint NOT NULL,
    known_at    timestamptz NOT NULL,
    ended_as    transfer_state,
    ended_at    timestamptz,
    awaits_publication boolean NOT NULL DEFAULT false,
    state       text NOT NULL DEFAULT 'WAITING' CHECK (state IN ('WAITING', 'DELETING', 'FAILED')),
    due_at      timestamptz,
    tries       smallint NOT NULL DEFAULT 0,
    step_run    bigint,
    failed_at   timestamptz,
    reason      text,
    PRIMARY KEY (transfer_id, source),
    CHECK ((due_at IS NULL) = (ended_as IS NULL)),
    CHECK ((state = 'DELETING') = (step_run IS NOT NULL))
);
CREATE INDEX cleaning_due ON cleaning (source, due_at);
CREATE INDEX cleaning_failed ON cleaning (failed_at) WHERE state = 'FAILED';
COMMENT ON TABLE cleaning IS
    'Temporary copies of files that have ended, with all that is needed to find them. Kept by triggers.';
COMMENT ON COLUMN cleaning.source IS
    'Where the copy is: another site than that of the file if its job ran anew elsewhere.';
COMMENT ON COLUMN cleaning.known_at IS
    'The copy that was to be moved is not younger: when FTS got its last attempt, or else when it ended.';
COMMENT ON COLUMN cleaning.due_at IS
    'Not to be looked at before. DELETING: then the claim ends. NULL: the file is on its way again.';
"""

WORK = """
CREATE TABLE cleaning_site (
    site          text PRIMARY KEY,
    step_run      bigint,
    busy_until    timestamptz,
    paused_until  timestamptz,
    failing_since timestamptz,
    pauses        smallint NOT NULL DEFAULT 0,
    reason        text
);
COMMENT ON TABLE cleaning_site IS
    'Who deletes at a site now, so that its rate holds; and until when a silent storage is left alone.';

CREATE TABLE sweep (
    site        text PRIMARY KEY,
    older_than_days integer NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT now(),
    ended_at    timestamptz,
    step_run    bigint NOT NULL,
    to_visit    text[] NOT NULL,
    visited     bigint NOT NULL DEFAULT 0,
    closed      bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE sweep IS
    'The walk through the temporary areas of a site. to_visit: directories (LFN), the last one is next.';
COMMENT ON COLUMN sweep.closed IS 'Directories of which the storage did not tell what is in them.';

CREATE TABLE sweep_area (
    site         text NOT NULL REFERENCES sweep ON DELETE CASCADE,
    area         text NOT NULL,
    files        bigint NOT NULL,
    size_bytes   bigint NOT NULL,
    orphans      bigint NOT NULL,
    orphan_bytes bigint NOT NULL,
    oldest_at    timestamptz,
    PRIMARY KEY (site, area)
);
COMMENT ON TABLE sweep_area IS 'What the sweep of a site has found in the area of a user or group.';

CREATE TABLE orphan_deletion (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    site        text NOT NULL,
    source_lfn  text NOT NULL,
    size_bytes  bigint NOT NULL,
    modified_at timestamptz NOT NULL,
    step_run    bigint NOT NULL,
    outcome     text CHECK (outcome IN ('DELETED', 'GONE', 'LEFT', 'FAILED')),
    reason      text
);
CREATE INDEX orphan_deletion_at ON orphan_deletion (at);
COMMENT ON TABLE orphan_deletion IS
    'Orphans that a sweep deleted, written down before the storage was told. outcome NULL: not known.';
"""

# Whoever moves a file cleans up behind it (driver). What arrived as DONE never had a temporary copy.
WANTED = """
CREATE FUNCTION has_temporary_copy(state transfer_state, attempt smallint, driver text, source text,
    source_lfn text, destination text, destination_lfn text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT driver IS NULL AND source_lfn LIKE '/store/temp/%'
        AND (source, source_lfn) IS DISTINCT FROM (destination, destination_lfn)
        AND NOT (state = 'DONE' AND attempt = 0)
$$;
"""

# A file's own row is the truth; events only say which rows to look at. The statement that moved a file holds
# its row, and everybody locks a file before its copies, so that nobody waits for anybody here. Rows are found
# by arrays of ids: a plan that was made for a join with many events would be used for one, too.
FOLLOW_FILES = """
CREATE FUNCTION cleaning_follows_files() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    moved bigint[];
    again bigint[];
    ended bigint[];
BEGIN
    IF current_setting('stageout.moving', true) = 'on' THEN
        RETURN NULL;
    END IF;
    moved := ARRAY(SELECT DISTINCT transfer_id FROM fresh
        WHERE to_state IN ('DONE', 'FAILED', 'KILLED') OR from_state IN ('DONE', 'FAILED', 'KILLED'));
    IF moved = '{}' THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(id) FILTER (WHERE ended_at IS NULL), array_agg(id) FILTER (WHERE ended_at IS NOT NULL)
    INTO again, ended FROM transfer WHERE id = ANY(moved);
    IF again IS NOT NULL THEN
        -- Its source is needed. A copy elsewhere rests: it may be the same under the name of another site.
        DELETE FROM cleaning c USING transfer t
        WHERE c.transfer_id = ANY(again) AND t.id = c.transfer_id AND t.source = c.source;
        UPDATE cleaning SET state = 'WAITING', step_run = NULL, tries = 0, failed_at = NULL,
            ended_as = NULL, ended_at = NULL, due_at = NULL
        WHERE transfer_id = ANY(again);
    END IF;
    IF ended IS NOT NULL THEN
        UPDATE cleaning c SET ended_as = t.state, ended_at = t.ended_at, due_at = now(),
            awaits_publication = t.publication NOT IN ('NOT_REQUIRED', 'DONE', 'FAILED')
        FROM transfer t WHERE c.transfer_id = ANY(ended) AND t.id = c.transfer_id
            AND c.ended_at IS DISTINCT FROM t.ended_at;
        INSERT INTO cleaning (transfer_id, source, source_lfn, destination, username, identity, activity,
            size_bytes, known_at, ended_as, ended_at, awaits_publication, due_at)
        SELECT t.id, t.source, t.source_lfn, t.destination, t.username, t.identity, t.activity,
            t.size_bytes, coalesce(j.submitted_at, t.ended_at), t.state, t.ended_at,
            t.publication NOT IN ('NOT_REQUIRED', 'DONE', 'FAILED'), now()
        FROM transfer t LEFT JOIN fts_job j ON j.sid = t.fts_job
        WHERE t.id = ANY(ended) AND has_temporary_copy(
            t.state, t.attempt, t.driver, t.source, t.source_lfn, t.destination, t.destination_lfn)
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER transfer_event_to_cleaning AFTER INSERT ON transfer_event
    REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION cleaning_follows_files();

-- The job of a file ran anew at another site: what it left at the first is to be deleted, once the file ends.
CREATE FUNCTION cleaning_follows_sources() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO cleaning (transfer_id, source, source_lfn, destination, username, identity, activity,
        size_bytes, known_at, ended_as, ended_at, due_at)
    SELECT OLD.id, OLD.source, OLD.source_lfn, OLD.destination, OLD.username, OLD.identity, OLD.activity,
        OLD.size_bytes, now(), CASE WHEN NEW.ended_at IS NOT NULL THEN NEW.state END, NEW.ended_at,
        CASE WHEN NEW.ended_at IS NOT NULL THEN now() END
    WHERE has_temporary_copy(OLD.state, OLD.attempt, OLD.driver, OLD.source, OLD.source_lfn, OLD.destination,
        OLD.destination_lfn)
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER transfer_source_to_cleaning AFTER UPDATE OF source ON transfer
    FOR EACH ROW WHEN (OLD.source <> NEW.source) EXECUTE FUNCTION cleaning_follows_sources();
"""

FOLLOW_PUBLICATION = """
CREATE FUNCTION cleaning_follows_publication() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    begun bigint[];
    ended bigint[];
BEGIN
    IF current_setting('stageout.moving', true) = 'on' THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(transfer_id) FILTER (WHERE awaits), array_agg(transfer_id) FILTER (WHERE NOT awaits)
    INTO begun, ended FROM (
        SELECT DISTINCT ON (transfer_id) transfer_id,
            to_state NOT IN ('NOT_REQUIRED', 'DONE', 'FAILED') AS awaits
        FROM fresh WHERE kind = 'publication' ORDER BY transfer_id, id DESC
    ) e;
    IF begun IS NOT NULL THEN
        UPDATE cleaning SET awaits_publication = true
        WHERE transfer_id = ANY(begun) AND NOT awaits_publication;
    END IF;
    IF ended IS NOT NULL THEN
        UPDATE cleaning SET awaits_publication = false,
            due_at = CASE WHEN state = 'WAITING' AND due_at > now() THEN now() ELSE due_at END
        WHERE transfer_id = ANY(ended) AND awaits_publication;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER file_event_to_cleaning AFTER INSERT ON file_event
    REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION cleaning_follows_publication();
"""

# What ended before there was cleaning still has its temporary copy.
QUEUE_WHAT_ENDED = """
INSERT INTO cleaning (transfer_id, source, source_lfn, destination, username, identity, activity, size_bytes,
    known_at, ended_as, ended_at, awaits_publication, due_at)
SELECT t.id, t.source, t.source_lfn, t.destination, t.username, t.identity, t.activity, t.size_bytes,
    coalesce(j.submitted_at, t.ended_at), t.state, t.ended_at,
    t.publication NOT IN ('NOT_REQUIRED', 'DONE', 'FAILED'), now()
FROM {table} t LEFT JOIN fts_job j ON j.sid = t.fts_job
WHERE t.ended_at IS NOT NULL AND has_temporary_copy(
    t.state, t.attempt, t.driver, t.source, t.source_lfn, t.destination, t.destination_lfn)
"""


def upgrade() -> None:
    for part in (QUEUE, WORK, WANTED, FOLLOW_FILES, FOLLOW_PUBLICATION):
        op.execute(part)
    for table in ("transfer", "transfer_history"):
        op.execute(QUEUE_WHAT_ENDED.format(table=table))


def downgrade() -> None:
    op.execute("""
        DROP TRIGGER file_event_to_cleaning ON file_event;
        DROP TRIGGER transfer_source_to_cleaning ON transfer;
        DROP TRIGGER transfer_event_to_cleaning ON transfer_event;
        DROP FUNCTION cleaning_follows_publication, cleaning_follows_sources, cleaning_follows_files,
            has_temporary_copy;
        DROP TABLE orphan_deletion, sweep_area, sweep, cleaning_site, cleaning;
        ALTER TABLE transfer DROP COLUMN cleaned_at;
        ALTER TABLE transfer_history DROP COLUMN cleaned_at;
    """)
