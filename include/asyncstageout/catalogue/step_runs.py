"""Who did it: one row for each executed Airflow task try, or command of a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb


@dataclass(frozen=True, slots=True)
class Actor:
    """What runs a step. Without a DAG it is a person's command, and ``task_id`` names the command."""

    task_id: str
    name: str
    """``airflow``, or the account of the person."""
    dag_id: str | None = None
    run_id: str | None = None
    map_index: int = -1
    try_number: int = 1


def start_step(conn: Connection, actor: Actor) -> int:
    """Open the record of a step and return its id, which every event of the step carries."""
    row = conn.execute(
        "INSERT INTO step_run (dag_id, run_id, task_id, map_index, try_number, actor)"
        " VALUES (%s, %s, %s, %s, %s, %s) RETURNING id",
        (actor.dag_id, actor.run_id, actor.task_id, actor.map_index, actor.try_number, actor.name),
    ).fetchone()
    assert row is not None  # noqa: S101 - INSERT ... RETURNING gives its row
    return int(row[0])


def end_step(conn: Connection, step_run: int, *, outcome: str, sentence: str, counts: dict[str, Any]) -> None:
    """Close the record with ``success`` or ``failed``, what to tell people, and the numbers behind it."""
    conn.execute(
        "UPDATE step_run SET ended_at = clock_timestamp(), outcome = %s, sentence = %s, counts = %s"
        " WHERE id = %s",
        (outcome, sentence, Jsonb(counts), step_run),
    )
