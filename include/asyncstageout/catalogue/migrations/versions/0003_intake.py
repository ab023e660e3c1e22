"""Doors for submitters: who may act for whom, CRAB's own data, file metadata, objects that were taken in."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

DRIVERS = """
ALTER TABLE transfer ADD COLUMN driver text;
ALTER TABLE transfer_history ADD COLUMN driver text;
COMMENT ON COLUMN transfer.driver IS
    'Worker outside this service that moves the file (CRAB''s tm_aso_worker); NULL: our own cycles do.';
ALTER TABLE transfer DROP CONSTRAINT transfer_check1;
ALTER TABLE transfer ADD CONSTRAINT transfer_has_mover
    CHECK (state NOT IN ('ACQUIRED', 'SUBMITTED') OR fts_job IS NOT NULL OR driver IS NOT NULL);
CREATE INDEX transfer_driven ON transfer (driver, state) WHERE driver IS NOT NULL;

-- Pages of a task's files go by id.
DROP INDEX transfer_of_task;
CREATE INDEX transfer_of_task ON transfer (task_id, id);
DROP INDEX transfer_history_task;
CREATE INDEX transfer_history_task ON transfer_history (task_id, id);

CREATE TABLE crab_record (
    transfer_id       bigint PRIMARY KEY,
    start_time        bigint,
    end_time          bigint,
    publish           smallint NOT NULL DEFAULT 0,
    publisher         text,
    fts_id            text,
    fts_instance      text,
    publication_tries smallint NOT NULL DEFAULT 0,
    publication_failure_reason text,
    dbs_blockname     text,
    block_complete    text,
    updated_at        timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE crab_record IS 'What only CRAB''s own clients say and ask of a file, beside its transfer.';

CREATE TABLE publication_event (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transfer_id bigint NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    from_state  publication_state NOT NULL,
    to_state    publication_state NOT NULL,
    step_run    bigint NOT NULL,
    reason      text
);
CREATE INDEX publication_event_of_transfer ON publication_event (transfer_id);
COMMENT ON TABLE publication_event IS 'Append-only audit trail of transfer.publication after arrival.';
CREATE TRIGGER publication_event_append_only BEFORE UPDATE OR DELETE ON publication_event
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE INDEX transfer_to_publish ON transfer (publication, id)
    WHERE state = 'DONE' AND publication IN ('NEW', 'ACQUIRED');
"""

SUBMITTERS = """
CREATE TABLE submitting_service (
    name        text PRIMARY KEY,
    may_act_for text[] NOT NULL DEFAULT '{*}',
    updated_at  timestamptz NOT NULL DEFAULT now(),
    updated_by  text NOT NULL
);
COMMENT ON TABLE submitting_service IS
    'Accounts of services that submit for users: names of users, or * for all.';
CREATE TRIGGER submitting_service_recorded AFTER INSERT OR UPDATE OR DELETE ON submitting_service
    FOR EACH ROW EXECUTE FUNCTION record_config_change();

CREATE TABLE file_metadata (
    request_id  text PRIMARY KEY,
    task        text NOT NULL,
    username    text NOT NULL,
    body        jsonb NOT NULL CHECK (jsonb_typeof(body) = 'object'),
    received_at timestamptz NOT NULL DEFAULT now(),
    received_by text NOT NULL
);
CREATE INDEX file_metadata_of_task ON file_metadata (task, request_id);
COMMENT ON TABLE file_metadata IS
    'What DBS wants to know of a file (lumis, events, parents, configuration), as its submitter says it.';

CREATE TABLE intake_object (
    source      text NOT NULL,
    name        text NOT NULL,
    digest      text NOT NULL,
    taken_at    timestamptz NOT NULL DEFAULT now(),
    step_run    bigint NOT NULL,
    created     integer NOT NULL DEFAULT 0,
    existed     integer NOT NULL DEFAULT 0,
    refused     integer NOT NULL DEFAULT 0,
    problem     text,
    PRIMARY KEY (source, name, digest)
);
COMMENT ON TABLE intake_object IS 'Objects of sources that were taken in, or put aside with a problem.';
"""


def upgrade() -> None:
    for part in (DRIVERS, SUBMITTERS):
        op.execute(part)


def downgrade() -> None:
    op.execute("""
        DROP TABLE intake_object, file_metadata, submitting_service, publication_event, crab_record;
        DROP INDEX transfer_to_publish, transfer_driven, transfer_of_task, transfer_history_task;
        CREATE INDEX transfer_of_task ON transfer (task_id);
        CREATE INDEX transfer_history_task ON transfer_history (task_id);
        ALTER TABLE transfer DROP CONSTRAINT transfer_has_mover;
        ALTER TABLE transfer ADD CONSTRAINT transfer_check1
            CHECK (state NOT IN ('ACQUIRED', 'SUBMITTED') OR fts_job IS NOT NULL);
        ALTER TABLE transfer DROP COLUMN driver;
        ALTER TABLE transfer_history DROP COLUMN driver;
    """)
