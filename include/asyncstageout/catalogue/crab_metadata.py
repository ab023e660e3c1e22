"""CRAB's ``filemetadata`` over our own: which file a record is of, and the rows that its clients read.

CRAB knows a record by task and LFN; here it is kept under the request id of its file. What is of no file of
ours (inputs of a job, files that nobody transfers) is kept under an id made of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import Connection

from asyncstageout.catalogue.selected import Visible
from asyncstageout.core.crab import metadata_id
from asyncstageout.core.naming import request_id

MAX_BYTES = 64_000_000
"""Of one answer; CRAB's publisher asks for ten files at a time."""

_OWNER = "SELECT username FROM task WHERE name = %s"

_FILES = """
SELECT t.destination_lfn, t.request_id
FROM (SELECT * FROM transfer UNION ALL SELECT * FROM transfer_history) t JOIN task k ON k.id = t.task_id
WHERE t.destination_lfn = ANY(%(lfns)s) AND k.name = %(task)s ORDER BY t.id
"""

_ROWS = """
SELECT body, created FROM (
    SELECT body, to_char(received_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') AS created, received_at,
        request_id, sum(pg_column_size(body)) OVER (ORDER BY received_at DESC, request_id) AS so_far
    FROM file_metadata
    WHERE task = %(task)s AND body->>'filetype' = ANY(%(types)s)
        AND (%(keys)s::text[] IS NULL OR request_id = ANY(%(keys)s))
        AND (%(visible)s::text[] IS NULL OR username = ANY(%(visible)s))
    ORDER BY received_at DESC, request_id LIMIT %(limit)s
) row WHERE so_far <= %(max_bytes)s ORDER BY received_at DESC, request_id
"""

_SET_STATE = """
UPDATE file_metadata SET body = jsonb_set(body, '{state}', to_jsonb(%(state)s::text))
WHERE request_id = ANY(%(keys)s) AND task = %(task)s
    AND (%(visible)s::text[] IS NULL OR username = ANY(%(visible)s))
"""


def task_owner(conn: Connection, task: str) -> str | None:
    """Return whose task this is; None: there is none."""
    row = conn.execute(_OWNER, (task,)).fetchone()
    return str(row[0]) if row else None


def metadata_key(conn: Connection, task: str, lfn: str, temporary_lfn: str | None = None) -> str:
    """Return under which id the metadata of a file are kept: by its destination, else by where it comes from.

    PostJob inserts a file before it sends its metadata; who does it the other way round names both.
    """
    if known := _known(conn, task, [lfn]).get(lfn):
        return known
    return metadata_id(task, lfn) if temporary_lfn in (None, lfn) else request_id(str(temporary_lfn))


def _known(conn: Connection, task: str, lfns: Sequence[str]) -> dict[str, str]:
    return dict(conn.execute(_FILES, {"task": task, "lfns": list(lfns)}).fetchall())


def _keys(conn: Connection, task: str, lfns: Sequence[str]) -> list[str]:
    known = _known(conn, task, lfns)
    return [known.get(lfn) or metadata_id(task, lfn) for lfn in lfns]


def metadata_rows(
    conn: Connection,
    task: str,
    types: Sequence[str],
    visible: Visible,
    *,
    limit: int | None,
    lfns: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """Return what was said of a task's files, the newest first, as far as :data:`MAX_BYTES` go.

    Args:
        lfns: only of these files.
    """
    values = {
        "task": task,
        "types": list(types),
        "keys": None if lfns is None else _keys(conn, task, lfns),
        "visible": None if visible is None else list(visible),
        "limit": limit,
        "max_bytes": MAX_BYTES,
    }
    return [body | {"created": created} for body, created in conn.execute(_ROWS, values)]


def set_file_state(conn: Connection, task: str, lfn: str, state: str, visible: Visible) -> int:
    """Set the state that CRAB's clients keep with a file's metadata; return how many there were."""
    values = {
        "task": task, "state": state, "keys": _keys(conn, task, [lfn]),
        "visible": None if visible is None else list(visible),
    }  # fmt: skip
    return conn.execute(_SET_STATE, values).rowcount
