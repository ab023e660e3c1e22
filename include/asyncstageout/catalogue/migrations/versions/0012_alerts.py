"""Alerts: what is known of them, who was told, silences; and what Airflow reports of its own tasks."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

ALERTS = """
CREATE TABLE alert (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rule          text NOT NULL,
    subject       text NOT NULL,
    state         text NOT NULL CHECK (state IN ('pending', 'open', 'over')),
    severity      smallint NOT NULL CHECK (severity BETWEEN 1 AND 3),
    sentence      text NOT NULL,
    remedy        text NOT NULL DEFAULT '',
    about         jsonb NOT NULL,
    since         timestamptz,
    first_seen_at timestamptz NOT NULL,
    last_seen_at  timestamptz NOT NULL,
    opened_at     timestamptz,
    over_at       timestamptz,
    CHECK ((opened_at IS NULL) = (state = 'pending')),
    CHECK ((over_at IS NOT NULL) = (state = 'over'))
);
CREATE UNIQUE INDEX alert_one ON alert (rule, subject) WHERE state <> 'over';
CREATE INDEX alert_over ON alert (over_at) WHERE state = 'over';
COMMENT ON TABLE alert IS 'What needed a person. Pending: it may heal yet, and is forgotten if it does.';
COMMENT ON COLUMN alert.subject IS 'With the rule, what makes it the same alert the next time it is looked.';
COMMENT ON COLUMN alert.since IS 'Since when, as far as the finding says.';

CREATE TABLE alert_event (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    alert    bigint NOT NULL,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind     text NOT NULL CHECK (kind IN ('open', 'worse', 'over', 'told', 'refused', 'dropped')),
    channel  text,
    sentence text NOT NULL,
    step_run bigint NOT NULL
);
CREATE INDEX alert_event_of ON alert_event (alert, id);
CREATE INDEX alert_event_at ON alert_event USING brin (at);
CREATE TRIGGER alert_event_append_only BEFORE UPDATE ON alert_event
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
COMMENT ON TABLE alert_event IS 'Append-only: what became of alerts, and who was told.';

CREATE TABLE alert_message (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    alert      bigint REFERENCES alert ON DELETE CASCADE,
    channel    text NOT NULL,
    kind       text NOT NULL CHECK (kind IN ('open', 'worse', 'again', 'over', 'test')),
    severity   smallint NOT NULL,
    sentence   text NOT NULL,
    made_at    timestamptz NOT NULL,
    due_at     timestamptz NOT NULL DEFAULT now(),
    claimed_by bigint,
    tries      smallint NOT NULL DEFAULT 0,
    maybe_told boolean NOT NULL DEFAULT false,
    problem    text,
    told_at    timestamptz,
    dropped_at timestamptz,
    CHECK ((alert IS NULL) = (kind = 'test'))
);
CREATE UNIQUE INDEX alert_message_once ON alert_message (alert, channel, kind) WHERE kind IN ('open', 'over');
CREATE INDEX alert_message_due ON alert_message (channel, due_at)
    WHERE told_at IS NULL AND dropped_at IS NULL;
CREATE INDEX alert_message_made ON alert_message (made_at);
COMMENT ON TABLE alert_message IS
    'What each channel is told of an alert: written with the decision, sent after it.';
COMMENT ON COLUMN alert_message.due_at IS
    'When it may be sent; while claimed_by (a step run) sends it: until when nobody else does.';
COMMENT ON COLUMN alert_message.maybe_told IS
    'It was sent, and nobody knows whether it arrived: it is sent again, and its end is told too.';

CREATE TABLE alert_channel (
    name     text PRIMARY KEY,
    settings jsonb NOT NULL,
    seen_at  timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE alert_channel IS
    'Channels as stageout_alerts last read them from the Airflow Variable, for those who cannot read that.';
"""

CONFIGURATION = """
CREATE TABLE alert_silence (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rule       text NOT NULL,
    subject    text NOT NULL,
    reason     text NOT NULL CHECK (reason <> ''),
    set_by     text NOT NULL,
    starts_at  timestamptz NOT NULL DEFAULT now(),
    ends_at    timestamptz NOT NULL CHECK (ends_at > starts_at),
    ended_at   timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    updated_by text NOT NULL
);
CREATE INDEX alert_silence_open ON alert_silence (ends_at) WHERE ended_at IS NULL;
COMMENT ON TABLE alert_silence IS 'Of which alerts nobody is told for a while (patterns with *), and why.';

CREATE TABLE alert_rule (
    name       text PRIMARY KEY,
    settings   jsonb NOT NULL CHECK (jsonb_typeof(settings) = 'object'),
    updated_at timestamptz NOT NULL DEFAULT now(),
    updated_by text NOT NULL
);
COMMENT ON TABLE alert_rule IS 'Settings of rules (core.alert_rules) that differ from their defaults.';
"""

REPORTS = """
CREATE TABLE airflow_report (
    kind        text NOT NULL CHECK (kind IN ('failed', 'late')),
    dag_id      text NOT NULL,
    run_id      text NOT NULL,
    task_id     text NOT NULL DEFAULT '',
    map_index   integer NOT NULL DEFAULT -1,
    sentence    text NOT NULL,
    reported_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, dag_id, run_id, task_id, map_index)
);
CREATE INDEX airflow_report_at ON airflow_report (reported_at);
COMMENT ON TABLE airflow_report IS
    'What Airflow calls back about: tasks that failed for good, runs that are not over at their deadline.';
"""

RECORDED = ("alert_silence", "alert_rule")


def upgrade() -> None:
    for part in (ALERTS, CONFIGURATION, REPORTS):
        op.execute(part)
    for table in RECORDED:
        op.execute(
            f"CREATE TRIGGER {table}_recorded AFTER INSERT OR UPDATE OR DELETE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION record_config_change()"
        )


def downgrade() -> None:
    op.execute(
        "DROP TABLE airflow_report, alert_rule, alert_silence, alert_channel, alert_message, alert_event,"
        " alert"
    )
