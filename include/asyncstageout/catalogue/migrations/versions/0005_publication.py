"""Blocks, and what publication needs to know of tasks and files."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TASK = """
ALTER TABLE task
    ADD COLUMN input_dataset text,
    ADD COLUMN dbs text NOT NULL DEFAULT 'dbs_default' CHECK (dbs ~ '^dbs_[a-z0-9_]+$'),
    ADD COLUMN with_parents boolean NOT NULL DEFAULT false,
    ADD COLUMN complete_at timestamptz,
    ADD COLUMN end_asked_at timestamptz;
COMMENT ON COLUMN task.dbs IS 'Airflow connection of the DBS instance in which its files are published.';
COMMENT ON COLUMN task.complete_at IS 'Since when no more files come: its blocks are closed as they are.';
COMMENT ON COLUMN task.end_asked_at IS 'When CRAB was last asked whether the task has ended.';
"""

BLOCK = """
CREATE TYPE block_state AS ENUM ('OPEN', 'CLOSED', 'PUBLISHED', 'FAILED', 'SPLIT');
CREATE TABLE block (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name           text NOT NULL UNIQUE,
    task_id        bigint NOT NULL REFERENCES task,
    dataset        text NOT NULL,
    destination    text NOT NULL,
    dbs            text NOT NULL,
    state          block_state NOT NULL DEFAULT 'OPEN',
    transfer_ids   bigint[] NOT NULL,
    lumis          bigint NOT NULL,
    payload_bytes  bigint NOT NULL,
    size_bytes     bigint NOT NULL,
    opened_at      timestamptz NOT NULL DEFAULT now(),
    oldest_at      timestamptz NOT NULL,
    closed_at      timestamptz,
    close_reason   text,
    due_at         timestamptz NOT NULL DEFAULT now(),
    tries          smallint NOT NULL DEFAULT 0,
    silences       smallint NOT NULL DEFAULT 0,
    silent_since   timestamptz,
    reason         text,
    parent_blocks  text[],
    parent_datasets text[] NOT NULL DEFAULT '{}',
    parents_unknown text[] NOT NULL DEFAULT '{}',
    split_from     bigint REFERENCES block,
    settled_at     timestamptz,
    settled_by     bigint,
    CHECK ((closed_at IS NULL) = (state = 'OPEN')),
    CHECK ((settled_at IS NOT NULL) = (state IN ('PUBLISHED', 'FAILED', 'SPLIT')))
);
CREATE UNIQUE INDEX block_one_open ON block (task_id, dataset, destination, dbs) WHERE state = 'OPEN';
CREATE INDEX block_due ON block (state, due_at) WHERE state IN ('OPEN', 'CLOSED');
CREATE INDEX block_of_task ON block (task_id, id);
CREATE INDEX block_closed ON block (dbs, dataset, closed_at);
CREATE INDEX block_published ON block (dbs, settled_at) WHERE state = 'PUBLISHED';
CREATE INDEX block_settled_by ON block (settled_by);
COMMENT ON TABLE block IS
    'Files that are published together. Once closed, its list never changes: DBS is always told the same.';
COMMENT ON COLUMN block.due_at IS 'OPEN: when a rule may close it; CLOSED: when DBS may be told (again).';
COMMENT ON COLUMN block.tries IS 'Refusals that blame the block.';
COMMENT ON COLUMN block.silences IS 'How often DBS was told about it and gave no answer.';
COMMENT ON COLUMN block.silent_since IS 'When that happened first.';
COMMENT ON COLUMN block.parent_blocks IS
    'Input blocks that have to be in the same DBS first; NULL: nobody has looked for them.';
COMMENT ON COLUMN block.settled_by IS 'Step run that settled it.';
COMMENT ON COLUMN block.parents_unknown IS 'Parents that no DBS knows: they are left out.';

CREATE FUNCTION refuse_other_block() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the file list of block % is what DBS is told, and never changes', OLD.name;
END $$;
CREATE TRIGGER block_exact_list BEFORE UPDATE OF transfer_ids, name, dbs ON block
    FOR EACH ROW WHEN (OLD.state <> 'OPEN' AND (OLD.transfer_ids IS DISTINCT FROM NEW.transfer_ids
        OR OLD.name <> NEW.name OR OLD.dbs <> NEW.dbs))
    EXECUTE FUNCTION refuse_other_block();

COMMENT ON COLUMN transfer.due_at IS
    'When its next step may be taken: an attempt, while it waits; once it arrived, a look of publication.';
CREATE INDEX transfer_publishable ON transfer (due_at, id) WHERE state = 'DONE' AND publication = 'NEW';
"""

MIGRATION = """
CREATE TABLE dbs_migration (
    dbs          text NOT NULL,
    block_name   text NOT NULL,
    request_id   bigint,
    state        text NOT NULL DEFAULT 'OPEN' CHECK (state IN ('OPEN', 'DONE', 'FAILED')),
    tries        smallint NOT NULL DEFAULT 0,
    due_at       timestamptz NOT NULL DEFAULT now(),
    wanted_at    timestamptz NOT NULL DEFAULT now(),
    settled_at   timestamptz,
    reason       text,
    PRIMARY KEY (dbs, block_name),
    CHECK ((settled_at IS NOT NULL) = (state <> 'OPEN'))
);
COMMENT ON TABLE dbs_migration IS
    'Input blocks that a DBS is to copy from the global one, since blocks of ours have parents in them.';
COMMENT ON COLUMN dbs_migration.request_id IS 'DBS''s; NULL: nobody is known to have asked.';
"""

METADATA = """
ALTER TABLE file_metadata
    ADD COLUMN dataset text,
    ADD COLUMN lfn text,
    ADD COLUMN size_bytes bigint,
    ADD COLUMN adler32 text,
    ADD COLUMN lumis integer,
    ADD COLUMN events bigint,
    ADD COLUMN payload_bytes bigint,
    ADD COLUMN problem text;
COMMENT ON COLUMN file_metadata.dataset IS
    'Output dataset, as read from the body. With neither dataset nor problem nobody has read the body yet.';
COMMENT ON COLUMN file_metadata.problem IS 'Why nothing can be published with them.';
"""


def upgrade() -> None:
    for part in (TASK, BLOCK, MIGRATION, METADATA):
        op.execute(part)


def downgrade() -> None:
    op.execute("""
        DO $$ BEGIN
            IF EXISTS (SELECT FROM block WHERE state IN ('OPEN', 'CLOSED')) THEN
                RAISE EXCEPTION 'blocks are under way to DBS: let them end, or the older version loses them';
            END IF;
        END $$;
        ALTER TABLE file_metadata DROP COLUMN dataset, DROP COLUMN lfn, DROP COLUMN size_bytes,
            DROP COLUMN adler32, DROP COLUMN lumis, DROP COLUMN events, DROP COLUMN payload_bytes,
            DROP COLUMN problem;
        DROP INDEX transfer_publishable;
        COMMENT ON COLUMN transfer.due_at IS NULL;
        DROP TABLE dbs_migration, block;
        DROP FUNCTION refuse_other_block;
        DROP TYPE block_state;
        ALTER TABLE task DROP COLUMN input_dataset, DROP COLUMN dbs, DROP COLUMN with_parents,
            DROP COLUMN complete_at, DROP COLUMN end_asked_at;
    """)
