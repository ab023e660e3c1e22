"""The catalogue: transfers, FTS jobs, cycles, steps, events, history, configuration."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TYPES = """
CREATE TYPE transfer_state AS ENUM
    ('NEW', 'ACQUIRED', 'SUBMITTED', 'RETRY', 'DONE', 'FAILED', 'KILL', 'KILLED');
CREATE TYPE publication_state AS ENUM ('NOT_REQUIRED', 'NEW', 'ACQUIRED', 'DONE', 'FAILED', 'RETRY');
CREATE TYPE file_type AS ENUM ('output', 'log');
CREATE TYPE job_state AS ENUM ('PLANNED', 'SUBMITTED', 'ENDED', 'REFUSED');
"""

CONFIGURATION = """
CREATE TABLE site (
    name        text PRIMARY KEY,
    pfn_prefix  text NOT NULL CHECK (pfn_prefix ~ '^[a-z0-9+]+://[^/]+'),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    updated_by  text NOT NULL
);
COMMENT ON TABLE site IS 'Storage of a CMS site; the PFN of an LFN is pfn_prefix || lfn.';

CREATE TABLE link_policy (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source      text REFERENCES site ON DELETE CASCADE,
    destination text REFERENCES site ON DELETE CASCADE,
    settings    jsonb NOT NULL CHECK (jsonb_typeof(settings) = 'object'),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    updated_by  text NOT NULL,
    UNIQUE NULLS NOT DISTINCT (source, destination)
);
COMMENT ON TABLE link_policy IS
    'Settings of core.policies.LinkPolicy for a link, a source, a destination or (both NULL) everything.';
"""

RUNS = """
CREATE TABLE cycle (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    dag_id        text NOT NULL,
    run_id        text NOT NULL,
    params        jsonb NOT NULL DEFAULT '{}',
    created_at    timestamptz NOT NULL DEFAULT now(),
    collected_at  timestamptz,
    grouped_at    timestamptz,
    summarised_at timestamptz,
    UNIQUE (dag_id, run_id)
);
COMMENT ON TABLE cycle IS
    'Business record of one run of the submitting DAG. A stage whose time is set never runs again.';

CREATE TABLE cycle_link (
    cycle_id    bigint NOT NULL REFERENCES cycle ON DELETE CASCADE,
    source      text NOT NULL,
    destination text NOT NULL,
    users       integer NOT NULL,
    in_flight   integer NOT NULL,
    room        integer NOT NULL,
    held        text,
    PRIMARY KEY (cycle_id, source, destination)
);
COMMENT ON TABLE cycle_link IS 'What a cycle saw on each link with waiting files, and why a link was held.';

