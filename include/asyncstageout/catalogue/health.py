"""Signs of illness that the catalogue shows: what is missing, and what waits longer than it should."""

from __future__ import annotations

from datetime import date, datetime

from psycopg import Connection

from asyncstageout.catalogue.partitions import wanted_partitions


def server_version(conn: Connection) -> str:
    row = conn.execute("SHOW server_version").fetchone()
    return str(row[0]) if row else "unknown"


def missing_partitions(conn: Connection, today: date, days_ahead: int) -> list[str]:
    """Return the names of partitions that rows of today and the days ahead need and do not have."""
    wanted = [name for _, name, _, _ in wanted_partitions(today, days_ahead)]
    rows = conn.execute("SELECT n FROM unnest(%s::text[]) AS n WHERE to_regclass(n) IS NULL", (wanted,))
    return [str(name) for (name,) in rows]


def strays(conn: Connection) -> int:
    """Return how many rows lie in the default partitions, where they are in the way of a new partition."""
    row = conn.execute(
        "SELECT (SELECT count(*) FROM transfer_event_default)"
        " + (SELECT count(*) FROM file_event_default)"
        " + (SELECT count(*) FROM transfer_history_default)"
    ).fetchone()
    return int(row[0]) if row else 0


def longest_wait_s(conn: Connection) -> float | None:
    """Return for how long the file that is due the longest has been waiting for a cycle; None if none is."""
    row = conn.execute(
        "SELECT extract(epoch FROM now() - min(due_at)) FROM transfer"
        " WHERE state IN ('NEW', 'RETRY') AND driver IS NULL AND due_at <= now()"
    ).fetchone()
    return None if row is None or row[0] is None else float(row[0])


def unconfirmed_jobs(conn: Connection, older_than_s: float) -> int:
    """Return how many FTS jobs have been planned for longer than that, and FTS never confirmed them."""
    row = conn.execute(
        "SELECT count(*) FROM fts_job"
        " WHERE state = 'PLANNED' AND planned_at < now() - make_interval(secs => %s)",
        (older_than_s,),
    ).fetchone()
    return int(row[0]) if row else 0


def last_step_at(conn: Connection, dag_id: str, task_id: str) -> datetime | None:
    """Return when a step last ended well (aware UTC), or None if it never did."""
    row = conn.execute(
        "SELECT ended_at FROM step_run WHERE dag_id = %s AND task_id = %s AND outcome = 'success'"
        " ORDER BY id DESC LIMIT 1",
        (dag_id, task_id),
    ).fetchone()
    return row[0] if row else None
