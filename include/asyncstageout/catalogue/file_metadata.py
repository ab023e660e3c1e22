"""What DBS wants to know of files, as their submitters say it, until they are published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import dict_row

from asyncstageout.catalogue.history import MOVING_LOCK, bring_back, of_history
from asyncstageout.core.crab import OWN_WORKER
from asyncstageout.core.publication import Facts

PAGE_BYTES = 4_000_000
"""A page ends early here, as the catalogue stores them; as text they are some five times as large."""


class Metadata(NamedTuple):
    """What somebody says of one file."""

    request_id: str
    task: str
    username: str
    body: str
    """A JSON object as text."""
    read: Facts | str | None = None
    """What publication needs of it; a text: why nothing can be published with it; None: not read yet."""


class Kept(NamedTuple):
    """What became of it."""

    position: int
    request_id: str
    outcome: str
    """``stored``, ``replaced``, ``unchanged`` or ``refused``."""
    reason: str | None
    """Why it was refused, or why nothing can be published with it."""


# The first thing wrong is the one that is told. They may come before the request for the file itself. A file
# that waits for them, or failed for want of better ones, is looked at again.
_PUT = """
WITH said AS (
    SELECT * FROM ROWS FROM (
        unnest(%(request_ids)s::text[]), unnest(%(tasks)s::text[]), unnest(%(usernames)s::text[]),
        unnest(%(datasets)s::text[]), unnest(%(lfns)s::text[]), unnest(%(sizes)s::bigint[]),
        unnest(%(adler32s)s::text[]), unnest(%(lumis)s::integer[]), unnest(%(events)s::bigint[]),
        unnest(%(payloads)s::bigint[]), unnest(%(problems)s::text[]),
        jsonb_array_elements(%(bodies)s::jsonb)
    ) WITH ORDINALITY AS s(request_id, task, username, dataset, lfn, size_bytes, adler32, lumis, events,
        payload_bytes, problem, body, place)
), file AS (
    SELECT request_id, task_id, username, publication, block_id FROM transfer
    WHERE request_id = ANY(%(request_ids)s)
    UNION ALL
    SELECT request_id, task_id, username, publication, block_id FROM transfer_history
    WHERE request_id = ANY(%(past)s)
), judged AS MATERIALIZED (
    SELECT s.*, m.request_id IS NOT NULL AS was_there, m.body = s.body AND m.task = s.task AS is_same, CASE
        WHEN row_number() OVER (PARTITION BY s.request_id ORDER BY s.place DESC) > 1
            THEN 'the same file comes again later in this request'
        WHEN f.username <> s.username OR m.username <> s.username OR t.username <> s.username
            THEN 'the file or its task belongs to somebody else'
        WHEN k.name <> s.task THEN 'the file belongs to another task: ' || k.name
        WHEN f.publication = 'DONE' AND m.body IS DISTINCT FROM s.body THEN 'the file is published'
        -- DBS may have been told of it already.
        WHEN f.publication = 'ACQUIRED' AND f.block_id IS NOT NULL AND m.body IS DISTINCT FROM s.body
            THEN 'the file is being published'
    END AS why
    FROM said s LEFT JOIN file f USING (request_id) LEFT JOIN file_metadata m USING (request_id)
        LEFT JOIN task k ON k.id = f.task_id LEFT JOIN task t ON t.name = s.task
), kept AS (
    INSERT INTO file_metadata AS m (request_id, task, username, body, received_by, dataset, lfn, size_bytes,
        adler32, lumis, events, payload_bytes, problem)
    SELECT request_id, task, username, body, %(by)s, dataset, lfn, size_bytes, adler32, lumis, events,
        payload_bytes, problem
    FROM judged WHERE why IS NULL AND is_same IS NOT TRUE ORDER BY request_id
    ON CONFLICT (request_id) DO UPDATE SET task = excluded.task, body = excluded.body, received_at = now(),
        received_by = excluded.received_by, dataset = excluded.dataset, lfn = excluded.lfn,
        size_bytes = excluded.size_bytes, adler32 = excluded.adler32, lumis = excluded.lumis,
        events = excluded.events, payload_bytes = excluded.payload_bytes, problem = excluded.problem
    WHERE m.username = excluded.username
    RETURNING request_id
), woken AS (
    SELECT t.id, t.publication AS was FROM transfer t JOIN kept USING (request_id)
    WHERE t.state = 'DONE' AND t.publication IN ('NEW', 'FAILED') AND NOT EXISTS (
        SELECT FROM crab_record c WHERE c.transfer_id = t.id AND c.publisher <> %(own)s)
    ORDER BY t.id FOR UPDATE OF t
), changed AS (
    UPDATE transfer t SET publication = 'NEW', block_id = NULL, due_at = now() FROM woken w
    WHERE t.id = w.id
    RETURNING t.id, w.was
), event AS (
    INSERT INTO file_event (transfer_id, kind, from_state, to_state, step_run, reason)
    SELECT id, 'publication', 'FAILED', 'NEW', %(step_run)s, 'new metadata came' FROM changed
    WHERE was = 'FAILED' ORDER BY id
)
SELECT place - 1, request_id, CASE WHEN why IS NOT NULL THEN 'refused' WHEN is_same THEN 'unchanged'
    WHEN was_there THEN 'replaced' ELSE 'stored' END, coalesce(why, problem)
FROM judged ORDER BY place
"""

_FAILED_AND_PAST = """
SELECT request_id FROM transfer_history
WHERE request_id = ANY(%s) AND state = 'DONE' AND publication = 'FAILED'
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


def put_metadata(conn: Connection, said: Sequence[Metadata], *, by: str, step_run: int) -> list[Kept]:
    """Keep what is said of files, in one statement, and say what became of each; the last word counts.

    Args:
        by: who says it, for the record.
    """
    request_ids = [one.request_id for one in said]
    facts = [one.read if isinstance(one.read, Facts) else None for one in said]
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock_shared(%s)", (MOVING_LOCK,))
        past = of_history(conn, request_ids)
        if failed := [one for (one,) in conn.execute(_FAILED_AND_PAST, (past,))]:
            bring_back(conn, failed)
        rows = conn.execute(
            _PUT,
            {
                "request_ids": request_ids,
                "past": past,
                "tasks": [one.task for one in said],
                "usernames": [one.username for one in said],
                "datasets": [one and one.dataset for one in facts],
                "lfns": [one and one.lfn for one in facts],
                "sizes": [one and one.size_bytes for one in facts],
                "adler32s": [one and one.adler32 for one in facts],
                "lumis": [one and one.lumis for one in facts],
                "events": [one and one.events for one in facts],
                "payloads": [one and one.payload_bytes for one in facts],
                "problems": [one.read if isinstance(one.read, str) else None for one in said],
                # One text: an array of texts would have each of them quoted.
                "bodies": f"[{','.join(one.body for one in said)}]",
                "by": by,
                "own": OWN_WORKER,
                "step_run": step_run,
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
