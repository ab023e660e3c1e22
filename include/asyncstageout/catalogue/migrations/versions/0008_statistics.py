"""Hourly roll-ups, and until when the past is kept."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

EVENTS = """
-- The file's row only knows its last failure.
ALTER TABLE transfer_event ADD COLUMN failure_category text;
COMMENT ON COLUMN transfer_event.failure_category IS
    'Of an attempt that failed (to RETRY, FAILED): core.failures.Category.';

-- What is left of dropped days: the events of files that still were under way then.
CREATE TABLE transfer_event_kept PARTITION OF transfer_event FOR VALUES FROM (MINVALUE) TO ('1970-01-01Z');
CREATE TABLE file_event_kept PARTITION OF file_event FOR VALUES FROM (MINVALUE) TO ('1970-01-01Z');
"""

ROLL_UPS = """
CREATE TYPE statistic_kind AS ENUM ('total', 'link', 'source', 'destination', 'user', 'task');

CREATE TABLE statistic_hour (
    kind            statistic_kind NOT NULL,
    at              timestamptz NOT NULL,
    subject         text NOT NULL,
    other           text NOT NULL,
    arrived         bigint NOT NULL,
    arrived_bytes   bigint NOT NULL,
    sent_again      bigint NOT NULL,
    sent_again_bytes bigint NOT NULL,
    accepted        bigint NOT NULL,
    accepted_bytes  bigint NOT NULL,
    retried         bigint NOT NULL,
    retried_bytes   bigint NOT NULL,
    done            bigint NOT NULL,
    done_bytes      bigint NOT NULL,
    failed          bigint NOT NULL,
    failed_bytes    bigint NOT NULL,
    killed          bigint NOT NULL,
    killed_bytes    bigint NOT NULL,
    attempts_done   bigint NOT NULL,
    attempts_failed bigint NOT NULL,
    failures        jsonb,
    around          jsonb,
    accepted_after  integer[],
    in_fts          integer[],
    settled_after   integer[],
    done_after      integer[],
    PRIMARY KEY (kind, at, subject, other)
) PARTITION BY RANGE (at);
CREATE INDEX statistic_hour_of ON statistic_hour (kind, subject, other, at);
CREATE TABLE statistic_hour_default PARTITION OF statistic_hour DEFAULT;
COMMENT ON TABLE statistic_hour IS 'What happened in each hour that is over, by what it happened to.';
COMMENT ON COLUMN statistic_hour.subject IS
    'link, source: the source; destination, user, task: its name; total: empty.';
COMMENT ON COLUMN statistic_hour.other IS 'link: the destination; task: its user; else empty.';
COMMENT ON COLUMN statistic_hour.failures IS 'Attempts that failed, by category.';
COMMENT ON COLUMN statistic_hour.around IS 'Events of file_event, by kind and the state they lead to.';
COMMENT ON COLUMN statistic_hour.done_after IS '{{bucket, files}, ...}: core.delays says what a bucket is.';

CREATE TABLE statistic_day (LIKE statistic_hour INCLUDING INDEXES) PARTITION BY RANGE (at);
CREATE TABLE statistic_day_default PARTITION OF statistic_day DEFAULT;
COMMENT ON TABLE statistic_day IS 'The sums of the hours of each day (UTC) that is over.';

CREATE TABLE statistic_slice (LIKE statistic_hour INCLUDING INDEXES);
COMMENT ON TABLE statistic_slice IS 'The minutes of hours that are not rolled up yet, until their hour is.';

CREATE TABLE statistic_minute (LIKE statistic_hour INCLUDING INDEXES);
COMMENT ON TABLE statistic_minute IS 'Totals, minute by minute, without delays.';

CREATE TABLE rolled_hour (
    hour      timestamptz PRIMARY KEY CHECK (hour = date_trunc('hour', hour, 'UTC')),
    until     timestamptz NOT NULL CHECK (until > hour AND until <= hour + interval '1 hour'),
    events    bigint NOT NULL,
    rolled_at timestamptz NOT NULL DEFAULT now(),
    step_run  bigint NOT NULL
);
COMMENT ON TABLE rolled_hour IS 'Hours that were counted, how far, and how many events there were then.';
"""

RETENTION = """
CREATE TABLE retention (
    name       text PRIMARY KEY,
    value      jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    updated_by text NOT NULL
);
COMMENT ON TABLE retention IS 'Settings of core.retention.Retention that differ from their defaults.';
CREATE TRIGGER retention_recorded AFTER INSERT OR UPDATE OR DELETE ON retention
    FOR EACH ROW EXECUTE FUNCTION record_config_change();

CREATE TABLE horizon (
    table_name text NOT NULL,
    part       text NOT NULL,
    until      timestamptz NOT NULL,
    row_count  bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    step_run   bigint NOT NULL,
    PRIMARY KEY (table_name, part)
);
COMMENT ON TABLE horizon IS
    'What of the past is gone: a row for each dropped partition, and one without a part for deleted rows.';

CREATE TABLE exported_day (
    table_name  text NOT NULL,
    day         date NOT NULL,
    location    text NOT NULL,
    row_count   bigint NOT NULL,
    size_bytes  bigint NOT NULL,
    exported_at timestamptz NOT NULL DEFAULT now(),
    step_run    bigint NOT NULL,
    PRIMARY KEY (table_name, day)
);
COMMENT ON TABLE exported_day IS 'Days that were written to Parquet files, where, and with how many rows.';

CREATE INDEX fts_job_ended ON fts_job (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX transfer_history_ended ON transfer_history USING brin (ended_at);
CREATE INDEX cycle_created ON cycle (created_at);
CREATE INDEX intake_object_taken ON intake_object (taken_at);
CREATE INDEX file_metadata_received ON file_metadata USING brin (received_at);
"""


def upgrade() -> None:
    for part in (EVENTS, ROLL_UPS, RETENTION):
        op.execute(part)


def downgrade() -> None:
    op.execute("""
        DROP INDEX file_metadata_received, intake_object_taken, cycle_created, fts_job_ended,
            transfer_history_ended;
        DROP TABLE exported_day, horizon, retention, rolled_hour, statistic_minute, statistic_slice,
            statistic_day, statistic_hour;
        DROP TYPE statistic_kind;
        DO $$ BEGIN
            IF EXISTS (SELECT FROM transfer_event_kept) OR EXISTS (SELECT FROM file_event_kept) THEN
                RAISE EXCEPTION 'events of dropped days have no place in the older catalogue';
            END IF;
        END $$;
        DROP TABLE transfer_event_kept, file_event_kept;
        ALTER TABLE transfer_event DROP COLUMN failure_category;
    """)