CREATE TABLE step_run (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    dag_id     text,
    run_id     text,
    task_id    text NOT NULL,
    map_index  integer NOT NULL DEFAULT -1,
    try_number integer NOT NULL DEFAULT 1,
    actor      text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at   timestamptz,
    outcome    text CHECK (outcome IN ('success', 'failed')),
    sentence   text,
    counts     jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX step_run_of_run ON step_run (dag_id, run_id);
CREATE INDEX step_run_open ON step_run (started_at) WHERE ended_at IS NULL;
COMMENT ON TABLE step_run IS
    'One executed Airflow task try, or one command of a person (then dag_id is NULL and task_id names it).';
"""

WORK = """
CREATE TABLE task (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE,
    username   text NOT NULL,
    vo_group   text NOT NULL DEFAULT '',
    vo_role    text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX task_of_user ON task (username);

CREATE TABLE fts_job (
    sid          uuid PRIMARY KEY,
    job_id       uuid UNIQUE,
    fts_server   text NOT NULL,
    cycle_id     bigint NOT NULL REFERENCES cycle,
    shard        smallint,
    source       text NOT NULL,
    destination  text NOT NULL,
    identity     text NOT NULL,
    activity     text NOT NULL,
    priority     smallint NOT NULL,
    params       jsonb NOT NULL,
    transfer_ids bigint[] NOT NULL,
    open_files   integer NOT NULL CHECK (open_files >= 0),
    size_bytes   bigint NOT NULL,
    state        job_state NOT NULL DEFAULT 'PLANNED',
    fts_state    text,
    reason       text,
    planned_at   timestamptz NOT NULL DEFAULT now(),
    submitted_at timestamptz,
    ended_at     timestamptz,
    polled_at    timestamptz,
    next_poll_at timestamptz,
    final_at     timestamptz,
    missing_at   timestamptz
);
CREATE INDEX fts_job_open ON fts_job (next_poll_at) WHERE state = 'SUBMITTED';
CREATE INDEX fts_job_planned ON fts_job (planned_at) WHERE state = 'PLANNED';
CREATE INDEX fts_job_in_flight ON fts_job (source, destination) WHERE state IN ('PLANNED', 'SUBMITTED');
CREATE INDEX fts_job_of_cycle ON fts_job (cycle_id);
CREATE INDEX fts_job_of_link ON fts_job (source, destination, planned_at);
COMMENT ON TABLE fts_job IS
    'One submission attempt with its exact file list, written before the POST. The sid makes it idempotent.';

CREATE TABLE transfer (
    id              bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    request_id      text NOT NULL UNIQUE,
    task_id         bigint NOT NULL REFERENCES task,
    username        text NOT NULL,
    identity        text NOT NULL DEFAULT 'service',
    source          text NOT NULL,
    destination     text NOT NULL,
    source_lfn      text NOT NULL,
    destination_lfn text NOT NULL,
    size_bytes      bigint NOT NULL CHECK (size_bytes >= 0),
    adler32         text CHECK (adler32 ~ '^[0-9a-f]{8}$'),
    type            file_type NOT NULL DEFAULT 'output',
    activity        text NOT NULL DEFAULT 'default',
    priority        smallint NOT NULL DEFAULT 3 CHECK (priority BETWEEN 1 AND 5),
    job_id          text NOT NULL DEFAULT '',
    job_retry_count smallint NOT NULL DEFAULT 0,
    state           transfer_state NOT NULL DEFAULT 'NEW',
    due_at          timestamptz NOT NULL DEFAULT now(),
    attempt         smallint NOT NULL DEFAULT 0,
    fts_job         uuid,
    fts_file_id     bigint,
    failure_category text,
    failure_code    integer,
    failure_scope   text,
    failure_errno   integer,
    failure_reason  text,
    publication     publication_state NOT NULL DEFAULT 'NOT_REQUIRED',
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    fts_finished_at timestamptz,
    ended_at        timestamptz,
    destination_key uuid GENERATED ALWAYS AS (md5(destination || ':' || destination_lfn)::uuid) STORED,
    CHECK ((ended_at IS NOT NULL) = (state IN ('DONE', 'FAILED', 'KILLED'))),
    CHECK (state NOT IN ('ACQUIRED', 'SUBMITTED') OR fts_job IS NOT NULL)
);
-- Two files that write one destination at a time would spoil each other.
CREATE UNIQUE INDEX transfer_one_writer ON transfer (destination_key)
    WHERE state NOT IN ('DONE', 'FAILED', 'KILLED');
CREATE INDEX transfer_pending ON transfer (source, destination, username, priority, due_at, id)
    WHERE state IN ('NEW', 'RETRY');
CREATE INDEX transfer_due ON transfer (due_at) WHERE state IN ('NEW', 'RETRY');
CREATE INDEX transfer_in_job ON transfer (fts_job) WHERE state IN ('ACQUIRED', 'SUBMITTED', 'KILL');
CREATE INDEX transfer_ended ON transfer (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX transfer_of_task ON transfer (task_id);
CREATE INDEX transfer_destination ON transfer USING hash (destination_lfn);
CREATE INDEX transfer_created ON transfer USING brin (created_at);
COMMENT ON TABLE transfer IS 'Live work, one row per output file. Finished rows move to transfer_history.';

CREATE TABLE transfer_history (LIKE transfer INCLUDING COMMENTS) PARTITION BY RANGE (ended_at);
ALTER TABLE transfer_history ADD PRIMARY KEY (id, ended_at);
CREATE INDEX transfer_history_request ON transfer_history (request_id);
CREATE INDEX transfer_history_task ON transfer_history (task_id);
CREATE INDEX transfer_history_destination ON transfer_history USING hash (destination_lfn);
CREATE TABLE transfer_history_default PARTITION OF transfer_history DEFAULT;

-- Order of a file's events, which no clock can disturb: drawn while the file's row is locked, so CACHE 1.
CREATE SEQUENCE transfer_event_id CACHE 1;
CREATE TABLE transfer_event (
    id          bigint NOT NULL DEFAULT nextval('transfer_event_id'),
    transfer_id bigint NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    from_state  transfer_state,
    to_state    transfer_state NOT NULL,
    attempt     smallint NOT NULL,
    fts_job     uuid,
    step_run    bigint NOT NULL,
    reason      text
) PARTITION BY RANGE (at);
ALTER SEQUENCE transfer_event_id OWNED BY transfer_event.id;
CREATE INDEX transfer_event_of_transfer ON transfer_event (transfer_id);
CREATE INDEX transfer_event_at ON transfer_event USING brin (at);
CREATE TABLE transfer_event_default PARTITION OF transfer_event DEFAULT;
COMMENT ON TABLE transfer_event IS 'Append-only audit trail, written by the statement that makes the change.';

-- Unlogged: after a crash FTS is simply asked again, so nobody pays for its durability.
CREATE UNLOGGED TABLE fts_report (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sid         uuid NOT NULL,
    transfer_id bigint,
    fts_file_id bigint,
    job_state   text NOT NULL,
    file_state  text NOT NULL,
    reason      text NOT NULL,
    recoverable boolean,
    finished_at timestamptz,
    dst_size_bytes bigint,
    dst_adler32 text
);
COMMENT ON TABLE fts_report IS
    'What sensing learnt and update_catalogue has not applied yet. transfer_id NULL: the whole job was lost.';
"""

HEALTH = """
CREATE TABLE link_window (
    source      text NOT NULL,
    destination text NOT NULL,
    minute      timestamptz NOT NULL,
    succeeded   integer NOT NULL DEFAULT 0,
    failed      integer NOT NULL DEFAULT 0,
    PRIMARY KEY (source, destination, minute)
);
COMMENT ON TABLE link_window IS
    'Attempts that ended, per link and minute, as far as they speak of the link itself; for its breaker.';

CREATE TABLE link_breaker (
    source      text NOT NULL,
    destination text NOT NULL,
    state       text NOT NULL CHECK (state IN ('open', 'probing')),
    reason      text NOT NULL,
    openings    integer NOT NULL DEFAULT 1,
    opened_at   timestamptz NOT NULL DEFAULT now(),
    probe_at    timestamptz NOT NULL,
    PRIMARY KEY (source, destination)
);
COMMENT ON TABLE link_breaker IS
    'Links on which nothing starts but probes, and why. A link without a row is healthy.';

CREATE TABLE identity_hold (
    fts_server text NOT NULL,
    identity   text NOT NULL,
    reason     text NOT NULL,
    held_at    timestamptz NOT NULL DEFAULT now(),
    retry_at   timestamptz NOT NULL,
    PRIMARY KEY (fts_server, identity)
);
COMMENT ON TABLE identity_hold IS
    'Identities that an FTS does not let in: nothing is submitted for them before retry_at.';
"""

APPEND_ONLY = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME;
END $$;
CREATE TRIGGER transfer_event_append_only BEFORE UPDATE OR DELETE ON transfer_event
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

CREATE FUNCTION refuse_other_list() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the file list of FTS job % is what FTS was told, and never changes', OLD.sid;
END $$;
CREATE TRIGGER fts_job_exact_list BEFORE UPDATE OF transfer_ids ON fts_job
    FOR EACH ROW WHEN (OLD.transfer_ids IS DISTINCT FROM NEW.transfer_ids)
    EXECUTE FUNCTION refuse_other_list();
"""


def upgrade() -> None:
    for part in (TYPES, CONFIGURATION, RUNS, WORK, HEALTH, APPEND_ONLY):
        op.execute(part)


def downgrade() -> None:
    op.execute("""
        DROP TABLE identity_hold, link_breaker, link_window, fts_report, transfer_event, transfer_history,
            transfer, fts_job, task, step_run, cycle_link, cycle, link_policy, site;
        DROP FUNCTION refuse_change, refuse_other_list;
        DROP TYPE job_state, file_type, publication_state, transfer_state;
    """)
