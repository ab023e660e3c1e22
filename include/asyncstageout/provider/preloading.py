"""What processes that fork others import once, so that what they fork inherits it.

A scheduler with LocalExecutor and a Celery worker fork each task, a DAG processor each reading of a DAG file.
``local_settings.py`` calls this where Airflow starts. Measured over five minutes of the reference load: tasks
took 27 CPU-seconds and not 49, the DAG processor 7 and not 21. Code of the package that changes counts after
a restart.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

FORKING = frozenset({"scheduler", "worker", "dag-processor"})
"""Airflow's commands that fork."""

MODULES = (
    "airflow.providers.standard.decorators.branch_python",
    "airflow.providers.standard.decorators.python",
    "airflow.providers.standard.decorators.short_circuit",
    "airflow.providers.standard.operators.empty",
    "airflow.providers.standard.operators.python",
    "airflow.sdk.definitions.decorators",
    "airflow.sdk.definitions.retry_policy",
    "airflow.sdk.definitions.timetables.interval",
    "airflow.sdk.definitions.timetables.trigger",
    "airflow.sdk.execution_time.request_handlers",
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "airflow.serialization.definitions.assets",
    "airflow.timetables.base",
    "asyncstageout.provider.acting_tasks",
    "asyncstageout.provider.alerting",
    "asyncstageout.provider.clean_tasks",
    "asyncstageout.provider.credential_tasks",
    "asyncstageout.provider.cycle",
    "asyncstageout.provider.forms",
    "asyncstageout.provider.intake",
    "asyncstageout.provider.kill_triggers",
    "asyncstageout.provider.operators",
    "asyncstageout.provider.outbox",
    "asyncstageout.provider.publication",
    "asyncstageout.provider.queues",
    "asyncstageout.provider.sensors",
    "asyncstageout.provider.site_tasks",
    "asyncstageout.provider.statistics",
    "asyncstageout.provider.triggers",
    "asyncstageout.provider.watched",
)
"""What our DAGs import, at once or in their tasks, and what Airflow imports for them."""


def preload(argv: Sequence[str]) -> None:
    """Import :data:`MODULES` if this is a command that forks. A module that is missing is an error."""
    if FORKING & set(argv):
        for name in MODULES:
            importlib.import_module(name)
