"""What every DAG calls when a task of it fails for good, or a run of it is late: the catalogue is told.

Whether anybody else is told, when and how often is decided with all other alerts (``steps.alerts``): a
callback that wrote mails itself would write one for every failure. Imports are light: DAG files import this.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

# The package's stub does not know them.
from airflow.sdk import DeadlineAlert, DeadlineReference, SyncCallback  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from asyncstageout.catalogue.airflow_reports import Report

logger = logging.getLogger(__name__)


def deadline(minutes: int) -> list[DeadlineAlert]:
    """Return the deadline of a DAG's runs, from when they are queued."""
    return [
        DeadlineAlert(
            name=f"over within {minutes} minutes",
            reference=DeadlineReference.DAGRUN_QUEUED_AT,
            interval=timedelta(minutes=minutes),
            callback=SyncCallback("asyncstageout.provider.watched.run_is_late", kwargs={"minutes": minutes}),
        )
    ]


def task_failed(context: Mapping[str, Any]) -> None:
    """Note a task that Airflow gives up; ``on_failure_callback`` of all tasks."""
    from asyncstageout.catalogue.airflow_reports import Report  # noqa: PLC0415 - only when something failed

    ti, error = context["ti"], context.get("exception")
    said = (
        f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error or "no reason")
    )
    index = -1 if ti.map_index is None else ti.map_index
    _note(Report("failed", ti.dag_id, ti.run_id, said, ti.task_id, index))


def run_is_late(minutes: int, context: Mapping[str, Any]) -> None:
    """Note a run that is not over at its deadline; Airflow calls it in its executor.

    :param context: ``dag_run``, as the REST API shows it, and ``deadline``; there is nothing more.
    """
    from asyncstageout.catalogue.airflow_reports import Report  # noqa: PLC0415 - only when something is late

    run = context["dag_run"]
    said = f"{run['dag_id']}: run {run['dag_run_id']} is not over after {minutes} minutes ({run['state']})"
    _note(Report("late", run["dag_id"], run["dag_run_id"], said))


def _note(report: Report) -> None:
    import psycopg  # noqa: PLC0415

    from asyncstageout.catalogue.airflow_reports import note_report  # noqa: PLC0415
    from asyncstageout.provider.running import catalogue  # noqa: PLC0415

    try:
        with catalogue() as conn:
            note_report(conn, report)
    except psycopg.OperationalError as error:
        # stageout_alerts tells of a silent catalogue without it.
        logger.error("not noted, since the catalogue does not answer: %s (%s)", report, error)
