"""The last FTS jobs of a link, and what failed in them: samples for people. Reads only."""

from __future__ import annotations

from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row

from asyncstageout.core.planning import Link

JOBS_SHOWN = 25
FAILURES_SHOWN = 25

# By the index fts_job_of_link.
_JOBS = """
SELECT j.sid, j.job_id, j.fts_server, j.identity, j.state::text AS state, j.fts_state,
    cardinality(j.transfer_ids) AS files, j.open_files, j.size_bytes, j.planned_at, j.submitted_at,
    j.ended_at, j.reason,
    extract(epoch FROM coalesce(j.ended_at, now()) - coalesce(j.submitted_at, j.planned_at))::float8 AS took_s
FROM fts_job j WHERE j.source = %(source)s AND j.destination = %(destination)s
ORDER BY j.planned_at DESC LIMIT %(jobs)s
"""

# By the index fts_job_of_link, then each file by its key; LIMIT keeps the planner from reading the table.
_FAILURES = """
WITH job AS MATERIALIZED (
    SELECT sid, job_id, transfer_ids FROM fts_job
    WHERE source = %(source)s AND destination = %(destination)s ORDER BY planned_at DESC LIMIT %(jobs)s
)
SELECT t.id, t.state::text AS state, k.username, k.name AS task, t.source_lfn, t.attempt, t.failure_category,
    t.failure_reason, t.updated_at, j.job_id
FROM job j CROSS JOIN LATERAL unnest(j.transfer_ids) AS u(id) CROSS JOIN LATERAL (
    SELECT * FROM transfer WHERE id = u.id LIMIT 1
) t JOIN task k ON k.id = t.task_id
WHERE t.fts_job = j.sid AND t.state IN ('RETRY', 'FAILED') AND t.failure_category IS NOT NULL
ORDER BY t.updated_at DESC LIMIT %(limit)s
"""


def last_jobs(conn: Connection, link: Link, *, limit: int = JOBS_SHOWN) -> list[dict[str, Any]]:
    """Return the last FTS jobs of a link, the newest first."""
    return _rows(conn, _JOBS, link, jobs=limit)


def last_failures(conn: Connection, link: Link, *, limit: int = FAILURES_SHOWN) -> list[dict[str, Any]]:
    """Return live files whose last attempt failed in one of the last FTS jobs of a link, the newest first."""
    return _rows(conn, _FAILURES, link, jobs=JOBS_SHOWN, limit=limit)


def _rows(conn: Connection, query: str, link: Link, **values: int) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, {**link._asdict(), **values}).fetchall()
