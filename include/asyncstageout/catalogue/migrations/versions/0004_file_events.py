"""What happens around a file: one partitioned trail for publication, cleaning and deliveries; its block."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

FILE_EVENT = """
-- Drawn while the file's row is locked, as that of transfer_event.
CREATE SEQUENCE file_event_id CACHE 1;
CREATE TABLE file_event (
    id          bigint NOT NULL DEFAULT nextval('file_event_id'),
    transfer_id bigint NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind        text NOT NULL CHECK (kind IN ('publication', 'cleaning', 'delivery')),
    from_state  text,
    to_state    text NOT NULL,
    subject     text,
    step_run    bigint NOT NULL,
    reason      text
) PARTITION BY RANGE (at);
ALTER SEQUENCE file_event_id OWNED BY file_event.id;
CREATE INDEX file_event_of_transfer ON file_event (transfer_id);
CREATE INDEX file_event_at ON file_event USING brin (at);
CREATE TABLE file_event_default PARTITION OF file_event DEFAULT;
COMMENT ON TABLE file_event IS
    'Append-only audit trail of what happens around a file beside its moves (transfer_event).';
COMMENT ON COLUMN file_event.subject IS
    'publication: the block; cleaning: the storage; delivery: the subscription.';

INSERT INTO file_event (transfer_id, at, kind, from_state, to_state, step_run, reason)
SELECT transfer_id, at, 'publication', from_state::text, to_state::text, step_run, reason
FROM publication_event ORDER BY id;
DROP TABLE publication_event;
CREATE TRIGGER file_event_append_only BEFORE UPDATE OR DELETE ON file_event
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
"""

BLOCK = """
ALTER TABLE transfer ADD COLUMN block_id bigint;
ALTER TABLE transfer_history ADD COLUMN block_id bigint;
COMMENT ON COLUMN transfer.block_id IS 'Block in which the file is, or was, published.';
"""


def upgrade() -> None:
    op.execute(FILE_EVENT)
    op.execute(BLOCK)


def downgrade() -> None:
    op.execute("""
        ALTER TABLE transfer DROP COLUMN block_id;
        ALTER TABLE transfer_history DROP COLUMN block_id;
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
        INSERT INTO publication_event (transfer_id, at, from_state, to_state, step_run, reason)
        SELECT transfer_id, at, from_state::publication_state, to_state::publication_state, step_run, reason
        FROM file_event WHERE kind = 'publication' ORDER BY id;
        CREATE TRIGGER publication_event_append_only BEFORE UPDATE OR DELETE ON publication_event
            FOR EACH ROW EXECUTE FUNCTION refuse_change();
        DROP TABLE file_event;
    """)
