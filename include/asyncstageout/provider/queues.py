"""Which queue of Airflow a task waits in: slow tasks in one of their own, where an operator wants that."""

from __future__ import annotations

from airflow.sdk.configuration import conf

SLOW: str = conf.get("stageout", "slow_queue", fallback="") or conf.get("operators", "default_queue")
"""For tasks that may wait minutes for somebody else: deletion, sweeps, publication, delivery, statistics.

Read when a DAG file is parsed: ``[stageout] slow_queue`` (``AIRFLOW__STAGEOUT__SLOW_QUEUE``) of the
dag-processor. Without it they wait with all others, so that one worker, or a LocalExecutor, does everything.
Somebody must listen on the queue that is named: ``airflow celery worker --queues slow``.
"""
