"""Subscriptions, and what downstream services still have to hear."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SUBSCRIPTIONS = """
ALTER TABLE transfer ADD COLUMN origin text;
ALTER TABLE transfer_history ADD COLUMN origin text;
COMMENT ON COLUMN transfer.origin IS
    'Source of stageout_intake that brought the file; NULL: it was handed in.';

CREATE TABLE subscription (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL UNIQUE,
    kind        text NOT NULL CHECK (kind IN ('webhook', 'rucio', 'crab')),
    conn_id     text NOT NULL,
    events      text[] NOT NULL CHECK (cardinality(events) > 0),
    username    text,
    source      text REFERENCES site,
    destination text REFERENCES site,
    origin      text,
    settings    jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(settings) = 'object'),
    state       text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'off')),
    reason      text,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    updated_by  text NOT NULL
);
COMMENT ON TABLE subscription IS
    'Who is told of which events of which files (core.subscriptions). Paused: told later; off: never.';
CREATE TRIGGER subscription_recorded AFTER INSERT OR UPDATE OR DELETE ON subscription
    FOR EACH ROW EXECUTE FUNCTION record_config_change();

CREATE TABLE subscription_health (
    subscription  bigint PRIMARY KEY REFERENCES subscription ON DELETE CASCADE,
    failures      integer NOT NULL,
    failing_since timestamptz NOT NULL DEFAULT now(),
    retry_at      timestamptz NOT NULL,
    problem       text NOT NULL,
    needs_person  boolean NOT NULL
);
COMMENT ON TABLE subscription_health IS
    'Receivers that cannot be told anything now, and why. One without a row takes what it is sent.';
"""

# No foreign key: its check would cost each event more than the rest of its message (ADR 0015).
OUTBOX = """
-- Order of a file's messages, which no clock can disturb: drawn while the file's row is locked.
CREATE TABLE outbox (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription bigint NOT NULL,
    transfer_id  bigint NOT NULL,
    event_kind   text NOT NULL CHECK (event_kind IN ('transfer', 'publication')),
    event_id     bigint NOT NULL,
    to_state     text NOT NULL,
    at           timestamptz NOT NULL,
    attempt      smallint,
    fts_job      uuid,
    block        text,
    reason       text,
    due_at       timestamptz NOT NULL DEFAULT now(),
    claimed_by   bigint,
    tries        smallint NOT NULL DEFAULT 0,
    problem      text,
    dead_at      timestamptz
);
CREATE INDEX outbox_of_file ON outbox (subscription, transfer_id, id);
CREATE INDEX outbox_due ON outbox (subscription, due_at, id) WHERE dead_at IS NULL;
CREATE INDEX outbox_dead ON outbox (subscription, id) WHERE dead_at IS NOT NULL;
COMMENT ON TABLE outbox IS
    'A message for each event that a subscriber has not taken yet; written by triggers on the events.';
COMMENT ON COLUMN outbox.due_at IS
    'When it may be sent; while claimed_by (a step run) sends it: until when nobody else does.';
"""

# The lock makes a removal wait for events that still reckon with the subscription. Events of deliveries do
# not take it: their statement holds messages for which the removal may wait.
TRIGGER = """
CREATE FUNCTION tell_subscribers_of_{kind}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('stageout.moving', true) = 'on'
        OR NOT EXISTS (SELECT FROM subscription WHERE state <> 'off')
        OR NOT EXISTS (SELECT FROM added e WHERE {condition})
    THEN
        RETURN NULL;
    END IF;
    INSERT INTO outbox (subscription, transfer_id, event_kind, event_id, to_state, at, attempt, fts_job,
        block, reason)
    SELECT s.id, e.transfer_id, '{kind}', e.id, e.to_state, e.at, {columns}, e.reason
    FROM (SELECT * FROM subscription WHERE state <> 'off' FOR KEY SHARE) s
        JOIN added e ON '{kind}:' || e.to_state = ANY(s.events) AND {condition}
    WHERE num_nonnulls(s.username, s.source, s.destination, s.origin) = 0 OR EXISTS (
        -- By its key in any case: a plan that was made for many events is used for one, too.
        SELECT FROM transfer t WHERE t.id = e.transfer_id
            AND (s.username IS NULL OR s.username = t.username) AND (s.source IS NULL OR s.source = t.source)
            AND (s.destination IS NULL OR s.destination = t.destination)
            AND (s.origin IS NULL OR s.origin = t.origin)
    )
    ORDER BY e.id;
    RETURN NULL;
END $$;
CREATE TRIGGER {table}_told AFTER INSERT ON {table} REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION tell_subscribers_of_{kind}();
"""
TRIGGERS = (
    TRIGGER.format(
        table="transfer_event", kind="transfer", columns="e.attempt, e.fts_job, NULL", condition="true"
    ),
    TRIGGER.format(
        table="file_event",
        kind="publication",
        columns="NULL, NULL, e.subject",
        condition="e.kind = 'publication'",
    ),
)


def upgrade() -> None:
    for part in (SUBSCRIPTIONS, OUTBOX, *TRIGGERS):
        op.execute(part)


def downgrade() -> None:
    op.execute("""
        DROP TRIGGER transfer_event_told ON transfer_event;
        DROP TRIGGER file_event_told ON file_event;
        DROP FUNCTION tell_subscribers_of_transfer, tell_subscribers_of_publication;
        DROP TABLE outbox, subscription_health, subscription;
        ALTER TABLE transfer DROP COLUMN origin;
        ALTER TABLE transfer_history DROP COLUMN origin;
    """)
