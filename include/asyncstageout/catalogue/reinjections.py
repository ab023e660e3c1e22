"""Files that a later retry of their job hands over again: all in one statement, each move on record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from psycopg import Connection

from asyncstageout.core.reinjections import REINJECTIONS, REPUBLICATIONS
from asyncstageout.core.retries import CANCELLED_COPY_S
from asyncstageout.core.states import TransferState


class Again(NamedTuple):
    """A file as the later retry hands it over."""

    request_id: str
    task: str
    username: str
    source: str
    destination: str
    destination_lfn: str
    size_bytes: int
    adler32: str | None
    job_id: str
    job_retry_count: int
    publish: bool
    said: TransferState
    """NEW: it is to be moved; DONE: it was written straight to its destination."""


TAKEN = "another file is on its way to its destination"

# The events of a path: each starts where the one before ended; acceptance by FTS uses an attempt.
EVENTS = """
    INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, step_run, reason)
    SELECT c.id, coalesce(c.path[p.place - 1], c.from_state), p.to_state,
        c.base + coalesce(array_position(c.path, 'SUBMITTED'::transfer_state) <= p.place, false)::integer,
        %(step_run)s, c.reason
    FROM changed c CROSS JOIN LATERAL unnest(c.path) WITH ORDINALITY AS p(to_state, place)
    ORDER BY c.id, p.place
