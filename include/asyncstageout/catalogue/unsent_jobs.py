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

from asyncstageout.catalogue.jobs import release

# Locked in one order, so that two runs never wait for each other.
_MARK = """
WITH job AS MATERIALIZED (
    SELECT sid, poster FROM fts_job WHERE sid = ANY(%(sids)s) AND state = 'PLANNED'
    ORDER BY sid FOR NO KEY UPDATE
)
UPDATE fts_job j SET poster = %(step_run)s FROM job WHERE j.sid = job.sid
RETURNING j.sid, job.poster IS NULL
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
    return release(conn, sids, reason, wait_s=0, step_run=step_run, poster=step_run)
