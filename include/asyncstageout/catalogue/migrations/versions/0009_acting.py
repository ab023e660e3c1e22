"""Kills are told to FTS, and on record; files that were written straight to their destination."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE INDEX transfer_to_kill ON transfer (fts_job) WHERE state = 'KILL';
        ALTER TABLE fts_job ADD COLUMN cancelled_at timestamptz, ADD COLUMN canceller bigint;
        CREATE INDEX fts_job_canceller ON fts_job (canceller) WHERE canceller IS NOT NULL;
        COMMENT ON COLUMN fts_job.cancelled_at IS
            'When FTS was last told to stop files of it: what FTS said before tells nothing of them.';
        COMMENT ON COLUMN fts_job.canceller IS 'Step run that told FTS so.';

        ALTER TABLE transfer ADD COLUMN already_there boolean NOT NULL DEFAULT false;
        ALTER TABLE transfer_history ADD COLUMN already_there boolean NOT NULL DEFAULT false;
        COMMENT ON COLUMN transfer.already_there IS
            'Its job wrote it straight to its destination: it was never moved, and has no temporary copy.';

        -- request: a later retry of its job handed the file over again.
        ALTER TABLE file_event DROP CONSTRAINT file_event_kind_check, ADD CONSTRAINT file_event_kind_check
            CHECK (kind IN ('publication', 'cleaning', 'delivery', 'request'));
    """)


def downgrade() -> None:
    op.execute("""
        -- Events are never deleted: what older code does not know stays, and is not checked.
        ALTER TABLE file_event DROP CONSTRAINT file_event_kind_check, ADD CONSTRAINT file_event_kind_check
            CHECK (kind IN ('publication', 'cleaning', 'delivery')) NOT VALID;
        ALTER TABLE transfer DROP COLUMN already_there;
        ALTER TABLE transfer_history DROP COLUMN already_there;
        DROP INDEX transfer_to_kill;
        ALTER TABLE fts_job DROP COLUMN cancelled_at, DROP COLUMN canceller;
    """)
