"""What the DAGs make, as assets: Airflow lists what each run did, and other DAGs may follow them."""

from __future__ import annotations

from airflow.sdk import Asset

FTS_JOBS = Asset(name="stageout_fts_jobs", uri="x-stageout://catalogue/fts-jobs", group="stageout")
"""A cycle of ``stageout_transfer`` gave FTS its jobs."""
FILES = Asset(name="stageout_files", uri="x-stageout://catalogue/files", group="stageout")
"""``stageout_sense`` wrote down how files ended."""
BLOCKS = Asset(name="stageout_blocks", uri="x-stageout://catalogue/blocks", group="stageout")
"""``stageout_publish`` published blocks in DBS."""
