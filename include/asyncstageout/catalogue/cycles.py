"""Business record of one run of the submitting DAG: what it may take, what it saw, which stages are over."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from psycopg import Connection
from psycopg.types.json import Jsonb
from pydantic import BaseModel, ConfigDict, Field


class CycleParams(BaseModel):
    """What a cycle may take; the trigger form of ``stageout_transfer``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    username: str | None = None
    task: str | None = None
    source: str | None = None
    destination: str | None = None
    limit: int = Field(default=20_000, ge=1, le=1_000_000)
    """Files that the cycle takes at most."""
    dry_run: bool = False
    """Only say what would be taken."""
    created_from: datetime | None = None
    created_to: datetime | None = None
    """Backfill window over the arrival of the file, [from, to): FAILED files in it are driven again."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """One cycle and which of its stages are over; an ended stage is never run again."""

    cycle_id: int
    params: CycleParams = field(default_factory=CycleParams)
    collected_at: datetime | None = None
    grouped_at: datetime | None = None
    summarised_at: datetime | None = None

    @property
    def is_interrupted(self) -> bool:
        """Whether it has planned jobs, and has not come to its end."""
        return self.grouped_at is not None and self.summarised_at is None


def open_cycle(conn: Connection, dag_id: str, run_id: str, params: CycleParams) -> Cycle:
    """Return the last cycle of a DAG run; the first call creates it, later ones keep its parameters."""
    conn.execute(
        "INSERT INTO cycle (dag_id, run_id, params) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        (dag_id, run_id, Jsonb(params.model_dump(mode="json", exclude_none=True))),
    )
    row = conn.execute(
        "SELECT id, params, collected_at, grouped_at, summarised_at FROM cycle"
        " WHERE dag_id = %s AND run_id = %s ORDER BY round DESC LIMIT 1",
        (dag_id, run_id),
    ).fetchone()
    assert row is not None  # noqa: S101 - it was inserted above or was there
    return Cycle(row[0], CycleParams.model_validate(row[1]), *row[2:])


def open_backfill(conn: Connection, dag_id: str, run_id: str, params: CycleParams) -> Cycle:
    """Return the cycle of a run that is run by a backfill, a new one if the run has run before.

    Airflow lets the same run run again, whoever made it; the first cycle would say that all is done. One that
    has planned jobs for its window and was interrupted goes on.
    """
    cycle = open_cycle(conn, dag_id, run_id, params)
    goes_on = cycle.is_interrupted and cycle.params.created_from is not None
    if cycle.collected_at is None or goes_on:
        return cycle
    conn.execute(
        "INSERT INTO cycle (dag_id, run_id, round, params)"
        " SELECT dag_id, run_id, round + 1, %s FROM cycle WHERE id = %s ON CONFLICT DO NOTHING",
        (Jsonb(params.model_dump(mode="json", exclude_none=True)), cycle.cycle_id),
    )
    return open_cycle(conn, dag_id, run_id, params)


def end_stage(conn: Connection, cycle_id: int, stage: str) -> None:
    """Record, in the stage's transaction, that ``collected``, ``grouped`` or ``summarised`` is over."""
    column = {"collected": "collected_at", "grouped": "grouped_at", "summarised": "summarised_at"}[stage]
    conn.execute(f"UPDATE cycle SET {column} = now() WHERE id = %s AND {column} IS NULL", (cycle_id,))
