"""What people and programs ask about files and tasks, live and past alike; each question is one statement."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row

from asyncstageout.core.states import FINAL_STATES, TransferState

Visible = Collection[str] | None
"""Users whose files and tasks somebody may see; None: everybody's."""

FAILURES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class TransferFilter:
    """Which files; None leaves a field open."""

    visible: Visible = None
    task: str | None = None
    username: str | None = None
    states: Collection[TransferState] | None = None
    source: str | None = None
    destination: str | None = None
    since: datetime | None = None
    """When they arrived, [since, until)."""
    until: datetime | None = None


# Without the choice of a task or a user: those have ways of their own through the index (task_id, id).
_CONDITIONS = {
    "states": "t.state = ANY(%(states)s::transfer_state[])",
    "source": "t.source = %(source)s",
    "destination": "t.destination = %(destination)s",
    "since": "t.created_at >= %(since)s",
    "until": "t.created_at < %(until)s",
}

_COLUMNS = """
    t.id, t.request_id, t.state::text AS state, k.name AS task, t.username, t.source, t.destination,
    t.source_lfn, t.destination_lfn, t.size_bytes, t.adler32, t.type::text AS type, t.activity, t.priority,
    t.job_id, t.job_retry_count, t.attempt, t.publication::text AS publication, t.already_there,
    t.failure_category, t.failure_code, t.failure_reason, j.job_id AS fts_job_id, j.fts_server, t.due_at,
    t.created_at, t.updated_at, t.ended_at
"""

# Each table gives its newest by its own index; of both, the newest stay.
_NEWEST = """
SELECT {columns} FROM (
    (SELECT * FROM transfer t WHERE {condition} ORDER BY t.id DESC LIMIT %(limit)s)
    UNION ALL
    (SELECT * FROM transfer_history t WHERE {past} ORDER BY t.id DESC LIMIT %(limit)s)
) t JOIN task k ON k.id = t.task_id LEFT JOIN fts_job j ON j.sid = t.fts_job
ORDER BY t.id DESC LIMIT %(limit)s
"""

# The newest of each of somebody's tasks, by the index (task_id, id).
_NEWEST_OF_TASKS = """
SELECT {columns} FROM task k CROSS JOIN LATERAL (
    (SELECT * FROM transfer t WHERE t.task_id = k.id AND {condition} ORDER BY t.id DESC LIMIT %(limit)s)
    UNION ALL
    (SELECT * FROM transfer_history t WHERE t.task_id = k.id AND {past}
     ORDER BY t.id DESC LIMIT %(limit)s)
) t LEFT JOIN fts_job j ON j.sid = t.fts_job WHERE {tasks}
ORDER BY t.id DESC LIMIT %(limit)s
"""

_TASK_CONDITIONS = {
    "task": "k.name = %(task)s",
    "username": "k.username = %(username)s",
    "visible": "k.username = ANY(%(visible)s::text[])",
}


def newest_transfers(
    conn: Connection, where: TransferFilter, *, limit: int, before_id: int | None = None
) -> list[dict[str, Any]]:
    """Return a page of files, the newest first; the next page is what comes before the last one's ``id``.

    A file keeps its place for ever, so that paging meets each one once, whatever arrives or ends meanwhile.
    """
    given = {name for name, value in asdict(where).items() if value is not None}
    conditions = [text for name, text in _CONDITIONS.items() if name in given]
    if before_id is not None:
        conditions.append("t.id < %(before_id)s")
    tasks = " AND ".join(text for name, text in _TASK_CONDITIONS.items() if name in given)
    query = _NEWEST_OF_TASKS if tasks else _NEWEST
    condition = " AND ".join(conditions) or "true"
    # What has not ended is in no history, however long one looks.
    past = "false" if where.states is not None and FINAL_STATES.isdisjoint(where.states) else condition
    if where.since is not None:  # Nothing ended before it arrived: whole months are left out.
        past += " AND t.ended_at >= %(since)s"
    text = query.format(columns=_COLUMNS, condition=condition, past=past, tasks=tasks)
    values = asdict(where) | {
        "states": None if where.states is None else [state.value for state in where.states],
        "visible": None if where.visible is None else list(where.visible),
        "limit": limit,
        "before_id": before_id,
    }
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(text, values).fetchall()


_JOBS = """
SELECT j.sid, j.job_id AS fts_job_id, j.fts_server, j.state::text AS state, j.fts_state, j.planned_at,
    j.submitted_at, j.ended_at, j.reason
FROM fts_job j
WHERE j.sid IN (SELECT fts_job FROM transfer_event WHERE transfer_id = %s AND to_state = 'ACQUIRED')
ORDER BY j.planned_at
"""


