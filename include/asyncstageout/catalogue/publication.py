"""Publication of a task as people see it: its settings, its blocks, what failed, why, and its next try."""

from __future__ import annotations

from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row

from asyncstageout.catalogue.history import MOVING_LOCK, bring_back
from asyncstageout.catalogue.selected import MAX_FILES, Visible

_MINE = "task.name = %(task)s AND (%(visible)s::text[] IS NULL OR task.username = ANY(%(visible)s))"

_SET = f"""
UPDATE task SET dbs = coalesce(%(dbs)s, dbs), with_parents = coalesce(%(with_parents)s, with_parents),
    input_dataset = CASE WHEN %(input_dataset)s::text IS NULL THEN input_dataset
        ELSE nullif(%(input_dataset)s, '') END,
    complete_at = CASE WHEN %(is_complete)s::boolean IS NULL THEN complete_at
        WHEN %(is_complete)s THEN coalesce(complete_at, now()) END
WHERE {_MINE} RETURNING id
"""

_END = """
WITH ended AS (UPDATE task SET complete_at = now() WHERE name = ANY(%s) AND complete_at IS NULL RETURNING id)
UPDATE block b SET due_at = now() FROM ended WHERE b.task_id = ended.id AND b.state = 'OPEN'
"""

_TO_ASK = """
UPDATE task SET end_asked_at = now() WHERE id IN (
    SELECT k.id FROM block b JOIN task k ON k.id = b.task_id
    WHERE b.state = 'OPEN' AND k.complete_at IS NULL
        AND (k.end_asked_at IS NULL OR k.end_asked_at < now() - make_interval(secs => %(every_s)s))
        AND EXISTS (SELECT FROM crab_record c WHERE c.transfer_id = b.transfer_ids[1])
    ORDER BY k.end_asked_at NULLS FIRST, k.id LIMIT %(at_most)s
) RETURNING name
"""

REASONS_SHOWN = 20
FILES_ASKED_WHY = 1_000
"""Of so many failed files the reasons are looked up."""

_SHOW = f"""
WITH k AS (SELECT * FROM task WHERE {_MINE}), file AS MATERIALIZED (
    SELECT t.id, t.state, t.publication FROM transfer t JOIN k ON t.task_id = k.id
    UNION ALL
    SELECT h.id, h.state, h.publication FROM transfer_history h JOIN k ON h.task_id = k.id
), failure AS (
    SELECT e.reason, count(*) AS files FROM (
        SELECT id FROM file WHERE publication = 'FAILED' ORDER BY id LIMIT {FILES_ASKED_WHY}
    ) f CROSS JOIN LATERAL (
        SELECT reason FROM file_event WHERE transfer_id = f.id AND kind = 'publication'
        ORDER BY id DESC LIMIT 1
    ) e GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {REASONS_SHOWN}
), waiting AS (
    SELECT b.reason, count(*) AS blocks FROM block b JOIN k ON b.task_id = k.id
    WHERE b.state = 'CLOSED' AND b.reason IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {REASONS_SHOWN}
)
SELECT k.name AS task, k.username, k.dbs, k.input_dataset, k.with_parents, k.complete_at,
    (SELECT coalesce(jsonb_object_agg(publication, files), '{{}}') FROM (
        SELECT publication, count(*) AS files FROM file GROUP BY 1) p) AS files,
    (SELECT coalesce(jsonb_object_agg(state, blocks), '{{}}') FROM (
        SELECT b.state, count(*) AS blocks FROM block b WHERE b.task_id = k.id GROUP BY 1) b) AS blocks,
    (SELECT count(*) FROM file WHERE state = 'DONE' AND publication = 'NEW') AS waiting_files,
    (SELECT coalesce(jsonb_agg(to_jsonb(failure) ORDER BY files DESC, reason), '[]') FROM failure)
        AS failures,
    (SELECT coalesce(jsonb_agg(to_jsonb(waiting) ORDER BY blocks DESC, reason), '[]') FROM waiting)
        AS waiting
FROM k
"""

_BLOCKS = f"""
SELECT b.id, b.name, b.dataset, b.destination, b.dbs, b.state::text AS state,
    cardinality(b.transfer_ids) AS files, b.lumis, b.size_bytes, b.opened_at, b.closed_at, b.close_reason,
    b.due_at, b.tries, b.reason, b.settled_at, cardinality(b.parents_unknown) AS parents_unknown,
    (SELECT o.name FROM block o WHERE o.id = b.split_from) AS split_from
FROM block b JOIN task ON task.id = b.task_id
WHERE {_MINE} AND (%(before_id)s::bigint IS NULL OR b.id < %(before_id)s)
ORDER BY b.id DESC LIMIT %(limit)s
"""

