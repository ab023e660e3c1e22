"""Acts of people among millions of steps, for the audit (catalogue.run_views)."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE INDEX step_run_by_people ON step_run (id) WHERE actor <> 'airflow' AND task_id <> ALL (ARRAY[
            'api: submit', 'api: metadata', 'api: publication', 'api: crab filetransfers',
            'api: crab fileusertransfers', 'api: crab filemetadata', 'load', 'demo', 'select']);
    """)


def downgrade() -> None:
    op.execute("DROP INDEX step_run_by_people")