"""

# What is wrong is told in the order in which a person would ask. Of two files of one destination one goes.
# A file leaves its block as long as that is open; of one that is closed DBS may have been told.
_SEND_AGAIN = f"""
WITH asked AS (
    SELECT * FROM unnest(%(ids)s::text[], %(tasks)s::text[], %(usernames)s::text[], %(sources)s::text[],
        %(destinations)s::text[], %(destination_lfns)s::text[], %(sizes)s::bigint[], %(adlers)s::text[],
        %(job_ids)s::text[], %(counts)s::smallint[], %(publishes)s::boolean[], %(saids)s::transfer_state[])
        AS a(request_id, task, username, source, destination, destination_lfn, size_bytes, adler32, job_id,
            job_retry_count, publish, said)
), way AS (
    SELECT state, said, string_to_array(path, ',')::transfer_state[] AS path
    FROM unnest(%(froms)s::transfer_state[], %(tos)s::transfer_state[], %(paths)s::text[])
        AS w(state, said, path)
), publication AS (
    SELECT * FROM unnest(%(weres)s::publication_state[], %(unwanted)s::publication_state[],
        %(wanted)s::publication_state[]) AS p(state, unwanted, wanted)
), seen AS (
    SELECT t.id, t.state, t.driver, t.publication, t.destination_key, t.destination AS going,
        t.destination_lfn AS going_lfn, t.username AS owner, k.name AS known_task,
        t.job_retry_count AS count_before, t.source AS source_before, t.size_bytes AS size_before,
        t.adler32 AS adler32_before, t.block_id, a.*
    FROM asked a JOIN transfer t USING (request_id) JOIN task k ON k.id = t.task_id
    WHERE t.job_retry_count < a.job_retry_count OR NOT %(newer_only)s
    ORDER BY t.id FOR UPDATE OF t
), open_block AS MATERIALIZED (
    SELECT b.id FROM block b WHERE b.id IN (SELECT block_id FROM seen WHERE publication = 'ACQUIRED')
        AND b.state = 'OPEN' ORDER BY b.id FOR UPDATE
), judged AS MATERIALIZED (
    SELECT s.*, w.path, CASE s.publish WHEN true THEN p.wanted ELSE p.unwanted END AS publication_then, CASE
        WHEN (s.known_task, s.owner) <> (s.task, s.username)
            THEN 'it is a file of task ' || s.known_task || ' of ' || s.owner
        WHEN (s.going, s.going_lfn) <> (s.destination, s.destination_lfn)
            THEN 'it belongs at ' || s.going || ', as ' || s.going_lfn
        WHEN w.path IS NULL OR (s.state = 'ACQUIRED' AND (s.driver IS NULL OR NOT %(from_worker)s))
            THEN 'it is ' || s.state || ': its transfer has to end first; kill it, or wait'
        WHEN s.publication = 'ACQUIRED' AND b.id IS NULL
            THEN 'it is being published: send it again when that has ended'
        WHEN s.said = 'NEW' AND s.state IN ('DONE', 'FAILED', 'KILLED')
            AND (EXISTS (SELECT FROM transfer o WHERE o.destination_key = s.destination_key
                    AND o.state NOT IN ('DONE', 'FAILED', 'KILLED'))
                OR s.id <> min(s.id) OVER (PARTITION BY s.destination_key)) THEN '{TAKEN}'
        END AS why
    FROM seen s LEFT JOIN way w ON w.state = s.state AND w.said = s.said
        JOIN publication p ON p.state = s.publication
        LEFT JOIN open_block b ON b.id = s.block_id
), changed AS (
    UPDATE transfer t SET source = j.source, size_bytes = j.size_bytes, adler32 = j.adler32,
        job_id = j.job_id, job_retry_count = j.job_retry_count, already_there = j.said = 'DONE',
        origin = coalesce(%(origin)s, t.origin),
        publication = j.publication_then, updated_at = now(),
        block_id = CASE WHEN j.publication = 'DONE' THEN t.block_id END,
        state = coalesce(j.path[cardinality(j.path)], j.state),
        ended_at = CASE WHEN coalesce(j.path[cardinality(j.path)], j.state) = 'DONE' THEN now() END,
        due_at = greatest(now() + make_interval(secs => %(grace_s)s),
            CASE WHEN j.state = 'KILLED' AND t.fts_job IS NOT NULL
                THEN t.ended_at + make_interval(secs => {CANCELLED_COPY_S}) END),
        attempt = CASE WHEN j.path <> '{{}}' AND j.state IN ('DONE', 'FAILED', 'KILLED') THEN 0
            ELSE t.attempt END,
        driver = CASE WHEN j.path = '{{}}' THEN t.driver END,
        fts_job = CASE WHEN j.path = '{{}}' THEN t.fts_job END,
        fts_file_id = NULL, fts_finished_at = NULL, failure_category = NULL, failure_code = NULL,
        failure_scope = NULL, failure_errno = NULL, failure_reason = NULL
    FROM judged j WHERE t.id = j.id AND j.why IS NULL
    RETURNING t.id, j.state AS from_state, j.path, t.attempt AS base, j.publication AS was, t.publication,
        j.count_before, t.job_retry_count, t.source, j.request_id, j.block_id, j.size_before,
        'sent again by retry ' || t.job_retry_count || ' of its job' AS reason,
        concat_ws('; ', CASE WHEN j.source_before <> t.source THEN 'before at ' || j.source_before END,
            'before ' || j.size_before || ' bytes, adler32 ' || coalesce(j.adler32_before, 'unknown'),
            CASE WHEN t.publication = 'DONE'
                THEN 'it stays published as it was: DBS cannot change a file''s record' END) AS details
), left_block AS (
    SELECT c.block_id, array_agg(c.id) AS ids, sum(c.size_before) AS size_bytes,
        coalesce(sum(m.lumis), 0) AS lumis, coalesce(sum(m.payload_bytes), 0) AS payload_bytes
    FROM changed c LEFT JOIN file_metadata m USING (request_id) WHERE c.was = 'ACQUIRED' GROUP BY c.block_id
), emptied AS (
    UPDATE block b SET lumis = greatest(b.lumis - l.lumis, 0),
        payload_bytes = greatest(b.payload_bytes - l.payload_bytes, 0),
        size_bytes = greatest(b.size_bytes - l.size_bytes, 0),
        transfer_ids = ARRAY(SELECT u.id FROM unnest(b.transfer_ids) WITH ORDINALITY AS u(id, place)
            WHERE u.id <> ALL(l.ids) ORDER BY u.place)
    FROM left_block l WHERE b.id = l.block_id
), event AS ({EVENTS}), around AS (
    INSERT INTO file_event (transfer_id, kind, from_state, to_state, subject, step_run, reason)
    SELECT id, 'request', 'retry ' || count_before, 'retry ' || job_retry_count, source, %(step_run)s, details
    FROM changed
    UNION ALL
    SELECT id, 'publication', was::text, publication::text, NULL, %(step_run)s, reason FROM changed
    WHERE was <> publication
)
SELECT request_id, why FROM judged
"""


def reinject(
    conn: Connection,
    files: Sequence[Again],
    *,
    step_run: int,
    origin: str | None = None,
    newer_only: bool = True,
    from_worker: bool = False,
    grace_s: float = 0.0,
) -> dict[str, str | None]:
    """Send files again with what their later retry says of them: NEW, or changed where they wait.

    Call it in a transaction that holds ``history.MOVING_LOCK`` shared, after
    :func:`asyncstageout.catalogue.history.bring_back`.

    Args:
        origin: the collected source that they come from; None: as before.
        newer_only: pass over files that came with the same retry, or a later one, already.
        from_worker: also files that a worker of CRAB has and FTS does not.
        grace_s: how long no cycle takes them.

    Returns, for each file that was not passed over, None, or why it stays as it is.

    Raises:
        UniqueViolation, DeadlockDetected: somebody else took a destination, or a file, at this moment.
    """
    columns = list(zip(*files, strict=True)) or [()] * len(Again._fields)
    names = (
        "ids", "tasks", "usernames", "sources", "destinations", "destination_lfns", "sizes", "adlers",
        "job_ids", "counts", "publishes", "saids",
    )  # fmt: skip
    rows = conn.execute(
        _SEND_AGAIN,
        {
            **{name: list(column) for name, column in zip(names, columns, strict=True)},
            "froms": [state for state, _ in REINJECTIONS],
            "tos": [said for _, said in REINJECTIONS],
            "paths": [",".join(path) for path in REINJECTIONS.values()],
            "weres": list(REPUBLICATIONS),
            "unwanted": [unwanted for unwanted, _ in REPUBLICATIONS.values()],
            "wanted": [wanted for _, wanted in REPUBLICATIONS.values()],
            "newer_only": newer_only,
            "from_worker": from_worker,
            "grace_s": grace_s,
            "step_run": step_run,
            "origin": origin,
        },
    )
    return dict(rows.fetchall())
