"""A day of the past as rows for a file: files that ended in it, and events; each in one statement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import NamedTuple

from psycopg import Connection, sql

from asyncstageout.catalogue.retention import midnight

Block = bytes | bytearray | memoryview
VERSION = 1
"""Of the columns; a change that a reader notices makes it another one."""


class Column(NamedTuple):
    """A column of an export: its name, its type in Arrow's words, and where it comes from."""

    name: str
    type: str
    expression: str


def _columns(text: str) -> tuple[Column, ...]:
    """Read ``name type [expression]`` lines."""
    parts = [line.split(maxsplit=2) for line in text.strip().splitlines()]
    return tuple(Column(name, kind, *(rest or [name])) for name, kind, *rest in parts)


COLUMNS: dict[str, tuple[Column, ...]] = {
    "transfer": _columns("""
        id               int64      f.id
        request_id       string     f.request_id
        task             string     k.name
        username         string     f.username
        vo_group         string     k.vo_group
        vo_role          string     k.vo_role
        identity         string     f.identity
        source           string     f.source
        destination      string     f.destination
        source_lfn       string     f.source_lfn
        destination_lfn  string     f.destination_lfn
        size_bytes       int64      f.size_bytes
        adler32          string     f.adler32
        type             string     f.type
        activity         string     f.activity
        priority         int32      f.priority
        job_id           string     f.job_id
        job_retry_count  int32      f.job_retry_count
        state            string     f.state
        attempts         int32      f.attempt
        sid              string     f.fts_job
        fts_job_id       string     j.job_id
        fts_server       string     j.fts_server
        failure_category string     f.failure_category
        failure_code     int32      f.failure_code
        failure_reason   string     f.failure_reason
        publication      string     f.publication
        driver           string     f.driver
        created_at       timestamp  f.created_at
        fts_finished_at  timestamp  f.fts_finished_at
        ended_at         timestamp  f.ended_at
    """),
    "transfer_event": _columns("""
        id               int64      e.id
        transfer_id      int64      e.transfer_id
        at               timestamp  e.at
        from_state       string     e.from_state
        to_state         string     e.to_state
        attempt          int32      e.attempt
        sid              string     e.fts_job
        failure_category string     e.failure_category
        reason           string     e.reason
        actor            string     s.actor
        dag_id           string     s.dag_id
        run_id           string     s.run_id
        task_id          string     s.task_id
    """),
    "file_event": _columns("""
        id               int64      e.id
        transfer_id      int64      e.transfer_id
        at               timestamp  e.at
        kind             string     e.kind
        from_state       string     e.from_state
        to_state         string     e.to_state
        subject          string     e.subject
        reason           string     e.reason
        actor            string     s.actor
        dag_id           string     s.dag_id
        run_id           string     s.run_id
        task_id          string     s.task_id
    """),
}

_ENDED = (
    "SELECT id, request_id, task_id, username, identity, source, destination, source_lfn, destination_lfn,"
    " size_bytes, adler32, type, activity, priority, job_id, job_retry_count, state, attempt, fts_job,"
    " failure_category, failure_code, failure_reason, publication, driver, created_at, fts_finished_at,"
    " ended_at FROM {table} WHERE ended_at >= {{start}} AND ended_at < {{end}}"
)
_FROM = {
    "transfer": f"({_ENDED.format(table='transfer')} UNION ALL {_ENDED.format(table='transfer_history')}) f"
    " JOIN task k ON k.id = f.task_id LEFT JOIN fts_job j ON j.sid = f.fts_job",
    "transfer_event": "transfer_event e LEFT JOIN step_run s ON s.id = e.step_run"
    " WHERE e.at >= {start} AND e.at < {end}",
    "file_event": "file_event e LEFT JOIN step_run s ON s.id = e.step_run"
    " WHERE e.at >= {start} AND e.at < {end}",
}


class DayRows:
    """The rows of a day as CSV without a header: NULL is empty, an empty text is ``""``."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self.blocks = blocks
        self.count: int | None = None
        """How many they were, as Postgres says when all are read."""


@contextmanager
def rows_of_day(conn: Connection, table: str, day: date) -> Iterator[DayRows]:
    """Read a day (UTC) of a table in :data:`COLUMNS` as it is at this moment; it is never whole in memory."""
    select = ", ".join(f"{column.expression} AS {column.name}" for column in COLUMNS[table])
    query = sql.SQL(f"COPY (SELECT {select} FROM {_FROM[table]}) TO STDOUT (FORMAT csv)").format(
        start=sql.Literal(midnight(day)), end=sql.Literal(midnight(day + timedelta(days=1)))
    )
    with conn.cursor() as cursor, cursor.copy(query) as copy:

        def blocks() -> Iterator[Block]:
            yield from copy
            rows.count = cursor.rowcount

        rows = DayRows(blocks())
        yield rows
