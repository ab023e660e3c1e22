"""The bodies of the tasks of ``stageout_statistics``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from airflow.sdk import ObjectStoragePath

from asyncstageout.catalogue.retention import retention
from asyncstageout.core.retention import Retention
from asyncstageout.provider.airflow_cleaning import clean_before
from asyncstageout.provider.running import run_step
from asyncstageout.steps import retention as keeping
from asyncstageout.steps.export import Place
from asyncstageout.steps.recording import Summary
from asyncstageout.steps.statistics import roll_up as roll_up_step
from asyncstageout.steps.statistics import say_what_happened

Context = Mapping[str, Any]
XCom = dict[str, Any]

HOUR = timedelta(hours=1)
CLEANING_HOUR = 4
"""Airflow's own tables are cleaned by the run of this hour, UTC."""


def roll_up(context: Context) -> XCom:
    """Count the hours of the run; return the summary, or nothing in a backfill: then the rest is skipped.

    :raises EventsGone: the events of all of them were dropped.
    """
    start, end = interval_of(context)
    is_backfill = _is_backfill(context)

    def step(conn: Any, step_run: int) -> Summary:
        return roll_up_step(conn, start, end, now=_now(), step_run=step_run, catches_up=not is_backfill)

    summary = run_step(context, step).as_xcom()
    context["ti"].xcom_push("summary", summary)
    return {} if is_backfill else summary


def export(context: Context) -> XCom:
    """Write days to Parquet, where that is set.

    :raises ParquetMissing: the workers have no pyarrow.
    """
    return run_step(
        context, lambda conn, step_run: keeping.export_due(conn, place_of, now=_now(), step_run=step_run)
    ).as_xcom()


def partitions(context: Context) -> XCom:
    dry_run = bool(context["params"]["dry_run"])
    return run_step(
        context,
        lambda conn, step_run: keeping.turn_partitions(conn, now=_now(), step_run=step_run, dry_run=dry_run),
    ).as_xcom()


def prune(context: Context) -> XCom:
    if context["params"]["dry_run"]:
        return run_step(context, lambda *_: Summary("Nothing is deleted by a dry run")).as_xcom()
    return run_step(
        context, lambda conn, step_run: keeping.prune_rows(conn, now=_now(), step_run=step_run)
    ).as_xcom()


def clean_airflow(context: Context) -> XCom:
    """Clean Airflow's own tables, once a day or if the form says so.

    :raises CleaningFailed: ``airflow db clean`` ended with an error, or not in time.
    """
    is_due = interval_of(context)[1].hour == CLEANING_HOUR or context["params"]["clean_airflow"]

    def step(conn: Any, _: int) -> Summary:
        if context["params"]["dry_run"] or not is_due:
            return Summary(f"Airflow's tables are cleaned by the run of {CLEANING_HOUR:02}:00 UTC")
        return clean_before(_now() - timedelta(days=retention(conn).airflow_days))

    return run_step(context, step).as_xcom()


def summarise(context: Context) -> XCom:
    """Say what happened in the hours of the run.

    :raises DropsOverdue: something should have been dropped days ago.
    """
    start, end = interval_of(context)

    def step(conn: Any, _: int) -> Summary:
        summary = say_what_happened(conn, start, end)
        keeping.overdue(conn, _now())
        return summary

    return run_step(context, step).as_xcom()


def interval_of(context: Context) -> tuple[datetime, datetime]:
    """Return the time of the form, else the run's interval, else the last hour that is over."""
    params, dag_run = context["params"], context["dag_run"]
    if params["from"]:
        return datetime.fromisoformat(params["from"]), datetime.fromisoformat(
            params["to"] or _now().isoformat()
        )
    if dag_run.data_interval_end:
        return dag_run.data_interval_start, dag_run.data_interval_end
    end = _now().replace(minute=0, second=0, microsecond=0)
    return end - HOUR, end


def place_of(keep: Retention) -> Place:
    """Open the place to which days are exported."""
    return cast("Place", ObjectStoragePath(keep.export_to or "", conn_id=keep.export_conn_id))


def _is_backfill(context: Context) -> bool:
    return str(context["dag_run"].run_type) == "backfill"


def _now() -> datetime:
    return datetime.now(UTC)