_PAST = f"""
SELECT h.request_id FROM transfer_history h JOIN task ON task.id = h.task_id
WHERE {_MINE} AND h.state = 'DONE' AND h.publication = 'FAILED' ORDER BY h.id LIMIT %(at_most)s
"""

_COUNT_FAILED = f"""
SELECT count(*) FROM (
    SELECT task_id FROM transfer WHERE state = 'DONE' AND publication = 'FAILED'
    UNION ALL SELECT task_id FROM transfer_history WHERE state = 'DONE' AND publication = 'FAILED'
) f JOIN task ON task.id = f.task_id WHERE {_MINE}
"""

_RETRY = f"""
WITH chosen AS (
    SELECT t.id FROM transfer t JOIN task ON task.id = t.task_id
    WHERE {_MINE} AND t.state = 'DONE' AND t.publication = 'FAILED'
    ORDER BY t.id LIMIT %(at_most)s FOR UPDATE OF t
), changed AS (
    UPDATE transfer t SET publication = 'NEW', block_id = NULL, due_at = now() FROM chosen c
    WHERE t.id = c.id RETURNING t.id
), event AS (
    INSERT INTO file_event (transfer_id, kind, from_state, to_state, step_run, reason)
    SELECT id, 'publication', 'FAILED', 'NEW', %(step_run)s, %(comment)s FROM changed ORDER BY id
)
SELECT count(*) FROM changed
"""


def set_publication(
    conn: Connection,
    task: str,
    visible: Visible,
    *,
    input_dataset: str | None = None,
    dbs: str | None = None,
    with_parents: bool | None = None,
    is_complete: bool | None = None,
) -> bool:
    """Say how a task's files are published; what is None stays. Return whether there is such a task to see.

    Blocks that are open or closed already keep their DBS.

    Args:
        input_dataset: empty: it has none.
        is_complete: whether no more files come; then its blocks are closed as they are.
    """
    values = {
        "input_dataset": input_dataset,
        "dbs": dbs,
        "with_parents": with_parents,
        "is_complete": is_complete,
        **_who(task, visible),
    }
    with conn.transaction():
        found = conn.execute(_SET, values).fetchone()
        if found and is_complete:
            conn.execute("UPDATE block SET due_at = now() WHERE task_id = %s AND state = 'OPEN'", found)
    return found is not None


def crab_tasks_to_ask(conn: Connection, *, every_s: float, at_most: int) -> list[str]:
    """Return CRAB's tasks with open blocks of which it was not asked for so long; now they count as asked."""
    return [name for (name,) in conn.execute(_TO_ASK, {"every_s": every_s, "at_most": at_most})]


def end_tasks(conn: Connection, tasks: list[str]) -> None:
    """Write down that no more files of these tasks come."""
    conn.execute(_END, (tasks,))


def task_publication(conn: Connection, task: str, visible: Visible) -> dict[str, Any] | None:
    """Return how far a task's publication is, and why not farther; None: there is no such task to see."""
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SHOW, _who(task, visible)).fetchone()


def blocks_of_task(
    conn: Connection, task: str, visible: Visible, *, limit: int, before_id: int | None = None
) -> list[dict[str, Any]]:
    """Return a page of a task's blocks, the newest first."""
    values = _who(task, visible) | {"limit": limit, "before_id": before_id}
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_BLOCKS, values).fetchall()


def failed_publications(conn: Connection, task: str, visible: Visible) -> int:
    """Count the files that :func:`retry_publication` would send again."""
    row = conn.execute(_COUNT_FAILED, _who(task, visible)).fetchone()
    return int(row[0]) if row else 0


def retry_publication(
    conn: Connection,
    task: str,
    visible: Visible,
    *,
    comment: str,
    step_run: int,
    at_most: int = MAX_FILES,
) -> int:
    """Publish files of a task again that were given up, also those that ended long ago; return how many.

    Args:
        comment: for the history of each file.
    """
    values = _who(task, visible) | {"comment": comment, "step_run": step_run, "at_most": at_most}
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock_shared(%s)", (MOVING_LOCK,))
        if past := [request_id for (request_id,) in conn.execute(_PAST, values)]:
            bring_back(conn, past)
        row = conn.execute(_RETRY, values).fetchone()
    return int(row[0]) if row else 0


def _who(task: str, visible: Visible) -> dict[str, Any]:
    return {"task": task, "visible": None if visible is None else list(visible)}
