"""Who tells FTS about a planned job, so that one of which nobody did may go to another server.

``fts_job.poster`` is the step run that POSTs a job; each run writes itself there, and commits, before its
first byte leaves. The run that found the place empty *owns* the job: before it, nobody told FTS. A job is
released (closed, its files to be planned anew) only by its owner, and only while the owner is still its
poster. Why no other run can have told FTS about a released job, with runs A (the owner) and B:

- B marks after A and before A releases: B is the poster now, and A's release changes nothing.
- B marks after A released: the job is not PLANNED any more, is not given to B, and B does not POST it.
- B marked before A: then A did not find the place empty and is not the owner.

Both are single statements on the job's row, so one comes after the other. To take its mark back, an owner
does the same as to release. A run that dies between mark and POST leaves the job in doubt: its server is
asked (steps.reconcile, or the same POST again).
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from psycopg import Connection

# Locked in one order, so that two runs never wait for each other.
_MARK = """
WITH job AS MATERIALIZED (
    SELECT sid, poster FROM fts_job WHERE sid = ANY(%(sids)s) AND state = 'PLANNED'
    ORDER BY sid FOR NO KEY UPDATE
)
UPDATE fts_job j SET poster = %(step_run)s FROM job WHERE j.sid = job.sid
RETURNING j.sid, job.poster IS NULL
"""

_RELEASE = """
WITH ours AS MATERIALIZED (
    SELECT sid FROM fts_job WHERE sid = ANY(%(sids)s) AND state = 'PLANNED' AND poster = %(step_run)s
    ORDER BY sid FOR NO KEY UPDATE
), job AS (
    UPDATE fts_job j SET state = 'REFUSED', reason = %(reason)s, ended_at = now(), open_files = 0
    FROM ours WHERE j.sid = ours.sid RETURNING j.sid
), changed AS (
    -- A file that was being killed is in no job now, and so it is killed.
    UPDATE transfer t SET updated_at = now(), due_at = now(),
        state = (CASE t.state WHEN 'KILL' THEN 'KILLED' ELSE 'NEW' END)::transfer_state,
        ended_at = CASE t.state WHEN 'KILL' THEN now() END
    FROM job WHERE t.fts_job = job.sid AND t.state IN ('ACQUIRED', 'KILL')
    RETURNING t.id, t.state, t.attempt, t.fts_job
), event AS (
    INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, fts_job, step_run, reason)
    SELECT id, CASE state WHEN 'KILLED' THEN 'KILL' ELSE 'ACQUIRED' END::transfer_state, state, attempt,
        fts_job, %(step_run)s, %(reason)s FROM changed
)
SELECT (SELECT array_agg(sid) FROM job), (SELECT count(*) FROM changed)
"""


def mark(conn: Connection, sids: Sequence[UUID], step_run: int) -> dict[UUID, bool]:
    """Write down that this step run tells FTS about jobs from now on.

    Returns, for those of the jobs that are still PLANNED, whether this run is the first and owns them. Only
    these may be POSTed.
    """
    return dict(conn.execute(_MARK, {"sids": list(sids), "step_run": step_run}).fetchall())


def unmark(conn: Connection, sids: Sequence[UUID], step_run: int) -> None:
    """Leave jobs of which no byte has reached FTS as they were found: whoever comes next may own them.

    Args:
        sids: jobs that this step run owns.
    """
    conn.execute(
        "UPDATE fts_job SET poster = NULL WHERE sid = ANY(%s) AND state = 'PLANNED' AND poster = %s",
        (list(sids), step_run),
    )


def release_unsent(
    conn: Connection, sids: Sequence[UUID], reason: str, step_run: int
) -> tuple[set[UUID], int]:
    """Close jobs of which no byte has reached FTS and give their files back, due now; no attempt is used.

    Args:
        sids: jobs that this step run owns.

    Returns which jobs were closed (those that no other run has marked since), and how many files are free.
    """
    row = conn.execute(_RELEASE, {"sids": list(sids), "reason": reason, "step_run": step_run}).fetchone()
    closed, files = row or (None, 0)
    return set(closed or ()), int(files)
