"""What DBS wants to know of files, as their submitters say it, until they are published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import dict_row

from asyncstageout.catalogue.history import MOVING_LOCK

PAGE_BYTES = 4_000_000
"""A page ends early here, as the catalogue stores them; as text they are some five times as large."""


class Metadata(NamedTuple):
    """What somebody says of one file."""

    request_id: str
    task: str
    username: str
    body: str
    """A JSON object as text."""


class Kept(NamedTuple):
    """What became of it."""

    position: int
    request_id: str
    outcome: str
    """``stored``, ``replaced``, ``unchanged`` or ``refused``."""
    reason: str | None


# The first thing wrong is the one that is told. They may come before the request for the file itself.
_PUT = """
WITH said AS (
    SELECT * FROM ROWS FROM (
        unnest(%(request_ids)s::text[]), unnest(%(tasks)s::text[]), unnest(%(usernames)s::text[]),
        jsonb_array_elements(%(bodies)s::jsonb)
    ) WITH ORDINALITY AS s(request_id, task, username, body, place)
), file AS (
    SELECT request_id, task_id, username, publication FROM transfer WHERE request_id = ANY(%(request_ids)s)
    UNION ALL
    SELECT request_id, task_id, username, publication FROM transfer_history
    WHERE request_id = ANY(%(request_ids)s)
), judged AS MATERIALIZED (
    SELECT s.*, m.request_id IS NOT NULL AS was_there, m.body = s.body AND m.task = s.task AS is_same, CASE
        WHEN row_number() OVER (PARTITION BY s.request_id ORDER BY s.place DESC) > 1
            THEN 'the same file comes again later in this request'
        WHEN f.username <> s.username OR m.username <> s.username OR t.username <> s.username
            THEN 'the file or its task belongs to somebody else'
        WHEN k.name <> s.task THEN 'the file belongs to another task: ' || k.name
        WHEN f.publication = 'DONE' AND m.body IS DISTINCT FROM s.body THEN 'the file is published'
    END AS why
    FROM said s LEFT JOIN file f USING (request_id) LEFT JOIN file_metadata m USING (request_id)
        LEFT JOIN task k ON k.id = f.task_id LEFT JOIN task t ON t.name = s.task
), kept AS (
    INSERT INTO file_metadata AS m (request_id, task, username, body, received_by)
    SELECT request_id, task, username, body, %(by)s FROM judged
    WHERE why IS NULL AND is_same IS NOT TRUE ORDER BY request_id
    ON CONFLICT (request_id) DO UPDATE SET task = excluded.task, body = excluded.body, received_at = now(),
        received_by = excluded.received_by WHERE m.username = excluded.username
)
SELECT place - 1, request_id, CASE WHEN why IS NOT NULL THEN 'refused' WHEN is_same THEN 'unchanged'
    WHEN was_there THEN 'replaced' ELSE 'stored' END, why
FROM judged ORDER BY place
"""

_PAGE = """
SELECT request_id, task, username, body, received_at, received_by, found FROM (
    SELECT *, count(*) OVER () AS found,
        sum(pg_column_size(body)) OVER (ORDER BY request_id) - pg_column_size(body) AS before_bytes
    FROM (
        SELECT * FROM file_metadata WHERE task = %(task)s AND request_id > %(after)s
        ORDER BY request_id LIMIT %(limit)s
    ) page
) page WHERE before_bytes < %(page_bytes)s ORDER BY request_id
"""


def put_metadata(conn: Connection, said: Sequence[Metadata], *, by: str) -> list[Kept]:
    """Keep what is said of files, in one statement, and say what became of each; the last word counts.

    Args:
        by: who says it, for the record.
    """
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock_shared(%s)", (MOVING_LOCK,))
        rows = conn.execute(
            _PUT,
            {
                "request_ids": [one.request_id for one in said],
                "tasks": [one.task for one in said],
                "usernames": [one.username for one in said],
                # One text: an array of texts would have each of them quoted.
                "bodies": f"[{','.join(one.body for one in said)}]",
                "by": by,
            },
        ).fetchall()
    return [Kept(*row) for row in rows]


def metadata_of_task(
    conn: Connection, task: str, *, limit: int, after: str = ""
) -> tuple[list[dict[str, Any]], bool]:
    """Return a page in the order of the request ids, and whether there is more behind it.

    It may end early (:data:`PAGE_BYTES`), never empty.
    """
    values = {"task": task, "after": after, "limit": limit + 1, "page_bytes": PAGE_BYTES}
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_PAGE, values).fetchall()
    found = max((row.pop("found") for row in rows), default=0)
    return rows[:limit], found > len(rows[:limit])