def jobs_of(conn: Connection, transfer_id: int) -> list[dict[str, Any]]:
    """Return the FTS jobs that a file was in, the oldest first."""
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_JOBS, (transfer_id,)).fetchall()


# A task's files are looked at once, and only where they are few bytes wide.
_FILES = """
    SELECT {columns} FROM transfer WHERE task_id = k.id
    UNION ALL
    SELECT {columns} FROM transfer_history WHERE task_id = k.id
"""

_TASKS = f"""
SELECT k.id, k.name AS task, k.username, k.created_at, counts.states, coalesce(counts.files, 0) AS files
FROM (
    SELECT * FROM task k
    WHERE (%(visible)s::text[] IS NULL OR k.username = ANY(%(visible)s))
        AND (%(username)s::text IS NULL OR k.username = %(username)s)
        AND (%(before_id)s::bigint IS NULL OR k.id < %(before_id)s)
    ORDER BY k.id DESC LIMIT %(limit)s
) k CROSS JOIN LATERAL (
    SELECT coalesce(jsonb_object_agg(state, files), '{{}}') AS states, sum(files)::bigint AS files FROM (
        SELECT state, count(*) AS files FROM ({_FILES.format(columns="state")}) file GROUP BY state
    ) state
) counts ORDER BY k.id DESC
"""

_TASK = f"""
WITH k AS (
    SELECT * FROM task WHERE name = %(task)s
        AND (%(visible)s::text[] IS NULL OR username = ANY(%(visible)s))
), file AS MATERIALIZED (
    SELECT file.* FROM k CROSS JOIN LATERAL ({
    _FILES.format(
        columns="state, publication, size_bytes, created_at, ended_at, failure_category, failure_reason"
    )
}) file
), by_state AS (
    SELECT state, count(*) AS files, sum(size_bytes)::bigint AS size_bytes FROM file GROUP BY state
), by_publication AS (
    SELECT publication, count(*) AS files FROM file GROUP BY publication
), failure AS (
    SELECT state, failure_category AS category, count(*) AS files, min(failure_reason) AS example FROM file
    WHERE state IN ('FAILED', 'RETRY') AND failure_category IS NOT NULL GROUP BY 1, 2
    ORDER BY 3 DESC, 2, 1 LIMIT {FAILURES_SHOWN}
)
SELECT k.name AS task, k.username, k.vo_group, k.vo_role, k.created_at,
    (SELECT coalesce(sum(files), 0)::bigint FROM by_state) AS files,
    (SELECT coalesce(sum(size_bytes), 0)::bigint FROM by_state) AS size_bytes,
    (SELECT coalesce(jsonb_object_agg(state, files), '{{}}') FROM by_state) AS states,
    (SELECT coalesce(jsonb_object_agg(state, size_bytes), '{{}}') FROM by_state) AS bytes_by_state,
    (SELECT coalesce(jsonb_object_agg(publication, files), '{{}}') FROM by_publication) AS publication,
    (SELECT min(created_at) FROM file WHERE state IN ('NEW', 'RETRY')) AS oldest_waiting_at,
    (SELECT max(ended_at) FROM file) AS last_ended_at,
    (SELECT coalesce(jsonb_agg(to_jsonb(failure) ORDER BY files DESC, category), '[]') FROM failure)
        AS failures
FROM k
"""


def newest_tasks(
    conn: Connection,
    visible: Visible,
    *,
    limit: int,
    username: str | None = None,
    before_id: int | None = None,
) -> list[dict[str, Any]]:
    """Return a page of tasks with their files by state, the newest first."""
    values = {
        "visible": None if visible is None else list(visible),
        "username": username,
        "before_id": before_id,
        "limit": limit,
    }
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_TASKS, values).fetchall()


def task_summary(conn: Connection, task: str, visible: Visible) -> dict[str, Any] | None:
    """Return what there is to say about a task's files, or None if there is no such task to see."""
    values = {"task": task, "visible": None if visible is None else list(visible)}
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_TASK, values).fetchone()


def task_exists(conn: Connection, task: str, visible: Visible) -> bool:
    """Say whether there is such a task to see."""
    values = {"task": task, "visible": None if visible is None else list(visible)}
    row = conn.execute(
        "SELECT FROM task WHERE name = %(task)s"
        " AND (%(visible)s::text[] IS NULL OR username = ANY(%(visible)s))",
        values,
    ).fetchone()
    return row is not None
