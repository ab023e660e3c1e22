"""Runs a step inside an Airflow task: catalogue connection, who runs it, record, XCom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import Asset
from psycopg import Connection

from asyncstageout.catalogue.connection import prepared
from asyncstageout.catalogue.cycles import CycleParams
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.steps.recording import Summary, recorded

CATALOGUE_CONN_ID = "stageout_db"
LABEL_LENGTH = 250
"""Characters that Airflow 3.3 keeps of a ``map_index_template`` (``task_instance.rendered_map_index``)."""


@contextmanager
def catalogue(conn_id: str = CATALOGUE_CONN_ID) -> Iterator[Connection]:
    """Open the catalogue of an Airflow connection of type ``postgres``."""
    # With SQLAlchemy 2 the hook's connections are psycopg 3's.
    with prepared(cast("Connection", PostgresHook(postgres_conn_id=conn_id).get_conn())) as conn:
        yield conn


def actor_of(task_instance: Any, name: str = "airflow") -> Actor:
    """Return who a task instance is, for the record."""
    map_index = task_instance.map_index
    return Actor(
        task_id=task_instance.task_id,
        name=name,
        dag_id=task_instance.dag_id,
        run_id=task_instance.run_id,
        map_index=-1 if map_index is None else map_index,
        try_number=task_instance.try_number,
    )


def run_step(
    context: Mapping[str, Any],
    step: Callable[[Connection, int], Summary],
    conn_id: str = CATALOGUE_CONN_ID,
    name: str = "airflow",
    *,
    label: str | None = None,
    outlet: Asset | None = None,
) -> Summary:
    """Run a step under its record.

    :param context: of the running task.
    :param step: takes the catalogue and the id of the record.
    :param name: who does it.
    :param label: key in the context of what the grid calls this part of a mapped task; its result is added.
    :param outlet: asset of the task: its event gets the result.
    """
    with catalogue(conn_id) as conn:
        summary = recorded(conn, actor_of(context["ti"], name), lambda step_run: step(conn, step_run))
    if label is not None and label in context:
        cast("dict[str, Any]", context)[label] = f"{context[label]}: {summary.sentence}"[:LABEL_LENGTH]
    if outlet is not None and "outlet_events" in context:
        context["outlet_events"][outlet].extra = summary.as_xcom()
    return summary


def is_backfill(context: Mapping[str, Any]) -> bool:
    """Say whether a backfill runs this run, be it one that was scheduled once."""
    # An enumeration whose str() is its name; its value compares.
    return bool(context["dag_run"].run_type == "backfill")


def cycle_params(context: Mapping[str, Any]) -> CycleParams:
    """Return what this run may take: its form, and for a backfill the files that arrived in its interval."""
    fields = {name: value for name, value in context["params"].items() if value not in (None, "")}
    dag_run = context["dag_run"]
    if is_backfill(context):
        fields |= {"created_from": dag_run.data_interval_start, "created_to": dag_run.data_interval_end}
    return CycleParams.model_validate(fields)
