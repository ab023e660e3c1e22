"""The latest failed attempts of a kind are found without reading all events."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Of a few percent of the events.
    op.execute(
        "CREATE INDEX transfer_event_failed ON transfer_event (failure_category, at)"
        " WHERE failure_category IS NOT NULL"
    )


def downgrade() -> None:
    op.execute("DROP INDEX transfer_event_failed")
