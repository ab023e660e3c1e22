"""A long past: which requests it has, in one place; and the few files, past and live, that did not arrive."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# Filled in the order of its key before it has an index: both are written once, from one end to the other.
PAST_REQUESTS = """
CREATE TABLE past_request (
    key         bigint NOT NULL,
    transfer_id bigint NOT NULL
);
INSERT INTO past_request
SELECT hashtextextended(request_id, 0), id FROM transfer_history ORDER BY 1, 2;
ALTER TABLE past_request ADD PRIMARY KEY (key, transfer_id);
COMMENT ON TABLE past_request IS 'Which files may be in the history: one look tells that one is not.';
COMMENT ON COLUMN past_request.key IS 'hashtextextended(request_id, 0)';
"""

# Pages of files that failed or were killed: few of many, so that the newest hundred may be years apart.
NOT_DONE = """
CREATE INDEX transfer_history_not_done ON transfer_history (state, id) WHERE state <> 'DONE';
CREATE INDEX transfer_failed ON transfer (state, id) WHERE state IN ('FAILED', 'KILLED');
"""


def upgrade() -> None:
    op.execute(PAST_REQUESTS)
    op.execute(NOT_DONE)


def downgrade() -> None:
    op.execute("DROP INDEX transfer_history_not_done, transfer_failed")
    op.execute("DROP TABLE past_request")
