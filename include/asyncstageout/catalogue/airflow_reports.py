"""What Airflow calls back about: tasks that failed for good, runs that are not over at their deadline."""

from __future__ import annotations

from typing import Literal, NamedTuple

from psycopg import Connection

_NOTE = """
INSERT INTO airflow_report AS r (kind, dag_id, run_id, task_id, map_index, sentence)
VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (kind, dag_id, run_id, task_id, map_index)
    DO UPDATE SET sentence = excluded.sentence, reported_at = now()
"""


class Report(NamedTuple):
    """One thing that Airflow reports."""

    kind: Literal["failed", "late"]
    dag_id: str
    run_id: str
    sentence: str
    task_id: str = ""
    map_index: int = -1


def note_report(conn: Connection, report: Report) -> None:
    """Keep what Airflow reports; the same again replaces it."""
    said = report.sentence.replace("\x00", "")[:1000]
    conn.execute(_NOTE, (*report[:3], report.task_id, report.map_index, said))
