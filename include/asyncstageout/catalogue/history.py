"""Moves finished rows out of the live table, so that the cost of live work does not grow with the past."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import Connection

MOVING_LOCK = 0x5A53
"""Held shared while a request is looked for in both places: a row that moves may be seen in neither."""
KEEP_DONE_S = 86_400.0
KEEP_FAILED_S = 30 * 86_400.0
"""Failed files stay within reach of an operator's retry for a month."""

_MOVE = """
WITH old AS (
    SELECT id FROM transfer
    WHERE ended_at < now() - make_interval(secs => %(keep_done_s)s)
        AND (state <> 'FAILED' OR ended_at < now() - make_interval(secs => %(keep_failed_s)s))
        AND publication IN ('NOT_REQUIRED', 'DONE', 'FAILED')
    ORDER BY ended_at LIMIT %(at_most)s
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM transfer t USING old WHERE t.id = old.id RETURNING t.*
), known AS (
    INSERT INTO past_request (key, transfer_id)
    SELECT hashtextextended(request_id, 0), id FROM gone ORDER BY 1
    ON CONFLICT DO NOTHING
)
INSERT INTO transfer_history SELECT * FROM gone
"""

LIVE_COLUMNS = (
    "id, request_id, task_id, username, identity, source, destination, source_lfn, destination_lfn,"
    " size_bytes, adler32, type, activity, priority, job_id, job_retry_count, state, due_at, attempt,"
    " fts_job, fts_file_id, failure_category, failure_code, failure_scope, failure_errno, failure_reason,"
    " publication, created_at, updated_at, fts_finished_at, ended_at, driver, block_id, origin, cleaned_at,"
    " already_there"
)
"""All columns of ``transfer`` but the generated ones."""

IN_HISTORY = """
EXISTS (
    SELECT FROM past_request p WHERE p.key = hashtextextended({request_id}, 0) AND EXISTS (
        SELECT FROM transfer_history h WHERE h.id = p.transfer_id AND h.request_id = {request_id} OFFSET 0)
    OFFSET 0)
"""
"""SQL: the history has this request. For one that it has not this is one look, however many months it has.

OFFSET 0: row by row, and one after the other; else the whole history might be read, to be joined.
"""

_OF_HISTORY = f"""
SELECT wanted.id FROM unnest(%s::text[]) AS wanted(id) WHERE {IN_HISTORY.format(request_id="wanted.id")}
"""

# Its entry in past_request stays: the file comes to the history again, and until then it is not found there.
_BRING_BACK = f"""
WITH gone AS (DELETE FROM transfer_history WHERE request_id = ANY(ARRAY({_OF_HISTORY})) RETURNING *)
INSERT INTO transfer ({LIVE_COLUMNS}) SELECT {LIVE_COLUMNS} FROM gone
"""


def move_finished(
    conn: Connection,
    *,
    keep_done_s: float = KEEP_DONE_S,
    keep_failed_s: float = KEEP_FAILED_S,
    at_most: int = 20_000,
) -> int:
    """Move up to ``at_most`` rows that ended long enough ago to the history; return how many."""
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (MOVING_LOCK,))
        return conn.execute(
            _MOVE, {"keep_done_s": keep_done_s, "keep_failed_s": keep_failed_s, "at_most": at_most}
        ).rowcount


def bring_back(conn: Connection, request_ids: Sequence[str]) -> int:
    """Move files out of the history, so that they can be worked on again; return how many were there.

    Call it in a transaction that holds :data:`MOVING_LOCK` shared.
    """
    return conn.execute(_BRING_BACK, (list(request_ids),)).rowcount


def of_history(conn: Connection, request_ids: Sequence[str]) -> list[str]:
    """Return those of some requests whose files are in the history."""
    return [request_id for (request_id,) in conn.execute(_OF_HISTORY, (list(request_ids),))]
